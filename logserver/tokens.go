package logserver

// Who may submit: bearer tokens, each bound to one registry, one claim and a
// set of kinds. Only a hash of the secret is stored.
//
// Who can read tokens.json learns what each credential may do, and no secret.
// Who can change it can submit entries in any registry's name: they are logged,
// and the registry's monitors show them.

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/entry"
)

// Token is one credential, without its secret.
type Token struct {
	ID       string       `json:"id"`                // public name, 16 hex digits
	Hash     string       `json:"hash"`              // hex SHA-256 of the secret
	Registry string       `json:"registry"`          // the only registry it may name
	Claim    entry.Claim  `json:"claim"`             // index or observed
	Kinds    []entry.Kind `json:"kinds"`             // what it may log
	Rate     int          `json:"rate,omitempty"`    // entries a second; 0: no limit of its own
	Created  string       `json:"created"`           // entry.TimeFormat
	Note     string       `json:"note,omitempty"`    // for people
	Ends     string       `json:"ends,omitempty"`    // entry.TimeFormat; absent: until revoked
	Revoked  string       `json:"revoked,omitempty"` // entry.TimeFormat
}

const tokenPrefix = "pbt"

// secretSize is in bytes: too many to guess, so a plain hash is enough.
const secretSize = 32

// TokenFile is the credentials file of a log. It is read again when it changes,
// at most twice a second. While it cannot be read it vouches for nobody.
type TokenFile struct {
	path  string
	now   func() time.Time
	every time.Duration // between two looks at the file; only tests change it

	mu      sync.Mutex
	tokens  map[string]Token // guarded by mu; by ID
	stamp   fs.FileInfo      // guarded by mu; of the file that tokens was read from
	checked time.Time        // guarded by mu
	broken  error            // guarded by mu; why the file could not be read
}

// OpenTokens reads the credentials at path; a missing file holds none. With an
// error it returns a TokenFile all the same, which vouches for nobody until the
// file can be read.
func OpenTokens(path string, now func() time.Time) (*TokenFile, error) {
	f := &TokenFile{path: path, now: now, every: 500 * time.Millisecond}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f, f.load()
}

func (f *TokenFile) load() error {
	f.checked = time.Now()
	f.broken = f.read()
	if f.broken != nil {
		f.tokens, f.stamp = nil, nil
	}
	return f.broken
}

// Reload reads the file now. While it cannot be read it vouches for nobody.
func (f *TokenFile) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.load()
}

func (f *TokenFile) read() error {
	info, err := os.Lstat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		f.tokens, f.stamp = nil, nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("tokens: %s must be a plain file that only its owner can read (chmod 600)", f.path)
	}
	if f.stamp != nil && os.SameFile(info, f.stamp) && info.ModTime().Equal(f.stamp.ModTime()) && info.Size() == f.stamp.Size() {
		return nil
	}
	raw, err := os.ReadFile(f.path)
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	var list []Token
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields() // a misspelt "revoked" must not leave a token valid
	if err := dec.Decode(&list); err != nil {
		return fmt.Errorf("tokens: %s: %w", f.path, err)
	}
	if dec.More() {
		return fmt.Errorf("tokens: %s: more than one list", f.path)
	}
	tokens := make(map[string]Token, len(list))
	for _, t := range list {
		if err := t.check(); err != nil {
			return fmt.Errorf("tokens: %s: token %q: %w", f.path, t.ID, err)
		}
		if _, twice := tokens[t.ID]; twice {
			return fmt.Errorf("tokens: %s: token %q stands twice", f.path, t.ID)
		}
		tokens[t.ID] = t
	}
	f.tokens, f.stamp = tokens, info
	return nil
}

func (t Token) check() error {
	if err := entry.CheckRegistry(t.Registry); err != nil {
		return err
	}
	if t.Claim != entry.ClaimIndex && t.Claim != entry.ClaimObserved {
		return fmt.Errorf("claim %q is not one that a credential can have: index or observed", t.Claim)
	}
	if len(t.Kinds) == 0 {
		return errors.New("no kinds: the token could log nothing")
	}
	for _, k := range t.Kinds {
		if !slices.Contains(k.Claims(), t.Claim) {
			return fmt.Errorf("kind %q does not exist with claim %s", k, t.Claim)
		}
	}
	if id, err := hex.DecodeString(t.ID); err != nil || len(id) != 8 {
		return errors.New("id is not 16 hex digits")
	}
	if t.Rate < 0 {
		return errors.New("rate is negative")
	}
	if h, err := hex.DecodeString(t.Hash); err != nil || len(h) != sha256.Size {
		return errors.New("hash is not a SHA-256 in hex")
	}
	for _, at := range []string{t.Ends, t.Revoked} {
		if _, err := time.Parse(entry.TimeFormat, at); at != "" && err != nil {
			return fmt.Errorf("time %q: want %s", at, entry.TimeFormat)
		}
	}
	return nil
}

