package logserver

// Workload tokens, by an issuer that lies in every way it can, over REST as the
// caller sees it; and what the operator's log says of each.

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/portbook/portbook/entry"
)

// testKeys are made once: RSA keys are slow to make.
var testKeys = sync.OnceValue(func() (keys struct {
	rsa, other *rsa.PrivateKey
	small      *rsa.PrivateKey
	ec         *ecdsa.PrivateKey
	ed         ed25519.PrivateKey
}) {
	var errs [5]error
	keys.rsa, errs[0] = rsa.GenerateKey(rand.Reader, 2048)
	keys.other, errs[1] = rsa.GenerateKey(rand.Reader, 2048)
	keys.small, errs[2] = rsa.GenerateKey(rand.Reader, 1024)
	keys.ec, errs[3] = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, keys.ed, errs[4] = ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(errs[:]...); err != nil {
		panic(err)
	}
	return keys
})

// fakeIssuer is an OIDC issuer that can lie.
type fakeIssuer struct {
	t       testing.TB
	server  *httptest.Server
	fetches atomic.Int64 // of keys

	mu        sync.Mutex
	keys      []jose.JSONWebKey // guarded by mu
	discovery http.HandlerFunc  // guarded by mu; answers instead
	jwks      http.HandlerFunc  // guarded by mu; answers instead
}

func newFakeIssuer(t testing.TB) *fakeIssuer {
	k := testKeys()
	f := &fakeIssuer{t: t, keys: []jose.JSONWebKey{
		{Key: k.rsa.Public(), KeyID: "rsa", Algorithm: "RS256", Use: "sig"},
		{Key: k.ec.Public(), KeyID: "ec"},
		{Key: k.ed.Public(), KeyID: "ed"},
		{Key: k.small.Public(), KeyID: "small"},
		{Key: k.rsa.Public(), KeyID: "for-encryption", Use: "enc"},
		{Key: []byte("a shared secret in a public place"), KeyID: "oct"},
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		lie := f.discovery
		f.mu.Unlock()
		if lie != nil {
			lie(w, r)
			return
		}
		json.NewEncoder(w).Encode(map[string]string{"issuer": f.server.URL, "jwks_uri": f.server.URL + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, r *http.Request) {
		f.fetches.Add(1)
		f.mu.Lock()
		lie, keys := f.jwks, f.keys
		f.mu.Unlock()
		if lie != nil {
			lie(w, r)
			return
		}
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: keys})
	})
	f.server = httptest.NewServer(mux)
	t.Cleanup(f.server.Close)
	return f
}

// lie replaces the answers; nil brings one back.
func (f *fakeIssuer) lie(discovery, jwks http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.discovery, f.jwks = discovery, jwks
}

// rotate replaces all keys by one.
func (f *fakeIssuer) rotate(id string, key crypto.PublicKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = []jose.JSONWebKey{{Key: key, KeyID: id}}
}

// claims are good ones, changed by pairs of name and value; a nil value takes
// the claim away.
func (f *fakeIssuer) claims(change ...any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": f.server.URL, "aud": "log.example", "sub": "repo:org/project:ref:refs/heads/main", "repository_id": "1234", "run": 7, "private": true,
		"iat": now - 10, "nbf": now - 10, "exp": now + 300,
	}
	for i := 0; i < len(change); i += 2 {
		c[change[i].(string)] = change[i+1]
		if change[i+1] == nil {
			delete(c, change[i].(string))
		}
	}
	return c
}

// sign makes a JWT.
func (f *fakeIssuer) sign(alg jose.SignatureAlgorithm, id string, key any, claims map[string]any) string {
	f.t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT")
	if id != "" {
		opts = opts.WithHeader("kid", id)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		f.t.Fatal(err)
	}
	raw, err := json.Marshal(claims)
	if err != nil {
		f.t.Fatal(err)
	}
	jws, err := signer.Sign(raw)
	if err != nil {
		f.t.Fatal(err)
	}
	jwt, err := jws.CompactSerialize()
	if err != nil {
		f.t.Fatal(err)
	}
	return jwt
}

func (f *fakeIssuer) good(change ...any) string {
	return f.sign(jose.RS256, "rsa", testKeys().rsa, f.claims(change...))
}

func (f *fakeIssuer) rule() *OIDCRule {
	return &OIDCRule{Issuer: f.server.URL, Audience: "log.example", Subject: "repo:org/project:ref:refs/heads/*", Claims: map[string]string{"repository_id": "1234"}}
}

