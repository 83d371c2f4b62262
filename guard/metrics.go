package guard

import "net/netip"

// MetricsConfig says where the figures are to be had by Prometheus, and by whom.
type MetricsConfig struct {
	// Listen is an address and port; empty: nowhere.
	Listen string `yaml:"listen"`
	// TLSCertFile and TLSKeyFile are given both, or neither.
	TLSCertFile string `yaml:"tls_cert_file"`
	TLSKeyFile  string `yaml:"tls_key_file"`
	// BearerTokenFile, or Username with PasswordFile, is what askers must show.
	BearerTokenFile string `yaml:"bearer_token_file"`
	Username        string `yaml:"username"`
	PasswordFile    string `yaml:"password_file"`
}

// check tells what is wrong with c. The files are not looked at: they may come
// later.
func (c *MetricsConfig) check() error {
	bad := func(msg, key string) error { return badKey(msg, "metrics", key) }
	if c.Listen != "" {
		at, err := netip.ParseAddrPort(c.Listen)
		if err != nil || at.Port() == 0 {
			return bad("want an address and port, as 127.0.0.1:9101 or [::]:9101", "listen")
		}
	}
	switch {
	case (c.TLSCertFile == "") != (c.TLSKeyFile == ""):
		return bad("a certificate needs its key, and a key its certificate: give both, or neither", "tls_cert_file")
	case (c.Username == "") != (c.PasswordFile == ""):
		return bad("a user needs a password file, and a password file a user: give both, or neither", "username")
	case c.BearerTokenFile != "" && c.Username != "":
		return bad("want either a token, or user and password", "bearer_token_file")
	}
	return nil
}

// Local says that nobody but this host's own programs can ask.
func (c *MetricsConfig) Local() bool {
	at, err := netip.ParseAddrPort(c.Listen)
	return err != nil || at.Addr().Unmap().IsLoopback()
}

// Secret says that askers must show something.
func (c *MetricsConfig) Secret() bool { return c.BearerTokenFile != "" || c.PasswordFile != "" }
