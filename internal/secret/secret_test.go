package secret

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, holds, want, err string
	}{
		{"a line", "canary\n", "canary", ""},
		{"blanks around it", " \tcanary \n\n", "canary", ""},
		{"empty", "\n", "", " is empty"},
		{"two lines", "canary\ncanary\n", "", "want one line of text in "},
		{"binary", "canary\x00", "", "want one line of text in "},
		{"too long", strings.Repeat("canary", most), "", "want one line of text in "},
		{"too long and blank", strings.Repeat(" ", 2*most), "", "want one line of text in "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(dir, strings.ReplaceAll(tt.name, " ", "-"))
			if err := os.WriteFile(name, []byte(tt.holds), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Read(name)
			if got != tt.want || (err == nil) != (tt.err == "") {
				t.Fatalf("got %q, %v", got, err)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "canary")) {
				t.Errorf("the error is %q", err)
			}
		})
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(pipe); err == nil || !strings.Contains(err.Error(), "is no regular file") {
		t.Errorf("of a pipe: %v", err)
	}
	if _, err := Read(filepath.Join(dir, "absent")); !os.IsNotExist(err) {
		t.Errorf("of no file: %v", err)
	}
}
