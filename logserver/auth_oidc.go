package logserver

// Workload tokens: JWTs that an OIDC issuer gives to a job in CI or cloud, so
// that nobody keeps a secret. A credential names issuer, audience, a pattern of
// the subject, and claims that must be equal.
//
// The issuer can make a token for every workload. Its keys are fetched over
// HTTPS, bounded in size and time, without redirects. While the issuer is away
// the keys that are known count for keysLimit; after that, and for keys that
// are not known, nothing can be checked: UNAVAILABLE, which is no verdict.

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// OIDCRule says which workload tokens show a credential.
type OIDCRule struct {
	Issuer   string            `json:"issuer"`           // exactly the token's iss
	Audience string            `json:"audience"`         // the token's only aud
	Subject  string            `json:"subject"`          // pattern of the whole sub, as matchName has it with : and / as separators
	Claims   map[string]string `json:"claims,omitempty"` // more claims and their exact values: repository_id
}

const (
	oidcSkew     = 30 * time.Second // that clocks may differ
	oidcMaxAge   = time.Hour        // of a token since its iat, whatever its exp
	maxJWT       = 12 << 10
	maxKeySet    = 256 << 10
	maxKeys      = 100
	fetchLimit   = 5 * time.Second
	fetchPause   = 10 * time.Second // between two tries to fetch an issuer's keys
	keysFresh    = 10 * time.Minute // keys are fetched anew after this
	keysLimit    = time.Hour        // keys count for so long when they cannot be
	minRSAKey    = 2048             // bits
	subjectParts = ":/"
)

// oidcAlgorithms are the accepted signature algorithms: no none, no shared secrets.
var oidcAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA}

// strangers are issuers from whom anybody can have a token, with the part of a
// subject that must be fixed, or the claims of which one must be.
var strangers = map[string]struct {
	subject *regexp.Regexp
	claims  []string
}{
	"https://token.actions.githubusercontent.com": {regexp.MustCompile(`^repo:[^*/:]+[/:]`), []string{"repository_id", "repository_owner_id", "repository", "repository_owner"}},
	"https://gitlab.com":                          {regexp.MustCompile(`^project_path:[^*/:]+/`), []string{"project_id", "namespace_id", "project_path", "namespace_path"}},
}

func (r *OIDCRule) check() error {
	if err := checkIssuer(r.Issuer); err != nil {
		return err
	}
	if r.Audience == "" || len(r.Audience) > 255 {
		return errors.New("oidc: audience: want 1 to 255 characters: the name that tokens for this log are asked for")
	}
	if err := checkPattern("oidc: subject", r.Subject); err != nil {
		return err
	}
	if len(r.Claims) > 16 {
		return errors.New("oidc: at most 16 claims")
	}
	for name, value := range r.Claims {
		if name == "" || value == "" || len(name)+len(value) > 512 {
			return fmt.Errorf("oidc: claim %q: want a name and a value", name)
		}
	}
	if s, open := strangers[r.Issuer]; open && !s.subject.MatchString(r.Subject) &&
		!slices.ContainsFunc(s.claims, func(c string) bool { return r.Claims[c] != "" }) {
		return fmt.Errorf("oidc: subject %q: anybody can have a token of this issuer: name the owner (no wildcard in its part), or one of the claims %s", r.Subject, strings.Join(s.claims, ", "))
	}
	return nil
}

// checkIssuer wants https, or http on this machine.
func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || len(issuer) > 255:
		return fmt.Errorf("oidc: issuer %q is not a plain URL", issuer)
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u):
		return nil
	}
	return fmt.Errorf("oidc: issuer %q: want https (http only on a loopback address)", issuer)
}

func isLoopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return ip != nil && ip.IsLoopback()
}

