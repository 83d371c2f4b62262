package alert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A post is one HTTP request to a receiver.
type post struct {
	url    *url.URL
	say    any // as JSON
	caFile string
	bearer string // empty: none
	user   string // empty: none
	pass   string
}

// do sends it. Each has a connection of its own: messages are rare. No proxy of
// the environment is used and no redirect followed: what is posted, and its
// secrets, go where the configuration says. The answer's body is not read: only
// its status counts, and nothing that the other side wrote is in an error.
func (p *post) do(ctx context.Context) error {
	roots, err := readAuthorities(p.caFile)
	if err != nil {
		return err
	}
	body, err := json.Marshal(p.say)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url.String(), bytes.NewReader(body))
	if err != nil {
		return errors.New("url: want one that can be posted to")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "lvsguard")
	switch {
	case p.bearer != "":
		req.Header.Set("Authorization", "Bearer "+p.bearer)
	case p.user != "":
		req.SetBasicAuth(p.user, p.pass)
	}
	client := &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return plainError(err, "HTTP")
	}
	resp.Body.Close()
	return statusError(resp, time.Now())
}

func statusError(resp *http.Response, now time.Time) error {
	code := resp.StatusCode
	err := fmt.Errorf("it answers %d %s", code, http.StatusText(code))
	switch {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		return fmt.Errorf("%w, and no redirect is followed: put the right URL into the configuration", err)
	case code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable:
		if after, ok := retryAfter(resp.Header.Get("Retry-After"), now); ok {
			return &laterError{err: err, after: after}
		}
		return err
	case code == http.StatusRequestTimeout || code >= 500 || code < 200:
		return err
	}
	return fmt.Errorf("%w: %w", err, ErrRefused)
}

// retryAfter reads RFC 9110's header, section 10.2.3: seconds or a date.
func retryAfter(text string, now time.Time) (time.Duration, bool) {
	if s, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(s) * time.Second, true
	}
	if at, err := http.ParseTime(text); err == nil && at.After(now) {
		return at.Sub(now), true
	}
	return 0, false
}

// plainError says what kept a connection from working, in words of our own: the
// errors of the libraries hold URLs, and lines that the other side wrote.
func plainError(err error, protocol string) error {
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return errors.New("its name is not known to the DNS")
		}
		return errors.New("its name could not be looked up")
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return errors.New("its certificate is from an unknown authority: name that one with ca_file")
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return errors.New("its certificate is for another name")
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			return errors.New("its certificate has expired, or a clock is wrong")
		}
		return errors.New("its certificate is not valid")
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return errors.New("it does not speak TLS there")
	}
	// What begins so is all crypto/tls's own.
	if text, ok := strings.CutPrefix(strings.TrimPrefix(err.Error(), "remote error: "), "tls: "); ok {
		return errors.New("TLS with it does not work: " + clean(text, 100))
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("no answer in time")
	}
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("the guard stops")
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("nobody listens there: connection refused")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return errors.New("it breaks off without an answer")
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return errors.New("what it answers is not " + protocol + ", or breaks off")
}
