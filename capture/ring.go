package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// blockSize is that of one block of a ring: some 1,700 handshake segments.
	// A block is handed over when it is full, or retireAfter ms old.
	blockSize   = 256 << 10
	retireAfter = 50
	// frameSize is not how big a frame may be; it only has to divide blockSize.
	frameSize = 2048
)

// A ring is one packet socket and the memory that it shares with the kernel
// (Documentation/networking/packet_mmap.rst, TPACKET_V3). It hears nothing
// until it is bound.
type ring struct {
	fd   int
	mem  []byte
	next int // the block that is read next
}

// openRing makes a ring of at least two blocks.
func openRing(size int) (_ *ring, err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("open a packet socket: %w (it needs CAP_NET_RAW: run it as root, or give it the capability "+
			"with AmbientCapabilities=CAP_NET_RAW in its unit, or with setcap cap_net_raw+ep on its binary)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	r := &ring{fd: fd}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return nil, fmt.Errorf("choose TPACKET_V3, which Linux 3.2 brought: %w", err)
	}
	blocks := max(size/blockSize, 2)
	req := unix.TpacketReq3{
		Block_size: blockSize, Block_nr: uint32(blocks),
		Frame_size: frameSize, Frame_nr: uint32(blocks * (blockSize / frameSize)),
		Retire_blk_tov: retireAfter,
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return nil, fmt.Errorf("make a ring of %d KiB for packets: %w", blocks*blockSize>>10, err)
	}
	r.mem, err = unix.Mmap(fd, 0, blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring of packets: %w", err)
	}
	return r, nil
}

func (r *ring) close() error {
	var err error
	if r.mem != nil {
		err = unix.Munmap(r.mem)
	}
	return errors.Join(err, unix.Close(r.fd))
}

// attachClassic makes a classic program the socket's filter.
func (r *ring) attachClassic(program []unix.SockFilter) error {
	err := unix.SetsockoptSockFprog(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	return os.NewSyscallError("attach a filter", err)
}

// attach makes an eBPF program the socket's filter.
func (r *ring) attach(program int) error {
	return os.NewSyscallError("attach a filter", unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, program))
}

// bind makes the socket hear every interface of its network namespace.
func (r *ring) bind() error {
	err := unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)})
	return os.NewSyscallError("bind to all interfaces", err)
}

// join makes the workers' rings share the packets, each to the ring that the
// program says.
func join(workers []*worker, program int) error {
	const fanout = unix.PACKET_FANOUT_EBPF << 16
	first := workers[0].ring.fd
	// The first one has the kernel find a number that nobody has.
	if err := unix.SetsockoptInt(first, unix.SOL_PACKET, unix.PACKET_FANOUT, fanout|unix.PACKET_FANOUT_FLAG_UNIQUEID<<16); err != nil {
		return fmt.Errorf("make a group of packet sockets: %w", err)
	}
	group, err := unix.GetsockoptInt(first, unix.SOL_PACKET, unix.PACKET_FANOUT)
	if err != nil {
		return fmt.Errorf("read the number of a group of packet sockets: %w", err)
	}
	if err := unix.SetsockoptInt(first, unix.SOL_PACKET, unix.PACKET_FANOUT_DATA, program); err != nil {
		return fmt.Errorf("give a group of packet sockets its program: %w", err)
	}
	for _, w := range workers[1:] {
		if err := unix.SetsockoptInt(w.ring.fd, unix.SOL_PACKET, unix.PACKET_FANOUT, fanout|group&0xffff); err != nil {
			return fmt.Errorf("join a group of packet sockets: %w", err)
		}
	}
	return nil
}

// lost is how many packets there was no room for since the last call.
func (r *ring) lost() (uint32, error) {
	s, err := unix.GetsockoptTpacketStatsV3(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("read how many packets were lost: %w", err)
	}
	return s.Drops, nil
}

// A ringBlock is a part of the ring, with frames in it.
type ringBlock struct {
	mem    []byte
	header *blockHeader
}

