package pressure

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxFile bounds a file of /proc that is read: zoneinfo of a machine with 1,024
// processors and eight nodes is 1 MB.
const maxFile = 8 << 20

// errCut is returned for a file whose last line has no end: its last figure may
// be the half of one.
var errCut = errors.New("it is cut short")

// files reads small files below a root into one buffer.
type files struct {
	root string
	buf  []byte
}

func (f *files) path(name string) string { return filepath.Join(f.root, name) }

// read returns a whole file, which is good until the next read. The kernel's
// files end with a newline, and one that does not is cut short.
func (f *files) read(name string) ([]byte, error) {
	path := f.path(name)
	data, err := f.readAll(path)
	if err == nil && (len(data) == 0 || data[len(data)-1] != '\n') {
		err = errCut
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return data, nil
}

// readAll reads with as few calls as the file has parts. The calls are the
// system's: an os.File costs an allocation and two calls more, for each of
// thirty files a second.
func (f *files) readAll(path string) ([]byte, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if f.buf == nil {
		f.buf = make([]byte, 32<<10)
	}
	n := 0
	for {
		if n == len(f.buf) {
			if n >= maxFile {
				return nil, fmt.Errorf("it has more than %d bytes", maxFile)
			}
			f.buf = append(f.buf, make([]byte, n)...)
		}
		got, err := retry(func() (int, error) { return unix.Read(fd, f.buf[n:]) })
		if err != nil {
			return nil, err
		}
		if got == 0 {
			return f.buf[:n], nil
		}
		n += got
	}
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// number reads a file that is one number.
func (f *files) number(name string) (uint64, error) {
	v, err := f.numbers(name, 1)
	if err != nil {
		return 0, err
	}
	return v[0], nil
}

// numbers reads a file whose first words are numbers: at least so many.
func (f *files) numbers(name string, least int) ([]uint64, error) {
	data, err := f.read(name)
	if err != nil {
		return nil, err
	}
	words := bytes.Fields(data)
	if len(words) < least {
		return nil, fmt.Errorf("%s: %d numbers, and not %d", f.path(name), len(words), least)
	}
	values := make([]uint64, least)
	for i := range values {
		if values[i], err = strconv.ParseUint(string(words[i]), 10, 64); err != nil {
			return nil, fmt.Errorf("%s: %w", f.path(name), err)
		}
	}
	return values, nil
}

// parseNumber reads a decimal number without making a string of it.
func parseNumber(word []byte) (uint64, bool) {
	if len(word) == 0 {
		return 0, false
	}
	var n uint64
	for _, c := range word {
		d := uint64(c - '0')
		if d > 9 || n > (1<<64-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// nextWord splits the first word off a line.
func nextWord(line []byte) (word, rest []byte) {
	start := 0
	for start < len(line) && blank(line[start]) {
		start++
	}
	end := start
	for end < len(line) && !blank(line[end]) {
		end++
	}
	return line[start:end], line[end:]
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

func notThere(err error) bool { return errors.Is(err, fs.ErrNotExist) }
