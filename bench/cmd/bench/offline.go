package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/lvsguard/lvsguard/bench/mix"
)

// mostMemory is what the process may take, in MiB.
const mostMemory = 96

// A peer is a program that people use to see how handshakes end.
type peer struct {
	name     string
	pipeline [][]string
}

// peers read a file, look up no names, and do as little beside as they can be
// told to: -S spares tcpdump a memory of all connections.
func peers(file string) []peer {
	return []peer{
		{"tcptrace", [][]string{{"tcptrace", "-n", file}}},
		{"argus and ra", [][]string{{"argus", "-r", file, "-w", "-"}, {"ra", "-n", "-r", "-"}}},
		{"tshark", [][]string{{"tshark", "-n", "-q", "-z", "conv,tcp", "-r", file}}},
		{"tcpdump", [][]string{{"tcpdump", "-n", "-S", "-r", file}}},
	}
}

// offline measures reading from files.
func (b *bench) offline(ctx context.Context) error {
	for _, p := range peers("") {
		for _, argv := range p.pipeline {
			if _, err := exec.LookPath(argv[0]); err != nil {
				return fmt.Errorf("%w: run bench/setup first", err)
			}
		}
	}
	config := mix.Standard().Scaled(b.share)
	if err := writeMix(b.file("mix"), config); err != nil {
		return err
	}
	if err := b.againstFloor(ctx, config.Truth()); err != nil {
		return err
	}
	ours, err := b.ofMix(ctx, config)
	if err != nil {
		return err
	}
	if err := b.beyond(ctx, config); err != nil {
		return err
	}
	return b.againstPeers(ctx, ours)
}

func writeMix(name string, config mix.Config) error {
	say("writing %d packets to %s", config.Truth().Packets, name)
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(config.Pcap(f), f.Close())
}

// againstFloor compares what decoding and tracking take in lvsguard's packages
// with the C program, by turns. Of each the fastest run counts, as all that the
// machine does beside only adds.
func (b *bench) againstFloor(ctx context.Context, truth mix.Truth) error {
	const (
		name   = "decode and track a packet, against the floor"
		rounds = 7
	)
	floor, benchmark := b.file("floor"), b.file("handshake.test")
	if _, _, err := output(ctx, "gcc", "-O2", "-march=native", "-o", floor, "bench/floor/floor.c"); err != nil {
		return err
	}
	if _, _, err := output(ctx, "go", "test", "-c", "-o", benchmark, "./capture/handshake"); err != nil {
		return err
	}
	var floors, huge, ours []float64
	for round := 1; round <= rounds; round++ {
		say("the floor and BenchmarkMix, round %d of %d", round, rounds)
		text, used, err := output(ctx, floor, b.file("mix"))
		if err != nil {
			return err
		}
		got, ns, err := decodeFloor(text)
		if err != nil {
			return err
		}
		floors = append(floors, ns)
		if round == 1 {
			b.report.counted("floor: counts in mix", got, expected(truth))
			used.packets = truth.Packets
			b.report.programs = append(b.report.programs, program{"floor", used})
		}

		if text, _, err = output(ctx, floor, "-H", b.file("mix")); err != nil {
			return err
		}
		if _, ns, err = decodeFloor(text); err != nil {
			return err
		}
		huge = append(huge, ns)

		text, _, err = output(ctx, benchmark, "-test.run", "^$", "-test.bench", "^BenchmarkMix$", "-test.benchtime", "1x")
		if err != nil {
			return err
		}
		if ns, err = metric(string(text), "cpu-ns/packet"); err != nil {
			b.report.unmeasured(name, fmt.Errorf("BenchmarkMix in ./capture/handshake: %w", err))
			return nil
		}
		ours = append(ours, ns)
	}
	best := slices.Min(ours)
	against := func(floors []float64) (float64, string) {
		least := slices.Min(floors)
		return best / least, fmt.Sprintf("%.1f ns against %.1f ns", best, least)
	}
	ratio, note := against(floors)
	b.report.atMost(name, "%.2f times", ratio, 2, note)
	ratio, note = against(huge)
	b.report.info("... with the floor's table in huge pages", "%.2f times", ratio, note)
	return nil
}

