package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// timeout is how long one call to the kernel may take.
const timeout = 2 * time.Second

// defaultLease is how long a lease lasts that somebody adds by hand without
// saying so: with it no element of an armed set is ever permanent.
const defaultLease = time.Minute

// kernel is one netlink socket to nf_tables. Writes and the reading of rules
// go through google/nftables; elements, which are read each second, through a
// decoder of our own on the same socket. It wants its caller to hold a lock.
type kernel struct {
	library *nftables.Conn
	socket  *netlink.Conn
	queued  bool // something waits for flush
}

// Room for one batch, which must go in one message, and for what the kernel
// answers. It is a limit, used only as far as it is needed.
const (
	writeBuffer = 64 << 20
	readBuffer  = 8 << 20
)

func dial() (*kernel, error) {
	k := &kernel{}
	var err error
	k.library, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		k.socket = c
		// Without CAP_NET_ADMIN the buffers stay small, and the first request
		// says what is missing.
		return errors.Join(c.SetWriteBuffer(writeBuffer), c.SetReadBuffer(readBuffer))
	}))
	if err != nil {
		return nil, explain(err)
	}
	if err := k.checkDescriptor(); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

// checkDescriptor refuses what google/nftables would panic at: it waits with
// select, which knows no descriptor over 1023.
func (k *kernel) checkDescriptor() error {
	raw, err := k.socket.SyscallConn()
	if err != nil {
		return err
	}
	var fd uintptr
	if err := raw.Control(func(f uintptr) { fd = f }); err != nil {
		return err
	}
	if fd >= unix.FD_SETSIZE {
		return fmt.Errorf("netlink socket got descriptor %d, over select's limit of %d: open it before other files", fd, unix.FD_SETSIZE)
	}
	return nil
}

func (k *kernel) close() error { return k.library.CloseLasting() }

// begin gives the next call of ours its time.
func (k *kernel) begin() error { return k.socket.SetDeadline(time.Now().Add(timeout)) }

// beginLibrary is begin for calls of google/nftables, which has a time for
// sending alone: after a reading that ran out of time it would read again
// without end. It needs none, because it reads only what is there: the kernel
// answers before a sending call returns.
func (k *kernel) beginLibrary() error {
	return errors.Join(k.socket.SetWriteDeadline(time.Now().Add(timeout)), k.socket.SetReadDeadline(time.Time{}))
}

// explain adds to a kernel's error what to do about it.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("nf_tables wants CAP_NET_ADMIN in this network namespace: %w", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return noTables(err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the kernel did not answer within %v: %w", timeout, err)
	default:
		return err
	}
}

func noTables(err error) error {
	return fmt.Errorf("the kernel has no nf_tables (modprobe nf_tables, CONFIG_NF_TABLES_INET): %w", err)
}

// passing tells whether another try with a fresh reading may succeed: the
// tables changed meanwhile, an element has just expired, or the socket was
// full. After the last a change may or may not have been made; a fresh reading
// tells.
func passing(err error) bool {
	for _, e := range []error{unix.ERESTART, unix.ENOENT, unix.EEXIST, unix.EINTR, unix.EAGAIN, unix.ENOBUFS, unix.EBUSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func nfMessage(kind uint16, flags netlink.HeaderFlags, attributes ...netlink.Attribute) (netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attributes)
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind),
			Flags: netlink.Request | flags,
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...), // struct nfgenmsg
	}, err
}

// execute asks one question. A dump that a change of the tables has cut short
// is EINTR.
func (k *kernel) execute(kind uint16, flags netlink.HeaderFlags, attributes ...netlink.Attribute) ([]netlink.Message, error) {
	m, err := nfMessage(kind, flags, attributes...)
	if err != nil {
		return nil, err
	}
	if err := k.begin(); err != nil {
		return nil, err
	}
	answers, err := k.socket.Execute(m)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(answers, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }) {
		return nil, unix.EINTR
	}
	return answers, nil
}

// generation is a number that every change of any table in the namespace
// raises by one.
func (k *kernel) generation() (uint32, error) {
	answers, err := k.execute(unix.NFT_MSG_GETGEN, 0)
	if errors.Is(err, unix.EINVAL) {
		err = noTables(err) // as nfnetlink answers for a subsystem that it does not have
	}
	if err != nil {
		return 0, fmt.Errorf("read the generation: %w", explain(err))
	}
	for _, m := range answers {
		if id, ok := attribute(m.Data[min(4, len(m.Data)):], unix.NFTA_GEN_ID); ok && len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errors.New("read the generation: the kernel's answer has none")
}

// afterNext is the generation after one more change.
func afterNext(generation uint32) uint32 {
	if generation++; generation == 0 {
		generation = 1
	}
	return generation
}

var nftTable = &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}

// present tells whether there is a table.
func (k *kernel) present() (bool, error) {
	_, err := k.execute(unix.NFT_MSG_GETTABLE, 0,
		netlink.Attribute{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(tableName), 0)})
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, explain(err)
}