// unsigned makes a JWT without a signature, or with one of a shared secret.
func unsigned(header map[string]any, claims map[string]any, signature []byte) string {
	h, _ := json.Marshal(header)
	c, _ := json.Marshal(claims)
	e := base64.RawURLEncoding.EncodeToString
	return e(h) + "." + e(c) + "." + e(signature)
}

// operatorLog keeps what the log says to its operator.
type operatorLog struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (o *operatorLog) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// take returns what was said since the last time.
func (o *operatorLog) take() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.buf.Reset()
	return o.buf.String()
}

func (o *operatorLog) config(c *Config) { c.Logger = slog.New(slog.NewTextHandler(o, nil)) }

// hasPartOf reports a part of a secret in text: any 12 characters of it.
func hasPartOf(text, secret string) string {
	for i := 0; i+12 <= len(secret); i++ {
		if strings.Contains(text, secret[i:i+12]) {
			return secret[i : i+12]
		}
	}
	return ""
}

func TestWorkloadToken(t *testing.T) {
	var said operatorLog
	s := newRig(t, 1, 1).serve(said.config)
	f := newFakeIssuer(t)
	k := testKeys()
	by, secret, err := s.log.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}, OIDC: f.rule()})
	if err != nil || secret != "" {
		t.Fatal(err, secret)
	}
	n := 0
	submit := func(jwt string) (int, map[string]any, http.Header) {
		n++
		code, h, out := s.rest("POST", "/v1/entries", jwt, restEntry(nth(n)))
		return code, out, h
	}
	now := time.Now().Unix()
	for name, jwt := range map[string]string{
		"RS256":                      f.good(),
		"ES256":                      f.sign(jose.ES256, "ec", k.ec, f.claims()),
		"EdDSA":                      f.sign(jose.EdDSA, "ed", k.ed, f.claims()),
		"another branch":             f.good("sub", "repo:org/project:ref:refs/heads/v1.x-y"),
		"audience in an array":       f.good("aud", []string{"log.example"}),
		"no nbf":                     f.good("nbf", nil),
		"clock 20 s ahead":           f.good("iat", now+20, "nbf", now+20),
		"expired 20 s ago, by skew":  f.good("exp", now-20),
		"times with a fraction":      f.good("exp", float64(now)+300.5),
		"claims that nobody asks of": f.good("unknown", map[string]any{"a": 1}),
	} {
		t.Run("accepted/"+name, func(t *testing.T) {
			if code, out, _ := submit(jwt); code != 200 {
				t.Errorf("%d %v\n%s", code, out, said.take())
			}
		})
	}
	if err := s.overGRPC(f.good(), nth(9000)); err != nil {
		t.Errorf("over gRPC: %v", err)
	}
	public, err := x509.MarshalPKIXPublicKey(k.rsa.Public())
	if err != nil {
		t.Fatal(err)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	good := f.good()
	cut := strings.LastIndex(good, ".")
	flipped := []byte(good)
	if flipped[cut+20]++; !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", rune(flipped[cut+20])) {
		flipped[cut+20] = 'A'
	}
	other := newFakeIssuer(t)
	header := func(alg, id string) map[string]any { return map[string]any{"alg": alg, "kid": id, "typ": "JWT"} }
	for _, row := range []struct{ name, jwt, reason string }{
		{"another audience", f.good("aud", "sigstore"), reasonAudience},
		{"several audiences", f.good("aud", []string{"log.example", "sigstore"}), reasonAudience},
		{"no audience", f.good("aud", nil), reasonAudience},
		{"audience that begins with ours", f.good("aud", "log.example.evil"), reasonAudience},
		{"an issuer that no credential names", other.good(), reasonIssuer},
		{"another issuer's token that says it is ours", other.sign(jose.RS256, "rsa", k.other, f.claims()), reasonSignature},
		{"our issuer's token that says it is of another", f.good("iss", "https://issuer.example"), reasonIssuer},
		{"no issuer", f.good("iss", nil), reasonIssuer},
		{"alg none", unsigned(header("none", "rsa"), f.claims(), nil), reasonAlgorithm},
		{"alg None", unsigned(header("None", "rsa"), f.claims(), nil), reasonAlgorithm},
		{"no alg", unsigned(map[string]any{"kid": "rsa"}, f.claims(), nil), reasonAlgorithm},
		{"RS256 without a signature", unsigned(header("RS256", "rsa"), f.claims(), nil), reasonSignature},
		{"HS256 with the public key (DER) as secret", f.sign(jose.HS256, "rsa", public, f.claims()), reasonAlgorithm},
		{"HS256 with the public key (PEM) as secret", f.sign(jose.HS256, "rsa", pemKey, f.claims()), reasonAlgorithm},
		{"HS256 with the issuer's published secret", f.sign(jose.HS256, "oct", []byte("a shared secret in a public place"), f.claims()), reasonAlgorithm},
		{"RS384", f.sign(jose.RS384, "rsa", k.rsa, f.claims()), reasonAlgorithm},
		{"PS256 by a key that says RS256", f.sign(jose.PS256, "rsa", k.rsa, f.claims()), reasonAlgorithm},
		{"ES256 by the ID of an RSA key", f.sign(jose.ES256, "rsa", k.ec, f.claims()), reasonAlgorithm},
		{"signed by another key", f.sign(jose.RS256, "rsa", k.other, f.claims()), reasonSignature},
		{"one letter of the signature", string(flipped), reasonSignature},
		{"other claims under a good signature", strings.Replace(good, strings.Split(good, ".")[1], strings.Split(f.good("sub", "repo:org/other:x"), ".")[1], 1), reasonSignature},
		{"no key ID", f.sign(jose.RS256, "", k.rsa, f.claims()), reasonKey},
		{"an RSA key of 1024 bits", f.sign(jose.RS256, "small", k.small, f.claims()), reasonKey},
		{"a key that is for encryption", f.sign(jose.RS256, "for-encryption", k.rsa, f.claims()), reasonKey},
		{"unknown key ID", f.sign(jose.RS256, "nobody", k.rsa, f.claims()), reasonKey},
		{"a key in the token's own header", func() string {
			signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: k.other}, (&jose.SignerOptions{EmbedJWK: true}).WithHeader("kid", "rsa"))
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := json.Marshal(f.claims())
			jws, err := signer.Sign(raw)
			if err != nil {
				t.Fatal(err)
			}
			out, _ := jws.CompactSerialize()
			return out
		}(), reasonSignature}, // it is not looked at
		{"expired", f.good("exp", now-60), reasonExpired},
		{"not valid yet", f.good("nbf", now+60), reasonTime},
		{"made in the future", f.good("iat", now+60, "nbf", nil), reasonTime},
		{"good for a year, made two hours ago", f.good("iat", now-7200, "nbf", nil, "exp", now+31_000_000), reasonTime},
		{"never expires", f.good("exp", nil), reasonMalformed},
		{"expires at a text", f.good("exp", "tomorrow"), reasonMalformed},
		{"no iat", f.good("iat", nil), reasonMalformed},
		{"a time beyond all", f.good("exp", 1e300), reasonMalformed},
		{"no subject", f.good("sub", nil), reasonMalformed},
		{"another project", f.good("sub", "repo:org/other:ref:refs/heads/main"), reasonSubject},
		{"the pattern in the middle of the subject", f.good("sub", "repo:evil/x:repo:org/project:ref:refs/heads/main"), reasonSubject},
		{"the pattern and more behind it", f.good("sub", "repo:org/project:ref:refs/heads/main:environment:x"), reasonSubject},
		{"the pattern before a slash", f.good("sub", "repo:org/project:ref:refs/heads/main/evil"), reasonSubject},
		{"the pattern after a line end", f.good("sub", "x\nrepo:org/project:ref:refs/heads/main"), reasonSubject},
		{"the subject in capitals", f.good("sub", "REPO:ORG/PROJECT:REF:REFS/HEADS/MAIN"), reasonSubject},
		{"another repository's ID", f.good("repository_id", "12345"), reasonSubject},
		{"no repository ID", f.good("repository_id", nil), reasonSubject},
		{"a list of repository IDs", f.good("repository_id", []string{"1234"}), reasonSubject},
		{"not a JWT", "a.b.c", reasonMalformed},
		{"three empty parts", "..", reasonMalformed},
		{"a very long token", f.good("filling", strings.Repeat("x", maxJWT)), reasonMalformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			said.take()
			before := s.log.Refusals()[row.reason]
			code, out, h := submit(row.jwt)
			if code != 401 || out["reason"] != "UNAUTHENTICATED" || h.Get("WWW-Authenticate") == "" {
				t.Errorf("%d %v", code, out)
			}
			text := said.take()
			if !strings.Contains(text, "msg=refused reason="+row.reason+" peer=127.0.0.1:") {
				t.Errorf("want reason %s in the log, have %s", row.reason, text)
			}
			if got := s.log.Refusals()[row.reason]; got != before+1 {
				t.Errorf("counted %d, want %d", got, before+1)
			}
			parts := strings.Split(row.jwt, ".")
			for _, part := range parts { // header, claims and signature as they were sent
				if has := hasPartOf(text, part); has != "" {
					t.Errorf("the log has a part of the token, %q: %s", has, text)
				}
			}
		})
	}
	if got := f.fetches.Load(); got != 1 {
		t.Errorf("the keys were fetched %d times, want once", got)
	}
	if got := other.fetches.Load(); got != 0 {
		t.Errorf("an issuer that no credential names was asked %d times", got)
	}
	if code, _, _ := submit(f.good()); code != 200 {
		t.Error("a good token is refused afterwards")
	}
	if err := s.log.Tokens.Revoke(by.ID); err != nil {
		t.Fatal(err)
	}
	said.take()
	if code, out, _ := submit(f.good()); code != 401 || !strings.Contains(said.take(), "reason=revoked") {
		t.Errorf("revoked: %d %v", code, out)
	}
}

