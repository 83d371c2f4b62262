package alert

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"

	"github.com/lvsguard/lvsguard/guard"
)

// A postOffice is a mail server that works.
type postOffice struct {
	mu    sync.Mutex
	mails []received
	gone  string // an address that it does not know
}

type received struct {
	user, from, to string
	tls            bool
	raw            []byte
}

type postClerk struct {
	office *postOffice
	conn   *smtp.Conn
	got    received
}

func (o *postOffice) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &postClerk{office: o, conn: c}, nil
}

func (c *postClerk) AuthMechanisms() []string { return []string{sasl.Plain} }

func (c *postClerk) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "lvsguard" || password != canary {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "no: " + user + " " + password}
		}
		c.got.user = user
		return nil
	}), nil
}

func (c *postClerk) Mail(from string, _ *smtp.MailOptions) error {
	c.got.from, c.got.to = from, ""
	_, c.got.tls = c.conn.TLSConnectionState()
	return nil
}

func (c *postClerk) Rcpt(to string, _ *smtp.RcptOptions) error {
	if to == c.office.gone {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "who is " + to}
	}
	c.got.to += to
	return nil
}

func (c *postClerk) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	c.got.raw = raw
	c.office.mu.Lock()
	defer c.office.mu.Unlock()
	c.office.mails = append(c.office.mails, c.got)
	return err
}

func (c *postClerk) Reset()        {}
func (c *postClerk) Logout() error { return nil }

// open starts the server and returns its host and port.
func (o *postOffice) open(t *testing.T, cfg *tls.Config, implicit bool) string {
	t.Helper()
	s := smtp.NewServer(o)
	s.Domain, s.TLSConfig, s.AllowInsecureAuth, s.ErrorLog = "mail.example.net", cfg, true, quiet()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if implicit {
		l = tls.NewListener(l, cfg)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); l.Close(); <-done }) // Serve may not have begun
	return "localhost:" + port
}

func TestMailWorks(t *testing.T) {
	ca := newAuthority(t)
	shielded := ca.config(t, "localhost", time.Now().Add(time.Hour))
	password := write(t, "password", canary+"\n")
	for _, tt := range []struct {
		name     string
		office   *tls.Config
		implicit bool
		mode     guard.MailTLS
		user     string
		wantTLS  bool
	}{
		{"starttls and login", shielded, false, guard.MailStartTLS, "lvsguard", true},
		{"tls and login", shielded, true, guard.MailWithTLS, "lvsguard", true},
		{"starttls", shielded, false, guard.MailStartTLS, "", true},
		{"none", nil, false, guard.MailClear, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var office postOffice
			cfg := guard.MailConfig{
				To: []string{"oncall@example.net", "night@example.org"}, From: "lvsguard@example.net",
				Server: office.open(t, tt.office, tt.implicit), TLS: tt.mode, CAFile: ca.file,
			}
			if tt.user != "" {
				cfg.Username, cfg.PasswordFile = tt.user, password
			}
			m := NewMail(cfg)
			n := flooded(Firing, 4*time.Second, synFlood)
			if err := m.Send(within(t, 10*time.Second), n); err != nil {
				t.Fatal(err)
			}
			var to []string
			for _, got := range office.mails {
				to = append(to, got.to)
				if got.from != cfg.From || got.user != tt.user || got.tls != tt.wantTLS {
					t.Errorf("from %s, user %s, TLS %v", got.from, got.user, got.tls)
				}
				text, html := checkMail(t, got.raw, headline(&n))
				if diff := cmp.Diff((letter{head: headline(&n), lines: describe(&n)}).text(), text); diff != "" {
					t.Errorf("text (-want +got):\n%s", diff)
				}
				if !strings.Contains(html, "<b>[CRITICAL] shop: flood on 192.0.2.1:80</b>") {
					t.Errorf("HTML %s", html)
				}
			}
			want(t, "recipients", to, cfg.To)
		})
	}
}

