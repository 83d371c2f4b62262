package pressure

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestRecognise(t *testing.T) {
	tests := []struct {
		text    string
		kind    EventKind // empty: it does not matter
		subject string
	}{
		{"IPVS: ip_vs_conn_new: no memory", EventIPVSNoMemory, "ip_vs_conn_new"},
		{"IPVS: ip_vs_conn_new(): no memory", EventIPVSNoMemory, "ip_vs_conn_new"},
		{"IPVS: ip_vs_sched_persist: no memory", EventIPVSNoMemory, "ip_vs_sched_persist"},
		{"IPVS: rr: TCP 192.0.2.1:80 - no destination available", "", ""},
		{"IPVS: Registered protocols (TCP, UDP, SCTP, AH, ESP)", "", ""},
		{"nginx: worker invoked oom-killer: gfp_mask=0x100cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0", EventOOM, "nginx: worker"},
		{"Out of memory: Killed process 812 (nginx) total-vm:102400kB, anon-rss:51200kB, file-rss:0kB", EventOOMKill, "nginx"},
		{"Memory cgroup out of memory: Killed process 99 (java) total-vm:1kB", EventOOMKill, "java"},
		{"Out of memory: Kill process 812 (nginx) score 912 or sacrifice child", EventOOMKill, "nginx"},
		{"Killed process 812 (nginx) total-vm:102400kB", EventOOMKill, "nginx"},
		{"oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),task=nginx,pid=812,uid=0", "", ""},
		{"TCP: request_sock_TCP: Possible SYN flooding on port 80. Sending cookies.  Check SNMP counters.", EventSYNFlooding, "80"},
		{"TCP: request_sock_TCP: Possible SYN flooding on port 192.0.2.1:80. Sending cookies.  Check SNMP counters.", EventSYNFlooding, "192.0.2.1:80"},
		{"request_sock_TCPv6: Possible SYN flooding on port [::]:80. Sending cookies.", EventSYNFlooding, "[::]:80"},
		{"TCP: Possible SYN flooding on port 8080. Dropping request.  Check SNMP counters.", EventSYNFlooding, "8080"},
		{"nf_conntrack: nf_conntrack: table full, dropping packet", EventConntrackFull, ""},
		{"nf_conntrack: table full, dropping packet.", EventConntrackFull, ""},
		{"nf_conntrack: nf_conntrack: table full in netns 4026532000, dropping packet", EventConntrackFull, ""},
		{"neighbour: arp_cache: neighbor table overflow!", EventNeighbours, "arp_cache"},
		{"neighbour: ndisc_cache: neighbor table overflow!", EventNeighbours, "ndisc_cache"},
		{"Neighbour table overflow.", EventNeighbours, ""},
		{"INFO: task kworker/1:2:812 blocked for more than 120 seconds.", EventBlocked, "kworker/1:2"},
		{"INFO: task nginx:812 blocked for more than 241 seconds.", EventBlocked, "nginx"},
		{"swapper/0: page allocation failure: order:0, mode:0xa20(GFP_ATOMIC), nodemask=(null)", EventAllocation, "swapper/0"},
		{"eth0: link up", "", ""},
		{"", "", ""},
	}
	for _, test := range tests {
		t.Run(test.text, func(t *testing.T) {
			kind, subject, ok := recognise(test.text)
			if kind != test.kind || subject != test.subject || ok != (test.kind != "") {
				t.Errorf("%q, %q, %v; want %q, %q", kind, subject, ok, test.kind, test.subject)
			}
			if ok && !slices.Contains(EventKinds(), kind) {
				t.Errorf("%q is none of EventKinds", kind)
			}
		})
	}
}

