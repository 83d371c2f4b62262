package site

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// A Variant is how directors hand packets on, and the IP version of all that is attacked and served.
type Variant string

// The variants of the site. Config's empty one is DR4.
const (
	DR4  Variant = "dr4"
	NAT4 Variant = "nat4"
	TUN4 Variant = "tun4"
	DR6  Variant = "dr6"
	NAT6 Variant = "nat6"
	TUN6 Variant = "tun6"
)

// Variants are all variants of the site.
func Variants() []Variant { return []Variant{DR4, NAT4, TUN4, DR6, NAT6, TUN6} }

// IPv6 tells which IP version it is.
func (v Variant) IPv6() bool { return strings.HasSuffix(string(v), "6") }

// method is the forwarding method's name in keepalived's configuration.
func (v Variant) method() string { return strings.ToUpper(string(v[:len(v)-1])) }

// Each runs f as a subtest on a site of each of the variants, one after the other. LVSGUARD_VARIANTS, a comma-separated
// list or "all", takes the choice over.
func Each(t *testing.T, config Config, f func(t *testing.T, s *Site), variants ...Variant) {
	t.Helper()
	if wanted := os.Getenv("LVSGUARD_VARIANTS"); wanted == "all" {
		variants = Variants()
	} else if wanted != "" {
		variants = nil
		for name := range strings.SplitSeq(wanted, ",") {
			if !slices.Contains(Variants(), Variant(name)) {
				t.Fatalf("LVSGUARD_VARIANTS: no variant %q; there are %v", name, Variants())
			}
			variants = append(variants, Variant(name))
		}
	}
	for _, v := range variants {
		t.Run(string(v), func(t *testing.T) {
			config := config
			config.Variant = v
			f(t, New(t, config))
		})
	}
}
