package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Sampling sends packets that match a signature and go to a service through an
// NFQUEUE, on which a program may look at them. They are counted and dropped
// only afterwards, as if there were no queue, and once. Where nobody listens on
// the queue they pass at once.
type Sampling struct {
	Queue uint16
	Rate  uint32 // packets a second, of all services together; 0: 500
}

const defaultSampleRate = 500

// sampleBurst is how many packets may be queued at once.
const sampleBurst = 64

// A Way is how packets come to an NFQUEUE.
type Way string

// The ways, the better first.
const (
	ByQueue  Way = "nft_queue"  // nftables' own statement
	ByCompat Way = "nft_compat" // iptables' target NFQUEUE, for kernels without nft_queue
)

// Chains of the sample. They have a base chain of their own, before the one
// that counts and drops, because a packet that was queued goes on at the next
// base chain and not at the next rule. A packet that is no SYN costs one rule.
const (
	chainSample      = "sample"
	chainSampleSYN   = "sample_syn"
	chainSampleQueue = "sample_queue"

	prioritySample = priority - 1
)

func isSample(chain string) bool {
	return chain == chainSample || strings.HasPrefix(chain, chainSample+"_")
}

// sample makes the chains. Signatures come first, so that an honest SYN leaves
// soon. Services are looked for by what is not one of them: such a lookup counts
// for no element.
func (l *layout) sample(s Sampling, w way) []chain {
	syn := chain{name: chainSampleSYN}
	for _, f := range families {
		for _, signature := range l.signatures {
			for _, m := range signature.match(f) {
				syn.rules = append(syn.rules, ruleOf("", f.is(), signature.protocol(f), m, goTo(chainSampleQueue)))
			}
		}
	}
	queue := chain{name: chainSampleQueue, rules: []rule{ruleOf("", fromLoopback(), accept())}}
	add := func(terms ...[]expr.Any) { queue.rules = append(queue.rules, ruleOf("", terms...)) }
	for _, f := range families {
		add(f.is(), f.fragmented(), accept())
		if len(l.allowed[f]) > 0 {
			add(f.is(), f.loadSource(), in(setSpec{role: roleAllowed, family: f}.name()), accept())
		}
		add(f.key(false), notIn(setSpec{role: roleService, family: f}.name()),
			f.loadKey(true), notIn(setSpec{role: roleService, family: f, every: true}.name()), accept())
	}
	add(limit(s.Rate), w.queue(s.Queue))
	return []chain{
		{name: chainSample, priority: prioritySample, rules: []rule{
			ruleOf("nearly everything leaves here", isTCP(), equal(fieldFlags, flagSYN), goTo(chainSampleSYN)),
		}},
		syn, queue,
	}
}

func limit(perSecond uint32) []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(perSecond), Unit: expr.LimitTimeSecond, Burst: sampleBurst}}
}

// way says how to send packets to a queue, or past it where nobody listens.
type way struct {
	name  Way
	queue func(number uint16) []expr.Any
}

// ways are those that are tried, in this order.
func ways() []way {
	return []way{{ByQueue, statementQueue}, {ByCompat, func(number uint16) []expr.Any { return []expr.Any{targetNFQUEUE(number)} }}}
}

func statementQueue(number uint16) []expr.Any {
	return []expr.Any{&expr.Queue{Num: number, Total: 1, Flag: expr.QueueFlagBypass}}
}

// targetNFQUEUE is struct xt_NFQ_info_v3 of linux/netfilter/xt_NFQUEUE.h, padded
// as the kernel wants it: number, how many queues, flags.
func targetNFQUEUE(number uint16) *expr.Target {
	const flagBypass = 1
	info := make(xt.Unknown, 0, 8)
	for _, v := range []uint16{number, 1, flagBypass, 0} {
		info = binary.NativeEndian.AppendUint16(info, v)
	}
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}
}

// Sample begins to sample, in a transaction of its own: what the kernel may
// refuse must not take the table with it, and neither counters nor leases are
// touched. It tells the way that the kernel has. A table that is replaced has no
// sample until Sample is called again; called again without need it does nothing.
func (t *Table) Sample(s Sampling) (Way, error) {
	s.Rate = cmp.Or(s.Rate, defaultSampleRate)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sample != nil && t.sampling == s {
		return t.way, nil
	}
	if !t.ensured {
		return "", fmt.Errorf("sample: %w", ErrAbsent)
	}
	var refusals []error
	for _, w := range t.ways {
		chains := t.layout.sample(s, w)
		err := t.changeSample(chains)
		if err == nil {
			t.sample, t.sampling, t.way = chains, s, w.name
			return w.name, nil
		}
		err = fmt.Errorf("sample by %s: %w", w.name, err)
		if !unsupported(err) {
			return "", err
		}
		refusals = append(refusals, err)
	}
	return "", fmt.Errorf("this kernel cannot queue packets (modprobe nft_queue nft_limit, CONFIG_NFT_QUEUE): %w", errors.Join(refusals...))
}

// Unsample ends it. Packets that wait in a queue at that moment are lost: close
// the queue first.
func (t *Table) Unsample() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sample == nil {
		return nil
	}
	if err := t.changeSample(nil); err != nil && !errors.Is(err, ErrAbsent) {
		return fmt.Errorf("end the sample: %w", err)
	}
	t.sample = nil
	return nil
}

// changeSample puts chains in the place of those that sample.
func (t *Table) changeSample(chains []chain) error {
	// What the kernel does not have is not there at the next try either.
	again := func(err error) bool { return passing(err) && !unsupported(err) }
	before, after, err := t.transactIf(again, func(uint32) error {
		held, err := t.kernel.chainNames()
		if err != nil {
			return err
		}
		t.kernel.queueDeleteChains(slices.DeleteFunc(held, func(name string) bool { return !isSample(name) }))
		t.kernel.queueChains(chains)
		return nil
	})
	if err == nil && t.generation == before {
		t.generation = after
	}
	return err
}

// unsupported tells whether the kernel has not what was asked for: no such
// expression, or no such target.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// sampleChains are those of a state's chains that sample.
func (s State) sampleChains() []Chain {
	return slices.DeleteFunc(slices.Clone(s.Chains), func(c Chain) bool { return !isSample(c.Name) })
}

// sampleDiffers tells in words how a table's sample is not the one that this
// process has made, "" if it is.
func (t *Table) sampleDiffers(s State) string {
	held, wanted := State{Chains: s.sampleChains()}.text(), State{Chains: chainsOf(t.sample)}.text()
	if held == wanted {
		return ""
	}
	return "somebody had changed it: " + firstDifference(held, wanted)
}
