package capture

import "time"

// A Packet is what was kept of one: its first bytes.
type Packet struct {
	// Time is when it was captured, in nanoseconds since 1970.
	Time int64
	// Interface is the name of the one that it came or went by.
	Interface string
	// Link says how Data begins.
	Link LinkType
	// Length is how long it was on the wire.
	Length uint32
	Data   []byte
	// Weight is how many packets it stands for: 1 where none of its kind was
	// left out. Sums of weights are estimates of what passed, and shares of such
	// sums are not bent by what was left out.
	Weight float64
	// Comment is written to a file with it, if it is not empty.
	Comment string
}

// Recorded is what is known of recorded packets as a whole.
type Recorded struct {
	// From and To are the time that they are from: what was asked for, or as
	// far back as the recording goes.
	From, To time.Time
	// Seen are the packets that came to the recorder in the seconds that this
	// time has a part in, and Kept those of them that there are.
	Seen, Kept uint64
	// Received and Dropped are what passed by all interfaces together since the
	// capture began, and what of it the kernel had no room for. Nil is unknown.
	Received, Dropped *uint64
	// Interfaces are those that the capture reads.
	Interfaces []InterfaceCount
}

// An InterfaceCount is what is known of an interface since the capture began.
// Both figures are nil where only the sum over several interfaces is known.
type InterfaceCount struct {
	Name              string
	Received, Dropped *uint64
}
