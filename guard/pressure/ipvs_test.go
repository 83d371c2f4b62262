package pressure

import (
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestIPVS(t *testing.T) {
	h := newHost(t, "director32")
	m := h.monitor()
	var v *IPVS
	for i := range 8 {
		v = m.Sample(start.Add(time.Duration(i)*time.Second), Given{Table: &Table{
			Connections: 30_000 + uint64(i)*1000, Templates: 500, HalfOpenShare: new(0.5), NewTotal: new(uint64(i) * 1100),
		}}).IPVS
	}
	want := Slab{ObjectSize: 188, SlabSize: 192, PerEntry: 4096.0 / 21, Held: new(uint64(1429 * 4096))}
	if diff := cmp.Diff(&want, v.Slab); diff != "" {
		t.Errorf("slab (-want +got):\n%s", diff)
	}
	if *v.Bytes != 37_500*192 || *v.Growth != 1000 || *v.New != 1100 || v.From != "slab" {
		t.Errorf("%d bytes, growth %v, new %v, from %s", *v.Bytes, *v.Growth, *v.New, v.From)
	}
	// 18,500 half-open ones become 60,000; the others and the templates stay.
	if e := v.Forecast.Entries; math.Abs(e-(37_000-18_500+60_000+500)) > 1 || v.Forecast.GoneIn != nil {
		t.Errorf("forecast: %+v", v.Forecast)
	}
}

// Without IPVS's own count, the slab's tells the table. The kernel is not asked
// for that otherwise.
func TestIPVSFromSlab(t *testing.T) {
	h := newHost(t, "director32")
	s := h.monitor().Sample(start, Given{TableUnknown: "netlink: permission denied"})
	v := s.IPVS
	if v.Connections != nil || v.Slab.Objects == nil || *v.Slab.Objects != 30_009 || *v.Bytes != 30_009*192 {
		t.Errorf("%+v, slab %+v", v, v.Slab)
	}
	checkReasons(t, s)
	for _, r := range s.Resources {
		if r.Kind == KindIPVS && (r.Used == nil || *r.Used != 30_009) {
			t.Errorf("%+v", r)
		}
	}

	// Without either nothing is known, and there is nothing to know on a host
	// without IPVS.
	if err := os.RemoveAll(h.root + "/sys"); err != nil {
		t.Fatal(err)
	}
	s = h.monitor().Sample(start, Given{TableUnknown: "netlink: permission denied"})
	checkReasons(t, s)
	for _, r := range s.Resources {
		if r.Kind == KindIPVS && (r.Level != LevelUnknown || !strings.Contains(r.Reason, "permission denied")) {
			t.Errorf("%+v", r)
		}
	}
	s = h.monitor().Sample(start, Given{})
	for _, r := range s.Resources {
		if r.Kind == KindIPVS || s.IPVS != nil {
			t.Errorf("a host without IPVS has %+v", r)
		}
	}
}

// A kernel without the slab's files: the size of an entry is seen by the fall of
// free memory, once enough have come.
func TestIPVSObserved(t *testing.T) {
	f := newFlood(t)
	if err := os.RemoveAll(f.host.root + "/sys"); err != nil {
		t.Fatal(err)
	}
	f.rate, f.perEntry = constant(50_000), 320
	var s Sample
	for range calm {
		s = f.tick()
	}
	if s.IPVS.BytesPerEntry != nil || s.IPVS.Forecast != nil || s.IPVS.Bytes != nil {
		t.Errorf("before the flood: %+v", s.IPVS)
	}
	checkReasons(t, s)
	for range 8 {
		s = f.tick()
	}
	if b := s.IPVS.BytesPerEntry; b == nil || math.Abs(*b-320) > 10 || s.IPVS.From != "observed" || s.IPVS.Forecast == nil {
		t.Errorf("in the flood: %v bytes, %s, %+v", b, s.IPVS.From, s.IPVS.Forecast)
	}
	checkReasons(t, s)
}
