package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

// asCommand is set in the environment of processes that are to be lvsguard
// itself, not its tests.
const asCommand = "LVSGUARD_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	time.Local = time.UTC // the screens show local times
	os.Exit(m.Run())
}

// lvsguard runs a command in this process.
func lvsguard(t *testing.T, args ...string) (status int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	status = run(t.Context(), args, &o, &e)
	return status, o.String(), e.String()
}

// golden compares a screen with testdata/NAME.golden, and its lines with the
// width of a terminal.
func golden(t *testing.T, name, got string) {
	t.Helper()
	for line := range strings.Lines(got) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
		if strings.TrimRight(line, " \n") != strings.TrimSuffix(line, "\n") {
			t.Errorf("spaces at the end of %q", line)
		}
	}
	goldenfile.Check(t, filepath.Join("testdata", name+".golden"), got)
}

// What was typed wrong is 2 and says how it is typed right; what fails is 1.
func TestExitStatus(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("LVSGUARD_SOCKET", filepath.Join(dir, "control.sock"))
	broken := filepath.Join(dir, "broken.yaml")
	good := filepath.Join(dir, "good.yaml")
	for path, text := range map[string]string{broken: "mode: observe\ndetect: {rte: 5}\n", good: "mode: auto\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state := "--state-dir=" + filepath.Join(dir, "state")
	for _, tt := range []struct {
		args   string
		status int
		want   string // on stderr; on stdout if the status is 0
	}{
		{"version", 0, "lvsguard development"},
		{"--help", 0, "Usage:"},
		{"", 0, "Usage:"},
		{"config check " + good, 0, "good"},
		{"config show " + good, 0, "mode: auto"},
		{"notify INSTANCE VI_1 MASTER 100", 0, ""},

		{"frobnicate", 2, `unknown command "frobnicate"`},
		{"--frobnicate", 2, "unknown flag: --frobnicate"},
		{"status extra", 2, `unexpected argument "extra"`},
		{"status --frobnicate", 2, "unknown flag: --frobnicate"},
		{"status --socket", 2, "flag needs an argument: --socket"},
		{"counters extra", 2, `unexpected argument "extra"`},
		{"conns extra", 2, `unexpected argument "extra"`},
		{"handshakes extra", 2, "files come after -r"},
		{"handshakes --json --tcpeek", 2, "choose one"},
		{"handshakes -r a -i b", 2, "choose captures or interfaces"},
		{"handshakes -r a --for 5s", 2, "captures end by themselves"},
		{"handshakes --for -5s", 2, "want a duration above 0"},
		{"handshakes --local 192.0.2.1", 2, "--local is for captures"},
		{"handshakes -r a --local host", 2, `--local: address "host": want an address or a prefix`},
		{"handshakes --filter web", 2, "as in http:in@%:80:443"},
		{"handshakes --filter all:in@%:80", 2, "is always there"},
		{"handshakes --visibility half", 2, "want auto, both or client"},
		{"handshakes -r a --timeout 0s", 2, "--timeout 0s: want 1ms to"},
		{"handshakes -r a --capacity 0", 2, "--capacity 0: want 1 to"},
		{"handshakes -r a", 1, "a: no such file"},
		{"handshakes -r " + broken, 1, broken + ": open capture: "},
		{"handshakes -r " + broken + " --timeout 2h", 2, "want 1ms to 1h"},
		{"handshakes -i nosuch0 --for 1s", 1, "nosuch0"},
		{"conns --by colour", 2, "--by colour: want state, service or source"},
		{"pressure extra", 2, `unexpected argument "extra"`},
		{"pressure --frobnicate", 2, "unknown flag: --frobnicate"},
		{"alerts figures", 0, "syn_retransmitted (counter)"},
		{"alerts figures --json", 0, `"figure": "flood"`},
		{"alerts figures extra", 2, `unexpected argument "extra"`},
		{"alerts frobnicate", 2, "alerts frobnicate: want rules, figures or test, or nothing"},
		{"alerts --frobnicate", 2, "unknown flag: --frobnicate"},
		{"alerts", 1, "no guard is running"},
		{"alerts rules", 1, "no guard is running"},
		{"alerts rules extra", 2, `unexpected argument "extra"`},
		{"alerts test", 2, "want the name of a receiver"},
		{"alerts test oncall", 1, "no guard is running"},
		{"sockets extra", 2, `unexpected argument "extra"`},
		{"sockets --by colour", 2, "--by colour: want state, listen, remote or queue"},
		{"servers extra", 2, `unexpected argument "extra"`},
		{"run extra", 2, `unexpected argument "extra"`},
		{"version extra", 2, `unexpected argument "extra"`},
		{"rules", 2, "want one of"},
		{"rules frobnicate", 2, "want one of show, install, remove"},
		{"rules show extra", 2, `unexpected argument "extra"`},
		{"rules install extra", 2, `unexpected argument "extra"`},
		{"rules remove extra", 2, `unexpected argument "extra"`},
		{"config", 2, "want one of"},
		{"config check a b", 2, "want one file"},
		{"mitigate", 2, "want auto or observe"},
		{"mitigate off", 2, `mode "off": want observe or auto`},
		{"mitigate auto observe", 2, "want auto or observe"},
		{"arm", 2, "want a service, or all"},
		{"arm 192.0.2.1:80", 2, "--for 10m"},
		{"arm all", 2, "--for 10m"},
		{"arm all --for 25h", 2, "want 1s to 24h"},
		{"arm all --for 0s", 2, "want 1s to 24h"},
		{"arm all --for -10m", 2, "want 1s to 24h"},
		{"arm all --for long", 2, "invalid argument"},
		{"arm nowhere --for 10m", 2, "nowhere"},
		{"arm 192.0.2.1:80 192.0.2.2:80 --for 10m", 2, "want a service, or all, got 2 arguments"},
		{"disarm", 2, "want a service, or all"},
		{"disarm nowhere", 2, "nowhere"},
		{"export", 2, "want one of"},
		{"export grafana", 2, "want one of prometheus-rules, alertmanager"},
		{"export prometheus-rules extra", 2, `unexpected argument "extra"`},
		{"export alertmanager --job x", 2, "unknown flag: --job"},
		{"export alertmanager -c " + broken, 1, `did you mean "rate"?`},
		{"export prometheus-rules -c " + filepath.Join(dir, "absent.yaml"), 1, "no such file"},
		{"journal extra", 2, `unexpected argument "extra"`},
		{"journal --since yesterday", 2, "invalid argument"},
		{"journal --since -1h", 2, "want how long ago, as in 1h"},
		{"capture", 2, "want one of save"},
		{"capture save extra", 2, `unexpected argument "extra"`},
		{"capture save", 1, "start it with 'lvsguard run'"},
		{"incidents extra", 2, "want nothing, or one of show, report, export, pin, unpin"},
		{"incidents --since -1h", 2, "want how long ago, as in 24h"},
		{"incidents show", 2, "want an ID, as 'lvsguard incidents' lists them"},
		{"incidents report a b", 2, "want an ID, as 'lvsguard incidents' lists them"},
		{"incidents export", 2, "want an ID, as 'lvsguard incidents' lists them"},
		{"incidents pin", 2, "want an ID, as 'lvsguard incidents' lists them"},
		{"incidents unpin", 2, "want an ID, as 'lvsguard incidents' lists them"},

		{"status", 1, "start it with 'lvsguard run'"},
		{"status --watch", 1, "start it with 'lvsguard run'"},
		{"servers", 1, "start it with 'lvsguard run'"},
		{"mitigate auto", 1, "start it with 'lvsguard run'"},
		{"arm all --for 10m", 1, "start it with 'lvsguard run'"},
		{"disarm all", 1, "start it with 'lvsguard run'"},
		{"incidents " + state, 1, "has a guard run with this --state-dir?"},
		{"incidents show 2026 " + state, 1, "has a guard run with this --state-dir?"},
		{"journal " + state, 1, "has a guard run with this --state-dir?"},
		{"config check " + broken, 1, `did you mean "rate"?`},
		{"config show " + filepath.Join(dir, "absent.yaml"), 1, "no such file"},
		{"run -c " + broken + " " + state, 1, "line 2"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			status, out, errOut := lvsguard(t, strings.Fields(tt.args)...)
			said, silent := errOut, out
			if tt.status == 0 {
				said, silent = out, ""
			}
			if status != tt.status || !strings.Contains(said, tt.want) {
				t.Errorf("status %d, want %d with %q\nstdout: %s\nstderr: %s", status, tt.status, tt.want, out, errOut)
			}
			if silent != "" {
				t.Errorf("an error, and yet on stdout: %s", out)
			}
			if tt.status == 2 && !strings.Contains(errOut, "--help'") {
				t.Errorf("it does not say where to read on: %s", errOut)
			}
		})
	}
}

