package alert

import (
	"context"

	"github.com/lvsguard/lvsguard/guard"
)

// A Webhook is posted the Notification as JSON.
type Webhook struct{ cfg guard.WebhookConfig }

// NewWebhook returns a Receiver that posts to any URL.
func NewWebhook(cfg guard.WebhookConfig) *Webhook { return &Webhook{cfg} }

// Send posts n.
func (h *Webhook) Send(ctx context.Context, n Notification) error {
	where, text := "url", h.cfg.URL
	if h.cfg.URLFile != "" {
		var err error
		if text, err = readSecret("url_file", h.cfg.URLFile); err != nil {
			return err
		}
		where = "url_file " + h.cfg.URLFile
	}
	u, err := parseURL(where, text)
	if err != nil {
		return err
	}
	p := post{url: u, say: n, caFile: h.cfg.CAFile}
	if h.cfg.BearerTokenFile != "" {
		if p.bearer, err = readSecret("bearer_token_file", h.cfg.BearerTokenFile); err != nil {
			return err
		}
	}
	return p.do(ctx)
}
