// Package secret reads tokens, passwords and certificates of authorities from
// files. No error of it has anything of what a file holds.
package secret

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unicode"
)

// most is far more than a token is long.
const most = 64 << 10

// Read returns the line that the file holds, without blanks around it.
func Read(name string) (string, error) {
	// Opening a named pipe must not wait for a writer.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.New(name + " is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return "", err
	}
	text := string(bytes.TrimSpace(data))
	switch {
	case text == "" && len(data) <= most:
		return "", fmt.Errorf("%s is empty", name)
	case len(data) > most || strings.ContainsFunc(text, unicode.IsControl):
		return "", errors.New("want one line of text in " + name)
	}
	return text, nil
}

// Authorities returns those whose certificates the file has, in PEM.
func Authorities(name string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM", name)
	}
	return pool, nil
}
