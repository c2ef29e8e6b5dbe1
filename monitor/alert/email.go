// E-mail by SMTP (RFC 5321), plain text, proofs and evidence attached. Mail to
// addresses that the operator wrote down carries no List-Unsubscribe: nobody
// but the operator can end those subscriptions.

package alert

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"
)

// TLSPolicy says how a mail server is reached.
type TLSPolicy string

const (
	TLSRequired      TLSPolicy = "required"      // STARTTLS or no mail; the default
	TLSImplicit      TLSPolicy = "implicit"      // TLS from the first byte (port 465)
	TLSOpportunistic TLSPolicy = "opportunistic" // STARTTLS where offered
	TLSNone          TLSPolicy = "none"          // never; for a relay on the same machine
)

// EmailConfig configures [NewEmails].
type EmailConfig struct {
	Server   string         // host:port of the relay
	TLS      TLSPolicy      // default TLSRequired
	Username string         // empty: no authentication
	Password string         // refused without TLS
	From     string         // sender, "Portbook <monitor@example.org>"
	HELO     string         // default: the machine's name
	Timeout  time.Duration  // for one attempt in all; default 30 s
	RootCAs  *x509.CertPool // default: the system's
	Now      func() time.Time
}

// Emails delivers notices by SMTP.
type Emails struct {
	cfg    EmailConfig
	host   string
	port   int
	from   *netmail.Address
	domain string
}

