package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The dashboard's queries are PromQL, about what there is, and of the projects and
// hosts that are chosen.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("grafana/lvsguard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			ID                       int
			Type, Title, Description string
			GridPos                  struct{ X, Y, W, H int }
			Targets                  []struct{ RefID, Expr, LegendFormat string }
		}
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	known := metrics(t)
	for _, r := range readRules(t, rulesFile) {
		if r.Record != "" {
			known[r.Record] = []string{"rule"}
		}
	}
	// Grafana puts these in.
	values := []string{"$__rate_interval", "1m"}
	for _, v := range board.Templating.List {
		values = append(values, "$"+v.Name, ".*")
	}
	fill := strings.NewReplacer(values...)

	type rule struct{ Record, Expr string }
	var rules []rule
	ids, titles, taken, rows := make(map[int]bool), make(map[string]bool), make(map[[2]int]string), []string{}
	for _, p := range board.Panels {
		where := fmt.Sprintf("%q", p.Title)
		if ids[p.ID] {
			t.Errorf("%s: the id %d is taken", where, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies over %q, or outside", where, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		where = fmt.Sprintf("%s in %s", where, rows[len(rows)-1])
		if titles[where] || len(p.Targets) == 0 {
			t.Errorf("%s is there twice, or asks nothing", where)
		}
		titles[where] = true
		for _, target := range p.Targets {
			expr := fill.Replace(target.Expr)
			if left := regexp.MustCompile(`\$\w+`).FindString(expr); left != "" {
				t.Errorf("%s: nothing puts %s in", where, left)
			}
			if !strings.Contains(target.Expr, "$host") && !strings.Contains(target.Expr, "ALERTS{") {
				t.Errorf("%s %s is not of the chosen hosts: %s", where, target.RefID, target.Expr)
			}
			checkNames(t, where, expr, known)
			for _, label := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if by := regexp.MustCompile(`by \(([^)]*)\)`).FindStringSubmatch(target.Expr); by != nil && !regexp.MustCompile(`\b`+label[1]+`\b`).MatchString(by[1]) {
					t.Errorf("%s: its legend has %s, and its query only %s", where, label[1], by[1])
				}
			}
			rules = append(rules, rule{fmt.Sprintf("panel_%d_%s", p.ID, target.RefID), expr})
		}
	}
	for _, want := range []string{"Directors", "Services", "Handshakes", "Pressure", "Real servers"} {
		if !strings.Contains(strings.Join(rows, "\n"), want) {
			t.Errorf("there is no row %q: %q", want, rows)
		}
	}

	dir := t.TempDir()
	all, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rules.yml"), all, 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, dir, "check", "rules", "rules.yml")
}
