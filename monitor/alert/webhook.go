// Webhooks, signed as https://www.standardwebhooks.com says: webhook-id is the
// stable alert ID, webhook-timestamp the second of this attempt,
// webhook-signature HMAC-SHA256 under the receiver's whsec_ secret.

package alert

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// CheckSecret refuses a webhook secret that is not "whsec_" and the standard
// base64 of 24 to 64 random bytes.
func CheckSecret(s string) error {
	raw, ok := strings.CutPrefix(s, "whsec_")
	if !ok {
		return fmt.Errorf("webhook secret: must start with whsec_")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(raw)
	if err != nil {
		return fmt.Errorf("webhook secret: what follows whsec_ is not base64")
	}
	if len(b) < 24 || len(b) > 64 {
		return fmt.Errorf("webhook secret: holds %d bytes; it must hold 24 to 64 (make one: echo whsec_$(openssl rand -base64 32))", len(b))
	}
	return nil
}

// WebhookConfig configures [NewWebhooks].
type WebhookConfig struct {
	AllowPrivate bool             // deliver to private and loopback addresses too, and by plain http
	Timeout      time.Duration    // for one attempt in all; default 15 s
	Now          func() time.Time // default time.Now
	RootCAs      *x509.CertPool   // default: the system's
	Page         string           // the monitor's own URL, told in User-Agent
}

// Webhooks delivers notices by HTTP POST. It follows no redirect, uses no
// proxy from the environment and reads at most 4 KiB of the answer.
type Webhooks struct {
	allowPrivate bool
	now          func() time.Time
	client       *http.Client
	guard        *guard
	agent        string
}

// NewWebhooks returns the webhook channel.
func NewWebhooks(c WebhookConfig) *Webhooks {
	if c.Timeout <= 0 {
		c.Timeout = 15 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	g := newGuard(c.AllowPrivate)
	tr := &http.Transport{
		Proxy:                  nil,
		DialContext:            g.DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		ResponseHeaderTimeout:  c.Timeout,
		MaxResponseHeaderBytes: 16 << 10,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    1,
		DisableCompression:     true,
		ForceAttemptHTTP2:      false,
	}
	if c.RootCAs != nil {
		tr.TLSClientConfig = tlsConfig(c.RootCAs)
	}
	agent := "portbook-monitor"
	if c.Page != "" {
		agent += " (+" + OneLine(c.Page) + ")"
	}
	return &Webhooks{
		allowPrivate: c.AllowPrivate, now: c.Now, guard: g, agent: agent,
		client: &http.Client{
			Transport: tr,
			Timeout:   c.Timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return http.ErrUseLastResponse
			},
		},
	}
}

// Payload is the body of a webhook: Standard Webhooks' type, timestamp, data.
type Payload struct {
	Type      string    `json:"type"` // "portbook.alert.tampering", …
	Timestamp time.Time `json:"timestamp"`
	Data      Data      `json:"data"`
}

// Data is a notice with its summary.
type Data struct {
	Notice
	Summary string `json:"summary"`
}

// Notify posts n. 2xx is a success, 410 Gone gives up, all else is tried later.
func (w *Webhooks) Notify(ctx context.Context, to Receiver, n Notice) (retry bool, err error) {
	if err := CheckURL(to.Address, w.allowPrivate); err != nil {
		return false, err
	}
	if err := CheckSecret(to.Secret); err != nil {
		return false, err
	}
	signer, err := standardwebhooks.NewWebhook(to.Secret)
	if err != nil {
		return false, fmt.Errorf("webhook secret: %w", err)
	}
	var created time.Time
	if len(n.Alerts) > 0 {
		created = n.Alerts[0].Created
	}
	body, err := Marshal(Payload{Type: "portbook.alert." + string(n.Severity), Timestamp: created, Data: Data{n, Subject(n)}})
	if err != nil {
		return false, fmt.Errorf("webhook body: %w", err)
	}
	now := w.now()
	sig, err := signer.Sign(n.ID, now, body)
	if err != nil {
		return false, fmt.Errorf("webhook signature: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.Address, bytes.NewReader(body))
	if err != nil {
		return false, errors.New("webhook URL: cannot be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", w.agent)
	req.Header.Set(standardwebhooks.HeaderWebhookID, n.ID)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, sig)
	resp, err := w.client.Do(req)
	if err != nil {
		// A name that resolves to a private address today may not tomorrow, so
		// even that is retried; the guard stands each time.
		return true, fmt.Errorf("webhook to %s: %w", req.URL.Host, unwrapURL(err))
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // lets the connection be used again; what it says does not matter
	switch {
	case resp.StatusCode/100 == 2:
		return false, nil
	case resp.StatusCode == http.StatusGone:
		return false, fmt.Errorf("webhook to %s: 410 Gone, the receiver wants no more", req.URL.Host)
	case resp.StatusCode/100 == 3:
		return true, fmt.Errorf("webhook to %s: answered %d; redirects are not followed", req.URL.Host, resp.StatusCode)
	default:
		return true, fmt.Errorf("webhook to %s: answered %d", req.URL.Host, resp.StatusCode)
	}
}
