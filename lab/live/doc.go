// Package live shows a lab site to a person: go run ./lab/cmd/lab -live.
package live
