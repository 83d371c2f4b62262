package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard"
	"github.com/lvsguard/lvsguard/guard/incident"
)

// pastIncident is one of those that the report is tested with.
func pastIncident(t *testing.T, name string) *incident.Record {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "guard", "incident", "report", "testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	r := new(incident.Record)
	if err := json.Unmarshal(text, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// keepIncidents gives a state directory with records.
func keepIncidents(t *testing.T, records ...*incident.Record) (stateDir string) {
	t.Helper()
	stateDir = t.TempDir()
	store, err := incident.Create(incident.Dir(stateDir))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, r := range records {
		if err := store.Save(r); err != nil {
			t.Fatal(err)
		}
		if r.Pinned {
			if err := store.Pin(r.ID, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	return stateDir
}

// at moves an incident to another time, as far as lists tell of it.
func at(r *incident.Record, onset time.Time) *incident.Record {
	moved := *r
	moved.ID = incident.NewID(onset, r.Service)
	by := onset.Sub(r.Onset)
	moved.Onset, moved.Written = onset, r.Written.Add(by)
	if r.Ended != nil {
		moved.Ended = ptr(r.Ended.Add(by))
	}
	moved.Series, moved.Actions, moved.Packets = nil, nil, nil
	return &moved
}

func TestIncidentsScreen(t *testing.T) {
	dropped, observed, cut := pastIncident(t, "dropped"), pastIncident(t, "observed"), pastIncident(t, "cut")
	calm := at(observed, noon.Add(-100*time.Hour))
	calm.Flooded, calm.Peaks, calm.Totals = nil, incident.Peaks{}, incident.Totals{}
	spread := []*incident.Record{dropped}
	for i, service := range []string{"192.0.2.101:443", "192.0.2.102:80", "fwmark:7", "[2001:db8::1]:80"} {
		r := at(dropped, dropped.Onset.Add(time.Duration(i/2)*time.Second))
		r.Service, r.ID = service, incident.NewID(r.Onset, service)
		spread = append(spread, r)
	}
	for name, records := range map[string][]*incident.Record{
		"incidents":        {dropped, at(observed, noon), at(cut, noon.Add(time.Hour)), calm},
		"incidents-spread": spread,
		"incidents-none":   nil,
	} {
		status, out, errOut := lvsguard(t, "incidents", "--state-dir", keepIncidents(t, records...))
		if status != 0 || errOut != "" {
			t.Errorf("%s: status %d, %s", name, status, errOut)
		}
		golden(t, name, out)
	}
	for _, r := range []*incident.Record{dropped, observed, cut} {
		status, out, errOut := lvsguard(t, "incidents", "show", r.ID[:9], "--state-dir", keepIncidents(t, r))
		if status != 0 || errOut != "" {
			t.Errorf("%s: status %d, %s", r.ID, status, errOut)
		}
		golden(t, "incident-"+map[*incident.Record]string{dropped: "dropped", observed: "observed", cut: "cut"}[r], out)
		if lines := strings.Count(out, "\n"); lines > 50 {
			t.Errorf("%s: %d lines: that is no screen", r.ID, lines)
		}
	}
}

// Text from packets and configurations moves no cursor, and fits the screen.
func TestIncidentHostileScreen(t *testing.T) {
	r := pastIncident(t, "hostile")
	var out bytes.Buffer
	writeIncident(&out, r, "ID")
	writeIncidents(&out, []incidentJSON{{ID: "20260303T031204Z-x", Service: r.Service, Project: r.Project}}, nil)
	if !strings.Contains(out.String(), `\x1b[2J`) {
		t.Error("nothing hostile is shown: this test looks at the wrong thing")
	}
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > width && !strings.HasPrefix(line, "      ") {
			t.Errorf("%d columns: %q", n, line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("not to be printed: %q", line)
		}
	}
}

func TestIncidentsSince(t *testing.T) {
	old := at(pastIncident(t, "dropped"), time.Now().Add(-30*time.Hour))
	long := at(pastIncident(t, "dropped"), time.Now().Add(-25*time.Hour))
	long.Ended = ptr(time.Now().Add(-23 * time.Hour))
	dir := keepIncidents(t, old, long)
	ids := func(args ...string) []string {
		status, out, errOut := lvsguard(t, append([]string{"incidents", "--json", "--state-dir", dir}, args...)...)
		var list incidentsJSON
		if err := json.Unmarshal([]byte(out), &list); status != 0 || err != nil {
			t.Fatalf("status %d, %s, %v", status, errOut, err)
		}
		var all []string
		for _, i := range list.Incidents {
			all = append(all, i.ID)
		}
		return all
	}
	if diff := cmp.Diff([]string{long.ID}, ids("--since", "24h")); diff != "" {
		t.Errorf("of 24 h (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{long.ID, old.ID}, ids()); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
}

// A record that cannot be read is told, and the others are listed.
func TestIncidentsBroken(t *testing.T) {
	r := pastIncident(t, "dropped")
	dir := keepIncidents(t, r)
	broken := filepath.Join(incident.Dir(dir), "20260101T000000Z-192.0.2.1_80.json")
	if err := os.WriteFile(broken, []byte(`{"format":1,`), 0o640); err != nil {
		t.Fatal(err)
	}
	// What capture save writes is no incident.
	if err := os.WriteFile(filepath.Join(incident.Dir(dir), "20260101T000000Z-capture-by_hand-1.pcapng"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	status, out, errOut := lvsguard(t, "incidents", "--state-dir", dir)
	if strings.Contains(out+errOut, "capture") {
		t.Errorf("a capture is told of: %s%s", out, errOut)
	}
	if status != 1 || !strings.Contains(out, "192.0.2.101:80") || !strings.Contains(errOut, broken) {
		t.Errorf("status %d\n%s%s", status, out, errOut)
	}
}

func TestIncidentFound(t *testing.T) {
	a, b := pastIncident(t, "dropped"), pastIncident(t, "observed")
	c := at(a, a.Onset.Add(time.Minute))
	dir := keepIncidents(t, a, b, c)
	for _, tt := range []struct {
		id     string
		status int
		want   string
	}{
		{a.ID, 0, a.ID},
		{c.ID[:13], 0, c.ID},
		{"20260303T031204Z-1", 0, a.ID},
		{"2026", 1, fmt.Sprintf(`3 incidents begin with "2026", write more of one: %s, %s, %s`, c.ID, b.ID, a.ID)},
		{"2027", 1, `no incident begins with "2027" (see: lvsguard incidents)`},
		{"../../etc/passwd", 1, `no incident begins with "../../etc/passwd"`},
	} {
		status, out, errOut := lvsguard(t, "incidents", "show", "--json", tt.id, "--state-dir", dir)
		if status != tt.status || !strings.Contains(out+errOut, tt.want) {
			t.Errorf("%s: status %d, want %d with %s\n%.300s%s", tt.id, status, tt.status, tt.want, out, errOut)
		}
	}
	status, _, errOut := lvsguard(t, "incidents", "show", "2026", "--state-dir", t.TempDir())
	if status != 1 || !strings.Contains(errOut, "has a guard run with this --state-dir?") {
		t.Errorf("no directory: status %d, %s", status, errOut)
	}
}

func TestIncidentPin(t *testing.T) {
	r := pastIncident(t, "observed")
	dir := keepIncidents(t, r)
	pinned := func() bool {
		store, err := incident.Open(incident.Dir(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		r, err := store.Load(r.ID)
		if err != nil {
			t.Fatal(err)
		}
		return r.Pinned
	}
	for _, verb := range []string{"pin", "pin", "unpin", "unpin"} {
		status, out, errOut := lvsguard(t, "incidents", verb, "2026", "--state-dir", dir)
		if status != 0 || out != r.ID+": "+verb+"ned\n" || pinned() != (verb == "pin") {
			t.Errorf("%s: status %d, %s%s", verb, status, out, errOut)
		}
	}
}

func TestIncidentReport(t *testing.T) {
	r := pastIncident(t, "dropped")
	t.Chdir(t.TempDir())
	dir := keepIncidents(t, r)
	name := "lvsguard-incident-" + r.ID + ".html"
	status, out, errOut := lvsguard(t, "incidents", "report", "2026", "--state-dir", dir)
	if status != 0 || out != name+"\n" {
		t.Fatalf("status %d, %s%s", status, out, errOut)
	}
	page, err := os.ReadFile(name)
	if err != nil || !bytes.Contains(page, []byte("SYN flood on 192.0.2.101:80 (shop)")) || !bytes.Contains(page, []byte("</html>")) {
		t.Errorf("%v: %.200s", err, page)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	status, _, errOut = lvsguard(t, "incidents", "report", "2026", "--state-dir", dir)
	if status != 1 || !strings.Contains(errOut, name+" is there already: remove it, or name another with -o") {
		t.Errorf("a second time: status %d, %s", status, errOut)
	}
	if err := os.Symlink("elsewhere", "link.html"); err != nil {
		t.Fatal(err)
	}
	status, _, errOut = lvsguard(t, "incidents", "report", "2026", "-o", "link.html", "--state-dir", dir)
	if _, err := os.Lstat("elsewhere"); status != 1 || err == nil {
		t.Errorf("through a link: status %d, %s", status, errOut)
	}
}

// unpack reads an archive: names without the directory, and contents.
func unpack(t *testing.T, path string) (names []string, files map[string]string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	top := strings.TrimSuffix(filepath.Base(path), ".tar.gz") + "/"
	files = make(map[string]string)
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		name, under := strings.CutPrefix(h.Name, top)
		if !under || !filepath.IsLocal(name) || h.Typeflag != tar.TypeReg || h.Mode != 0o640 {
			t.Errorf("%s in the archive: type %c, mode %o", h.Name, h.Typeflag, h.Mode)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names, files[name] = append(names, name), string(text)
	}
}

func TestIncidentExport(t *testing.T) {
	r := pastIncident(t, "dropped")
	dir := keepIncidents(t, r)
	for i, p := range r.Packets[:2] {
		if err := os.WriteFile(filepath.Join(incident.Dir(dir), p.Name), bytes.Repeat([]byte{byte(i)}, 3<<20), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(dir, "token")
	if err := os.WriteFile(secret, []byte("open-sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The third is a link that somebody has put there.
	if err := os.Symlink(secret, filepath.Join(incident.Dir(dir), r.Packets[2].Name)); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "lvsguard.yaml")
	text := fmt.Sprintf("mode: auto\nservers: {metrics: ['http://{address}:9100/metrics'], bearer_token_file: %s}\n", secret)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var journal bytes.Buffer
	for _, minutes := range []int{-60, -5, 5, 25, 60} {
		if err := json.NewEncoder(&journal).Encode(guard.Entry{Time: r.Onset.Add(time.Duration(minutes) * time.Minute), Event: guard.EventMode, Reason: fmt.Sprint(minutes)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "journal.jsonl"), journal.Bytes(), 0o640); err != nil {
		t.Fatal(err)
	}

	status, out, errOut := lvsguard(t, "incidents", "export", "2026", "-o", dir, "-c", config, "--state-dir", dir)
	path := filepath.Join(dir, "lvsguard-incident-"+r.ID+".tar.gz")
	if status != 0 || out != path+"\n" || !strings.Contains(errOut, r.Packets[2].Name) {
		t.Fatalf("status %d, %s%s", status, out, errOut)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	names, files := unpack(t, path)
	if diff := cmp.Diff([]string{
		"record.json", "report.html", "version", "journal.jsonl", "config.yaml", "packets/" + r.Packets[0].Name, "packets/" + r.Packets[1].Name, "missing",
	}, names); diff != "" {
		t.Errorf("in the archive (-want +got):\n%s", diff)
	}
	for name, text := range files {
		if strings.Contains(text, "open-sesame") {
			t.Errorf("%s has the secret in it", name)
		}
	}
	if !strings.Contains(files["config.yaml"], "bearer_token_file: "+secret) {
		t.Errorf("the configuration:\n%s", files["config.yaml"])
	}
	if !strings.Contains(files["missing"], r.Packets[2].Name) {
		t.Errorf("what is missing: %s", files["missing"])
	}
	if got := files["packets/"+r.Packets[1].Name]; got != strings.Repeat("\x01", 3<<20) {
		t.Errorf("%d bytes of packets", len(got))
	}
	var reasons []string
	for line := range strings.Lines(files["journal.jsonl"]) {
		var e guard.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		reasons = append(reasons, e.Reason)
	}
	if diff := cmp.Diff([]string{"-5", "5", "25"}, reasons); diff != "" {
		t.Errorf("the journal (-want +got):\n%s", diff)
	}
	if again, err := incident.ParseRecord([]byte(files["record.json"])); err != nil || again.ID != r.ID {
		t.Errorf("the record: %v", err)
	}

	status, _, errOut = lvsguard(t, "incidents", "export", "2026", "-o", dir, "--state-dir", dir)
	if status != 1 || !strings.Contains(errOut, "is there already") {
		t.Errorf("a second time: status %d, %s", status, errOut)
	}
}

// What cannot be written whole leaves nothing behind.
func TestWriteNewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	err := writeNewFile(path, func(io.Writer) error { return errors.New("no space left on device") })
	if err == nil || !strings.Contains(err.Error(), "write a.tar.gz: no space left on device") {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Errorf("%s is still there", path)
	}
}

// The configuration that is exported can hold no secret: whatever is one is
// named by a file.
func TestConfigHoldsNoSecret(t *testing.T) {
	seen := make(map[reflect.Type]bool)
	files := 0
	var walk func(v reflect.Type)
	walk = func(v reflect.Type) {
		for slices.Contains([]reflect.Kind{reflect.Pointer, reflect.Slice, reflect.Map}, v.Kind()) {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct || seen[v] {
			return
		}
		seen[v] = true
		for i := range v.NumField() {
			f := v.Field(i)
			if strings.HasSuffix(f.Name, "File") {
				files++
			} else if word := strings.ToLower(f.Name); f.Type.Kind() == reflect.String && (strings.Contains(word, "password") || strings.Contains(word, "token") || strings.Contains(word, "secret")) {
				t.Errorf("%s.%s can hold a secret: have it name a file", v, f.Name)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[guard.Config]())
	if files < 5 {
		t.Errorf("%d keys name a file: this test looks in the wrong place", files)
	}
}

func TestIncidentJSONKeys(t *testing.T) {
	r := pastIncident(t, "dropped")
	const totals = "totals totals.offered totals.suspect totals.dropped totals.admitted "
	const peaks = "peaks peaks.syn_per_second peaks.suspect_per_second peaks.dropped_per_second peaks.half_open_connections peaks.memory_share peaks.syncookies_per_second "
	prefixed := func(prefix, keys string) string {
		var b strings.Builder
		for k := range strings.FieldsSeq(keys) {
			b.WriteString(" " + prefix + k)
		}
		return b.String()
	}
	_, out, _ := lvsguard(t, "incidents", "--json", "--state-dir", keepIncidents(t, r))
	wantKeys(t, "incidents", json.RawMessage(out), "incidents"+prefixed("incidents.", `
		id host service project onset flooded first_drop ended seconds verdict pinned bytes `+totals+peaks))

	r.Gaps = []incident.Gap{{}}
	r.Unknown, r.ActionsLeftOut = map[string]string{"look": "why"}, 1
	r.Collateral.Sources = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	wantKeys(t, "incidents show", r, `
		format id host version pinned service project addresses onset flooded first_drop ended began ended_by
		gaps gaps.from gaps.to gaps.reason `+totals+peaks+`
		series series.time series.seconds series.syn series.suspect series.dropped series.half_open series.connections series.memory_share
		series.cookies series.completion series.armed
		clients clients.before clients.during clients.after`+
		prefixed("clients.before.", "completion p50_seconds p99_seconds handshakes")+
		prefixed("clients.during.", "completion p50_seconds p99_seconds handshakes")+
		prefixed("clients.after.", "completion p50_seconds p99_seconds handshakes")+`
		collateral collateral.packets collateral.sampled collateral.sources
		actions actions.time actions.kind actions.text actions.by actions_left_out
		look look.flood_packets look.good_packets look.features look.features.text look.features.flood look.features.good look.features.nft_match look.features.signature
		look.fields look.fields.name look.fields.values look.fields.values.value look.fields.values.flood look.fields.values.good
		look.fields.others_flood look.fields.others_good look.fields.pattern
		look.sources look.sources.distinct look.sources.prefixes look.sources.likely_spoofed
		look.sources.prefixes.8 look.sources.prefixes.8.value look.sources.prefixes.8.flood look.sources.prefixes.8.good
		look.sources.prefixes.16 look.sources.prefixes.16.value look.sources.prefixes.16.flood look.sources.prefixes.16.good
		look.sources.prefixes.24 look.sources.prefixes.24.value look.sources.prefixes.24.flood look.sources.prefixes.24.good
		packets packets.name packets.why packets.from packets.to packets.packets packets.seen packets.bytes
		unknown unknown.look written counted counted.syn counted.suspect counted.dropped`)
}