// All mails of a run are one thread; the same mail, tried again, has the same
// name; and one that is grave says so.
func TestMailThreads(t *testing.T) {
	var office postOffice
	m := NewMail(guard.MailConfig{To: []string{"a@example.net"}, From: "lvsguard@example.net", Server: office.open(t, nil, false), TLS: guard.MailClear})
	other := flooded(Firing, 0, synFlood)
	other.ID = "another run"
	for _, n := range []Notification{
		flooded(Firing, 0, synFlood), flooded(Firing, 0, synFlood), flooded(Repeated, time.Hour, synFlood),
		flooded(Resolved, 2*time.Hour, synFlood), other,
	} {
		if err := m.Send(within(t, 10*time.Second), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SendMany(within(t, 10*time.Second), []Notification{other, other}); err != nil {
		t.Fatal(err)
	}
	var ids, threads, urgent []string
	for _, got := range office.mails {
		msg, err := mail.ReadMessage(bytes.NewReader(got.raw))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, msg.Header.Get("Message-Id"))
		threads = append(threads, msg.Header.Get("References"))
		urgent = append(urgent, msg.Header.Get("Importance"))
		if msg.Header.Get("In-Reply-To") != msg.Header.Get("References") {
			t.Error("two threads")
		}
	}
	if ids[0] != ids[1] || ids[1] == ids[2] || ids[2] == ids[3] || ids[3] == ids[4] || ids[4] == ids[5] {
		t.Errorf("names %v", ids)
	}
	if threads[0] == "" || threads[0] != threads[2] || threads[0] != threads[3] || threads[3] == threads[4] || threads[5] != "" {
		t.Errorf("threads %v", threads)
	}
	want(t, "importance", urgent, []string{"high", "high", "high", "", "high", "high"})
}

func TestMailRefused(t *testing.T) {
	ca := newAuthority(t)
	later := time.Now().Add(time.Hour)
	good := ca.config(t, "localhost", later)
	password := write(t, "password", canary)
	wrong := write(t, "wrong", "x"+canary)
	for _, tt := range []struct {
		name     string
		office   *tls.Config
		implicit bool
		mode     guard.MailTLS
		user     string
		password string
		ca       string
		want     string
		refused  bool
	}{
		{"wrong password", good, false, guard.MailStartTLS, "lvsguard", wrong, ca.file, "it answers 535", true},
		{"STARTTLS not offered", nil, false, guard.MailStartTLS, "lvsguard", password, ca.file, "does not offer STARTTLS", false},
		{"login in the clear", nil, false, guard.MailClear, "lvsguard", password, ca.file, "no way to log in that is safe", false},
		{"another name, STARTTLS", ca.config(t, "other.example.net", later), false, guard.MailStartTLS, "lvsguard", password, ca.file, "certificate is for another name", false},
		{"another name, TLS", ca.config(t, "other.example.net", later), true, guard.MailWithTLS, "lvsguard", password, ca.file, "certificate is for another name", false},
		{"unknown authority", good, false, guard.MailStartTLS, "lvsguard", password, "", "unknown authority", false},
		{"expired", ca.config(t, "localhost", time.Now().Add(-time.Minute)), true, guard.MailWithTLS, "lvsguard", password, ca.file, "expired", false},
		{"TLS where none is", nil, false, guard.MailWithTLS, "lvsguard", password, ca.file, "does not speak TLS", false},
		{"no password file", good, false, guard.MailStartTLS, "lvsguard", "/nonexistent/password", ca.file, "password_file: open /nonexistent/password", false},
		{"the password itself", good, false, guard.MailStartTLS, "lvsguard", canary, ca.file, "want the whole path of a file", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var office postOffice
			m := NewMail(guard.MailConfig{
				To: []string{"oncall@example.net"}, From: "lvsguard@example.net", Server: office.open(t, tt.office, tt.implicit),
				TLS: tt.mode, CAFile: tt.ca, Username: tt.user, PasswordFile: tt.password,
			})
			checkError(t, m.Send(within(t, 10*time.Second), flooded(Firing, 0, synFlood)), tt.want, tt.refused)
			if len(office.mails) != 0 {
				t.Error("it was sent all the same")
			}
		})
	}
}

// One address that is gone keeps the mail from none of the others, and is told of.
func TestMailPartly(t *testing.T) {
	office := postOffice{gone: "left@example.net"}
	server := office.open(t, nil, false)
	send := func(to ...string) error {
		m := NewMail(guard.MailConfig{To: to, From: "lvsguard@example.net", Server: server, TLS: guard.MailClear})
		return m.Send(within(t, 10*time.Second), flooded(Firing, 0, synFlood))
	}
	err := send("a@example.net", "left@example.net", "b@example.net")
	if _, partly := errors.AsType[*partlyError](err); !partly {
		t.Errorf("%v is not partly delivered", err)
	}
	checkError(t, err, "mail to left@example.net: ", true)
	checkError(t, err, "550 5.1.1", true)
	if len(office.mails) != 2 || office.mails[1].to != "b@example.net" {
		t.Errorf("%d mails", len(office.mails))
	}
	err = send("left@example.net")
	if _, partly := errors.AsType[*partlyError](err); partly || !errors.Is(err, ErrRefused) {
		t.Errorf("%v: want it refused", err)
	}
}