// Create adds a credential and returns its secret, which is shown once and
// stored nowhere.
func (f *TokenFile) Create(t Token) (Token, string, error) {
	var id [8]byte
	secret := make([]byte, secretSize)
	rand.Read(id[:])
	rand.Read(secret)
	sum := sha256.Sum256(secret)
	t.ID, t.Hash, t.Created = hex.EncodeToString(id[:]), hex.EncodeToString(sum[:]), f.now().UTC().Format(entry.TimeFormat)
	if err := t.check(); err != nil {
		return t, "", err
	}
	return t, tokenPrefix + "_" + t.ID + "_" + base64.RawURLEncoding.EncodeToString(secret),
		f.change(func(list []Token) ([]Token, error) { return append(list, t), nil })
}

// Revoke ends a credential now.
func (f *TokenFile) Revoke(id string) error {
	return f.change(func(list []Token) ([]Token, error) {
		for i := range list {
			if list[i].ID == id {
				if list[i].Revoked == "" {
					list[i].Revoked = f.now().UTC().Format(entry.TimeFormat)
				}
				return list, nil
			}
		}
		return nil, fmt.Errorf("no token has the ID %q: list them to see which there are", id)
	})
}

func (f *TokenFile) change(do func([]Token) ([]Token, error)) error {
	lock, err := lockFile(f.path + ".lock")
	for deadline := time.Now().Add(2 * time.Second); err != nil; lock, err = lockFile(f.path + ".lock") {
		var held *LockedError // somebody else is changing it right now
		if !errors.As(err, &held) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	defer lock.release()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.load(); err != nil {
		return err
	}
	list, err := do(f.sorted())
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	if err := writeDurably(f.path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	return f.load()
}

// List returns all credentials, oldest first.
func (f *TokenFile) List() []Token {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sorted()
}

func (f *TokenFile) sorted() []Token {
	list := make([]Token, 0, len(f.tokens))
	for _, t := range f.tokens {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b Token) int { return strings.Compare(a.Created+a.ID, b.Created+b.ID) })
	return list
}

// errNoCredential says that a request carries no valid credential. It does not
// say why: a guess is not to be helped.
var errNoCredential = errors.New("no valid token: send Authorization: Bearer TOKEN, made by portbook-log token create")

// authenticate finds the credential of a bearer token.
func (f *TokenFile) authenticate(bearer string) (Token, error) {
	f.mu.Lock()
	if time.Since(f.checked) > f.every {
		f.load()
	}
	if f.broken != nil {
		defer f.mu.Unlock()
		return Token{}, fmt.Errorf("%w: %w", ErrStorage, f.broken)
	}
	parts := strings.Split(bearer, "_")
	var t Token
	if len(parts) >= 3 {
		t = f.tokens[parts[1]]
	}
	f.mu.Unlock()
	if len(parts) < 3 || parts[0] != tokenPrefix || t.ID == "" {
		return Token{}, errNoCredential
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(strings.Join(parts[2:], "_"))
	if err != nil || len(secret) != secretSize {
		return Token{}, errNoCredential
	}
	sum := sha256.Sum256(secret)
	if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(t.Hash)) != 1 {
		return Token{}, errNoCredential
	}
	if t.Revoked != "" || t.Ends != "" && f.now().UTC().Format(entry.TimeFormat) >= t.Ends {
		return Token{}, errNoCredential
	}
	return t, nil
}

// NotAllowedError says that a credential does not reach as far as an entry asks.
type NotAllowedError struct{ Field, Reason string }

func (e *NotAllowedError) Error() string { return e.Field + ": " + e.Reason }

// bind fills in what the credential decides and refuses what it does not allow.
func (t Token) bind(e *entry.Entry) error {
	if e.Registry == "" {
		e.Registry = t.Registry
	}
	if e.Claim == "" {
		e.Claim = t.Claim
	}
	switch {
	case e.Registry != t.Registry:
		return &NotAllowedError{"registry", fmt.Sprintf("this token logs for %s only", t.Registry)}
	case e.Claim != t.Claim:
		return &NotAllowedError{"claim", fmt.Sprintf("this token has the claim %s", t.Claim)}
	case !slices.Contains(t.Kinds, e.Kind):
		return &NotAllowedError{"kind", fmt.Sprintf("this token does not log entries of kind %q", string(e.Kind))}
	}
	return nil
}
