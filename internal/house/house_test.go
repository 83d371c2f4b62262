// Package house holds the rules that the packages live by.
package house

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/lvsguard/lvsguard"

// leaves are libraries that someone could use alone.
var leaves = []string{"capture", "ipvs", "keepalived", "nft"}

// may tells what of ours a package may stand on, besides what stands in itself.
// A package that is not named here may stand on nothing of ours.
var may = map[string][]string{
	"guard":        append([]string{"guard/pressure", "guard/incident", "capture/handshake", "internal/secret", "internal/wholefile"}, leaves...),
	"guard/serve":  append([]string{"guard", "guard/alert", "guard/pressure", "guard/incident", "capture/handshake", "internal/secret", "internal/wholefile"}, leaves...),
	"guard/alert":  append([]string{"guard", "guard/pressure", "guard/incident", "capture/handshake", "internal/secret", "internal/wholefile"}, leaves...),
	"cmd/lvsguard": append([]string{"guard", "guard/serve", "guard/alert", "guard/incident", "guard/incident/report", "guard/doctor", "guard/pressure", "capture/handshake", "internal/secret", "internal/wholefile"}, leaves...),

	"capture/handshake": {"capture"},
	"guard/doctor":      append([]string{"guard/pressure", "internal/secret"}, leaves...),
	"guard/pressure":    {"internal/secret"},
	"guard/incident":    {"capture"},

	"guard/incident/report": {"guard/incident", "capture"},

	"bench/cmd/bench": {"bench/mix"},
	"bench/cmd/mix":   {"bench/mix"},
}

// imports gives, for every package of ours, those of ours that it is built
// from, all paths without the module's.
func imports(t *testing.T, tags string) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-tags", tags, "-f", `{{.ImportPath}}:{{join .Deps " "}}`, module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	all := make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		path, deps, _ := strings.Cut(strings.TrimSpace(line), ":")
		pkg, ours := strings.CutPrefix(path, module+"/")
		if !ours {
			continue
		}
		all[pkg] = nil
		for dep := range strings.FieldsSeq(deps) {
			if dep, ours := strings.CutPrefix(dep, module+"/"); ours {
				all[pkg] = append(all[pkg], dep)
			}
		}
	}
	return all
}

func inLab(pkg string) bool { return pkg == "lab" || strings.HasPrefix(pkg, "lab/") }

// Imports run downwards only.
func TestImports(t *testing.T) {
	for _, tags := range []string{"", "lab"} {
		all := imports(t, tags)
		for _, pkg := range []string{"cmd/lvsguard", "guard", "guard/serve", "ipvs", "keepalived", "nft"} {
			if _, ok := all[pkg]; !ok {
				t.Fatalf("there is no package %s: this test looks in the wrong place", pkg)
			}
		}
		for pkg, deps := range all {
			for _, dep := range deps {
				switch {
				case strings.HasPrefix(dep, "cmd/"):
					t.Errorf("%s imports the command %s", pkg, dep)
				case inLab(pkg):
					// The lab may look at everything else.
				case inLab(dep):
					t.Errorf("%s imports %s, and is not the lab", pkg, dep)
				case !slices.Contains(may[pkg], dep):
					t.Errorf("%s imports %s", pkg, dep)
				}
			}
		}
	}
}
