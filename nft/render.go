package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// render writes a rule's expressions as nft lists them. What is not of our
// vocabulary is written in square brackets, so that no two rules of which one
// is ours ever read the same.
func render(exprs []expr.Any) string {
	return (&renderer{}).render(exprs)
}

func (r *renderer) render(exprs []expr.Any) string {
	r.registers = map[uint32]operand{}
	for _, e := range exprs {
		r.expression(e)
	}
	var words []string
	for _, w := range r.words {
		// nft leaves out what follows from the fields that are named.
		if !(w.family != nil && r.familyUsed || w.tcp && r.tcpUsed) {
			words = append(words, w.text)
		}
	}
	return strings.Join(words, " ")
}

// word is a part of a rule's text.
type word struct {
	text   string
	family *family // it says only that this is the family
	tcp    bool    // it says only that this is TCP
}

// operand is what a register holds.
type operand struct {
	text   string
	kind   operandKind
	masked bool
	field
}

type operandKind int

const (
	ofUnknown operandKind = iota
	ofProtocolFamily
	ofProtocol
	ofInterface
	ofFragmentHeader
	ofField
)

type renderer struct {
	words     []word
	registers map[uint32]operand

	family              *family // nil until the rule has asked for one
	tcp                 bool    // the rule has asked for TCP
	familyUsed, tcpUsed bool    // a field has been named since
}

func (r *renderer) say(format string, args ...any) {
	r.words = append(r.words, word{text: fmt.Sprintf(format, args...)})
}

func (r *renderer) unknown(e expr.Any) { r.say("[%s]", describe(e)) }

func describe(e expr.Any) string {
	text := fmt.Sprintf("%T%+v", e, e)
	return strings.TrimPrefix(strings.ReplaceAll(text, "&", ""), "*expr.")
}

func (r *renderer) expression(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		r.meta(e)
	case *expr.Payload:
		r.payload(e)
	case *expr.Bitwise:
		r.bitwise(e)
	case *expr.Exthdr:
		r.exthdr(e)
	case *expr.Cmp:
		r.cmp(e)
	case *expr.Lookup:
		r.lookup(e)
	case *expr.Objref:
		if e.Type != unix.NFT_OBJECT_COUNTER {
			r.unknown(e)
			return
		}
		r.say("counter name %q", e.Name)
	case *expr.Limit:
		if *e != *limit(uint32(e.Rate))[0].(*expr.Limit) {
			r.unknown(e)
			return
		}
		r.say("limit rate %d/second burst %d packets", e.Rate, e.Burst)
	case *expr.Queue:
		if *e != *statementQueue(e.Num)[0].(*expr.Queue) {
			r.unknown(e)
			return
		}
		r.say("queue flags bypass to %d", e.Num)
	case *expr.Target:
		r.target(e)
	case *expr.Verdict:
		r.verdict(e)
	default:
		r.unknown(e)
	}
}

func (r *renderer) meta(e *expr.Meta) {
	o := operand{}
	switch {
	case e.SourceRegister:
	case e.Key == expr.MetaKeyNFPROTO:
		o = operand{text: "meta nfproto", kind: ofProtocolFamily}
	case e.Key == expr.MetaKeyL4PROTO:
		o = operand{text: "meta l4proto", kind: ofProtocol}
	case e.Key == expr.MetaKeyIIF:
		o = operand{text: "iif", kind: ofInterface}
	}
	if o.kind == ofUnknown {
		r.unknown(e)
	}
	r.registers[e.Register] = o
}

// fields are those that render knows by name, by family.
func fields(f *family) []field {
	tcp := []field{fieldPort, fieldDataOffset, fieldFlags, fieldWindow, fieldUrgent}
	switch f {
	case ipv4:
		tcp = append(tcp, fieldHeaderLength, fieldFragment, fieldOffset)
	case ipv6:
		tcp = append(tcp, fieldNextHeader)
	default:
		return tcp
	}
	return append(tcp, f.source, f.target, f.length, f.ttl)
}

func (r *renderer) payload(e *expr.Payload) {
	for _, f := range fields(r.family) {
		if f.base == expr.PayloadBaseTransportHeader && !r.tcp {
			continue
		}
		if *e == *f.load(e.DestRegister).(*expr.Payload) {
			r.registers[e.DestRegister] = operand{text: f.text, kind: ofField, field: f}
			if f.base == expr.PayloadBaseTransportHeader {
				r.tcpUsed = true
			} else {
				r.familyUsed = true
			}
			return
		}
	}
	r.unknown(e)
	r.registers[e.DestRegister] = operand{}
}

func (r *renderer) exthdr(e *expr.Exthdr) {
	header, offset := loadFragmentHeader(), loadFragmentOffset()
	header.DestRegister, offset.DestRegister = e.DestRegister, e.DestRegister
	o := operand{}
	switch *e {
	case *header:
		o = operand{text: "exthdr frag", kind: ofFragmentHeader}
		r.familyUsed = r.family == ipv6
	case *offset:
		o = operand{text: fieldHeaderOffset.text, kind: ofField, field: fieldHeaderOffset}
		r.familyUsed = r.family == ipv6
	default:
		r.unknown(e)
	}
	r.registers[e.DestRegister] = o
}

