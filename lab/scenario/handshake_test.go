//go:build lab

package scenario

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/lab/site"
)

// handshakesOf waits until the guard has counted so many successes of the first service, and gives its figures.
func handshakesOf(t *testing.T, d *site.Director, successes uint64) handshake.Figures {
	t.Helper()
	var f handshake.Figures
	site.Wait(t, 15*time.Second, "the guard has counted the handshakes", func() bool {
		if h := d.Service(0).Handshakes; h != nil {
			f = *h
		}
		return f.Success.Total >= successes
	})
	return f
}

// TestHandshakes: what the guard counts of a service is what its clients did, in the midst of a flood too; and where
// the servers' answers do not pass the director, it does not claim to know them.
func TestHandshakes(t *testing.T) {
	site.Each(t, site.Config{}, func(t *testing.T, s *site.Site) {
		d := s.Master()
		d.StartGuard(auto)
		status := d.Status()
		if status.Capture == nil || status.Capture.Filter != "ebpf" {
			t.Fatalf("the guard's capture: %+v, unknown: %v", status.Capture, status.Unknown)
		}
		both := s.Variant == site.NAT4 || s.Variant == site.NAT6

		// The command counts beside the guard, by its own means.
		sockets := func() int { return strings.Count(d.Run("cat", "/proc/net/packet"), "\n") }
		others := sockets()
		command := make(chan string, 1)
		go func() {
			out, err := d.TryLvsguard("handshakes", "--for", "15s", "--json")
			if err != nil {
				out = err.Error()
			}
			command <- out
		}()
		site.Wait(t, 20*time.Second, "the command has begun to capture", func() bool {
			return sockets() >= others+runtime.NumCPU() // one a worker
		})
		// A client whose SYN an emulated host is slow to answer repeats it. That is not the guard's to leave out.
		resent := s.Client.Resent()
		before := handshakesOf(t, d, 0)
		const requests = 60
		if n := s.Client.Get(requests); n != requests {
			t.Fatalf("%d of %d requests served", n, requests)
		}
		f := handshakesOf(t, d, before.Success.Total+requests)
		if n := f.Attempts - before.Attempts; n != requests {
			t.Errorf("%d attempts counted of a client's %d", n, requests)
		}
		if n, want := f.Success.DupSYN-before.Success.DupSYN, s.Client.Resent()-resent; n > want || want == 0 && n != 0 {
			t.Errorf("%d attempts with a repeated SYN, the client has repeated %d", n, want)
		}
		if f.Failure.Total != before.Failure.Total || f.LowerBound {
			t.Errorf("failures or a lower bound where there were none: %+v", f)
		}
		if both && (f.Visibility != handshake.Both || f.Failure.Reject == nil || f.Success.DupSYNACK == nil) {
			t.Errorf("by NAT all can be seen: %+v", f)
		}
		if !both && (f.Visibility != handshake.Client || f.Failure.Reject != nil || f.Failure.Unreach != nil || f.Success.DupSYNACK != nil) {
			t.Errorf("what the servers answer does not pass here, and yet it is known: %+v", f)
		}
		if done := d.Service(0).Completion; done == nil || *done != 1 {
			t.Errorf("completion %v, want 1", done)
		}
		var counted struct{ Filters []handshake.Figures }
		text := <-command
		if err := json.Unmarshal([]byte(text), &counted); err != nil {
			t.Fatalf("handshakes --json: %v\n%s", err, text)
		}
		if i := len(counted.Filters) - 1; i < 1 || counted.Filters[i].Name != s.Key(0) || counted.Filters[i].Success.Total != requests {
			t.Errorf("the command counted otherwise: %s", text)
		}

		// A flood before it is dropped: none of it completes. And while it is: it is no attempt any more.
		fl := s.Attacker.Flood(night)
		newGauge(t, d).drops(20 * time.Second)
		flooded := handshakesOf(t, d, 0)
		if n := flooded.Signature.Attempts; n < 1000 || flooded.Signature.Completed != 0 {
			t.Errorf("%d attempts with the signature, %d of them completed", n, flooded.Signature.Completed)
		}
		site.Wait(t, 20*time.Second, "2000 more packets of flood", floodsOn(fl, 2000))
		armed := handshakesOf(t, d, 0)
		site.Wait(t, 20*time.Second, "2000 more packets of flood", floodsOn(fl, 2000))
		if n := s.Client.Get(30); n != 30 {
			t.Errorf("%d of 30 requests served in the flood", n)
		}
		f = handshakesOf(t, d, armed.Success.Total+30)
		if n := f.Attempts - armed.Attempts; n != 30 {
			t.Errorf("armed, %d attempts are counted of a client's 30", n)
		}
		if f.Signature.Screened < armed.Signature.Screened+2000 {
			t.Errorf("of the flood %d packets were screened, %d before", f.Signature.Screened, armed.Signature.Screened)
		}
		if dropped := d.Status().Capture.Dropped; dropped > 0 {
			t.Errorf("the capture lost %d packets", dropped)
		}
		fl.Stop()
		t.Logf("status:\n%s", d.Lvsguard("status"))
	}, site.DR4, site.NAT6)
}

func floodsOn(f *site.Flood, packets uint64) func() bool {
	until := f.Sent() + packets
	return func() bool { return f.Sent() > until }
}