// NewEmails checks the configuration; it does not connect.
func NewEmails(c EmailConfig) (*Emails, error) {
	host, portText, err := net.SplitHostPort(c.Server)
	if err != nil || host == "" {
		return nil, fmt.Errorf("mail server %q: must be host:port", c.Server)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 1 || port > 65535 {
		return nil, fmt.Errorf("mail server %q: port must be a number from 1 to 65535", c.Server)
	}
	switch c.TLS {
	case "":
		c.TLS = TLSRequired
	case TLSRequired, TLSImplicit, TLSOpportunistic, TLSNone:
	default:
		return nil, fmt.Errorf("mail TLS policy %q: must be required, implicit, opportunistic or none", c.TLS)
	}
	if c.Username != "" && (c.TLS == TLSNone || c.TLS == TLSOpportunistic) {
		return nil, fmt.Errorf("mail TLS policy %q: a password is sent only where TLS is certain; use required or implicit", c.TLS)
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	from, err := parseAddress(c.From)
	if err != nil {
		return nil, fmt.Errorf("mail sender: %w", err)
	}
	return &Emails{cfg: c, host: host, port: port, from: from, domain: from.Address[strings.LastIndexByte(from.Address, '@')+1:]}, nil
}

// CheckAddress refuses what is not one plain mail address (no name, no group,
// no line break, no quoted local part): what a subscription may hold.
func CheckAddress(s string) error {
	a, err := parseAddress(s)
	if err != nil {
		return err
	}
	if a.Address != s {
		return fmt.Errorf("mail address %q: write the bare address, %q", s, a.Address)
	}
	return nil
}

func parseAddress(s string) (*netmail.Address, error) {
	if len(s) > 320 || OneLine(s) != s {
		return nil, fmt.Errorf("mail address %q: too long, or holds characters that are not printable ASCII", s)
	}
	a, err := netmail.ParseAddress(s)
	if err != nil {
		return nil, fmt.Errorf("mail address %q: not an address", s)
	}
	if strings.ContainsAny(a.Address, "\" ()<>,;:\\") || strings.ContainsAny(a.Name, "\r\n") {
		return nil, fmt.Errorf("mail address %q: quoted local parts are not accepted", s)
	}
	return a, nil
}

// Notify sends n in one message. Its Message-ID is derived from the notice and
// the receiver, so a mail reader recognises a repetition.
func (e *Emails) Notify(ctx context.Context, to Receiver, n Notice) (retry bool, err error) {
	if err := CheckAddress(to.Address); err != nil {
		return false, err
	}
	m, err := e.message(to, n)
	if err != nil {
		return false, err
	}
	opts := []mail.Option{
		mail.WithTimeout(e.cfg.Timeout), mail.WithTLSConfig(e.tls()), mail.WithoutNoop(),
	}
	switch e.cfg.TLS {
	case TLSImplicit:
		opts = append(opts, mail.WithSSL())
	case TLSOpportunistic:
		opts = append(opts, mail.WithTLSPolicy(mail.TLSOpportunistic))
	case TLSNone:
		opts = append(opts, mail.WithTLSPolicy(mail.NoTLS))
	default:
		opts = append(opts, mail.WithTLSPolicy(mail.TLSMandatory))
	}
	opts = append(opts, mail.WithPort(e.port))
	if e.cfg.HELO != "" {
		opts = append(opts, mail.WithHELO(e.cfg.HELO))
	}
	if e.cfg.Username != "" {
		opts = append(opts, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(e.cfg.Username), mail.WithPassword(e.cfg.Password))
	}
	c, err := mail.NewClient(e.host, opts...)
	if err != nil {
		return false, fmt.Errorf("mail server %s: %w", e.cfg.Server, err)
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
	defer cancel()
	if err := c.DialWithContext(ctx); err != nil {
		return true, fmt.Errorf("mail server %s: %w", e.cfg.Server, err)
	}
	// Send does not take a context: a relay that stops answering is cut off by
	// closing the connection under it.
	done := make(chan error, 1)
	go func() { done <- c.Send(m) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		c.Close()
		return true, fmt.Errorf("mail server %s: %w", e.cfg.Server, ctx.Err())
	}
	if err == nil || m.IsDelivered() {
		// The relay took the message at the final 250; how it takes RSET and
		// QUIT is its own affair.
		_ = c.Close()
		return false, nil
	}
	_ = c.Close()
	return !permanent(err), fmt.Errorf("mail to %s: %w", to.Address, err)
}

func (e *Emails) tls() *tls.Config {
	t := tlsConfig(e.cfg.RootCAs)
	t.ServerName = e.host
	return t
}

// permanent reports whether the relay said that this address will never do.
// Any other 5xx is more often a relay misconfigured for an afternoon.
func permanent(err error) bool {
	var se *mail.SendError
	if !errors.As(err, &se) || se.IsTemp() || se.Reason != mail.ErrSMTPRcptTo {
		return false
	}
	switch se.ErrorCode() {
	case 550, 551, 553, 556:
		return true
	}
	return false
}

func (e *Emails) message(to Receiver, n Notice) (*mail.Msg, error) {
	m := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := m.FromFormat(OneLine(e.from.Name), e.from.Address); err != nil {
		return nil, fmt.Errorf("mail sender: %w", err)
	}
	if err := m.To(to.Address); err != nil {
		return nil, fmt.Errorf("mail address: %w", err)
	}
	sum := sha256.Sum256([]byte(n.ID + "\x00" + to.Address))
	m.SetMessageIDWithValue(OneLine(n.ID) + "." + hex.EncodeToString(sum[:8]) + "@" + e.domain)
	m.SetDateWithValue(e.cfg.Now())
	m.Subject(Subject(n))
	m.SetGenHeader("User-Agent", "portbook-monitor")
	m.SetGenHeader("Auto-Submitted", "auto-generated")
	m.SetGenHeader("Portbook-Alert-Id", OneLine(n.ID))
	m.SetGenHeader("Portbook-Severity", OneLine(string(n.Severity)))
	if n.Severity == Tampering {
		m.SetImportance(mail.ImportanceHigh)
	}
	if len(n.Alerts) > 0 && n.Alerts[0].Project != "" {
		// One thread a project, in readers that go by References.
		a := n.Alerts[0]
		t := sha256.Sum256([]byte(a.Registry + "\x00" + a.Ecosystem + "\x00" + a.Project))
		m.SetGenHeader("References", "<project."+hex.EncodeToString(t[:12])+"@"+e.domain+">")
	}
	m.SetBodyString(mail.TypeTextPlain, Text(n))
	used := map[string]bool{}
	attach := func(name, text string, i int) error {
		for used[name] {
			name = fmt.Sprintf("%d-%s", i, name)
		}
		used[name] = true
		return m.AttachReader(name, strings.NewReader(text), mail.WithFileContentType("text/plain"))
	}
	for i, a := range n.Alerts {
		if a.Proof != "" {
			if err := attach(proofName(a, i), a.Proof, i); err != nil {
				return nil, fmt.Errorf("attach proof: %w", err)
			}
		}
		if a.Evidence != "" {
			if err := attach("evidence.txt", a.Evidence, i); err != nil {
				return nil, fmt.Errorf("attach evidence: %w", err)
			}
		}
	}
	return m, nil
}
