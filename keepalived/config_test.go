package keepalived

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lvsguard/lvsguard/internal/goldenfile"
)

var cmpConfig = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}),
	cmpopts.EquateEmpty(),
}

// configText writes a configuration a line a fact, with paths below dir made
// relative to it.
func configText(c Config, dir string) string {
	var b strings.Builder
	relative := func(text any) string { return strings.ReplaceAll(fmt.Sprint(text), dir+"/", "") }
	server := func(s Server) string {
		switch {
		case s.Group != "":
			return "group " + s.Group + " " + s.Protocol
		case s.Mark != 0:
			return fmt.Sprintf("fwmark %d", s.Mark)
		default:
			return fmt.Sprintf("%s %s", s.Addr, s.Protocol)
		}
	}
	for _, file := range c.Files {
		fmt.Fprintf(&b, "file %s\n", relative(file))
	}
	for _, path := range c.NotifyFIFOs {
		fmt.Fprintf(&b, "fifo %s\n", path)
	}
	for _, group := range c.Groups {
		fmt.Fprintf(&b, "group %q: %q\n", group.Name, group.Instances)
	}
	for _, instance := range c.Instances {
		fmt.Fprintf(&b, "instance %q\n", instance.Name)
		for _, addr := range instance.Addresses {
			fmt.Fprintf(&b, "    %s\n", addr)
		}
	}
	for _, vs := range c.VirtualServers {
		fmt.Fprintf(&b, "virtual server %s\n", server(vs.Server))
		for _, member := range vs.Members {
			fmt.Fprintf(&b, "    serves %s\n", server(member))
		}
		for _, rs := range vs.RealServers {
			fmt.Fprintf(&b, "    real server %s\n", server(rs))
		}
	}
	for _, skipped := range c.Skipped {
		fmt.Fprintf(&b, "skipped %s\n", relative(skipped))
	}
	return b.String()
}

func TestReadConfig(t *testing.T) {
	dir, err := filepath.Abs("testdata/site")
	if err != nil {
		t.Fatal(err)
	}
	config, err := ReadConfig("testdata/site/keepalived.conf", "lvs1")
	if err != nil {
		t.Fatal(err)
	}
	goldenfile.Check(t, "testdata/site.golden", configText(config, dir))
}

// parseText parses one file that can include only itself.
func parseText(text string) (Config, error) {
	const path = "/etc/keepalived/keepalived.conf"
	read := func(string) ([]byte, error) { return []byte(text), nil }
	glob := func(pattern string) ([]string, error) { return []string{pattern}, nil }
	return parseConfig(path, "lvs1", read, glob)
}

