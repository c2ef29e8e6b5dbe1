package witness

// Being reached through a bastion (c2sp.org/https-bastion): the witness opens
// the connection, from behind NAT or a firewall, and serves HTTP/2 on it.
//
// A bastion can see, block and change what passes. What passes is signed by the
// log one way and by the witness the other, so a bad one can do no more than be
// silent.

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/net/http2"
)

// A Bastion is where a witness is to be reached.
type Bastion struct {
	Address string             // host:port of its backend endpoint
	Key     ed25519.PrivateKey // the backend key, and nothing else's: see c2sp.org/https-bastion, Appendix A
	Roots   *x509.CertPool     // nil: the system's
	Logger  *slog.Logger       // nil: nothing is logged

	// pauses between attempts; tests shorten them.
	minPause, maxPause time.Duration
}

// BastionPath is the first part of the path under which a bastion offers the
// backend with this key: the SHA-256 of the public key in lower-case hex.
func BastionPath(key ed25519.PublicKey) string {
	h := sha256.Sum256(key)
	return hex.EncodeToString(h[:])
}

// bastionALPN is the protocol of a backend's connection.
const bastionALPN = "bastion/0"

// Run keeps one connection to the bastion and serves h on it until ctx ends. A
// connection that fails is made again, after a pause that grows to a minute.
func (b Bastion) Run(ctx context.Context, h http.Handler) {
	logger := b.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	least, most := b.minPause, b.maxPause
	if most == 0 {
		least, most = time.Second, time.Minute
	}
	for pause := least; ; {
		start := time.Now()
		err := b.serve(ctx, h, logger)
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > most {
			pause = least // it worked for a while
		}
		logger.Warn("no connection to the bastion; trying again", "bastion", b.Address, "in", pause, "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, most)
	}
}

// serve makes one connection and serves it until it ends.
func (b Bastion) serve(ctx context.Context, h http.Handler, logger *slog.Logger) error {
	cert, err := selfSigned(b.Key)
	if err != nil {
		return err
	}
	dialing, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: b.Roots, NextProtos: []string{bastionALPN},
		MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS13, // no other hides the client certificate
	}}
	conn, err := dialer.DialContext(dialing, "tcp", b.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if p := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; p != bastionALPN {
		return fmt.Errorf("it speaks %q, not %s", p, bastionALPN)
	}
	logger.Info("connected to the bastion", "bastion", b.Address, "path", BastionPath(b.Key.Public().(ed25519.PublicKey)))
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	base := NewServer(nil)
	(&http2.Server{MaxConcurrentStreams: 250, ReadIdleTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}).ServeConn(conn, &http2.ServeConnOpts{
		Context: ctx, BaseConfig: base, Handler: forwarded(h),
	})
	return errors.New("the connection ended")
}

// forwarded gives requests the address of their client, which the bastion says
// in the one X-Forwarded-For that it leaves there.
func forwarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if from := r.Header.Values("X-Forwarded-For"); len(from) == 1 {
			if a, err := netip.ParseAddr(from[0]); err == nil {
				r.RemoteAddr = net.JoinHostPort(a.String(), "0")
			}
		}
		h.ServeHTTP(rw, r)
	})
}

// selfSigned is a certificate that says nothing but the key. Its Ed25519
// signature is over a DER structure, which no other use of a key begins like.
func selfSigned(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "portbook-witness"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour * 365),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("bastion: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
