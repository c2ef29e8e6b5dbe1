package alert

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
)

// sink is an SMTP server that answers RCPT and DATA as it is told.
type sink struct {
	addr       string
	roots      *x509.CertPool
	rcpt, data error
	stall      time.Duration

	mu   sync.Mutex
	mail []string
	tls  []bool
}

type sinkSession struct {
	s    *sink
	conn *smtp.Conn
}

func (s *sinkSession) Mail(string, *smtp.MailOptions) error { return nil }
func (s *sinkSession) Rcpt(string, *smtp.RcptOptions) error { return s.s.rcpt }
func (s *sinkSession) Reset()                               {}
func (s *sinkSession) Logout() error                        { return nil }
func (s *sinkSession) Data(r io.Reader) error {
	time.Sleep(s.s.stall)
	if s.s.data != nil {
		return s.s.data
	}
	b, err := io.ReadAll(r)
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	_, secure := s.conn.TLSConnectionState()
	s.s.mail, s.s.tls = append(s.s.mail, string(b)), append(s.s.tls, secure)
	return err
}

func newSink(t *testing.T, implicit, starttls bool) *sink {
	s := &sink{}
	srv := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &sinkSession{s, c}, nil }))
	srv.Domain = "localhost"
	cert, roots := selfSigned(t)
	s.roots = roots
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	conf := &tls.Config{Certificates: []tls.Certificate{cert}}
	if starttls {
		srv.TLSConfig = conf
	}
	if implicit {
		ln = tls.NewListener(ln, conf)
	}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return s
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func emails(t *testing.T, s *sink, policy TLSPolicy, trust bool) *Emails {
	c := EmailConfig{Server: s.addr, TLS: policy, From: "Portbook <monitor@example.org>", HELO: "localhost", Timeout: 2 * time.Second}
	if trust {
		c.RootCAs = s.roots
	}
	e, err := NewEmails(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var alice = Receiver{Kind: Email, Address: "alice@example.org"}

func TestMailTLS(t *testing.T) {
	for _, tt := range []struct {
		name               string
		implicit, starttls bool
		policy             TLSPolicy
		trust              bool
		ok, secure         bool
	}{
		{"required and offered", false, true, TLSRequired, true, true, true},
		{"required, not offered", false, false, TLSRequired, true, false, false},
		{"required, certificate of a stranger", false, true, TLSRequired, false, false, false},
		{"implicit", true, false, TLSImplicit, true, true, true},
		{"opportunistic, not offered", false, false, TLSOpportunistic, true, true, false},
		{"opportunistic, offered", false, true, TLSOpportunistic, true, true, true},
		{"none", false, true, TLSNone, true, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSink(t, tt.implicit, tt.starttls)
			retry, err := emails(t, s, tt.policy, tt.trust).Notify(t.Context(), alice, someNotice())
			if (err == nil) != tt.ok || err != nil && !retry {
				t.Fatalf("retry %v, error %v", retry, err)
			}
			if tt.ok && (len(s.tls) != 1 || s.tls[0] != tt.secure) {
				t.Errorf("over TLS: %v", s.tls)
			}
		})
	}
}

func TestMailAnswers(t *testing.T) {
	reply := func(code int) error { return &smtp.SMTPError{Code: code, Message: "no"} }
	for _, tt := range []struct {
		name       string
		rcpt, data error
		stall      time.Duration
		retry      bool
	}{
		{"no such user is final", reply(550), nil, 0, false},
		{"greylisted", reply(451), nil, 0, true},
		{"relaying denied is a mistake somebody corrects", reply(554), nil, 0, true},
		{"content refused", nil, reply(554), 0, true},
		{"disk full", nil, reply(452), 0, true},
		{"stalls", nil, nil, 5 * time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSink(t, false, false)
			s.rcpt, s.data, s.stall = tt.rcpt, tt.data, tt.stall
			begin := time.Now()
			retry, err := emails(t, s, TLSNone, false).Notify(t.Context(), alice, someNotice())
			if err == nil || retry != tt.retry {
				t.Errorf("retry %v, error %v", retry, err)
			}
			if d := time.Since(begin); d > 4*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
	e, err := NewEmails(EmailConfig{Server: "127.0.0.1:1", TLS: TLSNone, From: "m@example.org"})
	if err != nil {
		t.Fatal(err)
	}
	if retry, err := e.Notify(t.Context(), alice, someNotice()); err == nil || !retry {
		t.Errorf("a relay that is down: %v %v", retry, err)
	}
}

// A relay that hangs up after it took the message has taken it: a retry would
// send it twice.
func TestRelayThatHangsUpAfterTakingTheMail(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		io.WriteString(c, "220 relay\r\n")
		for data := false; ; {
			line, err := r.ReadString('\n')
			switch {
			case err != nil:
				return
			case data && line == ".\r\n":
				io.WriteString(c, "250 taken\r\n")
				return
			case data:
			case strings.HasPrefix(line, "DATA"):
				data = true
				io.WriteString(c, "354 go on\r\n")
			default:
				io.WriteString(c, "250 ok\r\n")
			}
		}
	}()
	e, err := NewEmails(EmailConfig{Server: ln.Addr().String(), TLS: TLSNone, From: "m@example.org", HELO: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	if retry, err := e.Notify(t.Context(), alice, someNotice()); err != nil || retry {
		t.Errorf("retry %v, error %v", retry, err)
	}
}

// Nothing that a stranger wrote can become a header, a recipient or an escape
// sequence in a terminal mail reader.
func TestHeaderInjectionIsImpossible(t *testing.T) {
	s := newSink(t, false, false)
	evil := "x\r\nBcc: mallory@example.org\r\n\r\n\x1b[2J\u202e<script>"
	n := Notice{ID: "pa_1" + evil, Severity: Unexpected, Subscription: evil, Alerts: []Alert{
		{ID: evil, Title: evil, What: evil, Why: evil, Next: []string{evil}, Registry: evil, Project: evil, Version: evil, File: "../../etc/" + evil, Log: evil,
			Index: new(uint64), Entry: []byte(`"` + evil + `"`), Proof: "c2sp.org/tlog-proof@v1\n", Check: evil, Page: evil},
	}}
	if _, err := emails(t, s, TLSNone, false).Notify(t.Context(), alice, n); err != nil {
		t.Fatal(err)
	}
	m, err := mail.ReadMessage(strings.NewReader(s.mail[0]))
	if err != nil {
		t.Fatal(err)
	}
	if m.Header.Get("Bcc") != "" || len(m.Header["To"]) != 1 || m.Header.Get("To") != "<alice@example.org>" {
		t.Errorf("headers: %q", m.Header)
	}
	head, _, _ := strings.Cut(s.mail[0], "\r\n\r\n")
	if strings.Contains(head, "\nBcc") || strings.ContainsAny(s.mail[0], "\x1b") || strings.Contains(s.mail[0], "\u202e") {
		t.Errorf("mail:\n%s", s.mail[0])
	}
	if strings.Contains(s.mail[0], "etc/") && strings.Contains(s.mail[0], `filename="../`) {
		t.Error("a path in an attachment's name")
	}
	if text := Text(n); strings.ContainsAny(text, "\x1b\r") || strings.Contains(text, "\nBcc") {
		t.Errorf("text:\n%s", text)
	}
	if sub := Subject(n); strings.ContainsAny(sub, "\r\n\x1b") || len(sub) > 150 {
		t.Errorf("subject %q", sub)
	}
	for _, to := range []string{"a@b.c\r\nBcc: x@y.z", "a@b.c, x@y.z", "Alice <a@b.c>", `"a b"@c.d`, "nobody", "", "ä@b.c", strings.Repeat("x", 400) + "@b.c"} {
		if CheckAddress(to) == nil {
			t.Errorf("%q is accepted", to)
		}
		if retry, err := emails(t, s, TLSNone, false).Notify(t.Context(), Receiver{Kind: Email, Address: to}, n); err == nil || retry {
			t.Errorf("mail to %q was sent", to)
		}
	}
}

func TestMailConfigurationIsChecked(t *testing.T) {
	for _, c := range []EmailConfig{
		{Server: "nohost", From: "a@b.c"}, {Server: ":25", From: "a@b.c"}, {Server: "h:0", From: "a@b.c"}, {Server: "h:x", From: "a@b.c"},
		{Server: "h:25", From: ""}, {Server: "h:25", From: "a@b.c", TLS: "maybe"},
		{Server: "h:25", From: "a@b.c", TLS: TLSNone, Username: "u"}, {Server: "h:25", From: "a@b.c", TLS: TLSOpportunistic, Username: "u"},
	} {
		if _, err := NewEmails(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

// A queue in memory.
type memory struct {
	mu    sync.Mutex
	owed  map[int64]Delivery
	block map[int64]time.Time
	sent  []Delivery
	gone  []Delivery
}

func (q *memory) Due(_ context.Context, now time.Time, busy []int64, limit int) (out []Delivery, _ error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	seen := map[int64]bool{}
	for _, b := range busy {
		seen[b] = true
	}
	for _, d := range q.owed {
		if !seen[d.Receiver.ID] && !q.block[d.Receiver.ID].After(now) && len(out) < limit {
			seen[d.Receiver.ID] = true
			out = append(out, d)
		}
	}
	return out, nil
}
func (q *memory) Sent(_ context.Context, d Delivery, _ time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.owed, d.ID)
	q.sent = append(q.sent, d)
	return nil
}
func (q *memory) Retry(_ context.Context, d Delivery, next time.Time, _ string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	d.Attempts, d.Failures = d.Attempts+1, d.Failures+1
	q.owed[d.ID], q.block[d.Receiver.ID] = d, next
	return nil
}
func (q *memory) Failed(_ context.Context, d Delivery, _ time.Time, _ string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.owed, d.ID)
	q.gone = append(q.gone, d)
	return nil
}

type channelFunc func(context.Context, Receiver, Notice) (bool, error)

func (f channelFunc) Notify(ctx context.Context, r Receiver, n Notice) (bool, error) {
	return f(ctx, r, n)
}

// One receiver that hangs, of 1 000, delays none of the others.
func TestOneBadReceiverDelaysNoOther(t *testing.T) {
	q := &memory{owed: map[int64]Delivery{}, block: map[int64]time.Time{}}
	for i := range int64(1000) {
		q.owed[i] = Delivery{ID: i, Receiver: Receiver{ID: i, Kind: Webhook}, Owed: time.Now(), Notice: someNotice()}
	}
	for i := range int64(50) { // and the bad one is owed much
		q.owed[2000+i] = Delivery{ID: 2000 + i, Receiver: Receiver{ID: 7, Kind: Webhook}, Owed: time.Now(), Notice: someNotice()}
	}
	o := NewOutbox(OutboxConfig{Queue: q, Channels: map[string]Channel{Webhook: channelFunc(func(ctx context.Context, r Receiver, _ Notice) (bool, error) {
		if r.ID == 7 {
			<-ctx.Done()
			return true, ctx.Err()
		}
		return false, nil
	})}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- o.Run(ctx) }()
	deadline := time.Now().Add(5 * time.Second)
	for {
		q.mu.Lock()
		n := len(q.sent)
		q.mu.Unlock()
		if n == 999 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of 999 sent", n)
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(q.gone) != 0 || len(q.owed) != 51 {
		t.Errorf("%d gone, %d owed: a shutdown is no failure", len(q.gone), len(q.owed))
	}
}

func TestBackoffGrowsAndIsCapped(t *testing.T) {
	o := NewOutbox(OutboxConfig{Base: time.Second, Cap: time.Minute})
	for failures, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 100: time.Minute, 62: time.Minute} {
		for range 100 {
			if got := o.backoff(failures); got > want || got < want*3/4-1 {
				t.Fatalf("after %d failures: %v, want 3/4 to all of %v", failures, got, want)
			}
		}
	}
}

func TestKindWithoutChannelIsRetriedNotLost(t *testing.T) {
	q := &memory{owed: map[int64]Delivery{1: {ID: 1, Receiver: Receiver{ID: 1, Kind: Email}, Owed: time.Now(), Notice: someNotice()}}, block: map[int64]time.Time{}}
	o := NewOutbox(OutboxConfig{Queue: q})
	if err := o.deliver(t.Context(), q.owed[1]); err != nil || q.owed[1].Attempts != 1 {
		t.Errorf("%+v %v", q, err)
	}
}

func TestIDsAreStableAndApart(t *testing.T) {
	if ID("a", "bc") == ID("ab", "c") || ID("a") == ID("a", "") {
		t.Error("two lists of parts have one ID")
	}
	// Receivers remember IDs: this one must never change.
	if got := ID("log.test/one", "entry", "7"); got != "pa_a818d857e717ee424e9e79c7f6db4176" {
		t.Error(got)
	}
}
