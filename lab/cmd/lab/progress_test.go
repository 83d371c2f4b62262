package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProgress(t *testing.T) {
	const output = `=== RUN   TestGood
    good_test.go:1: of no interest
--- PASS: TestGood (0.10s)
=== RUN   TestMixed
=== RUN   TestMixed/dr4
=== RUN   TestMixed/nat6
    mixed_test.go:2: wrong
--- FAIL: TestMixed (0.20s)
    --- PASS: TestMixed/dr4 (0.10s)
    --- FAIL: TestMixed/nat6 (0.10s)
=== RUN   TestElsewhere
    elsewhere_test.go:3: no kernel for it
--- SKIP: TestElsewhere (0.00s)
FAIL
=== RUN   TestHangs
    hangs_test.go:4: last words`
	const want = `--- PASS: TestGood (0.10s)
=== RUN   TestMixed
=== RUN   TestMixed/dr4
=== RUN   TestMixed/nat6
    mixed_test.go:2: wrong
--- FAIL: TestMixed (0.20s)
    --- PASS: TestMixed/dr4 (0.10s)
    --- FAIL: TestMixed/nat6 (0.10s)
=== RUN   TestElsewhere
    elsewhere_test.go:3: no kernel for it
--- SKIP: TestElsewhere (0.00s)
FAIL
=== RUN   TestHangs
    hangs_test.go:4: last words`
	for _, size := range []int{1, 7, len(output)} {
		var got, terminal strings.Builder
		p := &progress{out: &got, terminal: &terminal}
		for rest := output; rest != ""; rest = rest[min(size, len(rest)):] {
			if _, err := p.Write([]byte(rest[:min(size, len(rest))])); err != nil {
				t.Fatal(err)
			}
		}
		p.close()
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("in pieces of %d (-want +got):\n%s", size, diff)
		}
		if !strings.Contains(terminal.String(), "TestMixed/nat6") {
			t.Errorf("in pieces of %d: the terminal does not name the test that runs: %q", size, terminal.String())
		}
	}
}

func TestExactly(t *testing.T) {
	for _, test := range []struct{ name, run, want string }{
		{"TestAloneOOM", "", "^TestAloneOOM$"},
		{"TestAloneOOM", "Alone", "^TestAloneOOM$"},
		{"TestAloneOOM", "Alone/dr4", "^TestAloneOOM$/dr4"},
	} {
		if got := exactly(test.name, test.run); got != test.want {
			t.Errorf("exactly(%q, %q) = %q, want %q", test.name, test.run, got, test.want)
		}
	}
}
