package alert

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"html"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/lvsguard/lvsguard/guard"
)

// Mail is sent by SMTP, to each recipient by itself: one whose address is gone
// keeps it from none of the others.
type Mail struct{ cfg guard.MailConfig }

// NewMail returns a Receiver that sends mail.
func NewMail(cfg guard.MailConfig) *Mail { return &Mail{cfg} }

// Send mails n. All mails of a run make one thread.
func (m *Mail) Send(ctx context.Context, n Notification) error {
	return m.mail(ctx, letter{
		head: headline(&n), lines: describe(&n), colour: colour(&n),
		urgent: n.Severity == Critical && n.State != Resolved,
		thread: n.ID, id: fmt.Sprint(n.ID, n.State, n.Time.UnixNano()),
	})
}

// SendMany mails one message that tells of all.
func (m *Mail) SendMany(ctx context.Context, all []Notification) error {
	head, lines := digest(all)
	l := letter{head: head, lines: lines, colour: colour(&all[0]), urgent: all[0].Severity == Critical}
	for i := range all {
		l.id += fmt.Sprint(all[i].ID, all[i].State, all[i].Time.UnixNano())
	}
	return m.mail(ctx, l)
}

// A letter is what is in a mail, for whomever.
type letter struct {
	head   string
	lines  []string
	colour string
	urgent bool
	thread string // the run's ID; empty: no thread
	id     string // the same at each try, so that a mail that comes twice can be told
}

func (l letter) text() string { return l.head + "\n\n" + strings.Join(l.lines, "\n") + "\n" }

func (l letter) html() string {
	var b strings.Builder
	b.WriteString(`<!DOCTYPE html><html><body style="font-family:sans-serif">` + "\n")
	fmt.Fprintf(&b, "<p style=\"border-left:6px solid %s;padding-left:8px\"><b>%s</b></p>\n<p>\n", l.colour, html.EscapeString(l.head))
	for _, line := range l.lines {
		b.WriteString(html.EscapeString(line) + "<br>\n")
	}
	b.WriteString("</p>\n</body></html>\n")
	return b.String()
}

// message makes the mail to one recipient.
func (m *Mail) message(l letter, to string) (*gomail.Msg, error) {
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	if err := errors.Join(msg.From(m.cfg.From), msg.To(to)); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrRefused)
	}
	domain := "lvsguard.invalid"
	if i := strings.LastIndex(m.cfg.From, "@"); i >= 0 {
		domain = m.cfg.From[i+1:]
	}
	name := func(id string) string {
		sum := sha256.Sum256([]byte(id))
		return hex.EncodeToString(sum[:16]) + "@" + domain
	}
	msg.Subject(l.head)
	msg.SetDate()
	msg.SetMessageIDWithValue(name(l.id + to))
	if l.thread != "" {
		// The head of the thread is nobody's mail: programs join by its name alone.
		msg.SetGenHeaderPreformatted(gomail.HeaderInReplyTo, "<"+name(l.thread)+">")
		msg.SetGenHeaderPreformatted(gomail.HeaderReferences, "<"+name(l.thread)+">")
	}
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834
	msg.SetGenHeader(gomail.HeaderXAutoResponseSuppress, "All")
	if l.urgent {
		msg.SetImportance(gomail.ImportanceHigh)
	}
	msg.SetBodyString(gomail.TypeTextPlain, l.text())
	msg.AddAlternativeString(gomail.TypeTextHTML, l.html())
	return msg, nil
}