// dialogue speaks SMTP, and answers some commands as a test wants. In an answer
// ECHO is all that was heard.
func dialogue(conn net.Conn, answers map[string]string) {
	var heard strings.Builder
	say := func(step, usual string) bool {
		text, ok := answers[step]
		if !ok {
			text = usual
		}
		if before, hangs := strings.CutSuffix(text, "HANG"); hangs {
			at, later, waits := strings.Cut(before, "LATER")
			fmt.Fprint(conn, at)
			if waits {
				time.Sleep(100 * time.Millisecond)
				fmt.Fprint(conn, later)
			}
			wait(conn)
			return false
		}
		if before, ends := strings.CutSuffix(text, "CLOSE"); ends {
			fmt.Fprint(conn, before)
			return false
		}
		switch text {
		case "ENDLESS":
			for err := error(nil); err == nil; {
				_, err = conn.Write(bytes.Repeat([]byte("2"), 64<<10))
			}
			return false
		case "LINES":
			for err := error(nil); err == nil; {
				_, err = conn.Write(bytes.Repeat([]byte("250-and more\r\n"), 4096))
			}
			return false
		case "SLOW":
			for {
				if _, err := conn.Write([]byte("2")); err != nil {
					return false
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
		echo := strings.NewReplacer("\r", " ", "\n", " ").Replace(heard.String())
		_, err := fmt.Fprint(conn, strings.ReplaceAll(text, "ECHO", echo)+"\r\n")
		return err == nil
	}
	if !say("greeting", "220 mail.example.net") {
		return
	}
	lines := bufio.NewScanner(conn)
	data := false
	for lines.Scan() {
		line := lines.Text()
		heard.WriteString(line + "\n")
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		if data {
			if line != "." {
				continue
			}
			data, verb = false, "."
		}
		usual := map[string]string{
			"EHLO": "250-mail.example.net\r\n250-ENHANCEDSTATUSCODES\r\n250 AUTH PLAIN LOGIN", "AUTH": "235 2.7.0 ok",
			"DATA": "354 go on", "QUIT": "221 bye",
		}[verb]
		if usual == "" {
			usual = "250 2.0.0 ok"
		}
		if !say(verb, usual) {
			return
		}
		data = verb == "DATA" && answers[verb] == ""
	}
}

func TestMailMisbehaving(t *testing.T) {
	ca := newAuthority(t)
	cfg := ca.config(t, "localhost", time.Now().Add(time.Hour))
	password := write(t, "password", canary)
	for _, tt := range []struct {
		name    string
		answers map[string]string
		want    string
		refused bool
	}{
		{"works", nil, "", false},
		{"greeting 554", map[string]string{"greeting": "554 no ECHO"}, "it answers 554", true},
		{"greeting 421", map[string]string{"greeting": "421 later"}, "it answers 421", false},
		{"greeting hangs", map[string]string{"greeting": "HANG"}, "no answer in time", false},
		{"greeting closes", map[string]string{"greeting": "CLOSE"}, "breaks off", false},
		{"greeting garbage", map[string]string{"greeting": "HTTP/1.1 400 Bad Request"}, "not SMTP", false},
		{"greeting endless", map[string]string{"greeting": "ENDLESS"}, "not SMTP", false},
		{"greeting slow", map[string]string{"greeting": "SLOW"}, "no answer in time", false},
		{"EHLO lines without end", map[string]string{"EHLO": "LINES"}, "not SMTP", false},
		{"EHLO and HELO 550", map[string]string{"EHLO": "550 ECHO", "HELO": "550 ECHO"}, "it answers 550", true},
		{"no login", map[string]string{"EHLO": "250 mail.example.net"}, "offers no login", false},
		{"unknown login", map[string]string{"EHLO": "250-x\r\n250 AUTH NTLM"}, "no way to log in", false},
		{"login 535", map[string]string{"AUTH": "535 5.7.8 ECHO"}, "it answers 535", true},
		{"login 454", map[string]string{"AUTH": "454 4.7.0 ECHO"}, "it answers 454", false},
		{"login garbage", map[string]string{"AUTH": "ECHO"}, "not SMTP", false},
		{"login challenges", map[string]string{"AUTH": "334 ECHO"}, "SMTP", false},
		{"login hangs", map[string]string{"AUTH": "HANG"}, "no answer in time", false},
		{"login closes", map[string]string{"AUTH": "CLOSE"}, "breaks off", false},
		{"MAIL 550", map[string]string{"MAIL": "550 5.7.1 ECHO"}, "MAIL FROM command: it answers 550 5.7.1", true},
		{"MAIL 451", map[string]string{"MAIL": "451 4.3.0 ECHO"}, "MAIL FROM command: it answers 451", false},
		{"RCPT 550", map[string]string{"RCPT": "550 5.1.1 ECHO"}, "RCPT TO command: it answers 550 5.1.1", true},
		{"RCPT 450, greylisted", map[string]string{"RCPT": "450 4.2.0 ECHO"}, "RCPT TO command: it answers 450", false},
		{"RCPT hangs", map[string]string{"RCPT": "HANG"}, "no answer in time", false},
		{"DATA 554", map[string]string{"DATA": "554 5.5.1 ECHO"}, "DATA command: it answers 554", true},
		{"DATA 421", map[string]string{"DATA": "421 4.3.2 ECHO"}, "DATA command: it answers 421", false},
		{"DATA garbage", map[string]string{"DATA": "ECHO"}, "not SMTP", false},
		{"the end 552", map[string]string{".": "552 5.2.2 ECHO"}, "DATA writer: it answers 552", true},
		{"the end 451", map[string]string{".": "451 4.3.0 ECHO"}, "DATA writer: it answers 451", false},
		{"the end hangs", map[string]string{".": "HANG"}, "no answer in time", false},
		{"the end closes", map[string]string{".": "CLOSE"}, "breaks off", false},
		{"RSET 500: it has the mail", map[string]string{"RSET": "500 ECHO"}, "", false},
		{"RSET closes: it has the mail", map[string]string{"RSET": "CLOSE"}, "", false},
		{"QUIT 500: it has the mail", map[string]string{"QUIT": "500 ECHO"}, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, port, _ := net.SplitHostPort(serve(t, func(conn net.Conn) {
				shielded := tls.Server(conn, cfg)
				dialogue(shielded, tt.answers)
				shielded.CloseWrite()
			}))
			m := NewMail(guard.MailConfig{
				To: []string{"oncall@example.net"}, From: "lvsguard@example.net", Server: "localhost:" + port,
				TLS: guard.MailWithTLS, CAFile: ca.file, Username: "lvsguard", PasswordFile: password,
			})
			start := time.Now()
			checkError(t, m.Send(within(t, patience(tt.want)), flooded(Firing, 0, synFlood)), tt.want, tt.refused)
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// A server that never says goodbye has the mail all the same.
func TestMailQuitHangs(t *testing.T) {
	server := serve(t, func(conn net.Conn) { dialogue(conn, map[string]string{"QUIT": "HANG"}) })
	m := NewMail(guard.MailConfig{To: []string{"oncall@example.net"}, From: "lvsguard@example.net", Server: server, TLS: guard.MailClear})
	checkError(t, m.Send(within(t, time.Second), flooded(Firing, 0, synFlood)), "", false)
}

// What goes wrong between STARTTLS and TLS. The password is never sent.
func TestMailStartTLSMisbehaving(t *testing.T) {
	ca := newAuthority(t)
	const offers = "250-mail.example.net\r\n250-STARTTLS\r\n250 AUTH PLAIN"
	for _, tt := range []struct{ name, answer, want string }{
		{"refuses", "454 4.7.0 ECHO", "it answers 454"},
		{"hangs", "HANG", "no answer in time"},
		{"hangs in the handshake", "220 go on\r\nHANG", "no answer in time"},
		{"closes in the handshake", "220 go on\r\nCLOSE", "breaks off"},
		// What came before the handshake is dropped, and a handshake waited for.
		{"says more, in the clear", "220 go on\r\n" + offers + "\r\nHANG", "no answer in time"},
		{"goes on in the clear", "220 go on\r\nLATER" + offers + "\r\nHANG", "does not speak TLS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, port, _ := net.SplitHostPort(serve(t, func(conn net.Conn) {
				dialogue(heardNothing{t, conn}, map[string]string{"EHLO": offers, "STARTTLS": tt.answer})
			}))
			m := NewMail(guard.MailConfig{
				To: []string{"oncall@example.net"}, From: "lvsguard@example.net", Server: "localhost:" + port,
				TLS: guard.MailStartTLS, CAFile: ca.file, Username: "lvsguard", PasswordFile: write(t, "password", canary),
			})
			checkError(t, m.Send(within(t, patience(tt.want)), flooded(Firing, 0, synFlood)), tt.want, false)
		})
	}
}

// heardNothing fails a test when a secret comes along.
type heardNothing struct {
	t *testing.T
	net.Conn
}

func (c heardNothing) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	checkPlain(c.t, string(p[:n]))
	return n, err
}

func TestMailUnreachable(t *testing.T) {
	for server, want := range map[string]string{
		"127.0.0.1:1": "connection refused", "no-such-host.invalid:25": "its name ", "127.0.0.1:x": "want a port's number", "nothing": "mail server",
	} {
		m := NewMail(guard.MailConfig{To: []string{"a@example.net"}, From: "b@example.net", Server: server, TLS: guard.MailClear})
		if err := m.Send(within(t, 5*time.Second), flooded(Firing, 0, synFlood)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", server, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := NewMail(guard.MailConfig{To: []string{"a@example.net"}, From: "b@example.net", Server: "127.0.0.1:1", TLS: guard.MailClear})
	if err := m.Send(ctx, flooded(Firing, 0, synFlood)); err == nil {
		t.Error("sent after its time")
	}
}
