package guard

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/ipvs"
	"github.com/lvsguard/lvsguard/nft"
)

// Mode says who may drop.
type Mode string

const (
	// Observe counts and reports; only an operator's arm drops.
	Observe Mode = "observe"
	// Auto arms a service by itself while it is flooded.
	Auto Mode = "auto"
)

// ParseMode reads "observe" or "auto".
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Observe, Auto:
		return m, nil
	}
	return "", fmt.Errorf("mode %q: want observe or auto", s)
}

// HostRole says what kind of host the guard is on.
type HostRole string

const (
	// RoleDirector balances load by IPVS.
	RoleDirector HostRole = "director"
	// RoleHost does not, and nothing of IPVS and keepalived is missed: a real
	// server, or any web server.
	RoleHost HostRole = "host"
)

// Detect holds the thresholds of the detector. Rates are packets a second,
// shares are of all SYNs, from 0 to 1.
type Detect struct {
	// Rate and Share must both be reached for For before a service, or the
	// sum over an address, counts as flooded.
	Rate  float64       `yaml:"rate"`
	Share float64       `yaml:"share"`
	For   time.Duration `yaml:"for"`
	// ClearRate is the signature rate under which a flood must stay for
	// ClearFor to be over. Zero stands for 20 % of Rate.
	ClearRate float64       `yaml:"clear_rate"`
	ClearFor  time.Duration `yaml:"clear_for"`
	// TotalRate is Rate for the sum over all services. It has one value a host.
	TotalRate float64 `yaml:"total_rate"`
	// HalfOpen entries in SYN_RECV that make HalfOpenShare of a service's
	// entries are a half-open flood.
	HalfOpen      float64 `yaml:"half_open"`
	HalfOpenShare float64 `yaml:"half_open_share"`
}

// clearRate is the rate below which a scope with threshold rate is quiet.
func (d Detect) clearRate(rate float64) float64 {
	if d.ClearRate == 0 {
		return rate / 5
	}
	return d.ClearRate * rate / d.Rate
}

// ServiceConfig is what the configuration says of one virtual service.
type ServiceConfig struct {
	// Project is what it belongs to; empty: to none.
	Project string
	// Addresses are where a fwmark service is reached: its mark alone does not
	// tell.
	Addresses []netip.AddrPort
	Detect    Detect
}

// KeepalivedConfig says where the VRRP roles come from.
type KeepalivedConfig struct {
	Config    string                  `yaml:"config"`
	ConfigID  string                  `yaml:"config_id"`
	FIFO      string                  `yaml:"fifo"`
	Instances map[string][]netip.Addr `yaml:"instances"`
}

// ControlConfig is about the control socket.
type ControlConfig struct {
	// Group may read the status; empty leaves it to root.
	Group string `yaml:"group"`
}

// JournalConfig bounds the journal on disk: Keep old files beside the one
// being written, each of at most MaxBytes.
type JournalConfig struct {
	MaxBytes int64 `yaml:"max_bytes"`
	Keep     int   `yaml:"keep"`
}

// Config is a whole, valid configuration.
type Config struct {
	Role       HostRole
	Mode       Mode
	Signatures []nft.Signature
	Detect     Detect
	Services   map[ipvs.Key]ServiceConfig
	// Watch are addresses to count besides what IPVS serves. Port 0 is every
	// port.
	Watch      []netip.AddrPort
	Allow      []netip.Prefix
	Prearm     time.Duration
	Keepalived KeepalivedConfig
	Control    ControlConfig
	Journal    JournalConfig
	Handshakes HandshakesConfig
	Pressure   PressureConfig
	Servers    ServersConfig
	Metrics    MetricsConfig
	Evidence   EvidenceConfig
	// Project is what belongs to no other.
	Project string
	Alerts  AlertsConfig
}

// wantsTable says whether there is anything to count or drop.
func (c *Config) wantsTable() bool { return c.Role == RoleDirector || len(c.Watch) > 0 }

// DetectFor gives the thresholds of one service.
func (c *Config) DetectFor(k ipvs.Key) Detect {
	if s, ok := c.Services[k]; ok {
		return s.Detect
	}
	return c.Detect
}

// ProjectOf gives the project of one service; empty if it has none.
func (c *Config) ProjectOf(k ipvs.Key) string {
	return cmp.Or(c.Services[k].Project, c.Project)
}

