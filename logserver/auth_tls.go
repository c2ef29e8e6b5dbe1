package logserver

// TLS of both listeners: the server's certificate, read again when it is
// renewed, and the authorities of client certificates.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// TLSFiles name what a server's TLS is made of; PEM files.
type TLSFiles struct {
	Cert, Key string
	ClientCA  string // authorities of client certificates; empty: none are asked for
}

// certCheck is how often a certificate's files are looked at, at most.
const certCheck = time.Second

// Config reads the files. The certificate and its key are read again when they
// change, and stay as they were while they cannot be; the authorities are read
// once.
//
// A client may show a certificate and need not: reading takes none. One that no
// authority vouches for is refused by the handshake.
func (f TLSFiles) Config(logger *slog.Logger) (*tls.Config, error) {
	pair := &certPair{files: f, logger: logger}
	if err := pair.load(); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	c := &tls.Config{GetCertificate: pair.get, MinVersion: tls.VersionTLS12}
	if f.ClientCA != "" {
		certs, err := ReadCertificates(f.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("client certificates: %w", err)
		}
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
		for _, ca := range certs {
			c.ClientCAs.AddCert(ca)
		}
	}
	return c, nil
}

// certPair is the server's certificate.
type certPair struct {
	files  TLSFiles
	logger *slog.Logger

	mu      sync.Mutex
	cert    *tls.Certificate // guarded by mu
	stamp   string           // guarded by mu; of the files that cert was read from
	checked time.Time        // guarded by mu
}

func (p *certPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.checked) > certCheck {
		if err := p.load(); err != nil {
			p.logger.Error("the TLS certificate cannot be read; the one from before stays", "err", err)
		}
	}
	return p.cert, nil
}

// load reads the files if they have changed; p.mu is held, or p is new.
func (p *certPair) load() error {
	p.checked = time.Now()
	var stamp string
	for _, name := range []string{p.files.Cert, p.files.Key} {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		stamp += fmt.Sprint(info.ModTime().UnixNano(), " ", info.Size(), " ")
	}
	if stamp == p.stamp {
		return nil
	}
	cert, err := tls.LoadX509KeyPair(p.files.Cert, p.files.Key)
	if err != nil {
		return err // perhaps one of the two is new and the other not yet: looked at again
	}
	p.cert, p.stamp = &cert, stamp
	return nil
}

// ReadCertificates reads the certificates in a PEM file; at least one.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseCertificates(path, raw)
}

// handshakes is TLS for gRPC that tells of clients whose certificates were refused.
type handshakes struct {
	credentials.TransportCredentials
	log *Log
}

// ServerHandshake implements credentials.TransportCredentials.
func (h handshakes) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := h.TransportCredentials.ServerHandshake(conn)
	var refused *tls.CertificateVerificationError
	if errors.As(err, &refused) {
		h.log.refused(conn.RemoteAddr().String(), "", &refusal{reason: reasonHandshake, detail: refused.Error()})
	}
	return c, info, err
}

// Clone implements credentials.TransportCredentials.
func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{h.TransportCredentials.Clone(), h.log}
}

// webErrors is where net/http says what it has no caller for.
func (l *Log) webErrors() *log.Logger { return log.New(webErrors{l}, "", 0) }

type webErrors struct{ log *Log }

// Write implements io.Writer: one call is one line.
func (w webErrors) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if rest, ok := strings.CutPrefix(text, "http: TLS handshake error from "); ok && strings.Contains(rest, "failed to verify certificate") {
		from, why, _ := strings.Cut(rest, ": ")
		w.log.refused(from, "", &refusal{reason: reasonHandshake, detail: why})
		return len(line), nil
	}
	w.log.cfg.Logger.Log(context.Background(), slog.LevelDebug, "http server", "says", text)
	return len(line), nil
}