// TestIssuerAway: keys that are known count for an hour; what cannot be checked
// is UNAVAILABLE and never a verdict.
func TestIssuerAway(t *testing.T) {
	k := testKeys()
	setup := func(t *testing.T) (*fakeIssuer, *Credentials, *atomic.Int64, func(jwt string) string) {
		var ahead atomic.Int64
		f := newFakeIssuer(t)
		creds, err := OpenTokens(filepath.Join(t.TempDir(), "tokens.json"), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		creds.oidc.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		t.Cleanup(creds.oidc.end)
		if _, _, err := creds.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}, OIDC: f.rule()}); err != nil {
			t.Fatal(err)
		}
		return f, creds, &ahead, func(jwt string) string {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := creds.authenticate(ctx, presented{bearer: jwt, scheme: true})
			var r *refusal
			switch {
			case err == nil:
				return "ok"
			case errors.As(err, &r):
				return r.reason
			case errors.Is(err, errCannotCheck):
				return reasonCannotCheck
			}
			return err.Error()
		}
	}
	want := func(t *testing.T, got, want, when string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	down := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", 503) }

	t.Run("cached keys count for a time", func(t *testing.T) {
		f, _, ahead, try := setup(t)
		want(t, try(f.good()), "ok", "at first")
		f.lie(down, down)
		want(t, try(f.good()), "ok", "issuer down")
		want(t, try(f.sign(jose.RS256, "new", k.other, f.claims())), reasonKey, "an unknown key, asked for just before")
		ahead.Store(int64(fetchPause + time.Second))
		want(t, try(f.sign(jose.RS256, "new", k.other, f.claims())), reasonCannotCheck, "an unknown key while the issuer is down")
		ahead.Store(int64(keysFresh + time.Minute))
		want(t, try(f.good()), "ok", "stale keys")
		ahead.Store(int64(keysLimit - time.Second))
		want(t, try(f.good()), "ok", "just before the limit")
		ahead.Store(int64(keysLimit + time.Second))
		want(t, try(f.good()), reasonCannotCheck, "after the limit")
		f.lie(nil, nil)
		want(t, try(f.good()), reasonCannotCheck, "up again, within the pause")
		ahead.Store(int64(keysLimit + 2*fetchPause))
		want(t, try(f.good()), "ok", "up again")
	})
	t.Run("a new key is fetched, an old one forgotten", func(t *testing.T) {
		f, _, ahead, try := setup(t)
		want(t, try(f.good()), "ok", "at first")
		f.rotate("new", k.other.Public())
		ahead.Store(int64(fetchPause + time.Second))
		want(t, try(f.sign(jose.RS256, "new", k.other, f.claims())), "ok", "the new key")
		want(t, try(f.good()), reasonKey, "the old key")
	})
	t.Run("a stale set is fetched anew in the background", func(t *testing.T) {
		f, _, ahead, try := setup(t)
		want(t, try(f.good()), "ok", "at first")
		f.rotate("new", k.other.Public())
		ahead.Store(int64(keysFresh + time.Second))
		want(t, try(f.good()), "ok", "the old key, once more")
		waitFor(t, "the new keys", func() bool { return f.fetches.Load() == 2 })
		waitFor(t, "the old key to be refused", func() bool { return try(f.good()) == reasonKey })
	})
	t.Run("unknown keys do not make it ask again and again", func(t *testing.T) {
		f, _, _, try := setup(t)
		for range 50 {
			want(t, try(f.sign(jose.EdDSA, "nobody", k.ed, f.claims())), reasonKey, "an unknown key")
		}
		if n := f.fetches.Load(); n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
	huge := func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"keys":["`))
		for range 1024 {
			if _, err := w.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
				return
			}
		}
	}
	for name, lie := range map[string]struct {
		discovery, keys func(*fakeIssuer) http.HandlerFunc
	}{
		"down":           {keys: func(*fakeIssuer) http.HandlerFunc { return down }},
		"a huge key set": {keys: func(*fakeIssuer) http.HandlerFunc { return huge }},
		"huge discovery": {discovery: func(*fakeIssuer) http.HandlerFunc { return huge }},
		"not JSON": {keys: func(*fakeIssuer) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }
		}},
		"no keys": {keys: func(*fakeIssuer) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"keys":[]}`) }
		}},
		"too many keys": {keys: func(*fakeIssuer) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `{"keys":[%s{}]}`, strings.Repeat("{},", maxKeys))
			}
		}},
		"a redirect to the inside of our network": {keys: func(*fakeIssuer) http.HandlerFunc { return redirect(t) }},
		"discovery redirects":                     {discovery: func(*fakeIssuer) http.HandlerFunc { return redirect(t) }},
		"discovery of another issuer": {discovery: func(f *fakeIssuer) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				json.NewEncoder(w).Encode(map[string]string{"issuer": "https://issuer.example", "jwks_uri": f.server.URL + "/keys"})
			}
		}},
		"keys at a plain http address elsewhere": {discovery: func(f *fakeIssuer) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				json.NewEncoder(w).Encode(map[string]string{"issuer": f.server.URL, "jwks_uri": "http://keys.example/"})
			}
		}},
		"keys in a file": {discovery: func(f *fakeIssuer) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				json.NewEncoder(w).Encode(map[string]string{"issuer": f.server.URL, "jwks_uri": "file:///etc/passwd"})
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f, _, _, try := setup(t)
			var discovery, keys http.HandlerFunc
			if lie.discovery != nil {
				discovery = lie.discovery(f)
			}
			if lie.keys != nil {
				keys = lie.keys(f)
			}
			f.lie(discovery, keys)
			want(t, try(f.good()), reasonCannotCheck, "no keys yet")
		})
	}
	t.Run("an issuer that never answers", func(t *testing.T) {
		f, creds, _, _ := setup(t)
		release := make(chan struct{})
		defer close(release)
		f.lie(nil, func(http.ResponseWriter, *http.Request) { <-release })
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := creds.authenticate(ctx, presented{bearer: f.good(), scheme: true})
		if !errors.Is(err, errCannotCheck) || time.Since(start) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		// The caller's time is over, the fetch's is not: it ends by its own limit.
		start = time.Now()
		if _, err := creds.authenticate(t.Context(), presented{bearer: f.good(), scheme: true}); !errors.Is(err, errCannotCheck) || time.Since(start) > fetchLimit+2*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// redirect answers with a redirect to a server that must not be asked.
func redirect(t testing.TB) http.HandlerFunc {
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	t.Cleanup(inside.Close)
	return func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inside.URL, http.StatusTemporaryRedirect)
	}
}

// TestIssuerAwayOverTheAPI: the caller is told to come again, not that it is refused.
func TestIssuerAwayOverTheAPI(t *testing.T) {
	var said operatorLog
	s := newRig(t, 1, 1).serve(said.config)
	f := newFakeIssuer(t)
	if _, _, err := s.log.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}, OIDC: f.rule()}); err != nil {
		t.Fatal(err)
	}
	f.server.Close()
	code, h, out := s.rest("POST", "/v1/entries", f.good(), restEntry(nth(1)))
	if code != 503 || h.Get("Retry-After") == "" || out["reason"] != "CANNOT_CHECK" {
		t.Errorf("%d %v %v", code, h, out)
	}
	if text := said.take(); !strings.Contains(text, "reason=cannot_check") {
		t.Errorf("the operator's log: %s", text)
	}
}

func TestAmbiguousWorkload(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	f := newFakeIssuer(t)
	mk := func(rule *OIDCRule) (Credential, error) {
		c, _, err := s.log.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}, OIDC: rule})
		return c, err
	}
	if _, err := mk(f.rule()); err != nil {
		t.Fatal(err)
	}
	if _, err := mk(f.rule()); err == nil {
		t.Error("two credentials with one rule")
	}
	wider := f.rule()
	wider.Subject = "repo:org/*:ref:refs/heads/*"
	c, err := mk(wider)
	if err != nil {
		t.Fatal(err)
	}
	code, _, out := s.rest("POST", "/v1/entries", f.good(), restEntry(nth(1)))
	if code != 401 || s.log.Refusals()[reasonAmbiguous] != 1 {
		t.Errorf("%d %v", code, out)
	}
	if err := s.log.Tokens.Revoke(c.ID); err != nil {
		t.Fatal(err)
	}
	if code, _, out := s.rest("POST", "/v1/entries", f.good(), restEntry(nth(1))); code != 200 {
		t.Errorf("one of the two revoked: %d %v", code, out)
	}
}

func TestRulesThatSayTooLittle(t *testing.T) {
	const github, digest = "https://token.actions.githubusercontent.com", "00000000000000000000000000000000000000000000000000000000000000ff"
	oidc := func(issuer, audience, subject string, claims ...string) error {
		r := OIDCRule{Issuer: issuer, Audience: audience, Subject: subject, Claims: map[string]string{}}
		for i := 0; i < len(claims); i += 2 {
			r.Claims[claims[i]] = claims[i+1]
		}
		return r.check()
	}
	cert := func(sha, ca, name string) error { return (&CertRule{SHA256: sha, CA: ca, Name: name}).check() }
	for _, row := range []struct {
		name string
		err  error
		ok   bool
	}{
		{"one repository", oidc(github, "a", "repo:org/x:ref:refs/heads/main"), true},
		{"one owner", oidc(github, "a", "repo:org/*:environment:release"), true},
		{"any owner", oidc(github, "a", "repo:*/x:ref:refs/heads/main"), false},
		{"owners that begin with", oidc(github, "a", "repo:org*/x:ref:refs/heads/main"), false},
		{"anything of GitHub", oidc(github, "a", "repo:**"), false},
		{"anything of GitHub with one owner's ID", oidc(github, "a", "repo:**", "repository_owner_id", "7"), true},
		{"anything of GitHub with a claim that anybody can have", oidc(github, "a", "repo:**", "ref", "refs/heads/main"), false},
		{"any group of GitLab", oidc("https://gitlab.com", "a", "project_path:*/x:ref_type:branch:ref:main"), false},
		{"a group of GitLab", oidc("https://gitlab.com", "a", "project_path:g/x:ref_type:branch:ref:main"), true},
		{"a wildcard first", oidc("https://issuer.example", "a", "*"), false},
		{"no subject", oidc("https://issuer.example", "a", ""), false},
		{"three stars", oidc("https://issuer.example", "a", "x***"), false},
		{"no audience", oidc("https://issuer.example", "", "x"), false},
		{"an empty claim", oidc("https://issuer.example", "a", "x", "c", ""), false},
		{"http", oidc("http://issuer.example", "a", "x"), false},
		{"http to a name", oidc("http://localhost:1", "a", "x"), false},
		{"http to loopback", oidc("http://127.0.0.1:1", "a", "x"), true},
		{"http to an address that looks like it", oidc("http://127.0.0.1.issuer.example", "a", "x"), false},
		{"user info", oidc("https://me@issuer.example", "a", "x"), false},
		{"a query", oidc("https://issuer.example/?a=b", "a", "x"), false},
		{"no host", oidc("https:///x", "a", "x"), false},
		{"a fingerprint", cert(digest, "", ""), true},
		{"a fingerprint in capitals", cert(strings.ToUpper(digest), "", ""), false},
		{"a fingerprint and a name", cert(digest, digest, "dns:x"), false},
		{"an authority and a DNS name", cert("", digest, "dns:uploads.example"), true},
		{"one label", cert("", digest, "dns:*.uploads.example"), true},
		{"any DNS name", cert("", digest, "dns:**"), false},
		{"any name of one label", cert("", digest, "dns:*"), false},
		{"any URI", cert("", digest, "uri:*"), false},
		{"a URI", cert("", digest, "uri:spiffe://example/ns/*/sa/uploader"), true},
		{"a name without an authority", cert("", "", "dns:x"), false},
		{"an authority without a name", cert("", digest, ""), false},
		{"another kind of name", cert("", digest, "email:a@b"), false},
	} {
		if (row.err == nil) != row.ok {
			t.Errorf("%s: %v", row.name, row.err)
		}
	}
}
