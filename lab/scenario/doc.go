// Package scenario has the tests that play through what happens on an LVS site, each on a site of its own inside a lab
// guest: go run ./lab/cmd/lab. Those whose names start with TestAlone get a guest of their own.
package scenario
