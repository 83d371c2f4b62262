package main

import (
	"encoding/json"
	"fmt"

	"github.com/lvsguard/lvsguard/bench/mix"
)

// outcomes are what 'lvsguard handshakes --json' counts in a filter, without
// the histograms. What is not observable is 0 here, but then Visibility is not
// "both".
type outcomes struct {
	Attempts uint64 `json:"attempts"`
	Success  struct {
		Total     uint64 `json:"total"`
		DupSYN    uint64 `json:"dupsyn"`
		DupSYNACK uint64 `json:"dupsynack"`
	} `json:"success"`
	Failure struct {
		Total   uint64 `json:"total"`
		Reject  uint64 `json:"reject"`
		Unreach uint64 `json:"unreach"`
		Timeout uint64 `json:"timeout"`
		Aborted uint64 `json:"aborted"`
		DupSYN  uint64 `json:"dupsyn"`
	} `json:"failure"`
	Pending    uint64 `json:"pending"`
	Untracked  uint64 `json:"untracked"`
	Visibility string `json:"visibility"`
}

// captured are a capture's own figures. Packets is nil where the kernel does
// not count them.
type captured struct {
	Packets *uint64 `json:"packets"`
	Handed  uint64  `json:"handed"`
	Dropped uint64  `json:"dropped"`
}

// decode reads what 'lvsguard handshakes --json' prints: the filter "all".
func decode(text []byte) (outcomes, captured, error) {
	var printed struct {
		Filters []struct {
			Name string `json:"name"`
			outcomes
		} `json:"filters"`
		Capture captured `json:"capture"`
	}
	if err := json.Unmarshal(text, &printed); err != nil {
		return outcomes{}, captured{}, fmt.Errorf("read what 'lvsguard handshakes --json' printed: %w\n%s", err, text)
	}
	for _, f := range printed.Filters {
		if f.Name == "all" {
			return f.outcomes, printed.Capture, nil
		}
	}
	return outcomes{}, captured{}, fmt.Errorf("'lvsguard handshakes --json' printed no filter \"all\":\n%s", text)
}

// expected is how the truth is printed.
func expected(t mix.Truth) outcomes {
	var o outcomes
	o.Attempts = t.Attempts
	o.Success.Total, o.Success.DupSYN, o.Success.DupSYNACK = t.Success, t.SuccessDupSYN, t.SuccessDupSYNACK
	o.Failure.Total, o.Failure.Reject, o.Failure.DupSYN = t.Reject, t.Reject, t.RejectDupSYN
	o.Pending = t.Pending
	o.Visibility = "both"
	return o
}
