package ipvs

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"testing"
)

func TestParseHex(t *testing.T) {
	for c := range 256 {
		for place := range 8 {
			text := []byte("01234567")
			text[place] = byte(c)
			digits := binary.BigEndian.Uint64(text)
			for _, tt := range []struct {
				letters uint64
				format  string
			}{{upper, "%08X"}, {lower, "%08x"}} {
				want, err := strconv.ParseUint(string(text), 16, 32)
				valid := err == nil && fmt.Sprintf(tt.format, want) == string(text)
				got, ok := parseHex(digits, tt.letters)
				if ok != valid || ok && uint64(got) != want {
					t.Errorf("%q as %s: %#x, %v, want %#x, %v", text, tt.format, got, ok, want, valid)
				}
			}
		}
	}
	for _, v := range []uint32{0, 0x89abcdef, 0xfedcba98, 0xffffffff} {
		if got, ok := parseHex(binary.BigEndian.Uint64(fmt.Appendf(nil, "%08X", v)), upper); got != v || !ok {
			t.Errorf("%08X: %08X, %v", v, got, ok)
		}
	}
}
