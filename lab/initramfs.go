package lab

import (
	"fmt"
	"io"
)

// An archive is an initramfs in the "newc" cpio format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
// The first failed write is kept and told by close.
type archive struct {
	w     io.Writer
	inode int
	err   error
}

const (
	modeDirectory = 0o040755
	modeFile      = 0o100755
)

func (a *archive) directory(name string) { a.entry(name, modeDirectory, nil) }

func (a *archive) file(name string, content []byte) { a.entry(name, modeFile, content) }

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

func (a *archive) entry(name string, mode int, content []byte) {
	a.inode++
	const links = 1
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.padded(append([]byte(header), name+"\x00"...))
	a.padded(content)
}

// padded writes p and fills up to a multiple of four, as every part of the format is.
func (a *archive) padded(p []byte) {
	if a.err != nil {
		return
	}
	fill := make([]byte, -len(p)&3)
	if _, a.err = a.w.Write(p); a.err == nil {
		_, a.err = a.w.Write(fill)
	}
}
