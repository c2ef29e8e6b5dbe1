package logserver

// Client certificates over the real listeners, what may not pass for one, and
// what the operator's log says of refusals.

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// authority makes certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t testing.TB, name string) *authority {
	a := &authority{t: t}
	made := a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.cert, a.key = made.Leaf, made.PrivateKey.(crypto.Signer)
	return a
}

// issue makes a certificate; the first one of an authority is its own.
func (a *authority) issue(c *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// client makes a client certificate with the given DNS names and URIs.
func (a *authority) client(names ...string) tls.Certificate {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "client"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, n := range names {
		if u, err := url.Parse(n); err == nil && u.Scheme != "" {
			c.URIs = append(c.URIs, u)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	return a.issue(c)
}

// writePair writes a server certificate for 127.0.0.1 and its key.
func (a *authority) writePair(dir string) (certFile, keyFile string) {
	a.t.Helper()
	made := a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	der, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writePEM(a.t, certFile, "CERTIFICATE", made.Certificate[0])
	writePEM(a.t, keyFile, "PRIVATE KEY", der)
	return certFile, keyFile
}

func writePEM(t testing.TB, path, what string, blocks ...[]byte) {
	t.Helper()
	var raw []byte
	for _, b := range blocks {
		raw = append(raw, pem.EncodeToMemory(&pem.Block{Type: what, Bytes: b})...)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// servedTLS is a log on listeners with TLS.
type servedTLS struct {
	*rig
	log        *Log
	said       *operatorLog
	grpc, http string // addresses
	server, ca *authority
	cert, key  string // files of the server's certificate
}

func (r *rig) serveTLS(also ...*authority) *servedTLS {
	r.t.Helper()
	s := &servedTLS{rig: r, said: &operatorLog{}, server: newAuthority(r.t, "server CA"), ca: newAuthority(r.t, "client CA")}
	s.log = r.ready(s.said.config)
	dir := r.t.TempDir()
	s.cert, s.key = s.server.writePair(dir)
	authorities := [][]byte{s.ca.cert.Raw}
	for _, a := range also {
		authorities = append(authorities, a.cert.Raw)
	}
	writePEM(r.t, filepath.Join(dir, "ca"), "CERTIFICATE", authorities...)
	conf, err := TLSFiles{Cert: s.cert, Key: s.key, ClientCA: filepath.Join(dir, "ca")}.Config(s.log.cfg.Logger)
	if err != nil {
		r.t.Fatal(err)
	}
	var lis [2]net.Listener
	for i := range lis {
		if lis[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			r.t.Fatal(err)
		}
	}
	s.grpc, s.http = lis[0].Addr().String(), lis[1].Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.log.Serve(ctx, lis[0], lis[1], conf) }()
	r.t.Cleanup(func() { cancel(); <-done })
	return s
}

// client is a TLS configuration that trusts the server and shows certs.
func (s *servedTLS) client(certs ...tls.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: certs}
	if len(certs) > 0 { // also where the server names no authority of it
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	c.RootCAs.AddCert(s.server.cert)
	return c
}

// overGRPC submits; headers are pairs.
func (s *servedTLS) overGRPC(conf *tls.Config, e *entry.Entry, headers ...string) error {
	s.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.grpc, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(s.t.Context(), headers...), 10*time.Second)
	defer cancel()
	_, err = pb.NewLogClient(conn).Submit(ctx, &pb.SubmitRequest{Entry: pbEntry(e)})
	return err
}

// overREST submits and returns the status; 0 without an answer.
func (s *servedTLS) overREST(conf *tls.Config, e *entry.Entry, headers ...string) (int, string) {
	s.t.Helper()
	raw, err := json.Marshal(restEntry(e))
	if err != nil {
		s.t.Fatal(err)
	}
	return s.do(conf, "POST", "/v1/entries", bytes.NewReader(raw), headers...)
}

func (s *servedTLS) do(conf *tls.Config, method, path string, body io.Reader, headers ...string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, "https://"+s.http+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	web := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	defer web.CloseIdleConnections()
	res, err := (&http.Client{Transport: web, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}

func TestTLSListeners(t *testing.T) {
	s := newRig(t, 1, 1).serveTLS()
	_, secret, err := s.log.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	if err != nil {
		t.Fatal(err)
	}
	bearer := []string{"Authorization", "Bearer " + secret}
	if err := s.overGRPC(s.client(), nth(1), bearer...); err != nil {
		t.Errorf("gRPC over TLS: %v", err)
	}
	if code, out := s.overREST(s.client(), nth(2), bearer...); code != 200 {
		t.Errorf("REST over TLS: %d %s", code, out)
	}
	for _, path := range []string{"/checkpoint", "/tile/0/000.p/1", "/tile/entries/000.p/1", "/v1/proof?index=0", "/healthz"} {
		if code, out := s.do(s.client(), "GET", path, nil); code != 200 {
			t.Errorf("%s over TLS: %d %s", path, code, out)
		}
	}
	for name, address := range map[string]string{"gRPC": s.grpc, "HTTP": s.http} {
		for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
			c := s.client()
			c.MinVersion, c.MaxVersion, c.NextProtos = version, version, []string{"h2"}
			conn, err := tls.Dial("tcp", address, c)
			if (err == nil) != ok {
				t.Errorf("%s: %s: %v", name, tls.VersionName(version), err)
			}
			if err == nil {
				conn.Close()
			}
		}
		if _, err := tls.Dial("tcp", address, &tls.Config{}); err == nil {
			t.Errorf("%s: a client that does not know the authority connects", name)
		}
	}
	if _, err := http.Get("http://" + s.http + "/healthz"); err == nil {
		res, _ := http.Get("http://" + s.http + "/healthz")
		if res != nil && res.StatusCode == 200 {
			t.Error("plain HTTP is served on the TLS listener")
		}
	}
}

// TestCertificateIsRenewed: without a restart, and a half-written pair changes nothing.
func TestCertificateIsRenewed(t *testing.T) {
	s := newRig(t, 1, 1).serveTLS()
	serial := func() string {
		t.Helper()
		c := s.client()
		c.NextProtos = []string{"h2"}
		var serials []string
		for _, address := range []string{s.grpc, s.http} {
			conn, err := tls.Dial("tcp", address, c)
			if err != nil {
				t.Fatal(err)
			}
			serials = append(serials, conn.ConnectionState().PeerCertificates[0].SerialNumber.String())
			conn.Close()
		}
		return strings.Join(serials, " ")
	}
	first := serial()
	key, err := os.ReadFile(s.key)
	if err != nil {
		t.Fatal(err)
	}
	s.server.writePair(filepath.Dir(s.cert))
	renewed, err := os.ReadFile(s.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.key, key, 0o600); err != nil { // the new certificate with the old key
		t.Fatal(err)
	}
	time.Sleep(certCheck + 100*time.Millisecond)
	if got := serial(); got != first {
		t.Errorf("a pair that does not fit is used: %s, was %s", got, first)
	}
	if !strings.Contains(s.said.take(), "the TLS certificate cannot be read") {
		t.Error("the operator is not told")
	}
	if err := os.WriteFile(s.key, renewed, 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the renewed certificate", func() bool { return serial() != first })
}

func TestTLSFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, "x")
	cert, key := a.writePair(dir)
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]TLSFiles{
		"no such certificate":         {Cert: filepath.Join(dir, "none"), Key: key},
		"not a key":                   {Cert: cert, Key: cert},
		"no authority in the file":    {Cert: cert, Key: key, ClientCA: empty},
		"a key among authorities":     {Cert: cert, Key: key, ClientCA: key},
		"no such file of authorities": {Cert: cert, Key: key, ClientCA: filepath.Join(dir, "none")},
	} {
		if _, err := f.Config(nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestClientCertificate(t *testing.T) {
	second := newAuthority(t, "another client CA")
	s := newRig(t, 1, 1).serveTLS(second)
	create := func(rule *CertRule, kinds ...entry.Kind) Credential {
		t.Helper()
		c, _, err := s.log.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: append(kinds, entry.KindUpload), Cert: rule})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ca := Fingerprint(s.ca.cert)
	byName := create(&CertRule{CA: ca, Name: "dns:*.uploads.example"})
	create(&CertRule{CA: ca, Name: "uri:spiffe://example/ns/*/sa/uploader"})
	create(&CertRule{CA: ca, Name: "subject:CN=by-subject,O=Example"})
	pinned := s.ca.client("unnamed.example")
	create(&CertRule{SHA256: Fingerprint(pinned.Leaf)})
	withSubject := s.ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "by-subject", Organization: []string{"Example"}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})

	n := 0
	try := func(conf *tls.Config, headers ...string) (overGRPC error, status int, answer string) {
		n += 2
		err := s.overGRPC(conf, nth(n), headers...)
		code, out := s.overREST(conf, nth(n+1), headers...)
		return err, code, out
	}
	for name, cert := range map[string]tls.Certificate{
		"by DNS name":    s.ca.client("a.uploads.example"),
		"in capitals":    s.ca.client("A.Uploads.Example"),
		"one of several": s.ca.client("other.example", "b.uploads.example"),
		"by URI":         s.ca.client("spiffe://example/ns/prod/sa/uploader"),
		"by subject":     withSubject,
		"by fingerprint": pinned,
	} {
		t.Run("accepted/"+name, func(t *testing.T) {
			if err, code, out := try(s.client(cert)); err != nil || code != 200 {
				t.Errorf("gRPC %v, REST %d %s\n%s", err, code, out, s.said.take())
			}
		})
	}

	stranger := newAuthority(t, "client CA") // the same name, another key
	own := (&authority{t: t}).issue(&x509.Certificate{Subject: pkix.Name{CommonName: "self"}, DNSNames: []string{"a.uploads.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	expired := s.ca.issue(&x509.Certificate{DNSNames: []string{"a.uploads.example"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Minute), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	forServers := s.ca.issue(&x509.Certificate{DNSNames: []string{"a.uploads.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	byCommonName := s.ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "a.uploads.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	stolen := s.ca.client("a.uploads.example")
	stolen.PrivateKey = s.ca.client("x").PrivateKey // the certificate without its key
	for _, row := range []struct {
		name   string
		cert   *tls.Certificate
		reason string // none: the client itself does not get so far
	}{
		{"none", nil, reasonNone},
		{"of another authority that is trusted too", ptr(second.client("a.uploads.example")), reasonCertificate},
		{"of a stranger with our authority's name", ptr(stranger.client("a.uploads.example")), reasonHandshake},
		{"self-signed", &own, reasonHandshake},
		{"expired", &expired, reasonHandshake},
		{"for servers", &forServers, reasonHandshake},
		{"without its key", &stolen, ""},
		{"the name as common name only", &byCommonName, reasonCertificate},
		{"no name", ptr(s.ca.client()), reasonCertificate},
		{"another name", ptr(s.ca.client("a.downloads.example")), reasonCertificate},
		{"a wildcard name", ptr(s.ca.client("*.uploads.example")), reasonCertificate},
		{"two labels for one", ptr(s.ca.client("a.b.uploads.example")), reasonCertificate},
		{"the name inside a longer one", ptr(s.ca.client("a.uploads.example.evil.example")), reasonCertificate},
		{"another URI", ptr(s.ca.client("spiffe://example/ns/prod/x/sa/uploader")), reasonCertificate},
		{"the authority's own certificate", &tls.Certificate{Certificate: [][]byte{s.ca.cert.Raw}, PrivateKey: s.ca.key}, reasonCertificate},
	} {
		t.Run(row.name, func(t *testing.T) {
			s.said.take()
			before := s.log.Refusals()[row.reason]
			conf := s.client()
			if row.cert != nil {
				conf = s.client(*row.cert)
			}
			err, code, out := try(conf)
			if err == nil || code == 200 {
				t.Fatalf("accepted: gRPC %v, REST %d %s", err, code, out)
			}
			if row.reason == "" {
				return
			}
			if row.reason != reasonHandshake && (status.Code(err) != codes.Unauthenticated || code != 401) {
				t.Errorf("gRPC %v, REST %d %s", err, code, out)
			}
			waitFor(t, "both refusals to be counted", func() bool { return s.log.Refusals()[row.reason] >= before+2 })
			if text := s.said.take(); strings.Count(text, "msg=refused reason="+row.reason+" peer=127.0.0.1:") < 2 {
				t.Errorf("the operator's log: %s", text)
			}
		})
	}

	// What counts is the handshake. No header can say that there was one.
	headers := []string{}
	for _, h := range []string{"X-Forwarded-Client-Cert", "X-Client-Cert", "X-SSL-Client-Verify", "Ssl-Client-Verify", "X-Forwarded-For", "Portbook-Rest-Call", "Grpc-Metadata-Portbook-Rest-Call"} {
		headers = append(headers, h, "a.uploads.example")
	}
	if err, code, out := try(s.client(), lower(headers)...); err == nil || code != 401 {
		t.Errorf("headers: gRPC %v, REST %d %s", err, code, out)
	}
	good := s.ca.client("a.uploads.example")
	if err, code, _ := try(s.client(good), "Authorization", "Bearer pbt_0000000000000000_x"); err == nil || code != 401 {
		t.Errorf("a bad token beside a good certificate: gRPC %v, REST %d", err, code)
	}
	if err, code, _ := try(s.client(good), "Authorization", "Basic eDp5"); err == nil || code != 401 {
		t.Errorf("another scheme beside a good certificate: gRPC %v, REST %d", err, code)
	}
	if err := s.log.Tokens.Revoke(byName.ID); err != nil {
		t.Fatal(err)
	}
	if err, code, _ := try(s.client(good)); status.Code(err) != codes.Unauthenticated || code != 401 {
		t.Errorf("revoked: gRPC %v, REST %d", err, code)
	}
}

func ptr[T any](v T) *T { return &v }

func lower(headers []string) []string {
	for i := 0; i < len(headers); i += 2 {
		headers[i] = strings.ToLower(headers[i])
	}
	return headers
}

// TestRestCallsCannotBeForged: a REST call under way is found by its random
// name, by the inner server only, and not after it has ended.
func TestRestCallsCannotBeForged(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	by, _, err := s.log.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	if err != nil {
		t.Fatal(err)
	}
	req, leave := s.log.rest.enter(ptr(http.Request{}).WithContext(t.Context()), restCall{by: &by})
	name := s.log.rest.annotate(req.Context(), req).Get(restCallKey)[0]
	// Who knows the name of somebody else's call, and sends it to the outer server.
	_, err = s.client.Submit(metadata.AppendToOutgoingContext(t.Context(), restCallKey, name), &pb.SubmitRequest{Entry: pbEntry(nth(1))})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("outer gRPC with the name of a REST call: %v", err)
	}
	for _, header := range []string{restCallKey, "Grpc-Metadata-" + restCallKey} {
		hr, err := http.NewRequest("POST", s.url+"/v1/entries", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		hr.Header.Set(header, name)
		res, err := http.DefaultClient.Do(hr)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 401 {
			t.Errorf("REST with the name of another call in %s: %d", header, res.StatusCode)
		}
	}
	inner := &service{log: s.log, rest: &s.log.rest}
	with := func(names ...string) context.Context {
		md := metadata.MD{}
		md.Append(restCallKey, names...)
		return metadata.NewIncomingContext(t.Context(), md)
	}
	if got, err := inner.credential(with(name)); err != nil || got.ID != by.ID {
		t.Errorf("the call itself: %v, %v", got.ID, err)
	}
	leave()
	for what, ctx := range map[string]context.Context{"an ended call": with(name), "two names": with(name, name), "no name": t.Context(), "a guess": with("x")} {
		if _, err := inner.credential(ctx); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	s.log.rest.mu.Lock()
	defer s.log.rest.mu.Unlock()
	if n := len(s.log.rest.calls); n != 0 {
		t.Errorf("%d calls are left", n)
	}
}

// TestRefusalsAreLoggedWithoutSecrets: every way in which a bearer token is
// refused is in the operator's log and counted, and nothing of a secret is
// anywhere in what the server says.
func TestRefusalsAreLoggedWithoutSecrets(t *testing.T) {
	var said operatorLog
	r := newRig(t, 1, 1)
	s := r.serve(said.config)
	mk := func(c Credential) (Credential, string) {
		t.Helper()
		c.Registry, c.Claim = testRegistry, entry.ClaimIndex
		if c.Kinds == nil {
			c.Kinds = []entry.Kind{entry.KindUpload}
		}
		made, secret, err := s.log.Tokens.Create(c)
		if err != nil {
			t.Fatal(err)
		}
		return made, secret
	}
	good, secret := mk(Credential{})
	other, otherSecret := mk(Credential{})
	expired, expiredSecret := mk(Credential{Ends: "2020-01-01T00:00:00Z"})
	revoked, revokedSecret := mk(Credential{})
	if err := s.log.Tokens.Revoke(revoked.ID); err != nil {
		t.Fatal(err)
	}
	one, oneSecret := mk(Credential{Quota: 1})
	if code, _, out := s.rest("POST", "/v1/entries", oneSecret, restEntry(nth(0))); code != 200 {
		t.Fatalf("%d %v", code, out)
	}
	wrong := "pbt_" + good.ID + "_" + strings.SplitN(otherSecret, "_", 3)[2]
	secrets := []string{secret, otherSecret, expiredSecret, revokedSecret, oneSecret, wrong}
	all := ""
	n := 1
	for _, row := range []struct {
		name, bearer, reason, id string
		status                   int
		entry                    *entry.Entry
	}{
		{"nothing", "", reasonNone, "", 401, nth(1)},
		{"garbage", "garbage", reasonMalformed, "", 401, nth(1)},
		{"prefix alone", "pbt_", reasonMalformed, "", 401, nth(1)},
		{"unknown ID", "pbt_0123456789abcdef_" + strings.SplitN(secret, "_", 3)[2], reasonUnknown, "", 401, nth(1)},
		{"another token's secret", wrong, reasonSecret, good.ID, 401, nth(1)},
		{"a part of the secret", secret[:len(secret)-4], reasonSecret, good.ID, 401, nth(1)},
		{"more than the secret", secret + "A", reasonSecret, good.ID, 401, nth(1)},
		{"expired", expiredSecret, reasonExpired, expired.ID, 401, nth(1)},
		{"revoked", revokedSecret, reasonRevoked, revoked.ID, 401, nth(1)},
		{"another registry", otherSecret, reasonNotAllowed, other.ID, 403, func() *entry.Entry { e := nth(1); e.Registry = "elsewhere.example"; return e }()},
		{"quota", oneSecret, reasonQuota, one.ID, 429, nth(10)}, // the project of nth(0)
	} {
		t.Run(row.name, func(t *testing.T) {
			n++
			body := restEntry(row.entry)
			if row.entry.Registry != "" {
				body["entry"].(map[string]any)["registry"] = row.entry.Registry
			}
			for _, over := range []string{"REST", "gRPC"} {
				said.take()
				before := s.log.Refusals()[row.reason]
				if over == "REST" {
					if code, _, out := s.rest("POST", "/v1/entries", row.bearer, body); code != row.status {
						t.Errorf("%d %v", code, out)
					}
				} else {
					e := pbEntry(row.entry)
					e.Registry = row.entry.Registry
					ctx := t.Context()
					if row.bearer != "" {
						ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+row.bearer)
					}
					if _, err := s.client.Submit(ctx, &pb.SubmitRequest{Entry: e}); err == nil {
						t.Error("gRPC: accepted")
					}
				}
				text := said.take()
				all += text
				line := "msg=refused reason=" + row.reason + " peer=127.0.0.1:[0-9]+"
				if row.id != "" {
					line += " credential=" + row.id
				}
				if !regexp.MustCompile(line).MatchString(text) {
					t.Errorf("%s: want %q in %s", over, line, text)
				}
				if got := s.log.Refusals()[row.reason]; got != before+1 {
					t.Errorf("%s: counted %d, was %d", over, got, before)
				}
			}
		})
	}
	for _, secret := range secrets {
		if has := hasPartOf(all, strings.SplitN(secret, "_", 3)[2]); has != "" {
			t.Errorf("the log has %q of a secret", has)
		}
	}
	// The counters as Prometheus sees them.
	page, err := metricsPage(s.log)
	if err != nil || !strings.Contains(page, `portbook_log_callers_refused_total{reason="revoked"} 2`) {
		t.Errorf("metrics: %v\n%s", err, page)
	}
	for _, secret := range secrets {
		if has := hasPartOf(page, strings.SplitN(secret, "_", 3)[2]); has != "" {
			t.Errorf("the metrics have %q of a secret", has)
		}
	}
}

func metricsPage(l *Log) (string, error) {
	families, err := l.metrics.registry.Gather()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, p := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", p.GetName(), p.GetValue()))
			}
			fmt.Fprintf(&b, "%s{%s} %v\n", f.GetName(), strings.Join(labels, ","), m.GetCounter().GetValue())
		}
	}
	return b.String(), nil
}

// TestFloodOfRefusals: the log's lines are bounded, and say what they left out.
func TestFloodOfRefusals(t *testing.T) {
	var said operatorLog
	l := newRig(t, 0, 0).open(said.config)
	said.take()
	const n = 5000
	for range n {
		l.refused("192.0.2.1:1", "", &refusal{reason: reasonNone})
	}
	lines := strings.Count(said.take(), "msg=refused")
	if lines < 10*refusalLines || lines > 12*refusalLines || l.Refusals()[reasonNone] != n {
		t.Errorf("%d lines, %d counted", lines, l.Refusals()[reasonNone])
	}
	waitFor(t, "a line again", func() bool {
		l.refused("192.0.2.1:1", "", &refusal{reason: reasonNone})
		return strings.Contains(said.take(), "not_logged_before=")
	})
}

// TestRevokedInAStream: a stream that is open is refused within a second.
func TestRevokedInAStream(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	by, secret, err := s.log.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := s.client.SubmitStream(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secret))
	if err != nil {
		t.Fatal(err)
	}
	send := func(n int) (*pb.SubmitStreamResponse, error) {
		if err := stream.Send(&pb.SubmitStreamRequest{Entries: []*pb.Entry{pbEntry(nth(n))}}); err != nil {
			t.Fatal(err)
		}
		return stream.Recv()
	}
	if res, err := send(1); err != nil || len(res.Results) != 1 || res.Results[0].Error != nil {
		t.Fatalf("%v %v", res, err)
	}
	// As the command line does, in another process.
	elsewhere, err := OpenTokens(filepath.Join(s.dir, TokensFile), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Revoke(by.ID); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for n := 2; ; n++ {
		if _, err := send(n); err != nil {
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("the stream ended with %v", err)
			}
			break
		}
		if time.Since(start) > time.Second {
			t.Fatal("a second after its revocation the credential still logs")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if s.log.Refusals()[reasonRevoked] == 0 {
		t.Error("not counted")
	}
}

func TestRotate(t *testing.T) {
	clock := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	creds, err := OpenTokens(filepath.Join(t.TempDir(), "tokens.json"), func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	c, first, err := creds.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	if err != nil {
		t.Fatal(err)
	}
	good := func(secret string) bool {
		got, err := creds.authenticate(t.Context(), presented{bearer: secret, scheme: true})
		return err == nil && got.ID == c.ID
	}
	second, err := creds.Rotate(c.ID, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if !good(first) || !good(second) {
		t.Error("during the overlap one of the two is refused")
	}
	clock = clock.Add(24*time.Hour - time.Second)
	if !good(first) || !good(second) {
		t.Error("at the end of the overlap one of the two is refused")
	}
	was, err := creds.authenticate(t.Context(), presented{bearer: first, scheme: true})
	if err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(time.Second)
	if good(first) || !good(second) {
		t.Error("after the overlap")
	}
	if err := creds.stillGood(t.Context(), was); err == nil {
		t.Error("a stream with the old secret goes on after the overlap")
	}
	running, err := creds.authenticate(t.Context(), presented{bearer: second})
	if err != nil || creds.stillGood(t.Context(), running) != nil {
		t.Fatalf("a stream with the newest secret: %v", err)
	}
	third, err := creds.Rotate(c.ID, 0)
	if creds.stillGood(t.Context(), running) == nil {
		t.Error("a stream goes on with a secret that was replaced without an overlap")
	}
	if err != nil || good(second) || !good(third) {
		t.Errorf("rotated without an overlap: %v", err)
	}
	last := third
	for range maxOld {
		if last, err = creds.Rotate(c.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := creds.Rotate(c.ID, time.Hour); err == nil {
		t.Error("more old secrets than are kept")
	}
	if !good(third) || !good(last) {
		t.Error("a refused rotation took something away")
	}
	if err := creds.Revoke(c.ID); err != nil {
		t.Fatal(err)
	}
	if good(third) || good(last) {
		t.Error("revoked, and one secret is still good")
	}
	if _, err := creds.Rotate(c.ID, time.Hour); err == nil {
		t.Error("rotated a revoked token")
	}
	if _, err := creds.Rotate("0000000000000000", time.Hour); err == nil {
		t.Error("rotated no token")
	}
	workload, _, err := creds.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}, OIDC: &OIDCRule{Issuer: "https://i.example", Audience: "a", Subject: "s"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := creds.Rotate(workload.ID, time.Hour); err == nil {
		t.Error("rotated what has no secret")
	}
}

func TestQuota(t *testing.T) {
	clock := time.Date(2026, 11, 21, 23, 0, 0, 0, time.UTC)
	r := newRig(t, 1, 1)
	l := r.ready(func(c *Config) { c.Now = func() time.Time { return clock } })
	by := r.token
	by.Quota = 3
	submit := func(project string, n int) error {
		_, err := l.Submit(t.Context(), by, upload(project, fmt.Sprintf("%s-%d.tar.gz", project, n), fmt.Sprint(n)), Cosigned)
		return err
	}
	for n := range 3 {
		for range 3 { // the same again is nothing new
			if err := submit("a", n); err != nil {
				t.Fatal(err)
			}
		}
	}
	err := submit("a", 3)
	limit, ok := err.(*limitError)
	if !ok || limit.reason != reasonQuota || limit.after != time.Hour {
		t.Fatalf("over quota: %v", err)
	}
	if err := submit("a", 2); err != nil {
		t.Errorf("what was logged today, once more: %v", err)
	}
	if err := submit("b", 0); err != nil {
		t.Errorf("another project: %v", err)
	}
	e := upload("b", "bad/name", "x")
	for range 5 {
		if _, err := l.Submit(t.Context(), by, e, Cosigned); err == nil {
			t.Fatal("a malformed entry is logged")
		}
	}
	if err := submit("b", 1); err != nil {
		t.Errorf("refused entries used up the quota: %v", err)
	}
	other := by
	other.ID = "ffffffffffffffff"
	if _, err := l.Submit(t.Context(), other, upload("a", "a-9.tar.gz", "9"), Cosigned); err != nil {
		t.Errorf("another credential: %v", err)
	}
	clock = clock.Add(time.Hour)
	if err := submit("a", 3); err != nil {
		t.Errorf("the next day: %v", err)
	}
	l.quotas.max = 1 // as many as are counted
	if err := submit("z", 1); err == nil {
		t.Error("the bound on counted projects is a way around the quota")
	}
	if err := submit("a", 4); err != nil {
		t.Errorf("a project that is counted: %v", err)
	}
}

// TestQuotaOfTwins: of the same entry twice at once, either may be the one that
// is logged; together they cost one.
func TestQuotaOfTwins(t *testing.T) {
	q := newQuotas(time.Now)
	by := Credential{ID: "0123456789abcdef", Quota: 1}
	take := func(n int) (charge, error) {
		s, err := newSubmission(func() *entry.Entry {
			e := upload("a", fmt.Sprintf("a-%d.tar.gz", n), fmt.Sprint(n))
			e.Registry, e.Claim = testRegistry, entry.ClaimIndex
			return e
		}(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.by, s.quota = by.ID, by.Quota
		return q.take(s)
	}
	first, err := take(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := take(1); err != nil { // overtakes the first, and is logged
		t.Fatal(err)
	}
	first.back()
	if _, err := take(2); err == nil {
		t.Error("two at once are a way around the quota")
	}
	third, err := take(1)
	if err != nil {
		t.Fatalf("the same again: %v", err)
	}
	third.back()
	if _, err := take(2); err == nil {
		t.Error("the same again gives back what was paid for it")
	}

	q = newQuotas(time.Now) // both refused
	a, _ := take(1)
	b, _ := take(1)
	a.back()
	b.back()
	if _, err := take(2); err != nil {
		t.Errorf("refused entries used up the quota: %v", err)
	}
}

// TestQuotaOverTheAPI: refused with a hint when to come again, also in a stream.
func TestQuotaOverTheAPI(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	_, secret, err := s.log.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}, Quota: 1})
	if err != nil {
		t.Fatal(err)
	}
	if code, _, out := s.rest("POST", "/v1/entries", secret, restEntry(nth(0))); code != 200 {
		t.Fatalf("%d %v", code, out)
	}
	code, h, out := s.rest("POST", "/v1/entries", secret, restEntry(nth(10)))
	if code != 429 || h.Get("Retry-After") == "" || h.Get("Retry-After") == "0" || out["reason"] != "QUOTA" {
		t.Errorf("%d %v %v", code, h, out)
	}
	if err := s.overGRPC(secret, nth(10)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("gRPC: %v", err)
	}
	stream, err := s.client.SubmitStream(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secret))
	if err != nil {
		t.Fatal(err)
	}
	// Of one project more than its quota, of others not: the stream goes on.
	if err := stream.Send(&pb.SubmitStreamRequest{Entries: []*pb.Entry{pbEntry(nth(10)), pbEntry(nth(1)), pbEntry(nth(11)), pbEntry(nth(2))}}); err != nil {
		t.Fatal(err)
	}
	var results []*pb.StreamResult
	for len(results) < 4 {
		res, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, res.Results...)
	}
	for i, refused := range []bool{true, false, true, false} {
		if e := results[i].Error; (e != nil) != refused || refused && (codes.Code(e.Code) != codes.ResourceExhausted || e.Reason != "QUOTA") {
			t.Errorf("entry %d of the stream: %v", i, results[i])
		}
	}
}

func TestMatchName(t *testing.T) {
	for _, row := range []struct {
		pattern, name string
		want          bool
	}{
		{"abc", "abc", true}, {"abc", "abcd", false}, {"abc", "xabc", false}, {"abc", "", false},
		{"a*c", "ac", true}, {"a*c", "abbc", true}, {"a*c", "a:c", false}, {"a*c", "a/c", false}, {"a*c", "acx", false},
		{"a**c", "a:/c", true}, {"a**c", "ac", true}, {"a**c", "acd", false},
		{"a:*:c", "a:b:c", true}, {"a:*:c", "a:b:b:c", false}, {"a:**:c", "a:b:b:c", true},
		{"a*b*c", "aXbYbZc", true}, {"a*b*c", "aXc", false}, {"a.c", "abc", false}, {"a[b]c", "abc", false},
		{strings.Repeat("a*", 100) + "b", strings.Repeat("a", 1000), false},
	} {
		if got := matchName(row.pattern, row.name, ":/"); got != row.want {
			t.Errorf("%.20q fits %.20q: %v", row.name, row.pattern, got)
		}
	}
}

// FuzzMatchName compares with the same as a regular expression.
func FuzzMatchName(f *testing.F) {
	f.Add("repo:a/*:ref:**", "repo:a/b:ref:refs/heads/x")
	f.Add("a**b*", "a:b/c")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 60 || len(name) > 200 || strings.Contains(pattern, "***") {
			return
		}
		for i := range name {
			if name[i] < ' ' || name[i] > '~' {
				return
			}
		}
		expr := regexp.QuoteMeta(pattern)
		expr = strings.ReplaceAll(expr, `\*\*`, ".*")
		expr = strings.ReplaceAll(expr, `\*`, "[^:/]*")
		re, err := regexp.Compile("^(?:" + expr + ")$")
		if err != nil {
			return // not UTF-8
		}
		if got, want := matchName(pattern, name, ":/"), re.MatchString(name); got != want {
			t.Errorf("%q fits %q: %v, want %v", name, pattern, got, want)
		}
	})
}

// FuzzCredentials: what is read as credentials is written back as what it was.
func FuzzCredentials(f *testing.F) {
	hash := strings.Repeat("ab", 32)
	f.Add([]byte(`[{"id":"0123456789abcdef","hash":"` + hash + `","registry":"index.example","claim":"index","kinds":["upload"],"created":"2026-11-21T05:00:00Z"}]`))
	f.Add([]byte(`[{"id":"0123456789abcdef","oidc":{"issuer":"https://i.example","audience":"a","subject":"s*"},"registry":"index.example","claim":"observed","kinds":["upload"],"quota":3}]`))
	f.Add([]byte(`[{"id":"0123456789abcdef","cert":{"ca":"` + hash + `","name":"dns:*.x.example"},"registry":"index.example","claim":"index","kinds":["upload"]}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		byID, err := parseCredentials(raw)
		if err != nil {
			return
		}
		out, err := json.Marshal(sorted(byID))
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseCredentials(out)
		if err != nil || len(again) != len(byID) {
			t.Fatalf("%v: %s", err, out)
		}
	})
}