// bitwise is only ever a mask. A field may be known by several.
func (r *renderer) bitwise(e *expr.Bitwise) {
	o := r.registers[e.SourceRegister]
	masked := operand{}
	for _, f := range append(fields(r.family), fieldHeaderOffset) {
		same := o.kind == ofField && !o.masked && f.base == o.base && f.offset == o.offset && f.len == o.len
		if same && f.mask != 0 && bytes.Equal(e.Mask, f.bytes(f.mask)) && bytes.Equal(e.Xor, f.bytes(0)) {
			masked = operand{text: f.text, kind: ofField, field: f, masked: true}
		}
	}
	if masked.kind == ofUnknown || e.DestRegister != e.SourceRegister {
		r.unknown(e)
		masked = operand{}
	}
	r.registers[e.DestRegister] = masked
}

func (r *renderer) cmp(e *expr.Cmp) {
	o := r.registers[e.Register]
	eq := e.Op == expr.CmpOpEq
	switch {
	case o.kind == ofProtocolFamily && eq && bytes.Equal(e.Data, []byte{ipv4.nfproto}):
		r.askFamily(ipv4, "ipv4")
	case o.kind == ofProtocolFamily && eq && bytes.Equal(e.Data, []byte{ipv6.nfproto}):
		r.askFamily(ipv6, "ipv6")
	case o.kind == ofProtocol && eq && bytes.Equal(e.Data, []byte{tcpProtocol}):
		r.tcp, r.tcpUsed = true, false
		r.words = append(r.words, word{text: "meta l4proto tcp", tcp: true})
	case o.kind == ofProtocol && e.Op == expr.CmpOpNeq && bytes.Equal(e.Data, []byte{tcpProtocol}):
		r.say("meta l4proto != tcp")
	case o.kind == ofInterface && eq && bytes.Equal(e.Data, binary.NativeEndian.AppendUint32(nil, loopback)):
		r.say(`iif "lo"`)
	case o.kind == ofFragmentHeader && eq && bytes.Equal(e.Data, []byte{1}):
		r.say("exthdr frag exists")
	case o.kind == ofField && len(e.Data) == int(o.len) && o.len <= 2 && o.masked == (o.mask != 0):
		r.cmpField(o, e)
	case o.text != "":
		r.say("[%s %s]", o.text, describe(e))
	default:
		r.unknown(e)
	}
}

func (r *renderer) askFamily(f *family, name string) {
	r.family, r.familyUsed = f, false
	r.words = append(r.words, word{text: "meta nfproto " + name, family: f})
}

func (r *renderer) cmpField(o operand, e *expr.Cmp) {
	var v uint16
	for _, b := range e.Data {
		v = v<<8 | uint16(b)
	}
	v >>= o.shift
	operator := map[expr.CmpOp]string{expr.CmpOpEq: "", expr.CmpOpNeq: "!= ", expr.CmpOpGte: ">= ", expr.CmpOpLte: "<= "}
	op, known := operator[e.Op]
	last := len(r.words) - 1
	switch {
	case !known:
		r.unknown(e)
	case o.offset == fieldFlags.offset && o.base == fieldFlags.base && v == flagSYN:
		r.say("tcp flags %ssyn / fin,syn,rst,ack", op)
	case o.offset == fieldFlags.offset && o.base == fieldFlags.base:
		r.unknown(e)
	case o.field.text == fieldNextHeader.text && e.Op == expr.CmpOpNeq && v == tcpProtocol:
		r.say("ip6 nexthdr != tcp")
	case o.field.text == fieldNextHeader.text && op == "" && v == tcpProtocol:
		r.tcp = true
		r.say("%s tcp", o.text)
	case e.Op == expr.CmpOpLte && last >= 0 && strings.HasPrefix(r.words[last].text, o.text+" >= "):
		r.words[last].text = fmt.Sprintf("%s-%d", strings.Replace(r.words[last].text, ">= ", "", 1), v)
	default:
		r.say("%s %s%d", o.text, op, v)
	}
}

func (r *renderer) lookup(e *expr.Lookup) {
	key := r.registers[e.SourceRegister]
	if key.kind != ofField || e.IsDestRegSet || r.family == nil {
		r.unknown(e)
		return
	}
	text := key.text
	if s, known := parseSetName(e.SetName); !known || !s.addressOnly() {
		port := r.registers[r.family.portRegister]
		if port.kind != ofField {
			r.unknown(e)
			return
		}
		text += " . " + port.text
	}
	if e.Invert {
		text += " !="
	}
	r.say("%s @%s", text, e.SetName)
}

// target is what iptables would write, as nft has no words for it.
func (r *renderer) target(e *expr.Target) {
	info, raw := e.Info.(*xt.Unknown)
	if !raw || len(*info) < 2 {
		r.unknown(e)
		return
	}
	number := binary.NativeEndian.Uint16(*info)
	ours := targetNFQUEUE(number)
	if e.Name != ours.Name || e.Rev != ours.Rev || !bytes.Equal(*info, *ours.Info.(*xt.Unknown)) {
		r.unknown(e)
		return
	}
	r.say("# -j NFQUEUE --queue-num %d --queue-bypass", number)
}

func (r *renderer) verdict(e *expr.Verdict) {
	switch e.Kind {
	case expr.VerdictAccept:
		r.say("accept")
	case expr.VerdictDrop:
		r.say("drop")
	case expr.VerdictGoto:
		r.say("goto %s", e.Chain)
	case expr.VerdictJump:
		r.say("jump %s", e.Chain)
	default:
		r.unknown(e)
	}
}

// mangled tells whether a rule's text has parts that render has no words for.
func mangled(text string) bool { return slices.Contains([]byte(text), '[') }
