package main

// TLS by files: the certificate is read again when its files change, or on
// SIGHUP, without a restart; connections that are open stay as they are.

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/internal/cli"
)

const (
	certCheck = time.Second // how often the files are looked at, at most
	maxPEM    = 1 << 20
)

// A certificate is a pair of PEM files.
type certificate struct {
	cert, key string
	journal   *slog.Logger

	mu      sync.Mutex
	pair    *tls.Certificate // guarded by mu
	stamp   string           // guarded by mu; of the files that pair was read from
	checked time.Time        // guarded by mu
}

// openCertificate reads the pair; nil if there is to be no TLS.
func openCertificate(cert, key string, journal *slog.Logger) (*certificate, error) {
	if cert == "" && key == "" {
		return nil, nil
	}
	if cert == "" || key == "" {
		return nil, cli.Usagef("--tls-cert and --tls-key go together")
	}
	c := &certificate{cert: cert, key: key, journal: journal}
	if _, err := c.load(); err != nil {
		return nil, cli.Exit(cli.Refused, fmt.Errorf("TLS: %w", err))
	}
	return c, nil
}

// config is TLS 1.2 or later, with HTTP/2 (net/http adds that).
func (c *certificate) config() *tls.Config {
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) > certCheck {
		c.renew()
	}
	return c.pair, nil
}

// reload is what SIGHUP does. There may be no certificate.
func (c *certificate) reload() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renew()
}

// renew loads what has changed, and tells; c.mu is held.
func (c *certificate) renew() {
	switch changed, err := c.load(); {
	case err != nil:
		c.journal.Error("the TLS certificate cannot be read; the one from before stays", "error", err)
	case changed:
		c.journal.Info("the TLS certificate was read again", "until", c.pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
}

// load reads the files if they are not those of c.pair; c.mu is held, or c is new.
func (c *certificate) load() (changed bool, err error) {
	c.checked = time.Now()
	var stamp strings.Builder
	for _, name := range []string{c.cert, c.key} {
		if strings.HasPrefix(name, "credential:") {
			continue // the service manager does not change it while we run
		}
		info, err := os.Stat(name)
		if err != nil {
			return false, err
		}
		fmt.Fprint(&stamp, info.ModTime().UnixNano(), " ", info.Size(), " ", info.Mode(), " ")
	}
	if c.pair != nil && stamp.String() == c.stamp {
		return false, nil
	}
	cert, err := os.ReadFile(c.cert)
	if err != nil {
		return false, err
	}
	// A link is followed, as certbot makes them: this is the key of the
	// connection, and signs nothing that anybody keeps.
	path := c.key
	if !strings.HasPrefix(path, "credential:") {
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return false, err
		}
	}
	key, err := cli.ReadPrivate(path, maxPEM)
	if err != nil {
		return false, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil { // perhaps one of the two is new and the other not yet: looked at again
		return false, fmt.Errorf("%s and %s: %w", c.cert, c.key, err)
	}
	if pair.Leaf == nil {
		return false, errors.New(c.cert + " holds no certificate")
	}
	c.pair, c.stamp = &pair, stamp.String()
	return true, nil
}
