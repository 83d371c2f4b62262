package ipvs

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseKey(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Key
	}{
		{"192.0.2.1:80", Key{Protocol: TCP, Addr: netip.MustParseAddrPort("192.0.2.1:80")}},
		{"[2001:db8::1]:80", Key{Protocol: TCP, Addr: netip.MustParseAddrPort("[2001:db8::1]:80")}},
		{"192.0.2.1:*", Key{Protocol: TCP, Addr: netip.MustParseAddrPort("192.0.2.1:0")}},
		{"[2001:db8::1]:*", Key{Protocol: TCP, Addr: netip.MustParseAddrPort("[2001:db8::1]:0")}},
		{"udp:192.0.2.1:53", Key{Protocol: UDP, Addr: netip.MustParseAddrPort("192.0.2.1:53")}},
		{"udp:[2001:db8::1]:*", Key{Protocol: UDP, Addr: netip.MustParseAddrPort("[2001:db8::1]:0")}},
		{"sctp:192.0.2.1:3868", Key{Protocol: SCTP, Addr: netip.MustParseAddrPort("192.0.2.1:3868")}},
		{"fwmark:7", Key{Mark: 7}},
		{"fwmark6:4294967295", Key{Mark: 4294967295, IPv6: true}},
	} {
		t.Run(tt.text, func(t *testing.T) {
			got, err := ParseKey(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("ParseKey = %+v, want %+v", got, tt.want)
			}
			if got.String() != tt.text {
				t.Errorf("String = %q", got.String())
			}
		})
	}
}

func TestParseKeyTCPWord(t *testing.T) {
	k, err := ParseKey("tcp:192.0.2.1:80")
	if err != nil || k.String() != "192.0.2.1:80" {
		t.Errorf("ParseKey = %v, %v", k, err)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for _, text := range []string{
		"", "192.0.2.1", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:http",
		"2001:db8::1:80", "[fe80::1%eth0]:80", "icmp:192.0.2.1:80", "tcp:", "tcp:udp:192.0.2.1:80",
		"fwmark:", "fwmark:0", "fwmark:4294967296", "fwmark:-1", "fwmark:0x7", "udp:fwmark:7",
	} {
		if k, err := ParseKey(text); err == nil {
			t.Errorf("ParseKey(%q) = %v, want an error", text, k)
		} else if !strings.Contains(err.Error(), "192.0.2.1:80") {
			t.Errorf("ParseKey(%q): %v does not say how to write it", text, err)
		}
	}
}

func TestKeyCompare(t *testing.T) {
	want := []string{
		"192.0.2.1:*", "192.0.2.1:80", "udp:192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:80",
		"fwmark:7", "fwmark:8", "fwmark6:1",
	}
	var keys []Key
	for _, text := range slices.Backward(want) {
		k, err := ParseKey(text)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, Key.Compare)
	for i, k := range keys {
		if k.String() != want[i] {
			t.Errorf("place %d: %v, want %v", i, k, want[i])
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, text := range []string{"192.0.2.1:80", "[2001:db8::1]:*", "udp:192.0.2.1:53", "fwmark6:7", "tcp:[::]:1", "[::ffff:192.0.2.1]:80"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseKey(text)
		if err != nil {
			return
		}
		again, err := ParseKey(k.String())
		if err != nil || again != k {
			t.Errorf("%q is %+v, written %q, which is %+v, %v", text, k, k, again, err)
		}
	})
}
