package ipvs

import (
	"testing"
	"time"
)

func TestRates(t *testing.T) {
	before := Stats{Connections: 100, PacketsIn: 1000, PacketsOut: 10, BytesIn: 1 << 40, BytesOut: 5}
	after := Stats{Connections: 150, PacketsIn: 3000, PacketsOut: 10, BytesIn: 1<<40 + 4000, BytesOut: 6}
	got, ok := after.Rates(before, 2*time.Second)
	want := Rates{Connections: 25, PacketsIn: 1000, BytesIn: 2000, BytesOut: 0.5}
	if !ok || got != want {
		t.Errorf("Rates = %+v, %v, want %+v", got, ok, want)
	}
}

func TestRatesUnknown(t *testing.T) {
	full := Stats{Connections: 1, PacketsIn: 1, PacketsOut: 1, BytesIn: 1, BytesOut: 1}
	for _, tt := range []struct {
		name      string
		now, prev Stats
		dt        time.Duration
	}{
		{"no time", full, full, 0},
		{"time went back", full, full, -time.Second},
		{"connections went back", Stats{0, 1, 1, 1, 1}, full, time.Second},
		{"packets in went back", Stats{1, 0, 1, 1, 1}, full, time.Second},
		{"packets out went back", Stats{1, 1, 0, 1, 1}, full, time.Second},
		{"bytes in went back", Stats{1, 1, 1, 0, 1}, full, time.Second},
		{"bytes out went back", Stats{1, 1, 1, 1, 0}, full, time.Second},
	} {
		if r, ok := tt.now.Rates(tt.prev, tt.dt); ok {
			t.Errorf("%s: Rates = %+v, want unknown", tt.name, r)
		}
	}
}

func TestParseKernel(t *testing.T) {
	for _, tt := range []struct {
		release   string
		quadratic bool
	}{
		{"2.6.32-754.el6.i686", true},
		{"5.10.0-28-686-pae", true},
		{"6.1.0-56-amd64", true},
		{"6.13.12", true},
		{"6.14.0", false},
		{"6.14-rc1", false},
		{"6.18.44", false},
		{"7.0", false},
		{"10.0.1", false},
		{"", true},
		{"six.one", true},
		{"6", true},
	} {
		if got := parseKernel(tt.release); got.Quadratic != tt.quadratic || got.Release != tt.release {
			t.Errorf("parseKernel(%q) = %+v", tt.release, got)
		}
	}
}
