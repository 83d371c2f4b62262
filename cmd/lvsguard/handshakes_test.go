package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/bench/mix"
	"github.com/lvsguard/lvsguard/capture"
	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard"
)

// smallMix writes a hundredth of the mix to a file, and tells the truth of it.
func smallMix(t *testing.T) (path string, truth mix.Truth, content []byte) {
	t.Helper()
	cfg := mix.Standard().Scaled(0.01)
	var b bytes.Buffer
	if err := cfg.Pcap(&b); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "mix.pcap")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, cfg.Truth(), b.Bytes()
}

func readHandshakes(t *testing.T, args ...string) (status int, r handshakesJSON, errOut string) {
	t.Helper()
	status, out, errOut := lvsguard(t, append([]string{"handshakes", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %v\n%s%s", args, err, out, errOut)
	}
	return status, r, errOut
}

func TestHandshakesOfCapture(t *testing.T) {
	path, truth, _ := smallMix(t)
	status, r, errOut := readHandshakes(t, "-r", path, "--filter", "web:in@%:80", "--filter", "other:in@%:81")
	if status != 0 || errOut != "" || len(r.Filters) != 3 {
		t.Fatalf("status %d, %s%+v", status, errOut, r)
	}
	for _, f := range r.Filters[:2] {
		got := mix.Truth{
			Packets: r.Capture.Handed, Attempts: f.Attempts, Pending: f.Pending,
			Success: f.Success.Total, SuccessDupSYN: f.Success.DupSYN, SuccessDupSYNACK: *f.Success.DupSYNACK,
			Reject: *f.Failure.Reject, RejectDupSYN: f.Failure.DupSYN,
		}
		if got != truth {
			t.Errorf("%s: got %+v, want %+v", f.Name, got, truth)
		}
		if f.Signature.Attempts != truth.Pending || f.Signature.Completed != 0 || f.LowerBound {
			t.Errorf("%s: %+v", f.Name, f)
		}
	}
	if other := r.Filters[2]; other.Attempts != 0 || other.Failure.Reject == nil {
		t.Errorf("a port that nobody asked for: %+v", other)
	}
	if r.Capture.From == nil || r.Capture.Files[0] != path {
		t.Errorf("capture: %+v", r.Capture)
	}
}

// A capture that is cut gives what was there, says where, and ends with 1.
func TestHandshakesOfCutCapture(t *testing.T) {
	path, truth, content := smallMix(t)
	if err := os.WriteFile(path, content[:len(content)-7], 0o600); err != nil {
		t.Fatal(err)
	}
	status, r, errOut := readHandshakes(t, "-r", path)
	want := fmt.Sprintf("lvsguard: %s: capture is cut at byte %d, in packet %d: what is before it was read\n", path, len(content)-7, truth.Packets)
	if status != 1 || errOut != want || r.Capture.Handed != truth.Packets-1 {
		t.Errorf("status %d, %d packets, %s want %s", status, r.Capture.Handed, errOut, want)
	}
}

// Several captures are read as one: handshakes that begin in one and end in the
// next are whole.
func TestHandshakesOfCaptures(t *testing.T) {
	path, truth, content := smallMix(t)
	const header, packet = 24, 16
	// Between two packets, somewhere in the middle.
	at := header
	for at < len(content)/2 {
		at += packet + int(content[at+8]) + int(content[at+9])<<8
	}
	first, second := filepath.Join(t.TempDir(), "1.pcap"), filepath.Join(t.TempDir(), "2.pcap.gz")
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(content[:header])
	z.Write(content[at:])
	z.Close()
	for name, text := range map[string][]byte{first: content[:at], second: zipped.Bytes()} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	status, r, _ := readHandshakes(t, "-r", first, second)
	if f := r.Filters[0]; status != 0 || f.Success.Total != truth.Success || f.Attempts != truth.Attempts || len(r.Capture.Files) != 2 {
		t.Errorf("status %d: %+v", status, f)
	}
	// What could be read of the captures is told when one of them is not there.
	status, r, errOut := readHandshakes(t, "-r", path, "-r", first+".not")
	if status != 1 || r.Filters[0].Success.Total != truth.Success || !strings.Contains(errOut, first+".not: no such file or directory") {
		t.Errorf("status %d, %s%+v", status, errOut, r.Filters)
	}
}

func TestHandshakeEvents(t *testing.T) {
	path, truth, _ := smallMix(t)
	_, out, _ := lvsguard(t, "handshakes", "-r", path, "--events")
	var success, reject uint64
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) == 8 && fields[3] == ">" {
			switch fields[1] {
			case "success":
				success++
			case "reject":
				reject++
			default:
				t.Errorf("%s", line)
			}
		}
	}
	if success != truth.Success || reject != truth.Reject {
		t.Errorf("%d successes and %d rejects, want %d and %d", success, reject, truth.Success, truth.Reject)
	}
	_, out, _ = lvsguard(t, "handshakes", "-r", path, "--events", "--json")
	dec := json.NewDecoder(strings.NewReader(out))
	for range truth.Success + truth.Reject {
		var e handshake.Event
		if err := dec.Decode(&e); err != nil || !e.Server.IsValid() || e.Took <= 0 {
			t.Fatalf("%+v: %v", e, err)
		}
	}
	var r handshakesJSON
	if err := dec.Decode(&r); err != nil || r.Filters[0].Success.Total != truth.Success {
		t.Errorf("after the events: %+v: %v", r, err)
	}
}