// sameRule reports whether a and b are shown by the same tokens or certificates.
func sameRule(a, b Credential) bool {
	switch {
	case a.OIDC != nil && b.OIDC != nil:
		return a.OIDC.Issuer == b.OIDC.Issuer && a.OIDC.Audience == b.OIDC.Audience && a.OIDC.Subject == b.OIDC.Subject && maps.Equal(a.OIDC.Claims, b.OIDC.Claims)
	case a.Cert != nil && b.Cert != nil:
		return *a.Cert == *b.Cert
	}
	return false
}

// cannotCheckError says that an issuer's keys cannot be had.
type cannotCheckError struct {
	issuer string
	err    error // for the operator
}

func (e *cannotCheckError) Error() string {
	return errCannotCheck.Error() + ": no current keys of issuer " + e.issuer + "; try again"
}
func (e *cannotCheckError) Is(target error) bool { return target == errCannotCheck }

// workload finds the credential of a workload token.
func (c *Credentials) workload(ctx context.Context, byID map[string]Credential, jwt string) (Credential, error) {
	issuer, err := claimedIssuer(jwt)
	if err != nil {
		return Credential{}, &refusal{reason: reasonMalformed}
	}
	var ofIssuer []Credential
	for _, t := range byID {
		if t.OIDC != nil && t.OIDC.Issuer == issuer {
			ofIssuer = append(ofIssuer, t)
		}
	}
	if len(ofIssuer) == 0 {
		return Credential{}, &refusal{reason: reasonIssuer} // nobody is asked on a stranger's behalf
	}
	keys := &verification{keys: c.oidc.of(issuer)}
	token, err := oidc.NewVerifier(issuer, keys, &oidc.Config{
		SupportedSigningAlgs: algorithmNames(),
		SkipClientIDCheck:    true, // claims.fits looks at it, and at the time, more strictly
		SkipExpiryCheck:      true,
	}).Verify(ctx, jwt)
	switch {
	case keys.err != nil:
		return Credential{}, keys.err
	case err != nil && !keys.asked:
		return Credential{}, &refusal{reason: reasonAlgorithm} // or no JWS at all
	case err != nil:
		return Credential{}, &refusal{reason: reasonMalformed}
	}
	claims, err := readClaims(token)
	if err != nil {
		return Credential{}, &refusal{reason: reasonMalformed}
	}
	// From here on the issuer has vouched for the subject: it may be logged.
	subject := fmt.Sprintf("subject %q", claims.subject)
	now := c.now()
	switch {
	case now.After(claims.expires.Add(oidcSkew)):
		return Credential{}, &refusal{reason: reasonExpired, detail: subject}
	case now.Add(oidcSkew).Before(claims.issued), now.Add(oidcSkew).Before(claims.notBefore):
		return Credential{}, &refusal{reason: reasonTime, detail: subject + " is not valid yet: compare the clocks"}
	case now.Sub(claims.issued) > oidcMaxAge+oidcSkew:
		return Credential{}, &refusal{reason: reasonTime, detail: subject + " has a token of more than an hour ago"}
	}
	ofIssuer = slices.DeleteFunc(ofIssuer, func(t Credential) bool { return !slices.Equal(claims.audience, []string{t.OIDC.Audience}) })
	if len(ofIssuer) == 0 {
		return Credential{}, &refusal{reason: reasonAudience, detail: fmt.Sprintf("%s, audience %q", subject, claims.audience)}
	}
	by, err := c.choose(slices.DeleteFunc(ofIssuer, func(t Credential) bool { return !claims.fit(t.OIDC) }), reasonSubject)
	var refused *refusal
	if errors.As(err, &refused) && refused.detail == "" {
		refused.detail = subject
	}
	by.until = claims.expires.Add(oidcSkew)
	if end := claims.issued.Add(oidcMaxAge + oidcSkew); end.Before(by.until) {
		by.until = end
	}
	return by, err
}

func algorithmNames() []string {
	names := make([]string, len(oidcAlgorithms))
	for i, a := range oidcAlgorithms {
		names[i] = string(a)
	}
	return names
}