// table is the part of the configuration that the table's rules depend on.
func (c *Config) table() nft.Config {
	return nft.Config{Signatures: c.Signatures, Allow: c.Allow}
}

// DefaultConfig is what an empty file means.
func DefaultConfig() *Config {
	return &Config{
		Role:       RoleDirector,
		Mode:       Observe,
		Signatures: nft.DefaultSignatures(),
		Detect: Detect{
			Rate: 1000, Share: 0.5, For: 3 * time.Second,
			ClearFor: 60 * time.Second, TotalRate: 3000,
			HalfOpen: 10000, HalfOpenShare: 0.8,
		},
		Prearm:     60 * time.Second,
		Keepalived: KeepalivedConfig{Config: "/etc/keepalived/keepalived.conf"},
		Journal:    JournalConfig{MaxBytes: 10 << 20, Keep: 5},
		Handshakes: HandshakesConfig{
			Enabled: true, Timeout: handshake.DefaultTimeout,
			Capacity: handshake.DefaultCapacity, Visibility: handshake.Auto,
		},
		Pressure: PressureConfig{Warning: 0.75, Critical: 0.9},
		Servers:  ServersConfig{Interval: 2 * time.Second, Timeout: time.Second},
		Metrics:  MetricsConfig{Listen: "127.0.0.1:9101"},
		Evidence: EvidenceConfig{
			Enabled: true, Memory: 16 << 20, Before: 30 * time.Second, SampleRate: 500, Queue: sampleQueue,
			Keep: KeepConfig{Incidents: 100, Bytes: 512 << 20, Age: 720 * time.Hour},
		},
		Alerts: AlertsConfig{GroupBy: []string{"project"}, Repeat: 4 * time.Hour, Rules: DefaultAlertRules()},
	}
}

// rawConfig is the file as it is written; DefaultConfig and validate make a
// Config of it.
type rawConfig struct {
	Role       HostRole                `yaml:"role"`
	Mode       Mode                    `yaml:"mode"`
	Signatures []rawSignature          `yaml:"signatures"`
	Detect     Detect                  `yaml:"detect"`
	Services   map[ipvs.Key]rawService `yaml:"services"`
	Watch      []watched               `yaml:"watch"`
	Allow      []prefix                `yaml:"allow"`
	Prearm     time.Duration           `yaml:"prearm"`
	Keepalived KeepalivedConfig        `yaml:"keepalived"`
	Control    ControlConfig           `yaml:"control"`
	Journal    JournalConfig           `yaml:"journal"`
	Handshakes HandshakesConfig        `yaml:"handshakes"`
	Pressure   PressureConfig          `yaml:"pressure"`
	Servers    ServersConfig           `yaml:"servers"`
	Metrics    MetricsConfig           `yaml:"metrics"`
	Evidence   EvidenceConfig          `yaml:"evidence"`
	Project    string                  `yaml:"project"`
	Alerts     rawAlerts               `yaml:"alerts"`
}

type rawService struct {
	Project   string     `yaml:"project,omitempty"`
	Addresses []watched  `yaml:"addresses,omitempty"`
	Detect    detectNode `yaml:"detect"`
}

// detectNode is kept undecoded until the thresholds of the whole file, which
// it overrides, are known.
type detectNode struct{ yaml.Node }

func (d detectNode) MarshalYAML() (any, error) { return &d.Node, nil }

func (d *detectNode) UnmarshalYAML(n *yaml.Node) error {
	d.Node = *n
	return nil
}

type rawSignature struct {
	Name    string     `yaml:"name"`
	Window  *nftRange  `yaml:"window,omitempty"`
	Length  *nftRange  `yaml:"length,omitempty"`
	TTL     *nftRange  `yaml:"ttl,omitempty"`
	Options options    `yaml:"options"`
	Ports   []nftRange `yaml:"ports,omitempty"`
}

// nftRange is written as a number or as "from-to".
type nftRange nft.Range