// The help of each command is to be found, and shows how it is used.
func TestHelp(t *testing.T) {
	_, top, _ := lvsguard(t, "--help")
	for _, name := range []string{
		"run", "status", "counters", "rules", "mitigate", "arm", "disarm", "conns", "handshakes", "pressure", "sockets", "servers", "notify", "journal", "incidents", "capture", "config", "version",
	} {
		if !strings.Contains(top, "\n  "+name+" ") {
			t.Errorf("the help does not list %s:\n%s", name, top)
		}
		if status, out, _ := lvsguard(t, name, "--help"); status != 0 || !strings.Contains(out, "lvsguard "+name) {
			t.Errorf("%s --help: status %d\n%s", name, status, out)
		}
	}
	for group, subs := range map[string][]string{"rules": {"show", "install", "remove"}, "config": {"check", "show"}, "incidents": {"show", "report", "export", "pin", "unpin"}, "capture": {"save"}} {
		_, out, _ := lvsguard(t, group, "--help")
		for _, sub := range subs {
			if !strings.Contains(out, "\n  "+sub+" ") {
				t.Errorf("the help of %s does not list %s", group, sub)
			}
		}
	}
	for _, flag := range []string{"--socket", "LVSGUARD_SOCKET", "--state-dir"} {
		if !strings.Contains(top, flag) {
			t.Errorf("the help does not tell of %s", flag)
		}
	}
}

func TestSocketFromEnvironment(t *testing.T) {
	t.Setenv("LVSGUARD_SOCKET", "/nowhere/of/environment")
	if _, _, errOut := lvsguard(t, "status"); !strings.Contains(errOut, "/nowhere/of/environment") {
		t.Errorf("LVSGUARD_SOCKET is not heeded: %s", errOut)
	}
	if _, _, errOut := lvsguard(t, "status", "--socket", "/nowhere/of/flag"); !strings.Contains(errOut, "/nowhere/of/flag") {
		t.Errorf("--socket does not stand above LVSGUARD_SOCKET: %s", errOut)
	}
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
