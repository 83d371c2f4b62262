package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

// What people read of Alertmanager, by Alertmanager's own program: for each
// testdata/messages/NAME.json, which are its notifications, NAME.golden.
func TestMessages(t *testing.T) {
	text, err := os.ReadFile(alertmanagerFile)
	if err != nil {
		t.Fatal(err)
	}
	var cfg struct {
		Receivers []struct {
			Slack []struct{ Color, Title, Fallback, Text string } `yaml:"slack_configs"`
			Mail  []struct {
				Headers struct {
					Subject string `yaml:"Subject"`
				}
				Text string
				HTML string
			} `yaml:"email_configs"`
		}
	}
	if err := yaml.Unmarshal(text, &cfg); err != nil {
		t.Fatal(err)
	}
	slack, mail := cfg.Receivers[0].Slack[0], cfg.Receivers[1].Mail[0]
	if slack.Fallback != slack.Title || mail.HTML != "" {
		t.Error("Slack's fallback is not its title, or mail has HTML: what follows does not look at them")
	}
	files, err := filepath.Glob("testdata/messages/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, data := range files {
		t.Run(strings.TrimSuffix(filepath.Base(data), ".json"), func(t *testing.T) {
			var got strings.Builder
			for _, part := range []struct{ name, template string }{
				{"Slack, colour", slack.Color}, {"Slack, title", slack.Title}, {"Slack, text", slack.Text},
				{"Mail, subject", mail.Headers.Subject}, {"Mail, text", mail.Text},
			} {
				out := tool(t, ".", "amtool", "prometheus-alertmanager", "template", "render",
					"--template.glob", "testdata/messages/none", "--template.text", part.template, "--template.data", data)
				got.WriteString("=== " + part.name + "\n" + strings.TrimSuffix(out, "\n") + "\n")
			}
			goldenfile.Check(t, strings.TrimSuffix(data, ".json")+".golden", got.String())
		})
	}
}