// claimedIssuer is the iss of a JWT, unverified: it only says whose keys to try.
func claimedIssuer(jwt string) (string, error) {
	if len(jwt) > maxJWT {
		return "", errors.New("too long")
	}
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return "", errors.New("not three parts")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", err
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if err := json.Unmarshal(raw, &claims); err != nil {
		return "", err
	}
	return claims.Issuer, nil
}

// workloadClaims are what a verified token says.
type workloadClaims struct {
	subject                    string
	audience                   []string
	issued, expires, notBefore time.Time // notBefore may be zero
	all                        map[string]any
}

func readClaims(token *oidc.IDToken) (*workloadClaims, error) {
	var raw json.RawMessage
	if err := token.Claims(&raw); err != nil {
		return nil, err
	}
	c := &workloadClaims{subject: token.Subject, audience: token.Audience}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&c.all); err != nil {
		return nil, err
	}
	for name, to := range map[string]*time.Time{"iat": &c.issued, "exp": &c.expires, "nbf": &c.notBefore} {
		v, has := c.all[name]
		if !has && name == "nbf" {
			continue
		}
		n, ok := v.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s is not a number", name)
		}
		seconds, err := n.Float64()
		if err != nil || seconds < 0 || seconds > 1<<40 {
			return nil, fmt.Errorf("%s is no time", name)
		}
		*to = time.Unix(int64(seconds), 0)
	}
	if c.subject == "" || len(c.subject) > 1024 {
		return nil, errors.New("no subject")
	}
	return c, nil
}

