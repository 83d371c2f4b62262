package guard

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/ipvs"
)

// Keys of a service whose null means "none", not "unknown".
var noneKeys = []string{"instance", "lease"}

// wantReasons checks that in the status as it is sent, each null of each
// service has its reason beside it, and nothing else has one.
func (w *world) wantReasons(t *testing.T, when string) {
	t.Helper()
	text, err := json.Marshal(w.Status())
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Services []map[string]any `json:"services"`
	}
	if err := json.Unmarshal(text, &status); err != nil {
		t.Fatal(err)
	}
	if len(status.Services) == 0 {
		t.Fatalf("%s: no services", when)
	}
	for _, svc := range status.Services {
		var null []string
		for key, v := range svc {
			if v == nil && !slices.Contains(noneKeys, key) {
				null = append(null, key)
			}
		}
		slices.Sort(null)
		reasons, _ := svc["unknown"].(map[string]any)
		if diff := cmp.Diff(null, slices.Sorted(maps.Keys(reasons))); diff != "" {
			t.Errorf("%s, %s: null without a reason (-), a reason without null (+):\n%s", when, svc["service"], diff)
		}
		for key, why := range reasons {
			if why == "" {
				t.Errorf("%s, %s: the reason for %s is empty", when, svc["service"], key)
			}
		}
	}
}

func TestStatusSaysWhy(t *testing.T) {
	w := newWorld(t, "{watch: ['192.0.2.9:443'], services: {'fwmark:7': {addresses: ['192.0.2.7:80']}}}")
	bare := ipvs.Service{Key: mustKey(t, "fwmark:8")}
	dns := ipvs.Service{Key: mustKey(t, "udp:192.0.2.1:53")}
	w.ipvs.services = []ipvs.Service{serviceAt(web), bare, dns}
	w.tick(1)
	w.wantReasons(t, "after the first look")
	w.load[web] = Counters{SYN: 10}
	w.tick(2)
	w.wantReasons(t, "in calm")
	if s := w.service("192.0.2.1:80"); s.Share == nil || *s.Share != 0 || *s.SYN != 10 {
		t.Errorf("in calm: %+v", s)
	}
	w.table.failRead = errors.New("netlink refused")
	w.tick(1)
	w.wantReasons(t, "in a short gap")
	if s := w.service("192.0.2.1:80"); s.Verdict != Calm || s.SYN != nil || s.Unknown["syn_per_second"] != "netlink refused" {
		t.Errorf("in a short gap: %+v", s)
	}
	w.tick(60)
	w.wantReasons(t, "in a long gap")
	if s := w.service("192.0.2.1:80"); s.Verdict != Unknown || s.Unknown["dropped_per_second"] != "netlink refused" {
		t.Errorf("in a long gap: %+v", s)
	}
	w.table.failRead = nil
	w.ipvs.services, w.ipvs.err = nil, errors.New("no such module")
	w.tick(3)
	w.wantReasons(t, "without IPVS")
	if s := w.service("192.0.2.1:80"); s.Active != nil || s.Unknown["active_connections"] != "no such module" || s.SYN == nil {
		t.Errorf("without IPVS: %+v", s)
	}
}

// A service, and a filter, without a project of its own has the configuration's.
func TestStatusProjects(t *testing.T) {
	w := newWorld(t, "{project: infra, services: {'192.0.2.1:80': {project: shop}}}")
	w.ipvs.services = []ipvs.Service{serviceAt(web), {Key: mustKey(t, "192.0.2.1:81")}}
	w.tick(1)
	var got []string
	for _, s := range w.Status().Services {
		got = append(got, s.Service.String()+" "+s.Project)
	}
	if diff := cmp.Diff([]string{"192.0.2.1:80 shop", "192.0.2.1:81 infra"}, got); diff != "" {
		t.Errorf("projects (-want +got):\n%s", diff)
	}
}

// A sum is of what is known, and not known where nothing is.
func TestTotalFigures(t *testing.T) {
	n := func(v float64) *float64 { return &v }
	got := totalFigures([]Verdict{
		{Figures: Figures{SYN: n(90), Suspect: n(30), Dropped: n(0)}},
		{},
		{Figures: Figures{SYN: n(10), Suspect: n(20), Dropped: n(7)}},
	})
	want := Figures{SYN: n(100), Suspect: n(50), Share: n(0.5), Dropped: n(7)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("total (-want +got):\n%s", diff)
	}
	quiet := totalFigures([]Verdict{{Figures: Figures{SYN: n(0), Suspect: n(0)}}})
	if quiet.Share != nil || quiet.SYN == nil || *quiet.SYN != 0 {
		t.Errorf("without a SYN: %+v", quiet)
	}
	if diff := cmp.Diff(Figures{}, totalFigures(nil)); diff != "" {
		t.Errorf("of nothing (-want +got):\n%s", diff)
	}
}

// Before the first look there is a status too.
func TestStatusBeforeTheFirstLook(t *testing.T) {
	w := newWorld(t, "")
	text, err := json.Marshal(w.Status())
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	if s["version"] != "test" || s["mode"] != "observe" || s["mode_from"] != "config" || s["services"] == nil || s["roles"] == nil || s["unknown"] == nil {
		t.Errorf("status before the first look: %s", text)
	}
}
