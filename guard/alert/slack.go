package alert

import (
	"context"
	"regexp"
	"strings"

	"github.com/lvsguard/lvsguard/guard"
)

// Slack is an incoming webhook of Slack, or of what speaks as it does.
type Slack struct{ cfg guard.SlackConfig }

// NewSlack returns a Receiver for an incoming webhook.
func NewSlack(cfg guard.SlackConfig) *Slack { return &Slack{cfg} }

// Send posts n.
func (s *Slack) Send(ctx context.Context, n Notification) error {
	return s.post(ctx, slackOf(headline(&n), describe(&n), colour(&n)))
}

// SendMany posts a message that tells of all.
func (s *Slack) SendMany(ctx context.Context, all []Notification) error {
	head, lines := digest(all)
	return s.post(ctx, slackOf(head, lines, colour(&all[0])))
}

func (s *Slack) post(ctx context.Context, m slackMessage) error {
	text, err := readSecret("url_file", s.cfg.URLFile)
	if err != nil {
		return err
	}
	u, err := parseURL("url_file "+s.cfg.URLFile, text)
	if err != nil {
		return err
	}
	p := post{url: u, say: m, caFile: s.cfg.CAFile}
	return p.do(ctx)
}

// slackMessage is the JSON of an incoming webhook. Nothing in it is formatted:
// Text is what a telephone shows first and has mrkdwn switched off, the rest is
// plain text.
type slackMessage struct {
	Text        string            `json:"text"`
	Mrkdwn      bool              `json:"mrkdwn"`
	Parse       string            `json:"parse"`
	LinkNames   bool              `json:"link_names"`
	UnfurlLinks bool              `json:"unfurl_links"`
	Attachments []slackAttachment `json:"attachments"`
}

type slackAttachment struct {
	Color    string       `json:"color"`
	Fallback string       `json:"fallback"`
	Blocks   []slackBlock `json:"blocks"`
}

type slackBlock struct {
	Type string    `json:"type"`
	Text slackText `json:"text"`
}

type slackText struct {
	Type  string `json:"type"`
	Text  string `json:"text"`
	Emoji bool   `json:"emoji"`
}

func slackOf(head string, lines []string, colour string) slackMessage {
	head = slackEscape(head)
	const most = 2900 // Slack refuses texts of more than 3,000 characters
	var body string
	for _, l := range lines {
		if l = slackEscape(l) + "\n"; len(body)+len(l) < most {
			body += l
		}
	}
	body = strings.TrimSpace(body)
	return slackMessage{
		Text: head, Parse: "none",
		Attachments: []slackAttachment{{
			Color: colour, Fallback: head,
			Blocks: []slackBlock{{Type: "section", Text: slackText{Type: "plain_text", Text: body}}},
		}},
	}
}

// colour is beside the words of the headline, never instead of them.
func colour(n *Notification) string {
	switch {
	case n.State == Resolved:
		return "#2e7d32"
	case n.State == Test:
		return "#607d8b"
	case n.Severity == Critical:
		return "#c62828"
	case n.Severity == Warning:
		return "#ef6c00"
	}
	return "#1565c0"
}

// A word joiner is seen by nobody and takes these their meaning.
const joiner = "\u2060"

var slackMention = regexp.MustCompile(`(?i)@(here|channel|everyone|group)`)

// slackEscape takes text what Slack would make a mention or a link of.
func slackEscape(text string) string {
	text = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "://", ":"+joiner+"//").Replace(text)
	return slackMention.ReplaceAllString(text, "@"+joiner+"$1")
}
