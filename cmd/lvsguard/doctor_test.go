package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lvsguard/lvsguard/guard/doctor"
)

// What an operator reads on five hosts, whose facts are doctor's own test data.
func TestDoctorScreen(t *testing.T) {
	for _, tt := range []struct {
		name string
		bad  string // the error; empty: all is well
	}{
		{"healthy", ""},
		{"bare", "5 things must be mended, the worst is the first"},
		{"director32", "6 things must be mended, the worst is the first"},
		{"powerless", "7 things must be mended, the worst is the first"},
		{"user", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("..", "..", "guard", "doctor", "testdata", tt.name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var facts doctor.Facts
			if err := json.Unmarshal(text, &facts); err != nil {
				t.Fatal(err)
			}
			var screen, object bytes.Buffer
			a := &app{out: &screen}
			bad := ""
			if err := a.showDoctor(facts, false); err != nil {
				bad = err.Error()
			}
			if bad != tt.bad {
				t.Errorf("it ends with %q, want %q", bad, tt.bad)
			}
			golden(t, "doctor-"+tt.name, screen.String())

			a.out = &object
			a.showDoctor(facts, true)
			var got struct {
				Facts    doctor.Facts     `json:"facts"`
				Findings []doctor.Finding `json:"findings"`
			}
			if err := json.Unmarshal(object.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.Findings, doctor.Examine(got.Facts)) || len(got.Findings) == 0 {
				t.Error("the facts that are printed do not give the findings that are printed")
			}
		})
	}
}

// The command itself, on whatever host this is.
func TestDoctor(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	state := filepath.Join(dir, "state")
	for _, tt := range []struct {
		name, config string
		want         doctor.Finding
		role         doctor.Role
	}{
		{
			"a host", write("host.yaml", "role: host\n"),
			doctor.Finding{Severity: doctor.OK, Subject: "configuration", What: filepath.Join(dir, "host.yaml") + " is good; the role is host"}, doctor.Host,
		},
		{
			"a secret in clear", write("clear.yaml", "servers: {metrics: ['http://{address}:9100/metrics'], bearer_token_file: /etc/token}\n"),
			doctor.Finding{
				Severity: doctor.Warning, Subject: "configuration", What: "real servers are asked with a password or token over http",
				Why: "whoever listens on the way can read it", Remedy: `in lvsguard.yaml: servers: {metrics: ["https://{address}:9100/metrics"]}`,
			}, doctor.Director,
		},
		{
			"metrics for everybody", write("open.yaml", "metrics: {listen: '192.0.2.1:9101', tls_cert_file: /etc/crt, tls_key_file: /etc/key}\n"),
			doctor.Finding{
				Severity: doctor.Warning, Subject: "configuration", What: "metrics are shown to whoever can reach their address",
				Why:    "it is not loopback, and they tell which services there are and how they fare",
				Remedy: `in lvsguard.yaml: metrics: {bearer_token_file: …, tls_cert_file: …, tls_key_file: …}, or listen: "127.0.0.1:9101"`,
			}, doctor.Director,
		},
		{
			"metrics' token in clear", write("token.yaml", "metrics: {listen: '[::]:9101', bearer_token_file: /etc/token}\n"),
			doctor.Finding{
				Severity: doctor.Warning, Subject: "configuration", What: "metrics are asked for with a password or token over http",
				Why: "whoever listens on the way can read it", Remedy: "in lvsguard.yaml: metrics: {tls_cert_file: …, tls_key_file: …}",
			}, doctor.Director,
		},
		{
			"metrics for this host", write("local.yaml", "role: host\nmetrics: {listen: '[::1]:9101', username: u, password_file: /etc/password}\n"),
			doctor.Finding{Severity: doctor.OK, Subject: "configuration", What: filepath.Join(dir, "local.yaml") + " is good; the role is host"}, doctor.Host,
		},
		{
			"receivers and metrics", write("both.yaml", "metrics: {listen: '192.0.2.9:9101', bearer_token_file: /t, tls_cert_file: /c, tls_key_file: /k}\nalerts: {receivers: [{name: a, command: {argv: [/bin/true]}}]}\n"),
			doctor.Finding{
				Severity: doctor.Advice, Subject: "alerts", What: "this host has receivers, and shows metrics",
				Why: "if a Prometheus that watches it alerts too, everything comes twice", Remedy: "in a fleet, in lvsguard.yaml: alerts: {receivers: []}; else leave it so",
			}, doctor.Director,
		},
		{
			"a broken one", write("broken.yaml", "rle: host\n"),
			doctor.Finding{
				Severity: doctor.Critical, Subject: "configuration", What: filepath.Join(dir, "broken.yaml") + ": line 1: unknown key \"rle\"; did you mean \"role\"?",
				Why: "the guard does not start with it, and one that runs keeps the old one", Remedy: "lvsguard config check " + filepath.Join(dir, "broken.yaml"),
			}, doctor.Director,
		},
		{
			"none where one is said to be", filepath.Join(dir, "none.yaml"),
			doctor.Finding{
				Severity: doctor.Critical, Subject: "configuration", What: "read configuration: open " + filepath.Join(dir, "none.yaml") + ": no such file or directory",
				Why: "the guard does not start with it, and one that runs keeps the old one", Remedy: "lvsguard config check " + filepath.Join(dir, "none.yaml"),
			}, doctor.Director,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, out, errOut := lvsguard(t, "doctor", "--json", "-c", tt.config, "--socket", filepath.Join(dir, "control.sock"), "--state-dir", state)
			// No guard runs on that socket.
			if status != exitFail || !strings.Contains(errOut, "must be mended") {
				t.Errorf("exit status %d, %q", status, errOut)
			}
			var got struct {
				Facts    doctor.Facts
				Findings []doctor.Finding
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatal(err)
			}
			if got.Facts.Role != tt.role {
				t.Errorf("the role is %s, want %s", got.Facts.Role, tt.role)
			}
			if !slices.Contains(got.Findings, tt.want) {
				t.Errorf("%+v\nis not among\n%+v", tt.want, got.Findings)
			}
		})
	}
	if _, err := os.Stat(state); err == nil {
		t.Error("it has made the state directory")
	}
}
