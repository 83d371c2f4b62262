package keepalived

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRoles(t *testing.T) {
	addrs := func(texts ...string) (all []netip.Addr) {
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	held := func(texts ...string) Held {
		h := Held{}
		for _, addr := range addrs(texts...) {
			h[addr] = true
		}
		return h
	}
	one := []Instance{{"A", addrs("192.0.2.1", "192.0.2.2", "fe80::1")}}
	two := []Instance{{"A", addrs("192.0.2.1", "192.0.2.9")}, {"B", addrs("192.0.2.2", "192.0.2.9")}, {"C", addrs("192.0.2.9")}}
	tests := []struct {
		name      string
		instances []Instance
		held      Held
		last      map[string]State
		want      map[string]State
	}{
		{"no instance", nil, held("192.0.2.1"), nil, map[string]State{}},
		{"all held", one, held("192.0.2.1", "192.0.2.2"), nil, map[string]State{"A": Master}},
		{"one of two held", one, held("192.0.2.2"), nil, map[string]State{"A": Master}},
		{"held, whatever was reported", one, held("192.0.2.1"), map[string]State{"A": Fault}, map[string]State{"A": Master}},
		{"none held", one, held("198.51.100.1"), nil, map[string]State{"A": Backup}},
		{"none held, reported master", one, held(), map[string]State{"A": Master}, map[string]State{"A": Backup}},
		{"none held, reported fault", one, held(), map[string]State{"A": Fault}, map[string]State{"A": Fault}},
		{"none held, reported stop", one, held(), map[string]State{"A": Stop}, map[string]State{"A": Stop}},
		{"link-local says nothing", one, held("fe80::1"), nil, map[string]State{"A": Backup}},
		{"not known what is held", one, nil, nil, map[string]State{"A": Unknown}},
		{"not known what is held, reported", one, nil, map[string]State{"A": Master}, map[string]State{"A": Master}},
		{"no address", []Instance{{Name: "A"}}, held("192.0.2.1"), nil, map[string]State{"A": Unknown}},
		{"no address, reported", []Instance{{Name: "A"}}, held(), map[string]State{"A": Backup}, map[string]State{"A": Backup}},
		{"only a link-local address", []Instance{{"A", addrs("fe80::1")}}, held(), nil, map[string]State{"A": Unknown}},
		{"master for one, backup for another", two, held("192.0.2.1"), nil, map[string]State{"A": Master, "B": Backup, "C": Backup}},
		{"a shared address tells of none that has its own", two, held("192.0.2.1", "192.0.2.9"), nil, map[string]State{"A": Master, "B": Backup, "C": Master}},
		{"an address named twice by one instance", []Instance{{"A", addrs("192.0.2.1", "192.0.2.1")}}, held("192.0.2.1"), nil, map[string]State{"A": Master}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Roles(tt.instances, tt.held, tt.last)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