func TestRecords(t *testing.T) {
	text := "6,339,5140900,-;NET: Registered protocol family 10\n" +
		"30,340,5690716,-;udevd[80]: starting version 181\n" +
		" SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n" +
		"4,341,5690720,c,caller=T1,more=2;a text; with a semicolon\n" +
		"nonsense\n" +
		"4,x,5,-;no number\n" +
		"4;nor here\n" +
		"6,342,5690721,-;cut"
	var got []string
	for r := range records([]byte(text)) {
		got = append(got, fmt.Sprint(r.sequence, " ", r.text))
	}
	want := []string{"339 NET: Registered protocol family 10", "340 udevd[80]: starting version 181", "341 a text; with a semicolon", "342 cut"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// fakeLog is a KernelLog whose kernel is the test: a socket that keeps messages
// apart, as /dev/kmsg does.
func fakeLog(t *testing.T) (k *KernelLog, write func(sequence int, text string)) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k = &KernelLog{fd: pair[0], buf: make([]byte, maxRecord)}
	t.Cleanup(func() { k.Close(); unix.Close(pair[1]) })
	return k, func(sequence int, text string) {
		t.Helper()
		if _, err := unix.Write(pair[1], fmt.Appendf(nil, "4,%d,123456,-;%s\n", sequence, text)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKernelLog(t *testing.T) {
	k, write := fakeLog(t)
	type told struct {
		Kind    EventKind
		Subject string
		Count   uint64
	}
	events := func(at time.Duration) (got []told) {
		t.Helper()
		all, err := k.Events(start.Add(at))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			got = append(got, told{e.Kind, e.Subject, e.Count})
		}
		return got
	}
	check := func(at time.Duration, want ...told) {
		t.Helper()
		if diff := cmp.Diff(want, events(at)); diff != "" {
			t.Errorf("at %v (-want +got):\n%s", at, diff)
		}
	}

	const noMemory, flooding = "IPVS: ip_vs_conn_new: no memory", "TCP: Possible SYN flooding on port 80. Sending cookies."
	check(0)
	write(7, noMemory)
	write(8, "eth0: link up")
	write(9, flooding)
	write(10, noMemory)
	check(time.Second, told{EventIPVSNoMemory, "ip_vs_conn_new", 1}, told{EventSYNFlooding, "80", 1})
	for i := range 100 {
		write(11+i, noMemory)
	}
	check(2 * time.Second)
	write(111, strings.Replace(flooding, "80", "443", 1)) // another port is another thing
	check(30*time.Second, told{EventSYNFlooding, "443", 1})
	check(61*time.Second, told{EventIPVSNoMemory, "ip_vs_conn_new", 101})
	write(112, noMemory)
	check(62 * time.Second)
	check(121*time.Second, told{EventIPVSNoMemory, "ip_vs_conn_new", 1})
	check(300 * time.Second) // a minute without: it is forgotten
	if len(k.repeat.told) != 0 {
		t.Errorf("remembered: %v", k.repeat.told)
	}
	write(113, flooding)
	check(301*time.Second, told{EventSYNFlooding, "80", 1})

	if k.Lost() != 0 {
		t.Errorf("%d lost", k.Lost())
	}
	write(150, "eth0: link down")
	check(302 * time.Second)
	if k.Lost() != 36 {
		t.Errorf("%d lost, want 36", k.Lost())
	}
}

// A log that never ends does not hold up its reader, and what is read is
// bounded.
func TestKernelLogFlood(t *testing.T) {
	k, write := fakeLog(t)
	sent := 0
	for round := range 5 {
		for range 150 { // the socket takes no more than some 200 at a time
			sent++
			write(sent, fmt.Sprintf("INFO: task t%d:7 blocked for more than 120 seconds.", sent))
		}
		if _, err := k.Events(start.Add(time.Duration(round) * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(k.repeat.told); n > maxSubjects+10 {
		t.Errorf("%d subjects are remembered", n)
	}
	all, err := k.Events(start.Add(2 * time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Subject != "" || all[0].Count != uint64(sent-maxSubjects-1) {
		t.Errorf("what was too much to tell apart: %+v", all)
	}
}

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"plain":                  "plain",
		"\x1b[31mred\x07":        "?[31mred?",
		"a\tb\nc":                "a?b?c",
		"\xff\xfeü":              "?ü",
		"right\u202eto left":     "right?to left",
		strings.Repeat("ä", 200): strings.Repeat("ä", 120) + " …",
	} {
		if got := printable(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

// The kernel's own log, from when it was opened on.
func TestKernelLogReal(t *testing.T) {
	w, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		unprivilegedOnly(t, err.Error())
	}
	defer w.Close()
	// Text of its own each time: the log is every run's.
	port := time.Now().UnixNano()
	line := func(n int64) string {
		return fmt.Sprintf("<6>lvsguard test: Possible SYN flooding on port %d. Sending cookies.\n", port+n)
	}
	if _, err := w.WriteString(line(0)); err != nil {
		unprivilegedOnly(t, err.Error())
	}
	k, err := OpenKernelLog("")
	if err != nil {
		unprivilegedOnly(t, err.Error())
	}
	defer k.Close()
	if _, err := w.WriteString(line(1)); err != nil {
		t.Fatal(err)
	}
	var subjects []string
	for deadline := time.Now().Add(5 * time.Second); len(subjects) == 0 && time.Now().Before(deadline); {
		events, err := k.Events(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Kind == EventSYNFlooding {
				subjects = append(subjects, e.Subject)
			}
		}
	}
	if slices.Contains(subjects, fmt.Sprint(port)) || !slices.Contains(subjects, fmt.Sprint(port+1)) {
		t.Errorf("ports %v, want only %d", subjects, port+1)
	}
}

func TestKernelLogErrors(t *testing.T) {
	root := t.TempDir()
	if _, err := OpenKernelLog(root); !notThere(err) {
		t.Errorf("absent: %v", err)
	}
	if os.Geteuid() == 0 {
		return // who may read everything is never refused
	}
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "dev/kmsg"), nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKernelLog(root); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_SYSLOG") {
		t.Errorf("refused: %v", err)
	}
}

func FuzzKernelLog(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;IPVS: ip_vs_conn_new: no memory\n SUBSYSTEM=acpi\n"))
	f.Add([]byte("4,1,2,-;Out of memory: Killed process 1 (\x1b]0;evil\x07) x\n4,2,2,-;INFO: task a:b blocked for more than 1 seconds.\n"))
	f.Add([]byte("4,7,2,-;neighbour: arp_cache: neighbor table overflow!\n4,7,2,-;x: page allocation failure\n"))
	f.Add([]byte("4,7,2,-;TCP: Possible SYN flooding on port [::]:80. Sending\n4,8,2,-;nf_conntrack: table full\n4,9,2,-;x invoked oom-killer"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for r := range records(data) {
			kind, subject, ok := recognise(r.text)
			if ok != (kind != "") || !ok && subject != "" {
				t.Errorf("%q: %q, %q, %v", r.text, kind, subject, ok)
			}
			text := printable(subject)
			if !utf8.ValidString(text) || len(text) > maxText+len(" …") || strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
				t.Errorf("%q becomes %q", subject, text)
			}
		}
	})
}