func (r *nftRange) UnmarshalYAML(n *yaml.Node) error {
	lo, hi, found := strings.Cut(n.Value, "-")
	if !found {
		hi = lo
	}
	from, err1 := strconv.ParseUint(strings.TrimSpace(lo), 10, 16)
	to, err2 := strconv.ParseUint(strings.TrimSpace(hi), 10, 16)
	if n.Kind != yaml.ScalarNode || err1 != nil || err2 != nil || from > to {
		return fmt.Errorf("line %d: %q is no number and no range: write 40 or 40-60", n.Line, n.Value)
	}
	*r = nftRange{Min: uint16(from), Max: uint16(to)}
	return nil
}

func (r nftRange) MarshalYAML() (any, error) {
	if r.Min == r.Max {
		return r.Min, nil
	}
	return fmt.Sprintf("%d-%d", r.Min, r.Max), nil
}

// options is written "any" or "none".
type options nft.Options

func (o *options) UnmarshalYAML(n *yaml.Node) error {
	switch n.Value {
	case "any":
		*o = options(nft.AnyOptions)
	case "none":
		*o = options(nft.NoOptions)
	default:
		return fmt.Errorf("line %d: options %q: want any or none", n.Line, n.Value)
	}
	return nil
}

func (o options) MarshalYAML() (any, error) {
	if nft.Options(o) == nft.NoOptions {
		return "none", nil
	}
	return "any", nil
}

// watched is a TCP address and port, or address:* for all ports.
type watched netip.AddrPort

func (w *watched) UnmarshalYAML(n *yaml.Node) error {
	k, err := ipvs.ParseKey(n.Value)
	if err != nil || k.Protocol != ipvs.TCP {
		return fmt.Errorf("line %d: %q is no TCP address: write 192.0.2.1:80, [2001:db8::1]:80, or * for the port to mean every port", n.Line, n.Value)
	}
	*w = watched(k.Addr)
	return nil
}

func (w watched) MarshalYAML() (any, error) {
	return ipvs.Key{Protocol: ipvs.TCP, Addr: netip.AddrPort(w)}.String(), nil
}

type prefix netip.Prefix

func (p prefix) MarshalYAML() (any, error) { return netip.Prefix(p).String(), nil }

func (p *prefix) UnmarshalYAML(n *yaml.Node) error {
	if a, err := netip.ParseAddr(n.Value); err == nil && a.Zone() == "" {
		a = a.Unmap()
		*p = prefix(netip.PrefixFrom(a, a.BitLen()))
		return nil
	}
	q, err := netip.ParsePrefix(n.Value)
	if err != nil || q.Addr().Is4In6() {
		return fmt.Errorf("line %d: %q is no address and no prefix: write 192.0.2.7 or 2001:db8::/32", n.Line, n.Value)
	}
	*p = prefix(q.Masked())
	return nil
}

