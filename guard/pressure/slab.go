package pressure

import "time"

// A Slab is the cache that the kernel takes IPVS's entries from
// (/sys/kernel/slab/ip_vs_conn). Other caches of the same size may be merged
// into it: then Objects and Held are of all of them.
type Slab struct {
	ObjectSize uint64 `json:"object_bytes"` // of an entry
	SlabSize   uint64 `json:"slab_bytes"`   // of an entry with its padding
	// PerEntry is SlabSize with the part of the pages that no entry uses.
	PerEntry float64 `json:"per_entry_bytes"`
	// Objects is the number of entries in use. It is read only where the caller
	// does not know the number of connections: to count them the kernel walks
	// its half-empty slabs with interrupts off, and after a flood these are many.
	Objects *uint64 `json:"objects"`
	// Held is the memory that the cache has, in use or not.
	Held *uint64 `json:"held_bytes"`
}

// slabEvery is how long the sizes are good: they change when the module is
// loaded again, if at all.
const slabEvery = time.Minute

type slabReader struct {
	at      time.Time
	slab    Slab
	perSlab uint64 // bytes
	err     error
}

const slabDir = "sys/kernel/slab/ip_vs_conn/"

func (r *slabReader) read(f *files, now time.Time, pageSize uint64, objects bool) (Slab, error) {
	if r.at.IsZero() || r.err != nil || now.Sub(r.at) >= slabEvery {
		r.at = now
		r.slab, r.perSlab, r.err = readSlab(f, pageSize)
	}
	if r.err != nil {
		return Slab{}, r.err
	}
	s := r.slab
	if slabs, err := f.number(slabDir + "slabs"); err == nil && r.perSlab > 0 {
		s.Held = new(slabs * r.perSlab)
	}
	if objects {
		if n, err := f.number(slabDir + "objects"); err == nil {
			s.Objects = &n
		}
	}
	return s, nil
}

func readSlab(f *files, pageSize uint64) (s Slab, perSlab uint64, err error) {
	if s.ObjectSize, err = f.number(slabDir + "object_size"); err != nil {
		return Slab{}, 0, err
	}
	if s.SlabSize, err = f.number(slabDir + "slab_size"); err != nil {
		return Slab{}, 0, err
	}
	s.PerEntry = float64(s.SlabSize)
	order, err := f.number(slabDir + "order")
	if err != nil || order > 10 {
		return s, 0, err
	}
	perSlab = pageSize << order
	if n, err := f.number(slabDir + "objs_per_slab"); err == nil && n > 0 {
		s.PerEntry = max(s.PerEntry, float64(perSlab)/float64(n))
	}
	return s, perSlab, nil
}
