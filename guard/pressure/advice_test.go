package pressure

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

// The advice for each case is a text in testdata, as a person reads it.
func TestAdvice(t *testing.T) {
	mode := func(n int) *int { return &n }
	pages := func(n uint64) *uint64 { return &n }
	plain := Memory{MinFree: new(uint64(67584 << 10))}
	high := Memory{MinFree: new(uint64(3792 << 10)), LowTotal: new(uint64(1))}
	tests := []struct {
		name string
		in   AdviceInput
	}{
		{"nothing known", AdviceInput{OneWay: true, Memory: plain}},
		{"as the kernel comes", AdviceInput{Memory: plain, Defence: Defence{mode(0), mode(0), mode(0), pages(1024)}}},
		{"as the kernel comes, reserve not known", AdviceInput{Defence: Defence{mode(0), mode(0), mode(0), pages(1024)}}},
		{"automatic, amemthresh too low", AdviceInput{Memory: plain, Defence: Defence{mode(1), mode(0), mode(0), pages(1024)}}},
		{"well set", AdviceInput{OneWay: true, Memory: plain, Defence: Defence{mode(1), mode(1), mode(0), pages(33792)}}},
		{"secure_tcp with DR", AdviceInput{OneWay: true, Memory: plain, Defence: Defence{mode(1), mode(0), mode(1), pages(40000)}}},
		{"secure_tcp with NAT", AdviceInput{Memory: plain, Defence: Defence{mode(1), mode(0), mode(1), pages(40000)}}},
		{"high memory", AdviceInput{Memory: high, Defence: Defence{mode(1), mode(0), mode(0), pages(4096)}}},
		{"high memory, as the kernel comes", AdviceInput{Memory: high, Defence: Defence{mode(0), mode(0), mode(0), pages(1024)}}},
		{"active now", AdviceInput{Memory: plain, Defence: Defence{mode(2), mode(2), mode(0), pages(40000)}}},
		{"always on", AdviceInput{Memory: plain, Defence: Defence{mode(3), mode(0), mode(0), pages(1024)}}},
	}
	var got strings.Builder
	for _, test := range tests {
		got.WriteString("# " + test.name + "\n")
		for _, f := range Advice(test.in) {
			got.WriteString(string(f.Severity) + ": " + f.What + "\n  why: " + f.Why + "\n  do:  " + f.Remedy + "\n")
		}
		got.WriteString("\n")
	}
	goldenfile.Check(t, filepath.Join("testdata", "advice.txt"), got.String())
}

func TestDefenceEvents(t *testing.T) {
	mode := func(n int) *int { return &n }
	tests := []struct {
		name          string
		before, after Defence
		want          []string
	}{
		{"nothing", Defence{DropEntry: mode(1)}, Defence{DropEntry: mode(1)}, nil},
		{"begins", Defence{DropEntry: mode(1), DropPacket: mode(1)}, Defence{DropEntry: mode(2), DropPacket: mode(1)}, []string{"drop_entry is active now"}},
		{"ends", Defence{SecureTCP: mode(2)}, Defence{SecureTCP: mode(1)}, []string{"secure_tcp is active no more"}},
		{"at the start", Defence{}, Defence{DropEntry: mode(2)}, []string{"drop_entry is active now"}},
		{"not known any more", Defence{DropEntry: mode(2)}, Defence{}, nil},
		{"always on is no event", Defence{DropEntry: mode(0)}, Defence{DropEntry: mode(3)}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			events := DefenceEvents(start, test.before, test.after)
			if len(events) != len(test.want) {
				t.Fatalf("%+v", events)
			}
			for i, e := range events {
				if !strings.Contains(e.Text, test.want[i]) || e.Kind != EventDefence || e.Count != 1 || !e.Time.Equal(start) {
					t.Errorf("%+v, want %s", e, test.want[i])
				}
			}
		})
	}
}