// flush sends what was queued, as one transaction that is made whole or not at
// all, and not at all if the generation is another one by now. It returns the
// generation afterwards.
func (k *kernel) flush(generation uint32) (uint32, error) {
	if !k.queued {
		return generation, nil
	}
	k.queued = false
	if err := k.beginLibrary(); err != nil {
		return 0, err
	}
	if err := k.library.FlushWithGenID(generation); err != nil {
		return 0, fmt.Errorf("apply: %w", explain(err))
	}
	return afterNext(generation), nil
}

// elements reads a set, in no order.
func (k *kernel) elements(s setSpec) ([]Element, error) {
	answers, err := k.execute(unix.NFT_MSG_GETSETELEM, netlink.Dump,
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(tableName), 0)},
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(s.name()), 0)})
	if err != nil {
		return nil, fmt.Errorf("read set %s: %w", s.name(), explain(err))
	}
	var elements []Element
	for _, m := range answers {
		elements, err = s.appendElements(elements, m.Data)
		if err != nil {
			return nil, fmt.Errorf("read set %s: %w", s.name(), err)
		}
	}
	if s.role == roleAllowed {
		return joinIntervals(elements), nil
	}
	return elements, nil
}

// sets reads the table's sets without their elements; ErrNotExist without a
// table.
func (k *kernel) sets() ([]*nftables.Set, error) {
	if err := k.beginLibrary(); err != nil {
		return nil, err
	}
	sets, err := k.library.GetSets(nftTable)
	if err != nil {
		return nil, fmt.Errorf("read the sets: %w", explain(err))
	}
	return sets, nil
}

// counters reads the named counters.
func (k *kernel) counters() ([]NamedCounter, error) {
	if err := k.beginLibrary(); err != nil {
		return nil, err
	}
	objects, err := k.library.GetObjects(nftTable)
	if err != nil {
		return nil, fmt.Errorf("read the named counters: %w", explain(err))
	}
	var counters []NamedCounter
	for _, o := range objects {
		if c, ok := o.(*nftables.CounterObj); ok {
			counters = append(counters, NamedCounter{Name: c.Name, Count: Count{c.Packets, c.Bytes}})
		}
	}
	return counters, nil
}

// state reads the whole table; ErrNotExist without one.
func (k *kernel) state() (State, error) {
	var s State
	if err := k.beginLibrary(); err != nil {
		return s, err
	}
	held, err := k.library.ListTableOfFamily(tableName, nftables.TableFamilyINet)
	if err != nil {
		return s, fmt.Errorf("read the table: %w", explain(err))
	}
	s.Dormant = held.Flags&nftables.TableFlagDormant != 0
	if s.Counters, err = k.counters(); err != nil {
		return s, err
	}
	sets, err := k.sets()
	if err != nil {
		return s, err
	}
	for _, h := range sets {
		set := Set{Name: h.Name, Type: h.KeyType.Name, Interval: h.Interval, Timeout: h.Timeout, Comment: h.Comment}
		if spec, ok := parseSetName(h.Name); ok && spec.keyType().Bytes == h.KeyType.Bytes {
			set.Counts = spec.counts()
			if set.Elements, err = k.elements(spec); err != nil {
				return s, err
			}
			if spec.role != roleAllowed {
				sortElements(set.Elements)
			}
		}
		if m, ok := parseMark(h.Comment); ok {
			s.Since, s.Layout = m.since, m.layout
		}
		s.Sets = append(s.Sets, set)
	}
	s.Chains, err = k.chains()
	return s, err
}

// listChains reads the table's chains without their rules.
func (k *kernel) listChains() ([]*nftables.Chain, error) {
	if err := k.beginLibrary(); err != nil {
		return nil, err
	}
	held, err := k.library.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("read the chains: %w", explain(err))
	}
	return slices.DeleteFunc(held, func(c *nftables.Chain) bool { return c.Table.Name != tableName }), nil
}

func (k *kernel) chainNames() ([]string, error) {
	held, err := k.listChains()
	names := make([]string, len(held))
	for i, c := range held {
		names[i] = c.Name
	}
	return names, err
}

func (k *kernel) chains() ([]Chain, error) {
	held, err := k.listChains()
	if err != nil {
		return nil, err
	}
	var chains []Chain
	for _, h := range held {
		if err := k.beginLibrary(); err != nil {
			return nil, err
		}
		rules, err := k.library.GetRules(nftTable, h)
		if err != nil {
			return nil, fmt.Errorf("read chain %s: %w", h.Name, explain(err))
		}
		chain := Chain{Name: h.Name, Hook: hookOf(h)}
		for _, r := range rules {
			text := render(r.Exprs)
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			chain.Rules = append(chain.Rules, Rule{Text: text, Comment: comment, Foreign: mangled(text)})
		}
		chains = append(chains, chain)
	}
	return chains, nil
}

func hookOf(c *nftables.Chain) string {
	if c.Hooknum == nil || c.Priority == nil {
		return ""
	}
	accepts := c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
	if *c.Hooknum == *nftables.ChainHookPrerouting && c.Type == nftables.ChainTypeFilter && accepts {
		return hookText(int(*c.Priority))
	}
	return fmt.Sprintf("# foreign: type %s hook %d priority %d policy accept: %t", c.Type, *c.Hooknum, *c.Priority, accepts)
}

