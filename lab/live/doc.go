// Package live shows a lab site to a person: go run ./lab/cmd/lab -tty -timeout 0 ./lab/live.
package live
