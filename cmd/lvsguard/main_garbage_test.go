package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// A large table does not let more garbage wait.
func TestBoundGarbage(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for _, tables := range []uint64{0, 80 << 20, 400 << 20} {
		table := make([]byte, tables)
		boundGarbage()
		percent := uint64(debug.SetGCPercent(-1))
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if waits := m.HeapAlloc * percent / 100; percent < 1 || percent > mostGCPercent || tables > 0 && waits > mostGarbage*5/4 {
			t.Errorf("with %d MiB in tables the percentage is %d, which lets %d MiB of garbage wait", tables>>20, percent, waits>>20)
		}
		runtime.KeepAlive(table)
	}
}
