package alert

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// maxSecret bounds a file with a secret or with certificates.
const maxSecret = 256 << 10

// readFile reads a small file that the configuration names. What is no path is
// not repeated: it may be the secret itself, put into the wrong key.
func readFile(what, name string) ([]byte, error) {
	if !filepath.IsAbs(name) {
		return nil, fmt.Errorf("%s: want the whole path of a file, which begins with /", what)
	}
	// Opening a named pipe must not wait for a writer.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %s is no regular file", what, name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	case len(data) > maxSecret:
		return nil, fmt.Errorf("%s: %s is too large", what, name)
	}
	return data, nil
}

// readSecret reads a secret, at each use: a file that was changed counts at once.
// No error has anything of what the file holds.
func readSecret(what, name string) (string, error) {
	data, err := readFile(what, name)
	if err != nil {
		return "", err
	}
	data = bytes.TrimRight(data, "\r\n")
	bad := func(r rune) bool { return r == utf8.RuneError || unicode.IsControl(r) }
	switch {
	case len(data) == 0:
		return "", fmt.Errorf("%s: %s is empty", what, name)
	case bytes.ContainsFunc(data, bad):
		return "", fmt.Errorf("%s: want one line of text in %s", what, name)
	}
	return string(data), nil
}

// readAuthorities reads certificates; none named are the system's, nil.
func readAuthorities(name string) (*x509.CertPool, error) {
	if name == "" {
		return nil, nil
	}
	pem, err := readFile("ca_file", name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca_file: %s has no certificate in PEM", name)
	}
	return pool, nil
}

// parseURL reads a URL that may be a secret: it is in no error.
func parseURL(what, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New(what + ": want a URL, as https://host.example.net/path")
	}
	return u, nil
}
