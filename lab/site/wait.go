package site

import (
	"testing"
	"time"
)

// Wait waits until condition holds, looking every 50 ms, and gives how long that took. If it does not hold within limit,
// the test ends and names what it waited for.
func Wait(t testing.TB, limit time.Duration, what string, condition func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !condition() {
		if time.Since(began) > limit {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(began)
}
