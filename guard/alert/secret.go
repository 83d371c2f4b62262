package alert

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/lvsguard/lvsguard/internal/secret"
)

// readSecret reads a secret, at each use: a file that was changed counts at once.
// What is no path is not repeated: it may be the secret itself, put into the wrong
// key.
func readSecret(what, name string) (string, error) {
	if !filepath.IsAbs(name) {
		return "", fmt.Errorf("%s: want the whole path of a file, which begins with /", what)
	}
	text, err := secret.Read(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return text, nil
}

// readAuthorities reads certificates; none named are the system's, nil.
func readAuthorities(name string) (*x509.CertPool, error) {
	if name == "" {
		return nil, nil
	}
	pool, err := secret.Authorities(name)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
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