// someHandshakes are figures of every kind.
func someHandshakes() *handshakesJSON {
	histogram := func(scale time.Duration) *handshake.HistogramValue {
		v := &handshake.HistogramValue{Count: 100, Sum: scale.Seconds() * 100}
		for i := range handshake.Buckets - 1 {
			bound := handshake.Bound(i)
			n := uint64(0)
			switch {
			case bound >= 50*scale:
				n = 99
			case bound >= scale:
				n = 60
			}
			v.Buckets = append(v.Buckets, handshake.Bucket{LE: bound.Seconds(), Count: n})
		}
		return v
	}
	return &handshakesJSON{
		Filters: []handshake.Figures{
			{
				Name: "all", Attempts: 1234567, Visibility: handshake.Both, Pending: 1000000,
				Success:   handshake.Successes{Total: 198020, DupSYN: 3961, DupSYNACK: ptr(uint64(2041))},
				Failure:   handshake.Failures{Total: 36547, Reject: ptr(uint64(1980)), Unreach: ptr(uint64(7)), Timeout: 34000, Aborted: 560, DupSYN: 39, DupSYNACK: ptr(uint64(0))},
				Signature: handshake.Signed{Attempts: 1000000, Completed: 3}, LowerBound: true,
				Complete: histogram(4 * time.Millisecond), Answer: histogram(time.Millisecond),
			},
			{
				Name: "shop/api-with-a-long-name", Project: "shop", Attempts: 10, Visibility: handshake.Client,
				Success: handshake.Successes{Total: 9}, Failure: handshake.Failures{Total: 1, Timeout: 1}, Complete: histogram(100 * time.Millisecond),
			},
			{Name: "[2001:db8::1]:443", Visibility: handshake.Client, Attempts: 5, Untracked: 5, LowerBound: true, Complete: &handshake.HistogramValue{}},
		},
		Capture: captureJSON{
			Capture: guard.Capture{
				Report: capture.Report{
					Packets: ptr(uint64(2000000)), Handed: 1604061, Dropped: 123456, Copies: 12,
					Undecoded: map[string]uint64{"fragment": 3, "bad_tcp": 1},
				},
				Interfaces: []string{"eth0", "eth1"}, Notes: []string{"eth0.7 is read on eth0"}, Filter: "classic", FilterReason: "CAP_BPF is missing",
			},
			From: ptr(noon), To: ptr(noon.Add(86106 * time.Millisecond)),
		},
	}
}

func TestHandshakeScreens(t *testing.T) {
	var out bytes.Buffer
	writeHandshakes(&out, someHandshakes())
	golden(t, "handshakes", out.String())
	out.Reset()
	writeHandshakes(&out, &handshakesJSON{Filters: []handshake.Figures{{Name: "all", Visibility: handshake.Client, Complete: &handshake.HistogramValue{}}}})
	golden(t, "handshakes-empty", out.String())
	out.Reset()
	writeTcpeek(&out, someHandshakes())
	golden(t, "handshakes-tcpeek", out.String())
}

func TestHandshakeJSONKeys(t *testing.T) {
	r := someHandshakes()
	r.Capture.Files = []string{"a"}
	wantKeys(t, "handshakes", r, `
		filters filters.name filters.project filters.attempts filters.pending filters.untracked filters.lower_bound filters.visibility
		filters.success filters.success.total filters.success.dupsyn filters.success.dupsynack
		filters.failure filters.failure.total filters.failure.reject filters.failure.unreach filters.failure.timeout
		filters.failure.aborted filters.failure.dupsyn filters.failure.dupsynack
		filters.signature filters.signature.attempts filters.signature.completed filters.signature.screened
		filters.time_to_complete filters.time_to_complete.count filters.time_to_complete.sum_seconds
		filters.time_to_complete.buckets filters.time_to_complete.buckets.le filters.time_to_complete.buckets.count
		filters.server_time filters.server_time.count filters.server_time.sum_seconds
		filters.server_time.buckets filters.server_time.buckets.le filters.server_time.buckets.count
		capture capture.packets capture.handed capture.dropped capture.other capture.copies
		capture.undecoded capture.undecoded.fragment capture.undecoded.bad_tcp
		capture.interfaces capture.notes capture.kernel_filter capture.kernel_filter_reason capture.from capture.to capture.files`)
}
