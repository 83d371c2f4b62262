package guard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lvsguard/lvsguard/capture/handshake"
	"github.com/lvsguard/lvsguard/guard/incident"
)

// Every entry for the signatures that an analysis gives can be pasted into the
// configuration.
func TestSignaturesOfRecords(t *testing.T) {
	files, err := filepath.Glob("incident/testdata/look/*.golden")
	if err != nil {
		t.Fatal(err)
	}
	var tried int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			entry, ok := strings.CutPrefix(line, "  - {name:")
			if !ok {
				continue
			}
			tried++
			if _, err := ParseConfig(strings.NewReader("signatures:\n- {name:" + entry)); err != nil {
				t.Errorf("%s: %s: %v", file, entry, err)
			}
		}
	}
	if tried < 20 {
		t.Errorf("only %d entries: this test looks in the wrong place", tried)
	}
}

// The record's times to complete are counted up to the capture's bounds.
func TestIncidentBounds(t *testing.T) {
	if incident.Bounds != handshake.Buckets-1 {
		t.Fatalf("%d bounds of %d", incident.Bounds, handshake.Buckets-1)
	}
	for i := range incident.Bounds {
		if incident.Bound(i) != handshake.Bound(i) {
			t.Errorf("bound %d is %s, the capture's %s", i, incident.Bound(i), handshake.Bound(i))
		}
	}
}
