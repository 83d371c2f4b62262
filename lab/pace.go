package lab

import (
	"math/rand/v2"
	"slices"
	"time"
)

// PaceVariable is the environment variable that tells a guest the host's Pace, in nanoseconds.
const PaceVariable = "LVSGUARD_HOST_PACE"

// Pace is how long a fixed piece of work takes here: the least of five times. Taken on the host and in a guest, it tells
// how much slower an emulated processor is, for figures that speak of a real one.
func Pace() time.Duration {
	least := time.Duration(1<<63 - 1)
	for range 5 {
		began := time.Now()
		random := rand.New(rand.NewPCG(1, 2))
		numbers := make([]uint64, 50_000)
		seen := make(map[uint64]int)
		for i := range numbers {
			numbers[i] = random.Uint64()
			seen[numbers[i]%10_000]++
		}
		slices.Sort(numbers)
		least = min(least, time.Since(began))
	}
	return least
}
