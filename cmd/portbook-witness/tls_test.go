package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// makePair writes a certificate for 127.0.0.1 with this serial number, and its
// key, under their names in one step each.
func makePair(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "a witness"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{cert, "CERTIFICATE", der}, {key, "PRIVATE KEY", pkcs8}} {
		if err := errors.Join(os.WriteFile(f.name+".new", pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600), os.Rename(f.name+".new", f.name)); err != nil {
			t.Fatal(err)
		}
	}
}

// A syncBuffer is written by a process and read by a test.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestTLS: the witness serves https and HTTP/2 from files, and goes on serving
// while they are renewed: by the files alone, or on SIGHUP.
func TestTLS(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	dir, cert, key := filepath.Join(work, "w"), filepath.Join(work, "cert.pem"), filepath.Join(work, "key.pem")
	log := newTestLog("example.com/log", false, 5)
	for _, args := range [][]string{{"init", "--name", "witness.example/w1", "--dir", dir}, {"add-log", "--dir", dir, "--yes", log.signer.Key().String()}} {
		if out, err := exec.Command("portbook-witness", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	makePair(t, cert, key, 1)
	link := filepath.Join(work, "live.pem") // as certbot does
	if err := os.Symlink(key, link); err != nil {
		t.Fatal(err)
	}
	serve := func(cert, key string) *exec.Cmd {
		return exec.Command("portbook-witness", "serve", "--dir", dir, "--mark-beside", "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key)
	}

	for name, tc := range map[string]struct {
		cert, key, why string
		code           int
		mode           os.FileMode
	}{
		"no key":      {cert, "", "go together", 2, 0o600},
		"no cert":     {"", key, "go together", 2, 0o600},
		"absent":      {cert + "x", key, "no such file", 1, 0o600},
		"no pair":     {cert, cert, "private key", 1, 0o600},
		"read by all": {cert, link, "chmod 600", 1, 0o640},
	} {
		if err := os.Chmod(key, tc.mode); err != nil {
			t.Fatal(err)
		}
		cmd := serve(tc.cert, tc.key)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != tc.code || !strings.Contains(string(out), tc.why) {
			t.Errorf("%s: exit %d: %s", name, cmd.ProcessState.ExitCode(), out)
		}
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}

	cmd := serve(cert, link)
	journal := &syncBuffer{}
	cmd.Stderr = journal
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	defer func() {
		if !ended {
			cmd.Process.Kill()
			cmd.Wait()
		}
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	_, rest, ok := strings.Cut(line, " on https://")
	addr, _, _ := strings.Cut(rest, "/")
	if err != nil || !ok {
		t.Fatalf("%q %v: %s", line, err, journal)
	}

	client := func() *http.Client {
		raw, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(raw)
		return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	}
	first := client()
	res, err := first.Post("https://"+addr+"/add-checkpoint", "", bytes.NewReader(log.request(0, 5)))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 || res.ProtoMajor != 2 || res.TLS.Version < tls.VersionTLS12 {
		t.Errorf("status %d, %s", res.StatusCode, res.Proto)
	}
	if status, _, err := exchange(0, "GET", "http://"+addr+"/healthz", nil); err != nil || status != 400 {
		t.Errorf("plain HTTP: %d %v", status, err)
	}
	old := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	if c, err := tls.Dial("tcp", addr, old); err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken")
	}

	serial := func() int64 {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not within 30 s\n%s", what, journal)
			}
		}
	}
	hup := func() {
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	makePair(t, cert, key, 2)
	until("renewed", func() bool { return serial() == 2 })
	makePair(t, cert, key, 3)
	hup()
	until("SIGHUP", func() bool { return strings.Count(journal.String(), "was read again") == 2 })
	if got := serial(); got != 3 {
		t.Errorf("certificate %d after SIGHUP", got)
	}
	// What cannot be read changes nothing, and is told.
	if err := os.WriteFile(cert, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	hup()
	until("told", func() bool { return strings.Contains(journal.String(), "the one from before stays") })
	if got := serial(); got != 3 {
		t.Errorf("certificate %d after a bad renewal", got)
	}
	// The first connection was never cut.
	res, err = first.Get("https://" + addr + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.TLS.PeerCertificates[0].SerialNumber.Int64() != 1 {
		t.Error("the first connection is gone")
	}
	// Somebody else's client.
	makePair(t, cert, key, 4)
	hup()
	until("SIGHUP", func() bool { return serial() == 4 })
	if curl, err := exec.LookPath("curl"); err == nil {
		out, err := exec.Command(curl, "-sS", "--cacert", cert, "-w", " %{http_version}", fmt.Sprintf("https://%s/healthz", addr)).CombinedOutput()
		if err != nil || string(out) != "ok\n 2" {
			t.Errorf("curl: %v: %s", err, out)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, journal)
	}
	ended = true
}
