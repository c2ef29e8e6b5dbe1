package logserver

// Client certificates (mTLS). The handshake verifies a chain to --client-ca;
// a credential then names the certificate itself, or the authority that must
// be in the chain and the name that it must have vouched for.
//
// Who holds the authority's key can make certificates for every name, and so
// use every credential that is bound to that authority.

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// CertRule says which client certificates show a credential: one by its
// fingerprint, or those of an authority with a name.
type CertRule struct {
	SHA256 string `json:"sha256,omitempty"` // of the certificate (DER), hex
	CA     string `json:"ca,omitempty"`     // SHA-256 of the authority's certificate (DER), hex
	Name   string `json:"name,omitempty"`   // pattern: dns:HOST, uri:URI or subject:CN=…, as matchName has it
}

// Kinds of names in a certificate, and what separates their parts.
var certNames = map[string]string{"dns": ".", "uri": ":/", "subject": ","}

func (r *CertRule) check() error {
	if r.SHA256 != "" {
		if r.CA != "" || r.Name != "" {
			return errors.New("certificate: want its fingerprint alone, or an authority and a name")
		}
		if !isDigest(r.SHA256) {
			return errors.New("certificate: sha256 is not a SHA-256 in lower-case hex")
		}
		return nil
	}
	if !isDigest(r.CA) {
		return errors.New("certificate: ca is not a SHA-256 in lower-case hex")
	}
	kind, pattern, _ := strings.Cut(r.Name, ":")
	if _, known := certNames[kind]; !known {
		return fmt.Errorf("certificate: name %q: want dns:HOST, uri:URI or subject:NAME", r.Name)
	}
	if kind == "dns" && strings.HasPrefix(pattern, "*.") && !strings.HasPrefix(pattern, "*.*") {
		pattern = pattern[2:] // *.uploads.example is one label under a fixed domain
	}
	return checkPattern("certificate: name", pattern)
}

// fits reports whether one of the chains shows the rule's credential.
func (r *CertRule) fits(chains [][]*x509.Certificate) bool {
	return slices.ContainsFunc(chains, func(chain []*x509.Certificate) bool {
		if len(chain) == 0 {
			return false
		}
		if r.SHA256 != "" {
			return Fingerprint(chain[0]) == r.SHA256
		}
		// The authority is one that vouches for the leaf, not the leaf itself.
		if !slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool { return Fingerprint(c) == r.CA }) {
			return false
		}
		kind, pattern, _ := strings.Cut(r.Name, ":")
		return slices.ContainsFunc(namesOf(chain[0], kind), func(name string) bool {
			return matchName(pattern, name, certNames[kind])
		})
	})
}

// namesOf are a certificate's names of a kind. Common names do not count as
// DNS names.
func namesOf(c *x509.Certificate, kind string) []string {
	switch kind {
	case "dns":
		names := slices.Clone(c.DNSNames)
		for i := range names {
			names[i] = strings.ToLower(names[i])
		}
		return slices.DeleteFunc(names, func(n string) bool { return strings.Contains(n, "*") })
	case "uri":
		names := make([]string, 0, len(c.URIs))
		for _, u := range c.URIs {
			names = append(names, (*url.URL)(u).String())
		}
		return names
	case "subject":
		return []string{c.Subject.String()}
	}
	return nil
}

// Fingerprint is the SHA-256 of a certificate (DER) in lower-case hex.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// certificate finds the credential of a client certificate. The handshake has
// verified the chains, perhaps long ago: the time is looked at again.
func (c *Credentials) certificate(byID map[string]Credential, chains [][]*x509.Certificate) (Credential, error) {
	leaf := chains[0][0]
	if now := c.now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return Credential{}, &refusal{reason: reasonExpired, detail: "client certificate " + Fingerprint(leaf)}
	}
	var fits []Credential
	for _, t := range byID {
		if t.Cert != nil && t.Cert.fits(chains) {
			fits = append(fits, t)
		}
	}
	by, err := c.choose(fits, reasonCertificate)
	var none *refusal
	if errors.As(err, &none) && none.reason == reasonCertificate {
		none.detail = "client certificate " + Fingerprint(leaf)
	}
	by.until = leaf.NotAfter
	return by, err
}

// parseCertificates reads a PEM file of certificates and nothing else.
func parseCertificates(path string, raw []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(raw) > 0 {
		block, rest := pem.Decode(raw)
		if block == nil {
			break
		}
		raw = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s: it holds a %s: want certificates only", path, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s: no certificate in it (PEM)", path)
	}
	return certs, nil
}
