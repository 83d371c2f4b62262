package guard

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lvsguard/lvsguard/ipvs"
)

// keys has cmp compare services as ==.
var keys = cmpopts.EquateComparable(ipvs.Key{})

func TestParseCommand(t *testing.T) {
	web, mark := mustKey(t, "192.0.2.1:80"), mustKey(t, "fwmark:7")
	for _, tt := range []struct {
		text string
		want Command
	}{
		{`{"verb":"mode","mode":"auto"}`, Command{Verb: VerbMode, Mode: Auto}},
		{`{"verb":"arm","service":"192.0.2.1:80","seconds":1}`, Command{Verb: VerbArm, Service: &web, Seconds: 1}},
		{`{"verb":"arm","service":null,"seconds":86400}`, Command{Verb: VerbArm, Seconds: 86400}},
		{`{"verb":"disarm","service":"fwmark:7"}`, Command{Verb: VerbDisarm, Service: &mark}},
		{` {"verb":"remove"} `, Command{Verb: VerbRemove}},
		{`{"verb":"install"}`, Command{Verb: VerbInstall}},
	} {
		got, err := ParseCommand([]byte(tt.text))
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got, keys); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.text, diff)
		}
	}
}

func TestParseCommandErrors(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{``, "unexpected end of JSON input"},
		{`{"verb":"arm","service":"192.0.2.1:80","seconds":60`, "unexpected end of JSON input"},
		{`{"verb":"mode","mode":"auto"}{}`, "after top-level value"},
		{`[]`, "cannot unmarshal array"},
		{`{}`, `verb "": want mode, arm, disarm, remove, install or save`},
		{`{"verb":"stop"}`, `verb "stop": want mode, arm, disarm, remove, install or save`},
		{`{"verb":"mode"}`, `mode "": want observe or auto`},
		{`{"verb":"mode","mode":"AUTO"}`, `mode "AUTO": want observe or auto`},
		{`{"verb":"arm","service":"192.0.2.1:80"}`, "arm for 1s to 24h"},
		{`{"verb":"arm","seconds":0.5}`, "arm for 1s to 24h"},
		{`{"verb":"arm","seconds":-60}`, "arm for 1s to 24h"},
		{`{"verb":"arm","seconds":86400.1}`, "arm for 1s to 24h"},
		{`{"verb":"arm","seconds":1e300}`, "arm for 1s to 24h"},
		{`{"verb":"arm","seconds":1e999}`, "cannot unmarshal number"},
		{`{"verb":"arm","seconds":"60"}`, "cannot unmarshal string"},
		{`{"verb":"disarm","service":"nowhere"}`, "nowhere"},
		{`{"verb":"disarm","service":""}`, "read command: "},
		{`{"verb":"disarm","service":"192.0.2.1:70000"}`, "192.0.2.1:70000"},
		{`{"verb":"remove",` + strings.Repeat(" ", maxCommandBytes) + `}`, "a command has at most 4096 bytes"},
	} {
		got, err := ParseCommand([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.80s: error %v, want …%s…", tt.text, err, tt.want)
		}
		if got != (Command{}) {
			t.Errorf("%.80s: an error, and yet %+v", tt.text, got)
		}
	}
}

// A command that is not sent as text is checked too.
func TestDoChecks(t *testing.T) {
	d := New(Options{})
	for _, c := range []Command{{}, {Verb: VerbArm}, {Verb: VerbMode, Mode: "off"}} {
		if _, err := d.Do(t.Context(), c, "uid 0"); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

// What a stranger sends is refused, or is a command whose lease has an end
// within bounds and which comes through being sent on.
func FuzzParseCommand(f *testing.F) {
	f.Add([]byte(`{"verb":"mode","mode":"auto"}`))
	f.Add([]byte(`{"verb":"arm","service":"[2001:db8::1]:*","seconds":600}`))
	f.Add([]byte(`{"verb":"disarm","service":"fwmark6:7"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseCommand(text)
		if err != nil {
			if c != (Command{}) {
				t.Errorf("an error, and yet %+v", c)
			}
			return
		}
		switch c.Verb {
		case VerbArm:
			if d := c.For(); d < time.Second || d > MaxArm {
				t.Errorf("armed for %s", d)
			}
		case VerbMode:
			if c.Mode != Auto && c.Mode != Observe {
				t.Errorf("mode %q", c.Mode)
			}
		case VerbDisarm, VerbRemove, VerbInstall:
		default:
			t.Errorf("verb %q", c.Verb)
		}
		if c.Service != nil && *c.Service == (ipvs.Key{}) {
			t.Error("a service that is none")
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > maxCommandBytes {
			return // what is ignored was shorter than its escapes
		}
		back, err := ParseCommand(again)
		if err != nil {
			t.Fatalf("sent on as %s: %v", again, err)
		}
		if diff := cmp.Diff(c, back, keys); diff != "" {
			t.Errorf("sent on (-want +got):\n%s", diff)
		}
	})
}
