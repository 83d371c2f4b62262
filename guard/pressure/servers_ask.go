package pressure

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lvsguard/lvsguard/internal/secret"
)

// placeholder stands for the server's address in a URL of the configuration.
const placeholder = "{address}"

// A serverURL is a URL of the configuration, cut at the address.
type serverURL struct {
	before, after string
	query         string // with its question mark
}

// parseServerURL checks a URL of the configuration. It must be the server itself
// that is asked, and a URL is shown to people, so that it can have no password.
func parseServerURL(pattern string) (serverURL, error) {
	bad := func(why string) (serverURL, error) {
		return serverURL{}, fmt.Errorf("URL for real servers %q: %s, as in http://%s:9100/metrics", pattern, why, placeholder)
	}
	const example = "192.0.2.1"
	u, err := url.Parse(strings.ReplaceAll(pattern, placeholder, example))
	switch {
	case err != nil:
		return serverURL{}, errors.New("a URL for real servers cannot be read, want one as http://" + placeholder + ":9100/metrics")
	case u.User != nil: // not shown: it may be a password
		return serverURL{}, errors.New("a URL for real servers has a user or password in it: use those keys of the configuration, with the password in a file")
	case u.Scheme != "http" && u.Scheme != "https":
		return bad("want http or https")
	case strings.Count(pattern, placeholder) != 1 || u.Hostname() != example:
		return bad("want " + placeholder + " as its host")
	case u.Fragment != "":
		return bad("want no #")
	}
	before, after, _ := strings.Cut(pattern, placeholder)
	after, query, asks := strings.Cut(after, "?")
	if asks {
		query = "?" + query
	}
	return serverURL{before: before, after: after, query: query}, nil
}

func (u serverURL) full(a netip.Addr) string { return u.shown(a) + u.query }

// shown is what people see of it.
func (u serverURL) shown(a netip.Addr) string {
	host := a.String()
	if a.Is6() {
		host = "[" + strings.ReplaceAll(host, "%", "%25") + "]" // a zone is written so in a URL
	}
	return u.before + host + u.after
}

func serversTLS(cfg ServersConfig) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName}
	if cfg.CAFile != "" {
		var err error
		if conf.RootCAs, err = secret.Authorities(cfg.CAFile); err != nil {
			return nil, fmt.Errorf("read the authorities of real servers: %w", err)
		}
	}
	return conf, nil
}

// readSecret makes the Authorization header, empty if none is wanted. No error
// of it has anything of what the file holds.
func readSecret(cfg ServersConfig) (string, error) {
	name, what := cfg.BearerTokenFile, "bearer token"
	if cfg.PasswordFile != "" {
		name, what = cfg.PasswordFile, "password"
	}
	if name == "" {
		return "", nil
	}
	text, err := secret.Read(name)
	if err != nil {
		return "", fmt.Errorf("read the %s for real servers: %w", what, err)
	}
	if cfg.PasswordFile != "" {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.User+":"+text)), nil
	}
	return "Bearer " + text, nil
}

// An asker asks one server after the other.
type asker struct {
	client   *http.Client
	auth     string
	maxBytes int64
	page     page
}

// read gets a server's figures.
func (a *asker) read(ctx context.Context, url string) (*reading, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	req.Header.Set("User-Agent", "lvsguard")
	if a.auth != "" {
		req.Header.Set("Authorization", a.auth)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, shorter(err)
	}
	defer resp.Body.Close()
	at := time.Now()
	switch code := resp.StatusCode; {
	case code >= 300 && code < 400:
		return nil, fmt.Errorf("it answers %d %s, and no redirect is followed: put the right URL into the configuration", code, http.StatusText(code))
	case code != http.StatusOK:
		return nil, fmt.Errorf("it answers %d %s", code, http.StatusText(code))
	}
	r, err := a.page.read(resp.Body, a.maxBytes)
	if err != nil {
		return nil, err
	}
	r.at = at
	return r, nil
}

// shorter takes off an error what is said elsewhere: the URL, and the addresses
// of the connection.
func shorter(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("it closes the connection without an answer")
	}
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	if outer, ok := errors.AsType[*net.OpError](err); ok && outer.Err != nil {
		err = outer.Err
	}
	return err
}

func joinReasons(reasons []error) error {
	var all []string
	for _, err := range reasons {
		all = append(all, safeText(err.Error(), 150))
	}
	return errors.New(strings.Join(all, "; "))
}

// safeText makes text that came from elsewhere fit to be shown on a terminal:
// what is not printed is escaped, and what is longer than so many bytes is cut.
func safeText(text string, most int) string {
	var b strings.Builder
	for i, r := range text {
		if b.Len() >= most {
			return b.String() + "…"
		}
		_, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
