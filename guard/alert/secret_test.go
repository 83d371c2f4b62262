package alert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/lvsguard/lvsguard/guard"
)

// Every kind of receiver, each with secrets, and on the other side servers that
// answer with all they heard: nothing of it comes into the log, the health, or the
// journal.
func TestNoSecretGetsOut(t *testing.T) {
	secret := write(t, "secret", canary)
	var heard sync.WaitGroup
	echo := serve(t, func(conn net.Conn) {
		text := request(conn)
		fmt.Fprintf(conn, "HTTP/1.1 404 %s\r\nX: %s\r\nRetry-After: %s\r\n\r\n%s", text, text, text, text)
		heard.Done()
	})
	mail := serve(t, func(conn net.Conn) {
		dialogue(conn, map[string]string{"MAIL": "550 5.7.1 ECHO", "EHLO": "250-x\r\n250 AUTH CRAM-MD5", "AUTH": "535 ECHO"})
		heard.Done()
	})
	heard.Add(4)

	var mu sync.Mutex
	var log bytes.Buffer
	var lost []Undelivered
	gone := make(chan struct{}, 10)
	d := NewDelivery(DeliveryConfig{
		Targets: Targets(guard.AlertsConfig{Repeat: time.Hour, Receivers: []guard.ReceiverConfig{
			{Name: "slack", Slack: &guard.SlackConfig{URLFile: write(t, "url", "http://"+echo+"/"+canary)}},
			{Name: "hook", Webhook: &guard.WebhookConfig{URLFile: write(t, "url", "http://u:"+canary+"@"+echo+"/?"+canary)}},
			{Name: "am", Alertmanager: &guard.AlertmanagerConfig{URL: "http://" + echo, BearerTokenFile: secret}},
			{Name: "mail", Mail: &guard.MailConfig{
				To: []string{"a@example.net"}, From: "b@example.net", Server: mail, TLS: guard.MailClear, Username: "u", PasswordFile: secret,
			}},
			{Name: "page", Command: &guard.CommandConfig{Argv: []string{"/bin/false"}}},
		}}),
		Log: slog.New(slog.NewTextHandler(&locked{mu: &mu, b: &log}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Undelivered: func(u Undelivered) {
			mu.Lock()
			lost = append(lost, u)
			mu.Unlock()
			gone <- struct{}{}
		},
	})
	done := make(chan error, 1)
	ctx := within(t, 20*time.Second)
	go func() { done <- d.Run(ctx) }()
	d.Enqueue(flooded(Firing, 0, synFlood))
	heard.Wait()
	for range 4 { // all but the command are refused for good
		select {
		case <-gone:
		case <-ctx.Done():
			t.Fatal("not all were given up")
		}
	}
	health, err := json.Marshal(d.Health())
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, text := range []string{log.String(), string(health), fmt.Sprintf("%+v", lost)} {
		checkPlain(t, text)
	}
	if n := bytes.Count(log.Bytes(), []byte("an alert receiver fails")); n < 4 {
		t.Errorf("the log has %d failures:\n%s", n, log.String())
	}
}

type locked struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
