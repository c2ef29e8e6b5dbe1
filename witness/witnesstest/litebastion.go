package witnesstest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Litebastion is a litebastion with a certificate for 127.0.0.1.
type Litebastion struct {
	Address string         // of both its endpoints: host:port
	Roots   *x509.CertPool // that vouch for it
	CAFile  string         // the same, PEM

	dir     string
	args    []string
	process *process
}

// StartLitebastion starts a litebastion that takes the backends with these key
// hashes.
func StartLitebastion(ctx context.Context, backends ...string) (_ *Litebastion, err error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pb-lb-")
	if err != nil {
		return nil, err
	}
	b := &Litebastion{dir: dir, Roots: x509.NewCertPool(), CAFile: filepath.Join(dir, "cert.pem")}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "litebastion"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	b.Roots.AppendCertsFromPEM(certificate)
	keyFile, backendsFile := filepath.Join(dir, "key.pem"), filepath.Join(dir, "backends")
	for path, raw := range map[string][]byte{b.CAFile: certificate, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		backendsFile: []byte(strings.Join(backends, "\n") + "\n")} {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			return nil, err
		}
	}
	if b.Address, err = freeAddress(); err != nil {
		return nil, err
	}
	b.args = []string{filepath.Join(bin, "litebastion"), "-listen", b.Address, "-tls-cert", b.CAFile, "-tls-key", keyFile, "-backends", backendsFile}
	return b, b.Start(ctx)
}

// Start starts it again after Kill.
func (b *Litebastion) Start(ctx context.Context) (err error) {
	if b.process, err = start(b.dir, b.args[0], b.args[1:]...); err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: b.Roots}}).DialContext(ctx, "tcp", b.Address)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			said, _ := os.ReadFile(filepath.Join(b.dir, "log"))
			return fmt.Errorf("litebastion does not come up: %w\n%s", err, said)
		}
	}
}

// Kill ends it at once.
func (b *Litebastion) Kill() { b.process.kill() }

// Close ends it and removes its files.
func (b *Litebastion) Close() {
	b.process.kill()
	os.RemoveAll(b.dir)
}
