package guard

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/lvsguard/lvsguard/keepalived"
)

// roles knows the VRRP instances of this host and which of them are MASTER.
type roles struct {
	conf      keepalived.Config
	instances []keepalived.Instance
	confErr   error
	stamps    map[string]time.Time // its files and when they were changed

	last    map[string]keepalived.State // as keepalived last reported
	current map[string]Role
	heldAt  time.Time // when the addresses were last known
}

// load reads keepalived's configuration, or ours in its place. One that cannot
// be read, as while it is being written, leaves what is known.
func (r *roles) load(cfg KeepalivedConfig) {
	conf, err := keepalived.ReadConfig(cfg.Config, cfg.ConfigID)
	r.stamps = stampsOf(append(slices.Clone(conf.Files), cfg.Config))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("no %s: no VRRP roles are known here", cfg.Config)
	}
	if r.confErr = err; err == nil {
		r.conf, r.instances = conf, conf.Instances
	}
	if len(cfg.Instances) > 0 {
		r.instances, r.confErr = nil, nil
		for _, name := range slices.Sorted(maps.Keys(cfg.Instances)) {
			r.instances = append(r.instances, keepalived.Instance{Name: name, Addresses: cfg.Instances[name]})
		}
	}
}

// changed says whether a file of keepalived's configuration has changed since
// it was read.
func (r *roles) changed() bool {
	return !maps.EqualFunc(r.stamps, stampsOf(slices.Collect(maps.Keys(r.stamps))), time.Time.Equal)
}

func stampsOf(files []string) map[string]time.Time {
	stamps := make(map[string]time.Time, len(files))
	for _, f := range files {
		stamps[f] = time.Time{}
		if info, err := os.Stat(f); err == nil {
			stamps[f] = info.ModTime()
		}
	}
	return stamps
}

// report takes what keepalived says. Where addresses tell, they decide.
func (r *roles) report(e keepalived.Event) {
	if e.State == keepalived.Unknown {
		return
	}
	if r.last == nil {
		r.last = make(map[string]keepalived.State)
	}
	switch e.Kind {
	case keepalived.KindInstance:
		r.last[e.Name] = e.State
	case keepalived.KindGroup:
		for _, g := range r.conf.Groups {
			if g.Name != e.Name {
				continue
			}
			for _, name := range g.Instances {
				r.last[name] = e.State
			}
		}
	}
}

// look finds the role of each instance from the addresses held, and returns
// those that changed with what they were. A reading that failed changes
// nothing until it is old.
func (r *roles) look(now time.Time, held keepalived.Held) (changes []roleChange) {
	if held != nil {
		r.heldAt = now
	} else if now.Sub(r.heldAt) < unknownAfter {
		return nil
	}
	next := make(map[string]Role, len(r.instances))
	states := keepalived.Roles(r.instances, held, r.last)
	for _, in := range r.instances {
		role := Role{Instance: in.Name, State: states[in.Name], Since: now, Addresses: in.Addresses}
		if was := r.current[in.Name]; was.State == role.State {
			role.Since, role.Changes = was.Since, was.Changes
		} else {
			role.Changes = was.Changes
			if was.State != "" && was.State != keepalived.Unknown && role.State != keepalived.Unknown {
				role.Changes++
			}
			changes = append(changes, roleChange{role, was.State})
		}
		next[in.Name] = role
	}
	r.current = next
	return changes
}

type roleChange struct {
	Role
	from keepalived.State
}

// list gives the roles in order.
func (r *roles) list() []Role {
	return slices.SortedFunc(maps.Values(r.current), func(a, b Role) int { return cmp.Compare(a.Instance, b.Instance) })
}
