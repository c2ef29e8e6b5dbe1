package alert

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestCheckPublic(t *testing.T) {
	for _, a := range []string{
		"0.0.0.0", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.1.2.3", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::",
		"3fff::1", "5f00::1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1",
	} {
		if err := CheckPublic(netip.MustParseAddr(a)); !errors.Is(err, ErrNotPublic) {
			t.Errorf("%s is let through: %v", a, err)
		}
	}
	for _, a := range []string{"8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"} {
		if err := CheckPublic(netip.MustParseAddr(a)); err != nil {
			t.Errorf("%s is refused: %v", a, err)
		}
	}
	if err := CheckPublic(netip.Addr{}); err == nil {
		t.Error("the zero address is let through")
	}
}

func TestCheckURL(t *testing.T) {
	for _, u := range []string{
		"http://example.org/", "ftp://example.org/", "https:example.org", "https:///x", "https://user@example.org/", "https://u:p@example.org/",
		"https://example.org/#x", "https://example.org/#", "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://169.254.169.254/latest",
		"https://exa mple.org/", "https://example.org/\r\nX: y", "https://example.org\\@evil/", "//example.org", "", "javascript:alert(1)", "https://ex\u00e4mple.org/",
		"https://example.org/" + strings.Repeat("x", 2048), "file:///etc/passwd", "https://%zz/",
	} {
		if err := CheckURL(u, false); err == nil {
			t.Errorf("%q is accepted", u)
		}
	}
	for _, u := range []string{"https://example.org/", "https://example.org:8443/a?b=c", "https://8.8.8.8/"} {
		if err := CheckURL(u, false); err != nil {
			t.Errorf("%q: %v", u, err)
		}
	}
	if err := CheckURL("http://127.0.0.1:1/", true); err != nil {
		t.Errorf("allowed private: %v", err)
	}
	if err := CheckURL("ftp://127.0.0.1/", true); err == nil {
		t.Error("ftp is accepted")
	}
}

// The name is resolved, the address is checked, and that very address is dialled.
func TestGuardDialsOnlyWhatItChecked(t *testing.T) {
	for _, tt := range []struct {
		name  string
		addrs []string
		want  string // dialled; empty: refused
	}{
		{"public", []string{"8.8.8.8"}, "8.8.8.8:443"},
		{"private", []string{"10.0.0.1"}, ""},
		{"private in IPv6 clothes", []string{"::ffff:10.0.0.1"}, ""},
		{"NAT64 of the metadata service", []string{"64:ff9b::a9fe:a9fe"}, ""},
		{"private first, public second", []string{"192.168.0.1", "1.1.1.1"}, "1.1.1.1:443"},
		{"nothing", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuard(false)
			lookups := 0
			g.lookup = func(context.Context, string) ([]netip.Addr, error) {
				lookups++
				var out []netip.Addr
				for _, a := range tt.addrs {
					out = append(out, netip.MustParseAddr(a))
				}
				return out, nil
			}
			dialled := ""
			g.dial = func(_ context.Context, _, address string) (net.Conn, error) {
				dialled += address
				c, _ := net.Pipe()
				return c, nil
			}
			_, err := g.DialContext(t.Context(), "tcp", "hook.example.org:443")
			if dialled != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("dialled %q, error %v", dialled, err)
			}
			if lookups != 1 {
				t.Errorf("resolved %d times: a second answer could differ", lookups)
			}
		})
	}
	// A literal address in the URL is checked as well.
	g := newGuard(false)
	g.dial = func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialled")
		return nil, errors.New("no")
	}
	if _, err := g.DialContext(t.Context(), "tcp", "127.0.0.1:443"); !errors.Is(err, ErrNotPublic) {
		t.Error(err)
	}
}

var secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" // the example of standardwebhooks.com

func someNotice() Notice {
	return Notice{ID: ID("x"), Severity: Unexpected, Subscription: "s", Alerts: []Alert{{ID: ID("x"), Title: "t", What: "w", Created: time.Unix(1700000000, 0)}}}
}

func TestWebhookToLoopbackIsRefusedByDefault(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("reached") }))
	defer srv.Close()
	w := NewWebhooks(WebhookConfig{})
	if _, err := w.Notify(t.Context(), Receiver{Kind: Webhook, Address: srv.URL, Secret: secret}, someNotice()); err == nil || !strings.Contains(err.Error(), "not a public address") {
		t.Error(err)
	}
	w.guard.lookup = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	u, _ := url.Parse(srv.URL)
	retry, err := w.Notify(t.Context(), Receiver{Kind: Webhook, Address: "https://rebound.example:" + u.Port() + "/secret-path", Secret: secret}, someNotice())
	if !errors.Is(err, ErrNotPublic) || !retry {
		t.Errorf("retry %v: %v", retry, err)
	}
	if strings.Contains(err.Error(), "secret-path") {
		t.Errorf("the error tells the URL's path: %v", err)
	}
}

func TestWebhookAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		ok     bool
		retry  bool
	}{
		{"200", func(w http.ResponseWriter, r *http.Request) {}, true, false},
		{"204", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, true, false},
		{"redirect is not followed", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/inside" {
				t.Error("followed")
			}
			http.Redirect(w, r, "/inside", http.StatusTemporaryRedirect)
		}, false, true},
		{"400", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(400) }, false, true},
		{"410 gives up", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(410) }, false, false},
		{"429", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(429) }, false, true},
		{"503", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, false, true},
		{"endless body", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, true, false},
		{"no answer", func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(3 * time.Second):
			}
		}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.answer)
			defer srv.Close()
			w := NewWebhooks(WebhookConfig{AllowPrivate: true, Timeout: 300 * time.Millisecond})
			retry, err := w.Notify(t.Context(), Receiver{Kind: Webhook, Address: srv.URL, Secret: secret}, someNotice())
			if (err == nil) != tt.ok || retry != tt.retry {
				t.Errorf("retry %v, error %v", retry, err)
			}
		})
	}
}

func TestCheckSecret(t *testing.T) {
	for _, s := range []string{"", "whsec_", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_not base64 at all, but long enough", "whsec_" + strings.Repeat("QUFB", 30)} {
		if CheckSecret(s) == nil {
			t.Errorf("%q is accepted", s)
		}
		w := NewWebhooks(WebhookConfig{AllowPrivate: true})
		if retry, err := w.Notify(t.Context(), Receiver{Address: "http://127.0.0.1:1/", Secret: s}, someNotice()); err == nil || retry {
			t.Errorf("%q: sent", s)
		}
	}
	if err := CheckSecret(secret); err != nil {
		t.Error(err)
	}
}

func FuzzCheckURL(f *testing.F) {
	for _, s := range []string{"https://example.org/", "https://[::1]/", "https://a@b/", "https://0x7f.1/", "https://example.org:99999/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckURL(s, false) != nil {
			return
		}
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.User != nil || u.Hostname() == "" || u.Fragment != "" {
			t.Fatalf("accepted %q", s)
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && CheckPublic(a) != nil {
			t.Fatalf("accepted %q", s)
		}
	})
}