func TestReadConfigLayout(t *testing.T) {
	want := "instance \"A\"\n    192.0.2.1\n"
	for _, text := range []string{
		"vrrp_instance A {\n virtual_ipaddress {\n 192.0.2.1\n }\n}\n",
		"vrrp_instance A\n{\n virtual_ipaddress\n {\n 192.0.2.1\n }\n}",
		"vrrp_instance A { virtual_ipaddress { 192.0.2.1 } }",
		"vrrp_instance \"A\"{virtual_ipaddress{192.0.2.1}}",
		"vrrp_instance A {\r\n\tvirtual_ipaddress {\r\n\t\t192.0.2.1 ! here\r\n\t}\r\n}\r\n",
		"$ALL=vrrp_instance A { virtual_ipaddress { 192.0.2.1 } }\n$ALL\n",
		"$IF=@lvs1\n$IF vrrp_instance A { virtual_ipaddress { 192.0.2.1 } }\n",
		"$IF=@lvs2\n$IF vrrp_instance B { virtual_ipaddress { 192.0.2.2 } }\nvrrp_instance A { virtual_ipaddress { 192.0.2.1 } }",
		"$X= \\\nvrrp_instance A { \\\nvirtual_ipaddress { \\\n192.0.2.1 \\\n} \\\n}\n\n$X\n",
		"$IN= \\\nvirtual_ipaddress { \\\n192.0.2.1 \\\n}\n$OUT= \\\nvrrp_instance A { \\\n$IN \\\n}\n$OUT\n",
		"$A=1\n$B=3\n~SEQ(N, $A, 2, ${A}) vrrp_instance A { virtual_ipaddress { 192.0.2.${N} } }",
		"@lvs2 include /elsewhere\nvrrp_instance ${_HASH}A\nvrrp_instance A { virtual_ipaddress { 192.0.2.1 } }",
		"global_defs {\n vrrp_instance B {\n virtual_ipaddress {\n 192.0.2.2\n }\n }\n}\nvrrp_instance A { virtual_ipaddress { 192.0.2.1 } }",
	} {
		config, err := parseText(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		config.Files = nil
		if diff := cmp.Diff(want, configText(config, "")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestReadConfigErrors(t *testing.T) {
	const path = "/etc/keepalived/keepalived.conf"
	for _, tt := range []struct{ name, text, want string }{
		{"includes itself", "\ninclude keepalived.conf\n", path + ":2: " + path + " includes itself"},
		{"endless definition", "$A=$B\n$B=$A\nx $A\n", path + ":3: a definition makes this line endless"},
		{"growing definition", "$A=${A}${A}${A}${A}\nx $A\n", path + ":2: a definition makes this line endless"},
		{"long sequence", "~SEQ(N, 2000000000)\n", path + ":1: the configuration has more than 200000 lines"},
		{"cut off", "vrrp_instance A {\n virtual_ipaddress {\n 192.0.2.1", path + ":2: a block is opened here and never closed: not understood"},
		{"doubling definitions", doubling(40), path + ":122: the configuration has more than 200000 lines"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseText(tt.text)
			if err == nil || err.Error() != "read keepalived's configuration: "+tt.want {
				t.Errorf("%v; want %s", err, tt.want)
			}
		})
	}

	dir := t.TempDir()
	absent := filepath.Join(dir, "absent.conf")
	if _, err := ReadConfig(absent, ""); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), absent) {
		t.Errorf("%v; want one that wraps fs.ErrNotExist and names the file", err)
	}
	if _, err := ReadConfig(dir, ""); err == nil || !strings.Contains(err.Error(), dir+" is not a regular file") {
		t.Errorf("a directory: %v", err)
	}

	// What keepalived skips among included files is skipped here.
	main, script := filepath.Join(dir, "main.conf"), filepath.Join(dir, "script.conf")
	writeFile(t, main, "include script.conf\n")
	if err := os.WriteFile(script, []byte("vrrp_instance A { virtual_ipaddress { 192.0.2.1 } }"), 0o755); err != nil {
		t.Fatal(err)
	}
	config, err := ReadConfig(main, "")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("file main.conf\nskipped main.conf:1: %q: script.conf is executable, which keepalived does not take: chmod a-x\n", "script.conf")
	if diff := cmp.Diff(want, configText(config, dir)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// doubling is a configuration of n definitions, each twice the one before it.
func doubling(n int) string {
	text := "$D0=x\n"
	for i := range n {
		text += fmt.Sprintf("$D%d= \\\n$D%d \\\n$D%d\n", i+1, i, i)
	}
	return text + fmt.Sprintf("$D%d\n", n)
}

var fileAndLine = regexp.MustCompile(`/.*:[1-9][0-9]*: `)

func FuzzReadConfig(f *testing.F) {
	for _, path := range []string{"testdata/site/keepalived.conf", "testdata/site/conf.d/10-services.conf", "testdata/site/conf.d/20-groups.inc", "../deploy/keepalived/keepalived.conf"} {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add("vrrp_instance A { virtual_ipaddress { 192.0.2.1 } } }")
	f.Add("$A= \\\n$B \\\n~SEQ(N, 1, 3) ${N}\n$B=@lvs1 x\n$A\n")
	f.Fuzz(func(t *testing.T, text string) {
		config, err := parseText(text)
		if err != nil {
			if !fileAndLine.MatchString(err.Error()) {
				t.Errorf("an error without file and line: %v", err)
			}
			return
		}
		for _, instance := range config.Instances {
			for _, addr := range instance.Addresses {
				if instance.Name == "" || !addr.IsValid() || addr.Zone() != "" {
					t.Errorf("instance %q has address %v", instance.Name, addr)
				}
			}
		}
		for _, vs := range config.VirtualServers {
			if !vs.Addr.IsValid() && vs.Mark == 0 && vs.Group == "" {
				t.Errorf("a virtual server without a name: %+v", vs)
			}
		}
		for _, skipped := range config.Skipped {
			if skipped.At.Line < 1 || skipped.Reason == "" {
				t.Errorf("skipped without line or reason: %+v", skipped)
			}
		}
	})
}
