package keepalived

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseNotify(t *testing.T) {
	tests := []struct {
		args string
		want Event
	}{
		{"INSTANCE VI_1 MASTER 150", Event{Kind: KindInstance, Name: "VI_1", State: Master, Priority: 150}},
		{"GROUP VG_1 BACKUP 0", Event{Kind: KindGroup, Name: "VG_1", State: Backup}},
		{"instance VI_1 fault 100", Event{Kind: KindInstance, Name: "VI_1", State: Fault, Priority: 100}},
		{"INSTANCE VI_1 STOP 100", Event{Kind: KindInstance, Name: "VI_1", State: Stop, Priority: 100}},
		{"INSTANCE VI_1 DELETED 100", Event{Kind: KindInstance, Name: "VI_1", State: Stop, Priority: 100}},
		{"INSTANCE VI_1 {UNKNOWN} 100", Event{Kind: KindInstance, Name: "VI_1", State: Unknown, Priority: 100}},
		{"INSTANCE VI_1 MASTER 150 more to come", Event{Kind: KindInstance, Name: "VI_1", State: Master, Priority: 150}},
		{"master", Event{State: Master}},
		{"Backup", Event{State: Backup}},
		{"FAULT", Event{State: Fault}},
		{"stop", Event{State: Stop}},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			got, err := ParseNotify(strings.Fields(tt.args))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpConfig); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	for _, args := range []string{"", "primary", "INSTANCE VI_1 MASTER", "SERVER VI_1 MASTER 1", "INSTANCE VI_1 MASTER high", "INSTANCE VI_1 MASTER 256"} {
		if got, err := ParseNotify(strings.Fields(args)); !errors.Is(err, ErrSyntax) {
			t.Errorf("ParseNotify(%q) = %+v, %v; want an error that wraps ErrSyntax", args, got, err)
		}
	}
}

func TestParseLine(t *testing.T) {
	vs := Server{Addr: netip.MustParseAddrPort("192.0.2.1:80"), Protocol: "tcp"}
	tests := []struct {
		line string
		want Event
	}{
		{"INSTANCE \"VI_1\" MASTER 100\n", Event{Kind: KindInstance, Name: "VI_1", State: Master, Priority: 100}},
		{`INSTANCE "a "quoted" name" BACKUP 1`, Event{Kind: KindInstance, Name: `a "quoted" name`, State: Backup, Priority: 1}},
		{`INSTANCE "VI_1" MASTER_RX_LOWER_PRI 100`, Event{Kind: KindInstance, Name: "VI_1", State: Master, Priority: 100}},
		{`INSTANCE "VI_1" MASTER_PRIORITY 90`, Event{Kind: KindInstance, Name: "VI_1", State: Master, Priority: 90}},
		{`INSTANCE "VI_1" BACKUP_PRIORITY 90`, Event{Kind: KindInstance, Name: "VI_1", State: Unknown, Priority: 90}},
		{`GROUP "VG_1" FAULT 0`, Event{Kind: KindGroup, Name: "VG_1", State: Fault}},
		{"VS [192.0.2.1]:tcp:80 UP\n\x00", Event{Kind: KindVirtualServer, State: Up, VirtualServer: vs}},
		{"\x00RS [192.0.2.9]:tcp:80 [192.0.2.1]:tcp:80 DOWN\n", Event{Kind: KindRealServer, State: Down, VirtualServer: vs,
			RealServer: Server{Addr: netip.MustParseAddrPort("192.0.2.9:80"), Protocol: "tcp"}}},
		{"VS [2001:db8::1]:udp:53 DOWN", Event{Kind: KindVirtualServer, State: Down,
			VirtualServer: Server{Addr: netip.MustParseAddrPort("[2001:db8::1]:53"), Protocol: "udp"}}},
		{"VS FWM 7 UP", Event{Kind: KindVirtualServer, State: Up, VirtualServer: Server{Mark: 7}}},
		{"RS [192.0.2.9]:none:0 FWM 7 UP", Event{Kind: KindRealServer, State: Up, VirtualServer: Server{Mark: 7},
			RealServer: Server{Addr: netip.MustParseAddrPort("192.0.2.9:0")}}},
		{"VS [web]:0 UP", Event{Kind: KindVirtualServer, State: Up, VirtualServer: Server{Group: "web"}}},
		{"VS [web]:0 SIDEWAYS", Event{Kind: KindVirtualServer, State: Unknown, VirtualServer: Server{Group: "web"}}},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			got, err := ParseLine([]byte(tt.line))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpConfig); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	for _, line := range []string{
		"", "\x00", "garbage", "INSTANCE", "INSTANCE VI_1 MASTER 100", `INSTANCE "VI_1`, `INSTANCE "VI_1" MASTER`,
		`INSTANCE "VI_1" MASTER 1000`, "VS", "VS UP", "VS [] UP", "VS []:80 UP", "VS [x]:tcp:80 UP", "VS FWM x UP", "VS FWM 0 UP",
		"VS [192.0.2.1]:tcp:http UP", "RS [192.0.2.9]:tcp:80 UP", "RS [192.0.2.9]:tcp:80 [192.0.2.1]:tcp:99999 UP",
	} {
		if got, err := ParseLine([]byte(line)); !errors.Is(err, ErrSyntax) {
			t.Errorf("ParseLine(%q) = %+v, %v; want an error that wraps ErrSyntax", line, got, err)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	for _, line := range []string{
		"INSTANCE \"VI_1\" MASTER 100\n", "GROUP \"VG_1\" BACKUP 0\n", "VS [192.0.2.1]:tcp:80 UP\n\x00",
		"RS [192.0.2.9]:none:0 FWM 7 DOWN\n", "VS [web]:0 UP\n",
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		event, err := ParseLine(line)
		if err != nil {
			if !errors.Is(err, ErrSyntax) || event != (Event{}) {
				t.Errorf("%+v, %v", event, err)
			}
			return
		}
		if event.Kind == KindUnnamed || event.State == "" || event.Priority < 0 || event.Priority > 255 {
			t.Errorf("an event that cannot be: %+v", event)
		}
	})
}
