package nft

import (
	"strings"
	"testing"
)

func TestSignature(t *testing.T) {
	one := func(v uint16) *Range { return &Range{v, v} }
	tests := []struct {
		signature Signature
		text      string // as String has it
		err       string // a part of the error
	}{
		{signature: DefaultSignatures()[0], text: "tcp window 0 ip length 40"},
		{signature: Signature{Name: "a", Window: &Range{0, 512}}, text: "tcp window 0-512"},
		{signature: Signature{Name: "a1_b", TTL: &Range{200, 255}}, text: "ip ttl 200-255"},
		{signature: Signature{Name: "a", Options: NoOptions}, text: "ip hdrlength 5 tcp doff 5"},
		{signature: Signature{Name: "a", Window: one(8), Ports: []Range{{80, 80}, {8000, 8080}}},
			text: "tcp window 8 tcp dport 80 or tcp window 8 tcp dport 8000-8080"},
		{signature: Signature{Window: one(0)}, err: "name"},
		{signature: Signature{Name: "A", Window: one(0)}, err: "name"},
		{signature: Signature{Name: "1a", Window: one(0)}, err: "name"},
		{signature: Signature{Name: "a b", Window: one(0)}, err: "name"},
		{signature: Signature{Name: strings.Repeat("a", 33), Window: one(0)}, err: "name"},
		{signature: Signature{Name: "a"}, err: "every SYN"},
		{signature: Signature{Name: "a", Ports: []Range{{80, 80}}}, err: "every SYN"},
		{signature: Signature{Name: "a", Window: &Range{5, 4}}, err: "window"},
		{signature: Signature{Name: "a", Length: one(39)}, err: "length"},
		{signature: Signature{Name: "a", TTL: one(256)}, err: "ttl"},
		{signature: Signature{Name: "a", Options: 2}, err: "options"},
		{signature: Signature{Name: "a", Window: one(0), Ports: []Range{{0, 80}}}, err: "ports"},
	}
	for _, tt := range tests {
		err := tt.signature.Validate()
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%+v: error %v, want one about %s", tt.signature, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", tt.signature, err)
		}
		if got := tt.signature.String(); got != tt.text {
			t.Errorf("%+v: %q, want %q", tt.signature, got, tt.text)
		}
	}
	if err := validateSignatures([]Signature{{Name: "a", Window: one(0)}, {Name: "a", TTL: one(9)}}); err == nil {
		t.Error("two signatures of one name: no error")
	}
}

func TestSetNames(t *testing.T) {
	for _, cfg := range configurations {
		for _, s := range newLayout(cfg).sets {
			if got, ok := parseSetName(s.name()); !ok || got != s {
				t.Errorf("%s: parsed as %v, %t", s.name(), got, ok)
			}
		}
	}
	for _, bad := range []string{"", "any", "4", "service", "service5", "service4_a", "suspect4", "suspect4_", "suspect4_A", "fragment4any", "allowed6any", "other4"} {
		if s, ok := parseSetName(bad); ok {
			t.Errorf("%q: parsed as %v", bad, s)
		}
	}
}