// blockHeader is struct tpacket_block_desc with struct tpacket_hdr_v1.
type blockHeader struct {
	version, private uint32
	status           uint32
	packets          uint32
	first            uint32 // where the first frame is
	length           uint32
	sequence         uint64
	timestamps       [4]uint32
}

// take gives the next block, if the kernel has done with it.
func (r *ring) take() (b ringBlock, ok bool) {
	b.mem = r.mem[r.next*blockSize:][:blockSize]
	b.header = (*blockHeader)(unsafe.Pointer(&b.mem[0]))
	return b, atomic.LoadUint32(&b.header.status)&unix.TP_STATUS_USER != 0
}

// release gives the block that take gave back to the kernel.
func (r *ring) release(b ringBlock) {
	atomic.StoreUint32(&b.header.status, unix.TP_STATUS_KERNEL)
	if r.next++; r.next*blockSize == len(r.mem) {
		r.next = 0
	}
}

// A ringFrame is one packet in a block.
type ringFrame struct {
	data      []byte // from the link-layer header on
	network   int    // where the network header is, as far as the kernel knows
	wire      int    // how long the frame was
	wall      int64  // in nanoseconds since 1970, by the wall clock
	device    uint32 // the interface's index
	tag       uint32 // the VLAN tag that the kernel took off, or 0
	protocol  uint16 // the ethertype
	hardware  uint16 // ARPHRD_…
	direction uint8  // PACKET_…
}

// addressAt is where a frame's struct sockaddr_ll is: after struct tpacket3_hdr,
// aligned.
const addressAt = (int(unsafe.Sizeof(unix.Tpacket3Hdr{})) + unix.TPACKET_ALIGNMENT - 1) &^ (unix.TPACKET_ALIGNMENT - 1)

// frame reads the frame at an offset into f, and gives the next one's.
func (b ringBlock) frame(at int, f *ringFrame) int {
	h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&b.mem[at]))
	a := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&b.mem[at+addressAt]))
	f.data = b.mem[at+int(h.Mac):][:h.Snaplen]
	f.network = int(h.Net) - int(h.Mac)
	f.wire = int(h.Len)
	f.wall = int64(h.Sec)*1e9 + int64(h.Nsec)
	f.device = uint32(a.Ifindex)
	f.tag = 0
	if h.Status&unix.TP_STATUS_VLAN_VALID != 0 {
		f.tag = uint32(h.Hv1.Vlan_tpid)<<16 | h.Hv1.Vlan_tci&0xffff
	}
	f.protocol = networkOrder(a.Protocol)
	f.hardware = a.Hatype
	f.direction = a.Pkttype
	return at + int(h.Next_offset)
}

// ethernet tells whether the frame begins with an Ethernet header.
func (f *ringFrame) ethernet() bool {
	return f.hardware == unix.ARPHRD_ETHER || f.hardware == unix.ARPHRD_LOOPBACK
}

// decode decodes a frame, as DecodeIP does.
func (f *ringFrame) decode(seg *Segment) Kind {
	if f.ethernet() {
		return Decode(LinkEthernet, f.data, f.wire, seg)
	}
	if f.network < 0 || f.network > len(f.data) {
		return BadLink
	}
	return DecodeIP(f.protocol, f.data[f.network:], f.wire-f.network, seg)
}

// copied tells whether a frame is the forwarded copy of one that came in: it
// goes out, and none of this host's addresses sent it. The eBPF filter has done
// that already where it knows how to find the address.
func (f *ringFrame) copied(seg *Segment, locals map[[16]byte]bool) bool {
	if f.direction != unix.PACKET_OUTGOING {
		return false
	}
	src := seg.Src
	if seg.Unreachable { // that is who sent what is quoted
		switch ip := f.data[max(0, min(f.network, len(f.data))):]; {
		case f.protocol == etherIPv4 && len(ip) >= ipv4Header:
			src = netip.AddrFrom4([4]byte(ip[12:])).As16()
		case f.protocol == etherIPv6 && len(ip) >= ipv6Header:
			src = [16]byte(ip[8:])
		}
	}
	return !locals[src]
}

// networkOrder turns a number to network byte order, or back.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}