func (m *Mail) mail(ctx context.Context, l letter) error {
	var msgs []*gomail.Msg
	for _, to := range m.cfg.To {
		msg, err := m.message(l, to)
		if err != nil {
			return err
		}
		msgs = append(msgs, msg)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // closes the connection, which the library leaves open on errors
	client, err := m.client(ctx)
	if err != nil {
		return err
	}
	smtp, err := client.DialToSMTPClientWithContext(ctx)
	if err != nil {
		return smtpError(ctx, err)
	}
	result := m.result(ctx, msgs, client.SendWithSMTPClient(smtp, msgs...))
	_ = client.CloseWithSMTPClient(smtp) // what it says to a QUIT changes nothing
	return result
}

// result weighs what became of the mail to each recipient.
func (m *Mail) result(ctx context.Context, msgs []*gomail.Msg, err error) error {
	var delivered int
	var worst error
	for i, msg := range msgs {
		if msg.IsDelivered() { // even if the connection broke just then
			delivered++
			continue
		}
		why := fmt.Errorf("mail to %s: %w", m.cfg.To[i], smtpError(ctx, cmp.Or(msg.SendError(), err)))
		if worst == nil || errors.Is(worst, ErrRefused) { // what may be mended counts
			worst = why
		}
	}
	if worst != nil && delivered > 0 {
		return &partlyError{worst} // to try again would be a second mail for those who have it
	}
	return worst
}

// client makes a client whose connection ends with ctx.
func (m *Mail) client(ctx context.Context) (*gomail.Client, error) {
	host, service, err := net.SplitHostPort(m.cfg.Server)
	if err != nil {
		return nil, fmt.Errorf("mail server: %w: %w", err, ErrRefused)
	}
	port, err := strconv.Atoi(service)
	if err != nil {
		return nil, fmt.Errorf("mail server %s: want a port's number: %w", m.cfg.Server, ErrRefused)
	}
	roots, err := readAuthorities(m.cfg.CAFile)
	if err != nil {
		return nil, err
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: roots}
	opts := []gomail.Option{
		gomail.WithPort(port), gomail.WithTLSConfig(secure), gomail.WithoutNoop(), gomail.WithTimeout(sendDeadline),
	}
	// The context that the library hands over ends as soon as it has dialed.
	dial := func(_ context.Context, network, address string) (net.Conn, error) {
		return dialSMTP(ctx, network, address)
	}
	switch m.cfg.TLS {
	case guard.MailClear:
		opts = append(opts, gomail.WithTLSPolicy(gomail.NoTLS))
	case guard.MailWithTLS:
		// With this policy the client notices that its connection has TLS already.
		opts = append(opts, gomail.WithTLSPolicy(gomail.TLSOpportunistic))
		dial = func(_ context.Context, network, address string) (net.Conn, error) {
			conn, err := dialSMTP(ctx, network, address)
			if err != nil {
				return nil, err
			}
			shielded := tls.Client(conn, secure)
			if err := shielded.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, err
			}
			return shielded, nil
		}
	default:
		opts = append(opts, gomail.WithTLSPolicy(gomail.TLSMandatory))
	}
	opts = append(opts, gomail.WithDialContextFunc(dial))
	if m.cfg.Username != "" {
		password, err := readSecret("password_file", m.cfg.PasswordFile)
		if err != nil {
			return nil, err
		}
		opts = append(opts, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover),
			gomail.WithUsername(m.cfg.Username), gomail.WithPassword(password))
	}
	client, err := gomail.NewClient(host, opts...)
	if err != nil {
		return nil, fmt.Errorf("mail server %s: %w", m.cfg.Server, ErrRefused)
	}
	return client, nil
}

// smtpError says what went wrong by the server's code, never by its words: it has
// heard the password.
func smtpError(ctx context.Context, err error) error {
	code, enhanced, step := 0, "", ""
	if answer, ok := errors.AsType[*textproto.Error](err); ok {
		code, step = answer.Code, "it answers"
	}
	if failed, ok := errors.AsType[*gomail.SendError](err); ok {
		code, enhanced, step = failed.ErrorCode(), failed.EnhancedStatusCode(), failed.Reason.String()+": it answers"
	}
	switch {
	case code >= 500:
		return fmt.Errorf("%s: %w", strings.TrimSpace(fmt.Sprint(step, " ", code, " ", enhanced)), ErrRefused)
	case code > 0:
		return errors.New(strings.TrimSpace(fmt.Sprint(step, " ", code, " ", enhanced)))
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return plainError(ctx.Err(), "SMTP")
	case errors.Is(err, gomail.ErrNoSupportedAuthDiscovered):
		return errors.New("it offers no way to log in that is safe here: want tls: starttls or tls, and a server with SCRAM, CRAM-MD5, PLAIN or LOGIN")
	case strings.HasSuffix(err.Error(), "does not support STARTTLS"):
		return errors.New("it does not offer STARTTLS: without it nothing is sent (see the receiver's key tls)")
	case strings.HasSuffix(err.Error(), "server does not support SMTP AUTH"):
		return errors.New("it offers no login: take username and password_file away, or ask its administrator")
	}
	return plainError(err, "SMTP")
}

func dialSMTP(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	b := &boundedConn{Conn: conn, left: maxAnswers}
	b.stop = context.AfterFunc(ctx, func() { conn.Close() })
	return b, nil
}

// maxAnswers is more than a mail server says in a session, with its certificates.
const maxAnswers = 256 << 10

// A boundedConn ends with its context, whatever deadlines the library sets, and
// when the other side has said too much: SMTP's lines have no end by themselves.
type boundedConn struct {
	net.Conn
	left int
	stop func() bool
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("too long an answer")
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func (c *boundedConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

func (c *boundedConn) SetDeadline(time.Time) error      { return nil }
func (c *boundedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *boundedConn) SetWriteDeadline(time.Time) error { return nil }
