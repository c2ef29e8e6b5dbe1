package main

// What the scripts about credentials need: certificates, calls with them, an
// OIDC issuer, and a crowd of entries.

import (
	"bytes"
	"context"
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
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/rogpeppe/go-internal/testscript"
)

// certificates DIR writes ca.pem, server.pem, server.key, client.pem (with the
// DNS name uploader.example) and client.key.
func certificates(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	write := func(name, what string, der []byte) {
		ts.Check(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: what, Bytes: der}), 0o600))
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, c := range []*x509.Certificate{
		{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign},
		{Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		{Subject: pkix.Name{CommonName: "client"}, DNSNames: []string{"uploader.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(int64(i+1)), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if i == 0 {
			ca, caKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
		ts.Check(err)
		if i == 0 {
			ca, err = x509.ParseCertificate(der)
			ts.Check(err)
		}
		name := []string{"ca", "server", "client"}[i]
		write(name+".pem", "CERTIFICATE", der)
		raw, err := x509.MarshalPKCS8PrivateKey(key)
		ts.Check(err)
		write(name+".key", "PRIVATE KEY", raw)
	}
}

// mtls STATUS DIR CERT METHOD PATH [BODY] makes a REST call over TLS, with the
// client certificate DIR/CERT.pem, or none if CERT is "none".
func mtls(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[1])
	conf := &tls.Config{RootCAs: x509.NewCertPool()}
	conf.RootCAs.AppendCertsFromPEM([]byte(ts.ReadFile(filepath.Join(args[1], "ca.pem"))))
	if args[2] != "none" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, args[2]+".pem"), filepath.Join(dir, args[2]+".key"))
		ts.Check(err)
		conf.Certificates = []tls.Certificate{pair}
	}
	var body io.Reader = http.NoBody
	if len(args) > 5 {
		body = bytes.NewReader([]byte(ts.ReadFile(args[5])))
	}
	web := &http.Transport{TLSClientConfig: conf}
	defer web.CloseIdleConnections()
	var code int
	var raw []byte
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		req, err := http.NewRequest(args[3], "https://"+ts.Getenv("HTTP")+args[4], body)
		ts.Check(err)
		res, err := (&http.Client{Transport: web, Timeout: 10 * time.Second}).Do(req)
		if err == nil {
			code = res.StatusCode
			raw, err = io.ReadAll(res.Body)
			res.Body.Close()
			ts.Check(err)
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no answer: %v", err)
		}
	}
	fmt.Fprintf(ts.Stdout(), "%s\n", raw)
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("%d, want %s: %s", code, args[0], raw)
	}
}

// issuer starts an OIDC issuer: its URL is ISSUER, and a token of its for the
// subject and audience is in JWT.
func issuer(ts *testscript.TestScript, _ bool, args []string) { // issuer AUDIENCE SUBJECT
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	ts.Defer(server.Close)
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]string{"issuer": server.URL, "jwks_uri": server.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k"}}})
	})
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	ts.Check(err)
	now := time.Now().Unix()
	raw, err := json.Marshal(map[string]any{"iss": server.URL, "aud": args[0], "sub": args[1], "iat": now, "exp": now + 300, "repository_id": "1234"})
	ts.Check(err)
	jws, err := signer.Sign(raw)
	ts.Check(err)
	jwt, err := jws.CompactSerialize()
	ts.Check(err)
	ts.Setenv("ISSUER", server.URL)
	ts.Setenv("JWT", jwt)
}

// flood TOKEN N logs N files over a stream.
func flood(ts *testscript.TestScript, _ bool, args []string) {
	c, err := submit.Dial("http://"+ts.Getenv("GRPC"), args[0])
	ts.Check(err)
	defer c.Close()
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	sent := 0
	ts.Check(c.Stream(context.Background(), submit.StreamOptions{}, func() (*entry.Entry, error) {
		if sent++; sent > n {
			return nil, io.EOF
		}
		return &entry.Entry{Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "evil", Version: "1.0", File: fmt.Sprintf("evil-%d.tar.gz", sent),
			Size: entry.Uint(3), SHA256: strings.Repeat("ee", 32), Time: "2026-11-21T05:00:00Z"}, nil
	}, func(_ uint64, r submit.Result) error { return r.Err }))
}

// tokenID NOTE reads the output of token list --json, and sets TOKENID to the
// credential with that note.
func tokenID(ts *testscript.TestScript, _ bool, args []string) {
	var list []struct{ ID, Note string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &list))
	for _, t := range list {
		if t.Note == args[0] {
			ts.Setenv("TOKENID", t.ID)
			return
		}
	}
	ts.Fatalf("no credential has the note %q", args[0])
}

// TestRunbookIsTheScript: the commands of docs/running.md, "When a credential
// leaks", are those that attack_leaked_token.txt runs, in that order.
func TestRunbookIsTheScript(t *testing.T) {
	doc, err := os.ReadFile("../../docs/running.md")
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("testdata/attack_leaked_token.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(doc), "### When a credential leaks\n")
	_, block, found2 := strings.Cut(section, "```\n")
	block, _, found3 := strings.Cut(block, "```\n")
	if !found || !found2 || !found3 {
		t.Fatal("docs/running.md has no runbook")
	}
	rest := string(script)
	n := 0
	for line := range strings.Lines(block) {
		want := strings.NewReplacer("sudo -u portbook-log ", "exec ", "/var/lib/portbook-log", "log", " ID", " $TOKENID",
			"https://log.example.org:8081", "http://$GRPC", "pkg.example.org", "index.example").Replace(line)
		_, after, ok := strings.Cut(rest, "\n"+want)
		if !ok {
			t.Errorf("the script does not run, or not in this order: %s", want)
			continue
		}
		rest = "\n" + after
		n++
	}
	if n < 6 {
		t.Errorf("%d commands", n)
	}
}
