package lab

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestArchive(t *testing.T) {
	var out bytes.Buffer
	a := archive{w: &out}
	a.directory("modules")
	a.file("job.json", []byte("{}\n"))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	const rest = "00000000" + "00000000" // uid, gid
	want := "070701" + "00000001" + "000041ed" + rest + "00000001" + "00000000" + "00000000" +
		"00000000000000000000000000000000" + "00000008" + "00000000" + "modules\x00" + "\x00\x00" +
		"070701" + "00000002" + "000081ed" + rest + "00000001" + "00000000" + "00000003" +
		"00000000000000000000000000000000" + "00000009" + "00000000" + "job.json\x00" + "\x00" + "{}\n" + "\x00" +
		"070701" + "00000003" + "00000000" + rest + "00000001" + "00000000" + "00000000" +
		"00000000000000000000000000000000" + "0000000b" + "00000000" + "TRAILER!!!\x00" + "\x00\x00\x00"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

func TestArchiveKeepsTheFirstError(t *testing.T) {
	full := errors.New("no space left on device")
	a := archive{w: writerFunc(func([]byte) (int, error) { return 0, full })}
	a.file("init", []byte("x"))
	a.w = writerFunc(func(b []byte) (int, error) { return len(b), nil })
	if err := a.close(); !errors.Is(err, full) {
		t.Errorf("close: %v, want %v", err, full)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
