package ipvs

import (
	"errors"
	"io/fs"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDefence(t *testing.T) {
	c, err := Open(Config{Proc: "testdata/proc"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Defence()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for s := range d.All() {
		line := s.Name + " = " + strconv.Itoa(s.Value) + ": " + s.Meaning()
		if s.Err != nil {
			line = s.Name + " is not known"
		}
		got = append(got, line)
	}
	want := []string{
		"drop_entry = 2: automatic, active now",
		"drop_packet = 0: off",
		"secure_tcp = 1: automatic, not active",
		"amemthresh = 1024: memory is short below 4096 kB free",
		"am_droprate = 10: drop_packet 3 drops one packet in 10",
		"run_estimation is not known",
		"conn_reuse_mode = 1: a SYN from a used port is scheduled anew in TIME_WAIT",
		"conntrack is not known",
		"sloppy_tcp = 0: only a SYN makes a connection",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if !errors.Is(d.RunEstimation.Err, fs.ErrNotExist) || !errors.Is(d.Conntrack.Err, strconv.ErrSyntax) {
		t.Errorf("reasons: %v, %v", d.RunEstimation.Err, d.Conntrack.Err)
	}
}

func TestDefenceAbsent(t *testing.T) {
	c, err := Open(Config{Proc: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Defence(); !errors.Is(err, ErrAbsent) {
		t.Errorf("Defence: %v, want %v", err, ErrAbsent)
	}
}

func TestMeaningOfUnknownValue(t *testing.T) {
	for _, value := range []int{-1, 4} {
		if m := (Setting{Name: "drop_entry", Value: value}).Meaning(); m != "" {
			t.Errorf("drop_entry %d means %q", value, m)
		}
	}
}