// fit reports whether the workload is one of the rule's.
func (c *workloadClaims) fit(r *OIDCRule) bool {
	if !matchName(r.Subject, c.subject, subjectParts) {
		return false
	}
	for name, want := range r.Claims {
		switch v := c.all[name].(type) {
		case string:
			if v != want {
				return false
			}
		case json.Number:
			if v.String() != want {
				return false
			}
		case bool:
			if fmt.Sprint(v) != want {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// issuers are those whose tokens were presented, of those that credentials name.
type issuers struct {
	now    func() time.Time // for the age of keys
	client *http.Client
	ctx    context.Context // ends with the log
	end    context.CancelFunc

	mu  sync.Mutex
	all map[string]*issuer // guarded by mu
}

func newIssuers(now func() time.Time) *issuers {
	ctx, end := context.WithCancel(context.Background())
	return &issuers{now: now, ctx: ctx, end: end, all: map[string]*issuer{}, client: &http.Client{
		Timeout: fetchLimit,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("a redirect, which is not followed")
		},
	}}
}

func (i *issuers) of(name string) *issuer {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.all[name] == nil {
		i.all[name] = &issuer{name: name, of: i}
	}
	return i.all[name]
}

// issuer is an issuer and its keys.
type issuer struct {
	name string
	of   *issuers

	mu      sync.Mutex
	keys    map[string][]jose.JSONWebKey // guarded by mu; by key ID
	fetched time.Time                    // guarded by mu; when keys were
	tried   time.Time                    // guarded by mu; when fetching failed last; zero after a success
	why     error                        // guarded by mu; of that failure
	flight  chan struct{}                // guarded by mu; closed when the fetch under way has ended; nil without
}

// find returns the keys of an ID, or a *refusal if the issuer has none, or a
// *cannotCheckError.
func (i *issuer) find(ctx context.Context, id string) ([]jose.JSONWebKey, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for {
		now := i.of.now()
		age := now.Sub(i.fetched)
		known := i.keys != nil && age < keysLimit
		paused := i.why != nil && now.Sub(i.tried) < fetchPause
		keys := i.keys[id]
		switch {
		case known && len(keys) > 0:
			if age >= keysFresh && !paused {
				i.fetch() // for the next one
			}
			return keys, nil
		case known && age < fetchPause: // asked just now
			return nil, &refusal{reason: reasonKey}
		case paused:
			return nil, &cannotCheckError{i.name, i.why}
		}
		flight := i.fetch()
		i.mu.Unlock()
		var err error
		select {
		case <-flight:
		case <-ctx.Done():
			err = &cannotCheckError{i.name, ctx.Err()}
		}
		i.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
}

// fetch fetches the keys unless that is under way; i.mu is held.
func (i *issuer) fetch() (flight chan struct{}) {
	if i.flight != nil {
		return i.flight
	}
	flight = make(chan struct{})
	i.flight = flight
	go func() {
		ctx, cancel := context.WithTimeout(i.of.ctx, fetchLimit)
		defer cancel()
		keys, err := i.of.keySet(ctx, i.name)
		i.mu.Lock()
		defer i.mu.Unlock()
		now := i.of.now()
		if i.why = err; err != nil {
			i.tried = now
		} else {
			i.keys, i.fetched, i.tried = keys, now, time.Time{}
		}
		i.flight = nil
		close(flight)
	}()
	return flight
}

// keySet fetches an issuer's keys, by OpenID Connect Discovery 1.0.
func (i *issuers) keySet(ctx context.Context, issuer string) (map[string][]jose.JSONWebKey, error) {
	var found struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := i.get(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", &found); err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	if found.Issuer != issuer {
		return nil, fmt.Errorf("discovery: it is of the issuer %q", found.Issuer)
	}
	here, err := url.Parse(issuer)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(found.Keys)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && !(u.Scheme == "http" && here.Scheme == "http" && isLoopback(u)) {
		return nil, errors.New("discovery: jwks_uri is not an https URL")
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := i.get(ctx, u.String(), &set); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("keys: more than %d", maxKeys)
	}
	keys := map[string][]jose.JSONWebKey{}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := json.Unmarshal(raw, &k); err != nil || k.KeyID == "" || k.Use != "" && k.Use != "sig" || !goodKey(k.Key) {
			continue // of a type that we do not take: others may be good
		}
		keys[k.KeyID] = append(keys[k.KeyID], k)
	}
	if len(keys) == 0 {
		return nil, errors.New("keys: none that can be used")
	}
	return keys, nil
}

// goodKey takes public keys of the accepted algorithms.
func goodKey(key any) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSAKey
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}

func (i *issuers) get(ctx context.Context, from string, to any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	res, err := i.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", from, res.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxKeySet+1))
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if len(raw) > maxKeySet {
		return fmt.Errorf("%s: more than %d bytes", from, maxKeySet)
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("%s: not JSON", from)
	}
	return nil
}

// verification is the oidc.KeySet of one verification. It keeps its error, which
// the verifier only prints.
type verification struct {
	keys  *issuer
	asked bool
	err   error
}

// VerifySignature implements oidc.KeySet.
func (s *verification) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	s.asked = true
	payload, err := s.verify(ctx, jwt)
	s.err = err
	return payload, err
}

func (s *verification) verify(ctx context.Context, jwt string) ([]byte, error) {
	jws, err := jose.ParseSigned(jwt, oidcAlgorithms)
	if err != nil || len(jws.Signatures) != 1 {
		return nil, &refusal{reason: reasonAlgorithm}
	}
	head := jws.Signatures[0].Protected
	if head.KeyID == "" {
		return nil, &refusal{reason: reasonKey}
	}
	keys, err := s.keys.find(ctx, head.KeyID)
	if err != nil {
		return nil, err
	}
	fits := false
	for _, k := range keys {
		if k.Algorithm != "" && k.Algorithm != head.Algorithm || !keyTakes(k.Key, jose.SignatureAlgorithm(head.Algorithm)) {
			continue
		}
		fits = true
		if payload, err := jws.Verify(k.Key); err == nil {
			return payload, nil
		}
	}
	if !fits {
		return nil, &refusal{reason: reasonAlgorithm}
	}
	return nil, &refusal{reason: reasonSignature}
}

// keyTakes reports whether a key of this type makes signatures of this algorithm.
func keyTakes(key any, alg jose.SignatureAlgorithm) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return alg == jose.RS256 || alg == jose.PS256
	case *ecdsa.PublicKey:
		return alg == jose.ES256 && k.Curve.Params().BitSize == 256
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}
