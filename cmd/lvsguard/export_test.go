package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is printed is what deploy has for the defaults, and a configuration changes
// it.
func TestExport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lvsguard.yaml")
	text := `alerts:
  rules: [{name: flood, severity: warning}, {name: kernel, enabled: false}]
  receivers: [{name: hook, webhook: {url: "https://hook.example.net"}}, {name: oncall, slack: {url_file: /etc/lvsguard/slack.url}}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty.yaml")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, sample := range map[string]string{"prometheus-rules": "lvsguard-rules.yml", "alertmanager": "alertmanager.yml"} {
		want, err := os.ReadFile(filepath.Join("..", "..", "deploy", "prometheus", sample))
		if err != nil {
			t.Fatal(err)
		}
		if status, out, errOut := lvsguard(t, "export", what, "-c", empty); status != exitOK || out != string(want) || errOut != "" {
			t.Errorf("export %s: %d, %s; its output is not deploy/prometheus/%s", what, status, errOut, sample)
		}
	}

	_, out, _ := lvsguard(t, "export", "prometheus-rules", "-c", file, "--job", "guards")
	if !strings.Contains(out, `up{job="guards"}`) || strings.Contains(out, "alert: kernel") || strings.Count(out, "severity: critical") != 4 {
		t.Errorf("the configuration makes these rules:\n%s", out)
	}
	status, out, errOut := lvsguard(t, "export", "alertmanager", "-c", file)
	if status != exitOK || !strings.Contains(out, "api_url_file: /etc/lvsguard/slack.url") || strings.Contains(out, "fill in") ||
		errOut != "lvsguard: left out, because Alertmanager has no equal: hook\n" {
		t.Errorf("%d, %s, and this configuration:\n%s", status, errOut, out)
	}
}

// A file that is there is not replaced without a word.
func TestExportFile(t *testing.T) {
	dir := t.TempDir()
	empty, into := filepath.Join(dir, "lvsguard.yaml"), filepath.Join(dir, "rules.yml")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	export := func(more ...string) (int, string) {
		status, out, errOut := lvsguard(t, append([]string{"export", "prometheus-rules", "-c", empty, "-o", into}, more...)...)
		if out != "" {
			t.Errorf("with -o, and yet on stdout: %s", out)
		}
		return status, errOut
	}
	read := func() string {
		text, err := os.ReadFile(into)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if status, errOut := export(); status != exitOK {
		t.Fatalf("%d, %s", status, errOut)
	}
	rules := read()
	if info, err := os.Stat(into); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v: Prometheus could not read it", info.Mode(), err)
	}
	if status, errOut := export(); status != exitOK {
		t.Errorf("the same again: %d, %s", status, errOut)
	}
	if err := os.WriteFile(into, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, errOut := export(); status != exitFail || !strings.Contains(errOut, into+" is there") || !strings.Contains(errOut, "--force") || read() != "mine" {
		t.Errorf("what was there: %d, %s, now %.10q", status, errOut, read())
	}
	if status, errOut := export("--force"); status != exitOK || read() != rules {
		t.Errorf("--force: %d, %s", status, errOut)
	}
	into = filepath.Join(dir, "nowhere", "rules.yml")
	if status, errOut := export(); status != exitFail || !strings.Contains(errOut, into) {
		t.Errorf("a folder that is not there: %d, %s", status, errOut)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
