package guard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