// decodeFloor reads what the floor prints: counts, and nanoseconds a packet.
func decodeFloor(text []byte) (outcomes, float64, error) {
	var printed struct {
		outcomes
		NS float64 `json:"ns_per_packet"`
	}
	if err := json.Unmarshal(text, &printed); err != nil {
		return outcomes{}, 0, fmt.Errorf("read what the floor printed: %w\n%s", err, text)
	}
	printed.Visibility = "both" // it knows of nothing else
	return printed.outcomes, printed.NS, nil
}

// metric finds a metric in what a Go benchmark prints.
func metric(text, unit string) (float64, error) {
	before, _, found := strings.Cut(text, " "+unit)
	words := strings.Fields(before)
	if !found || len(words) == 0 {
		return 0, fmt.Errorf("no %s is reported:\n%s", unit, text)
	}
	return strconv.ParseFloat(words[len(words)-1], 64)
}

// handshakes has lvsguard count those in a capture.
func (b *bench) handshakes(ctx context.Context, name string, config mix.Config) (outcomes, usage, error) {
	text, used, err := output(ctx, b.lvsguard, "handshakes", "-r", b.file(name), "--json")
	if err != nil {
		return outcomes{}, usage{}, err
	}
	got, _, err := decode(text)
	used.packets = config.Truth().Packets
	return got, used, err
}

// ofMix has lvsguard read the mix: its counts, and its memory with a million
// pending attempts.
func (b *bench) ofMix(ctx context.Context, config mix.Config) (usage, error) {
	got, used, err := b.handshakes(ctx, "mix", config)
	if err != nil {
		return usage{}, err
	}
	b.report.counted("counts in mix", got, expected(config.Truth()))
	b.report.atMost(fmt.Sprintf("memory of the process, %d pending", config.Flood), "%.0f MiB", used.mib(), mostMemory)
	return used, nil
}

// beyond has lvsguard read a mix with ten times the flood, at the same rate.
// There is no room for all of it, so that counts are a lower bound. What gives
// way should be the flood, and memory should be the same.
func (b *bench) beyond(ctx context.Context, config mix.Config) error {
	config.Flood *= 10
	config.Span *= 10
	if err := writeMix(b.file("mix10"), config); err != nil {
		return err
	}
	got, used, err := b.handshakes(ctx, "mix10", config)
	if err != nil {
		return err
	}
	truth := config.Truth()
	pending := fmt.Sprintf(", %d pending", config.Flood)
	b.report.atMost("memory of the process"+pending, "%.0f MiB", used.mib(), mostMemory)
	lost := float64(truth.Success+truth.Reject) - float64(got.Success.Total+got.Failure.Reject)
	b.report.atMost("handshakes not counted"+pending, "%.3f %%", 100*lost/float64(truth.Success+truth.Reject), 0.1,
		fmt.Sprintf("%.0f, with %d attempts untracked", lost, got.Untracked))
	return os.Remove(b.file("mix10"))
}

// againstPeers has the peers read mix. One that cannot is in the report, and
// ends nothing.
func (b *bench) againstPeers(ctx context.Context, ours usage) error {
	b.report.programs = append(b.report.programs, program{"lvsguard handshakes", ours})
	for _, p := range peers(b.file("mix")) {
		name := "processor time, against " + p.name
		say("%s", p.name)
		used, err := discard(ctx, p.pipeline)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.report.unmeasured(name, err)
			continue
		}
		used.packets = ours.packets
		b.report.programs = append(b.report.programs, program{p.name, used})
		b.report.atLeast(name+", times less", "%.0f", used.perMillion()/ours.perMillion(), 20)
	}
	return nil
}
