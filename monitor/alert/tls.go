// TLS settings and error texts that both channels use.

package alert

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
)

func tlsConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
}

// unwrapURL drops the URL from an http client's error: its path may be a secret.
func unwrapURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}