// mark is what the table says of itself, in the comment of one of its sets;
// google/nftables knows no comments of tables.
type mark struct {
	layout string
	since  time.Time
}

func (m mark) String() string {
	return fmt.Sprintf("%s layout %s since %s", tableName, m.layout, m.since.UTC().Format(time.RFC3339))
}

func parseMark(comment string) (mark, bool) {
	words := strings.Fields(comment)
	if len(words) != 5 || words[0] != tableName || words[1] != "layout" || words[3] != "since" {
		return mark{}, false
	}
	since, err := time.Parse(time.RFC3339, words[4])
	return mark{words[2], since}, err == nil
}

func (s setSpec) keyType() nftables.SetDatatype {
	address := nftables.TypeIPAddr
	if s.family == ipv6 {
		address = nftables.TypeIP6Addr
	}
	if s.addressOnly() {
		return address
	}
	return nftables.MustConcatSetType(address, nftables.TypeInetService)
}

func (s setSpec) set() *nftables.Set {
	set := &nftables.Set{
		Table:        nftTable,
		Name:         s.name(),
		KeyType:      s.keyType(),
		KeyByteOrder: binaryutil.BigEndian,
		Counter:      s.counts(),
		Interval:     s.role == roleAllowed,
	}
	if s.role == roleArmed {
		set.HasTimeout, set.Timeout = true, defaultLease
	}
	return set
}

// queueTable queues a new table with everything in it.
func (k *kernel) queueTable(l layout, m mark, counters map[string]Count, elements map[setSpec][]Element) {
	k.queued = true
	k.library.AddTable(nftTable)
	for _, name := range l.counters {
		c := counters[name]
		k.library.AddObj(&nftables.CounterObj{Table: nftTable, Name: name, Packets: c.Packets, Bytes: c.Bytes})
	}
	for _, spec := range l.sets {
		set := spec.set()
		if spec == markedSet {
			set.Comment = m.String()
		}
		values := intervals(l.allowed[spec.family])
		if spec.role != roleAllowed {
			values = spec.values(elements[spec])
		}
		// The library keeps its errors for the flush.
		_ = k.library.AddSet(set, values)
	}
	k.queueChains(l.chains)
}

func (k *kernel) queueChains(chains []chain) {
	added := make([]*nftables.Chain, len(chains))
	for i, c := range chains {
		k.queued = true
		added[i] = &nftables.Chain{Name: c.name, Table: nftTable}
		if c.priority != 0 {
			policy := nftables.ChainPolicyAccept
			added[i].Type = nftables.ChainTypeFilter
			added[i].Hooknum = nftables.ChainHookPrerouting
			added[i].Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.priority))
			added[i].Policy = &policy
		}
		k.library.AddChain(added[i])
	}
	for i, c := range chains {
		for _, r := range c.rules {
			rule := &nftables.Rule{Table: nftTable, Chain: added[i], Exprs: r.exprs}
			if r.comment != "" {
				rule.UserData = userdata.AppendString(nil, userdata.TypeComment, r.comment)
			}
			k.library.AddRule(rule)
		}
	}
}

// markedSet carries the mark.
var markedSet = setSpec{role: roleService, family: ipv4}

func (k *kernel) queueDelete() {
	k.queued = true
	k.library.DelTable(nftTable)
}

// queueDeleteChains empties them first, as one may go to another.
func (k *kernel) queueDeleteChains(names []string) {
	for _, name := range names {
		k.queued = true
		k.library.FlushChain(&nftables.Chain{Name: name, Table: nftTable})
	}
	for _, name := range names {
		k.library.DelChain(&nftables.Chain{Name: name, Table: nftTable})
	}
}

func (k *kernel) queueElements(s setSpec, remove, add []Element) {
	if len(remove)+len(add) == 0 {
		return
	}
	k.queued = true
	set := s.set()
	_ = k.library.SetDeleteElements(set, keysOnly(s.values(remove)))
	_ = k.library.SetAddElements(set, s.values(add))
}

// values turns elements into the library's.
func (s setSpec) values(elements []Element) []nftables.SetElement {
	values := make([]nftables.SetElement, len(elements))
	for i, e := range elements {
		values[i] = nftables.SetElement{Key: s.key(e.Service), Timeout: e.Timeout}
		if e.Count != (Count{}) {
			values[i].Counter = &expr.Counter{Packets: e.Count.Packets, Bytes: e.Count.Bytes}
		}
	}
	return values
}

func keysOnly(values []nftables.SetElement) []nftables.SetElement {
	for i, v := range values {
		values[i] = nftables.SetElement{Key: v.Key}
	}
	return values
}

// intervals turns prefixes, sorted and apart, into the elements of an interval
// set: each one's first address, and the first after it unless there is none.
func intervals(prefixes []netip.Prefix) []nftables.SetElement {
	var values []nftables.SetElement
	for _, p := range prefixes {
		first := nftables.SetElement{Key: p.Addr().AsSlice()}
		end := lastOf(p).Next()
		first.IntervalOpen = !end.IsValid()
		values = append(values, first)
		if end.IsValid() {
			values = append(values, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return values
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