// LoadConfig reads the file at path. An error names the file, the line and
// what to write instead.
func LoadConfig(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	c, err := ParseConfig(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// maxConfigBytes is far above any real configuration: 10,000 services with
// thresholds of their own take 1 MiB.
const maxConfigBytes = 4 << 20

// ParseConfig reads a configuration. Keys that are not there have their
// default; a key that does not exist is an error.
func ParseConfig(r io.Reader) (*Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxConfigBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxConfigBytes {
		return nil, fmt.Errorf("larger than %d bytes: this is no configuration", maxConfigBytes)
	}
	c := DefaultConfig()
	raw := rawConfig{
		Role: c.Role, Mode: c.Mode, Detect: c.Detect, Prearm: c.Prearm,
		Keepalived: c.Keepalived, Control: c.Control, Journal: c.Journal, Handshakes: c.Handshakes, Pressure: c.Pressure, Servers: c.Servers,
		Metrics: c.Metrics, Evidence: c.Evidence, Project: c.Project, Alerts: rawAlerts{GroupBy: c.Alerts.GroupBy, Repeat: c.Alerts.Repeat},
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF): // an empty file: all defaults
		return c, nil
	case err != nil:
		return nil, tidyYAML(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document: keep one, without a second ---")
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" { // comments only
		return c, nil
	}
	if err := checkKeys(root, &raw); err != nil {
		return nil, err
	}
	if err := root.Decode(&raw); err != nil {
		return nil, tidyYAML(err)
	}
	if err := c.fill(raw); err != nil {
		var at *keyError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("line %d: %w", lineOf(root, at.path), err)
		}
		return nil, err
	}
	return c, nil
}

// keyError is a value that is well written and means nothing good.
type keyError struct {
	path []string
	msg  string
}

func (e *keyError) Error() string { return strings.Join(e.path, ".") + ": " + e.msg }

func badKey(msg string, path ...string) error { return &keyError{path, msg} }

func (c *Config) fill(raw rawConfig) error {
	if _, err := ParseMode(string(raw.Mode)); err != nil {
		return badKey(fmt.Sprintf("%q: want observe or auto", raw.Mode), "mode")
	}
	if raw.Role != RoleDirector && raw.Role != RoleHost {
		return badKey(fmt.Sprintf("%q: want director or host", raw.Role), "role")
	}
	c.Role, c.Mode, c.Prearm = raw.Role, raw.Mode, raw.Prearm
	c.Keepalived, c.Control, c.Journal = raw.Keepalived, raw.Control, raw.Journal
	c.Handshakes = raw.Handshakes
	if err := c.Handshakes.check(); err != nil {
		return err
	}
	c.Pressure, c.Servers = raw.Pressure, raw.Servers
	if err := c.Pressure.check(); err != nil {
		return err
	}
	if err := c.Servers.check(); err != nil {
		return err
	}
	c.Evidence = raw.Evidence
	if err := c.Evidence.check(); err != nil {
		return err
	}
	c.Metrics = raw.Metrics
	if err := c.Metrics.check(); err != nil {
		return err
	}
	c.Project = raw.Project
	if c.Project != "" {
		if err := checkName(c.Project); err != nil {
			return badKey(err.Error(), "project")
		}
	}
	if err := c.Alerts.fill(raw.Alerts); err != nil {
		return err
	}
	if c.Prearm < 0 || c.Prearm > time.Hour {
		return badKey("want a duration from 0s to 1h", "prearm")
	}
	if c.Journal.MaxBytes < 64<<10 {
		return badKey("want at least 65536 bytes", "journal", "max_bytes")
	}
	if c.Journal.Keep < 1 || c.Journal.Keep > maxJournalKeep {
		return badKey(fmt.Sprintf("want 1 to %d files", maxJournalKeep), "journal", "keep")
	}
	for name, addrs := range c.Keepalived.Instances {
		if len(addrs) == 0 {
			return badKey("an instance without addresses has no role: list its virtual addresses", "keepalived", "instances", name)
		}
		for i, a := range addrs {
			addrs[i] = a.Unmap()
		}
	}
	if err := checkDetect(raw.Detect, "detect"); err != nil {
		return err
	}
	c.Detect = raw.Detect
	for _, w := range raw.Watch {
		c.Watch = append(c.Watch, netip.AddrPort(w))
	}
	for _, p := range raw.Allow {
		c.Allow = append(c.Allow, netip.Prefix(p))
	}
	if err := c.fillSignatures(raw.Signatures); err != nil {
		return err
	}
	for _, k := range slices.SortedFunc(maps.Keys(raw.Services), ipvs.Key.Compare) {
		if err := c.fillService(k, raw.Services[k]); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) fillSignatures(raw []rawSignature) error {
	if raw == nil {
		return nil
	}
	c.Signatures = nil
	for i, r := range raw {
		s := nft.Signature{
			Name: r.Name, Options: nft.Options(r.Options),
			Window: (*nft.Range)(r.Window), Length: (*nft.Range)(r.Length), TTL: (*nft.Range)(r.TTL),
		}
		for _, p := range r.Ports {
			s.Ports = append(s.Ports, nft.Range(p))
		}
		at := []string{"signatures", strconv.Itoa(i)}
		if err := s.Validate(); err != nil {
			return badKey(err.Error(), at...)
		}
		if slices.ContainsFunc(c.Signatures, func(o nft.Signature) bool { return o.Name == s.Name }) {
			return badKey(fmt.Sprintf("name %q is taken: give each signature its own", s.Name), at...)
		}
		c.Signatures = append(c.Signatures, s)
	}
	if len(c.Signatures) == 0 {
		return badKey("empty: leave the key out for the default signature", "signatures")
	}
	return nil
}

func (c *Config) fillService(k ipvs.Key, raw rawService) error {
	at := []string{"services", k.String()}
	s := ServiceConfig{Project: raw.Project, Detect: c.Detect}
	if s.Project != "" {
		if err := checkName(s.Project); err != nil {
			return badKey(err.Error(), append(at, "project")...)
		}
	}
	for _, w := range raw.Addresses {
		s.Addresses = append(s.Addresses, netip.AddrPort(w))
	}
	if len(s.Addresses) > 0 && k.Mark == 0 {
		return badKey("only a fwmark service needs addresses; for an address that IPVS does not serve, use watch", append(at, "addresses")...)
	}
	if len(s.Addresses) > 0 && c.Role == RoleHost {
		return badKey("with role: host there are no firewall marks of IPVS: put the addresses under watch", append(at, "addresses")...)
	}
	if raw.Detect.Kind != 0 {
		at := append(at, "detect")
		if err := checkKeys(&raw.Detect.Node, &s.Detect); err != nil {
			return err
		}
		if err := raw.Detect.Decode(&s.Detect); err != nil {
			return tidyYAML(err)
		}
		if s.Detect.TotalRate != c.Detect.TotalRate {
			return badKey("one value for the whole host: set it under detect", append(at, "total_rate")...)
		}
		if err := checkDetect(s.Detect, at...); err != nil {
			return err
		}
	}
	if c.Services == nil {
		c.Services = make(map[ipvs.Key]ServiceConfig)
	}
	c.Services[k] = s
	return nil
}

func checkDetect(d Detect, path ...string) error {
	at := func(key string) []string { return append(slices.Clone(path), key) }
	for _, r := range []struct {
		key   string
		value float64
		least float64
	}{
		{"rate", d.Rate, 1}, {"total_rate", d.TotalRate, 1}, {"half_open", d.HalfOpen, 1}, {"clear_rate", d.ClearRate, 0},
	} {
		// Not "<": NaN must fail too.
		if !(r.value >= r.least && r.value <= 1e9) {
			return badKey(fmt.Sprintf("want a number from %v to 1e9", r.least), at(r.key)...)
		}
	}
	if d.ClearRate > d.Rate {
		return badKey(fmt.Sprintf("%v is above rate (%v): a flood would be over before it began", d.ClearRate, d.Rate), at("clear_rate")...)
	}
	for _, s := range []struct {
		key   string
		value float64
	}{{"share", d.Share}, {"half_open_share", d.HalfOpenShare}} {
		if !(s.value > 0 && s.value <= 1) {
			return badKey("want a share above 0 and up to 1", at(s.key)...)
		}
	}
	for _, t := range []struct {
		key   string
		value time.Duration
	}{{"for", d.For}, {"clear_for", d.ClearFor}} {
		if t.value < time.Second || t.value > time.Hour {
			return badKey("want a duration from 1s to 1h", at(t.key)...)
		}
	}
	return nil
}

// Write writes the configuration with every key, as ParseConfig reads it.
func (c *Config) Write(w io.Writer) error {
	raw := rawConfig{
		Role: c.Role, Mode: c.Mode, Detect: c.Detect, Prearm: c.Prearm,
		Keepalived: c.Keepalived, Control: c.Control, Journal: c.Journal, Handshakes: c.Handshakes, Pressure: c.Pressure, Servers: c.Servers,
		Metrics: c.Metrics, Evidence: c.Evidence, Project: c.Project,
		Services: make(map[ipvs.Key]rawService),
	}
	var err error
	if raw.Alerts, err = c.Alerts.raw(); err != nil {
		return err
	}
	for _, s := range c.Signatures {
		r := rawSignature{
			Name: s.Name, Options: options(s.Options),
			Window: (*nftRange)(s.Window), Length: (*nftRange)(s.Length), TTL: (*nftRange)(s.TTL),
		}
		for _, p := range s.Ports {
			r.Ports = append(r.Ports, nftRange(p))
		}
		raw.Signatures = append(raw.Signatures, r)
	}
	for k, s := range c.Services {
		r := rawService{Project: s.Project}
		for _, at := range s.Addresses {
			r.Addresses = append(r.Addresses, watched(at))
		}
		if err := r.Detect.Encode(s.Detect); err != nil {
			return err
		}
		raw.Services[k] = r
	}
	for _, at := range c.Watch {
		raw.Watch = append(raw.Watch, watched(at))
	}
	for _, p := range c.Allow {
		raw.Allow = append(raw.Allow, prefix(p))
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	return errors.Join(enc.Encode(raw), enc.Close())
}
