package logserver

// Who may submit: credentials, each bound to one registry, one claim and a set
// of kinds. A credential is shown as a bearer token, by a client certificate
// (auth_cert.go) or by a workload token of an OIDC issuer (auth_oidc.go). Of a
// bearer token only a hash is stored.
//
// Who can read tokens.json learns what each credential may do, and no secret.
// Who can change it can submit entries in any registry's name: they are logged,
// and the registry's monitors show them.

import (
	"bytes"
	"context"
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
	"syscall"
	"time"

	"github.com/portbook/portbook/entry"
)

// Credential is a right to submit, without its secret. Exactly one of Hash,
// OIDC and Cert says how it is shown.
type Credential struct {
	ID       string       `json:"id"`                // public name, 16 hex digits
	Hash     string       `json:"hash,omitempty"`    // bearer token: hex SHA-256 of the secret
	Old      []OldSecret  `json:"old,omitempty"`     // bearer token: what Rotate replaced and has not ended
	OIDC     *OIDCRule    `json:"oidc,omitempty"`    // workload token
	Cert     *CertRule    `json:"cert,omitempty"`    // client certificate
	Registry string       `json:"registry"`          // the only registry it may name
	Claim    entry.Claim  `json:"claim"`             // index or observed
	Kinds    []entry.Kind `json:"kinds"`             // what it may log
	Read     bool         `json:"read,omitempty"`    // it reads a private log, and logs nothing: no registry, claim or kinds
	Rate     int          `json:"rate,omitempty"`    // entries a second, of the whole credential; 0: no limit of its own
	Quota    int          `json:"quota,omitempty"`   // new entries a day (UTC) for each project; 0: no limit
	Created  string       `json:"created"`           // entry.TimeFormat
	Note     string       `json:"note,omitempty"`    // for people
	Ends     string       `json:"ends,omitempty"`    // entry.TimeFormat; absent: until revoked
	Revoked  string       `json:"revoked,omitempty"` // entry.TimeFormat
	// Suspended is since when it is not honoured (entry.TimeFormat): it comes from
	// a backup, and may have been revoked or rotated since. Confirm ends that.
	Suspended string `json:"suspended,omitempty"`

	until time.Time // of what was shown this time; zero: no end of its own
	shown string    // hash of the secret that was shown this time; empty: not a bearer token
}

// storedCredential is a credential as the document has it.
type storedCredential struct {
	Credential
	// Sum finds damage: a flipped bit can make one registry's name another's. It is
	// no secret, and absent in what was written before there were sums.
	Sum string `json:"sum,omitempty"`
}

// sum is 8 bytes of SHA-256, in hex, over a credential's JSON as it is read again.
func (t Credential) sum() (string, error) {
	var again Credential
	raw, err := json.Marshal(t)
	if err == nil {
		err = json.Unmarshal(raw, &again)
	}
	if err == nil {
		raw, err = json.Marshal(again)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8]), err
}

// OldSecret is a secret that was replaced, good until Ends.
type OldSecret struct {
	Hash string `json:"hash,omitempty"` // hex SHA-256; never empty in the file
	Ends string `json:"ends"`           // entry.TimeFormat
}

const (
	tokenPrefix = "pbt"
	// secretSize is in bytes: too many to guess, so a plain hash is enough.
	secretSize = 32
	// maxOld secrets of one credential are valid beside the newest.
	maxOld = 4
)

// credentialStore is where the list of credentials is kept as one JSON
// document: a file, which several frontends can share, or a row of a database.
type credentialStore interface {
	// read returns the document and its version, or no document if its version
	// is still the one given. An absent document is an empty one.
	read(ctx context.Context, version string) (raw []byte, now string, err error)
	// change replaces the document, durably and one change at a time, by what do
	// makes of it.
	change(ctx context.Context, do func(raw []byte) ([]byte, error)) error
}

// Credentials are those that a log knows. They are read again when they
// change, at most twice a second. While they cannot be read nobody is vouched
// for.
type Credentials struct {
	store credentialStore
	now   func() time.Time
	every time.Duration // between two looks at the store; only tests change it
	oidc  *issuers

	mu      sync.Mutex
	byID    map[string]Credential // guarded by mu
	version string                // guarded by mu; what byID was read from
	checked time.Time             // guarded by mu
	broken  error                 // guarded by mu; why the store could not be read
}

// OpenTokens reads the credentials in the file at path; a missing file holds
// none. With an error it returns Credentials all the same, which vouch for
// nobody until the file can be read.
func OpenTokens(path string, now func() time.Time) (*Credentials, error) {
	return openCredentials(context.Background(), credentialFile(path), now)
}

func openCredentials(ctx context.Context, store credentialStore, now func() time.Time) (*Credentials, error) {
	c := &Credentials{store: store, now: now, every: 500 * time.Millisecond, oidc: newIssuers(now)}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c, c.load(ctx)
}

// storeLimit is how long reading the store may take: nobody is let in meanwhile.
const storeLimit = 2 * time.Second

// load reads the store if it has changed; c.mu is held.
func (c *Credentials) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeLimit)
	defer cancel()
	raw, version, err := c.store.read(ctx, c.version)
	c.checked = time.Now()
	if err == nil && version != c.version {
		var byID map[string]Credential
		if byID, err = parseCredentials(raw); err == nil {
			c.byID, c.version = byID, version
		}
	}
	if c.broken = err; err != nil {
		c.byID, c.version = nil, ""
	}
	return err
}

// Reload reads the store now. While it cannot be read nobody is vouched for.
func (c *Credentials) Reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.load(context.Background())
}

// parseCredentials reads the JSON document; an empty one holds none.
func parseCredentials(raw []byte) (map[string]Credential, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var list []storedCredential
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields() // a misspelt "revoked" must not leave a credential valid
	if err := dec.Decode(&list); err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if dec.More() {
		return nil, errors.New("credentials: more than one list")
	}
	byID := make(map[string]Credential, len(list))
	for _, stored := range list {
		t := stored.Credential
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("credentials: %q: %w", t.ID, err)
		}
		if sum, err := t.sum(); err != nil || stored.Sum != "" && stored.Sum != sum {
			return nil, fmt.Errorf("credentials: %q: its checksum does not match: it is damaged, or was changed by hand; bring back an older file, or take the credential out of it and make another", t.ID)
		}
		if _, twice := byID[t.ID]; twice {
			return nil, fmt.Errorf("credentials: %q stands twice", t.ID)
		}
		byID[t.ID] = t
	}
	return byID, nil
}

// checkReach checks what a credential may log, or that it only reads.
func (t Credential) checkReach() error {
	if t.Read {
		if t.Registry != "" || t.Claim != "" || len(t.Kinds) > 0 || t.Rate != 0 || t.Quota != 0 {
			return errors.New("a credential that reads logs nothing: it has no registry, claim, kinds, rate or quota")
		}
		return nil
	}
	if err := entry.CheckRegistry(t.Registry); err != nil {
		return err
	}
	if t.Claim != entry.ClaimIndex && t.Claim != entry.ClaimObserved {
		return fmt.Errorf("claim %q is not one that a credential can have: index or observed", t.Claim)
	}
	if len(t.Kinds) == 0 {
		return errors.New("no kinds: the credential could log nothing")
	}
	for _, k := range t.Kinds {
		if !slices.Contains(k.Claims(), t.Claim) {
			return fmt.Errorf("kind %q does not exist with claim %s", k, t.Claim)
		}
	}
	return nil
}

func (t Credential) check() error {
	if err := t.checkReach(); err != nil {
		return err
	}
	if id, err := hex.DecodeString(t.ID); err != nil || len(id) != 8 || hex.EncodeToString(id) != t.ID {
		return errors.New("id is not 16 lower-case hex digits")
	}
	if t.Rate < 0 || t.Quota < 0 {
		return errors.New("rate or quota is negative")
	}
	ways := 0
	for _, has := range []bool{t.Hash != "", t.OIDC != nil, t.Cert != nil} {
		if has {
			ways++
		}
	}
	if ways != 1 {
		return errors.New("want exactly one of hash, oidc and cert")
	}
	if t.Hash == "" && len(t.Old) > 0 || len(t.Old) > maxOld {
		return fmt.Errorf("old secrets: a bearer token has at most %d, others none", maxOld)
	}
	times := []string{t.Ends, t.Revoked, t.Suspended}
	hashes := []string{t.Hash}
	for _, old := range t.Old {
		if old.Ends == "" {
			return errors.New("an old secret has no end")
		}
		times, hashes = append(times, old.Ends), append(hashes, old.Hash)
	}
	for _, h := range hashes {
		if t.Hash == "" {
			break
		}
		if h, err := hex.DecodeString(h); err != nil || len(h) != sha256.Size {
			return errors.New("hash is not a SHA-256 in hex")
		}
	}
	for _, at := range times {
		if _, err := time.Parse(entry.TimeFormat, at); at != "" && err != nil {
			return fmt.Errorf("time %q: want %s", at, entry.TimeFormat)
		}
	}
	switch {
	case t.OIDC != nil:
		return t.OIDC.check()
	case t.Cert != nil:
		return t.Cert.check()
	}
	return nil
}

// Create adds a credential. If it has no rule for certificates or workload
// tokens it becomes a bearer token, whose secret is returned: it is shown once
// and stored nowhere.
func (c *Credentials) Create(t Credential) (Credential, string, error) {
	var id [8]byte
	rand.Read(id[:])
	t.ID, t.Created, t.Hash = hex.EncodeToString(id[:]), c.stamp(0), ""
	var secret string
	if t.OIDC == nil && t.Cert == nil {
		secret, t.Hash = newSecret(t.ID)
	}
	if err := t.check(); err != nil {
		return t, "", err
	}
	return t, secret, c.change(func(list []Credential) ([]Credential, error) {
		for _, other := range list {
			if other.Revoked == "" && t.Hash == "" && sameRule(t, other) {
				return nil, fmt.Errorf("credential %s has the same rule: who shows it could be taken for either; revoke that one first", other.ID)
			}
		}
		return append(list, t), nil
	})
}

// newSecret makes the text of a bearer token, and the hash that is kept.
func newSecret(id string) (token, hash string) {
	secret := make([]byte, secretSize)
	rand.Read(secret)
	sum := sha256.Sum256(secret)
	return tokenPrefix + "_" + id + "_" + base64.RawURLEncoding.EncodeToString(secret), hex.EncodeToString(sum[:])
}

// stamp is the time in so long, as credentials have it.
func (c *Credentials) stamp(in time.Duration) string {
	return c.now().UTC().Add(in).Format(entry.TimeFormat)
}

// Rotate gives a bearer token a new secret, which is returned. The one that it
// replaces is good for the overlap yet.
func (c *Credentials) Rotate(id string, overlap time.Duration) (secret string, err error) {
	err = c.change(func(list []Credential) ([]Credential, error) {
		t, err := pick(list, id)
		if err != nil {
			return nil, err
		}
		now := c.stamp(0)
		switch {
		case t.Hash == "":
			return nil, fmt.Errorf("%s is not a bearer token: its key is changed where it is shown", id)
		case t.Revoked != "":
			return nil, fmt.Errorf("token %s is revoked: make another", id)
		case t.Ends != "" && now >= t.Ends:
			return nil, fmt.Errorf("token %s has ended: make another", id)
		case t.Suspended != "" && overlap > 0:
			return nil, fmt.Errorf("token %s comes from a backup and is suspended: confirm it first, or rotate it without an overlap, so that the secrets which the backup knows have ended", id)
		}
		t.Suspended = ""
		t.Old = slices.DeleteFunc(t.Old, func(o OldSecret) bool { return now >= o.Ends })
		if overlap > 0 {
			if len(t.Old) == maxOld {
				return nil, fmt.Errorf("token %s has %d old secrets that are still good: wait until one ends, or rotate without an overlap", id, maxOld)
			}
			t.Old = append(t.Old, OldSecret{t.Hash, c.stamp(overlap)})
		} else {
			t.Old = nil
		}
		secret, t.Hash = newSecret(id)
		return list, nil
	})
	return secret, err
}

// Revoke ends a credential now, with all its secrets.
func (c *Credentials) Revoke(id string) error {
	return c.change(func(list []Credential) ([]Credential, error) {
		t, err := pick(list, id)
		if err != nil {
			return nil, err
		}
		if t.Revoked == "" {
			t.Revoked = c.stamp(0)
		}
		return list, nil
	})
}

// Confirm says of credentials that came from a backup that they are still good.
// No IDs means all that are suspended. It returns those that it confirmed; with
// an error it confirmed none.
func (c *Credentials) Confirm(ids ...string) (confirmed []string, err error) {
	err = c.change(func(list []Credential) ([]Credential, error) {
		if len(ids) == 0 {
			for _, t := range list {
				if t.Suspended != "" && t.Revoked == "" {
					ids = append(ids, t.ID)
				}
			}
		}
		for _, id := range ids {
			t, err := pick(list, id)
			switch {
			case err != nil:
				return nil, err
			case t.Revoked != "":
				return nil, fmt.Errorf("token %s is revoked: make another", id)
			case t.Suspended != "":
				t.Suspended, confirmed = "", append(confirmed, id)
			}
		}
		return list, nil
	})
	if err != nil {
		return nil, err
	}
	return confirmed, nil
}

// suspend makes of a list of credentials one in which none is honoured before it
// is confirmed: what goes into a backup, or comes out of one, may be revoked in
// between.
func suspend(raw []byte, at string) ([]byte, error) {
	if len(raw) == 0 {
		return nil, errors.New("it is empty: it was cut off")
	}
	byID, err := parseCredentials(raw)
	if err != nil {
		return nil, err
	}
	list := sorted(byID)
	for i := range list {
		if list[i].Suspended == "" && list[i].Revoked == "" {
			list[i].Suspended = at
		}
	}
	out, err := json.MarshalIndent(list, "", "  ")
	return append(out, '\n'), err
}

// suspended are the credentials that wait to be confirmed.
func (c *Credentials) suspended() (n int) {
	for _, t := range c.List() {
		if t.Suspended != "" && t.Revoked == "" {
			n++
		}
	}
	return n
}

func pick(list []Credential, id string) (*Credential, error) {
	for i := range list {
		if list[i].ID == id {
			return &list[i], nil
		}
	}
	return nil, fmt.Errorf("no token has the ID %q: list them to see which there are", id)
}

func (c *Credentials) change(do func([]Credential) ([]Credential, error)) error {
	ctx := context.Background()
	err := c.store.change(ctx, func(raw []byte) ([]byte, error) {
		byID, err := parseCredentials(raw)
		if err != nil {
			return nil, err
		}
		list, err := do(sorted(byID))
		if err != nil {
			return nil, err
		}
		stored := make([]storedCredential, len(list))
		for i, t := range list {
			if err := t.check(); err != nil {
				return nil, fmt.Errorf("credential %q: %w", t.ID, err)
			}
			sum, err := t.sum()
			if err != nil {
				return nil, fmt.Errorf("credential %q: %w", t.ID, err)
			}
			stored[i] = storedCredential{t, sum}
		}
		raw, err = json.MarshalIndent(stored, "", "  ")
		return append(raw, '\n'), err
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.load(ctx)
}

// List returns all credentials, oldest first.
func (c *Credentials) List() []Credential {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sorted(c.byID)
}

func sorted(byID map[string]Credential) []Credential {
	list := make([]Credential, 0, len(byID))
	for _, t := range byID {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b Credential) int { return strings.Compare(a.Created+a.ID, b.Created+b.ID) })
	return list
}

// current is the credentials by ID, read again if that is due. The map is not
// changed afterwards.
func (c *Credentials) current(ctx context.Context) (map[string]Credential, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) > c.every {
		c.load(ctx)
	}
	if c.broken != nil {
		return nil, fmt.Errorf("%w: %w", ErrStorage, c.broken)
	}
	return c.byID, nil
}

// stillGood asks again whether a credential that was good is so: streams are
// long, and it may have been revoked since.
func (c *Credentials) stillGood(ctx context.Context, was Credential) error {
	byID, err := c.current(ctx)
	if err != nil {
		return err
	}
	t, ok := byID[was.ID]
	if !ok {
		return &refusal{reason: reasonUnknown, id: was.ID}
	}
	if !was.until.IsZero() && !c.now().Before(was.until) {
		return &refusal{reason: reasonExpired, id: was.ID}
	}
	if was.shown != "" && was.shown != t.Hash && !slices.ContainsFunc(t.Old, func(o OldSecret) bool { return o.Hash == was.shown && c.stamp(0) < o.Ends }) {
		return &refusal{reason: reasonExpired, id: was.ID, detail: "its secret was replaced"}
	}
	return c.live(t)
}

// live says whether a credential is neither revoked, nor at its end, nor to be
// confirmed yet.
func (c *Credentials) live(t Credential) error {
	switch {
	case t.Revoked != "":
		return &refusal{reason: reasonRevoked, id: t.ID}
	case t.Ends != "" && c.stamp(0) >= t.Ends:
		return &refusal{reason: reasonExpired, id: t.ID}
	case t.Suspended != "":
		return &refusal{reason: reasonSuspended, id: t.ID}
	}
	return nil
}

// bearer finds the credential of a bearer token.
func (c *Credentials) bearer(byID map[string]Credential, token string) (Credential, error) {
	parts := strings.Split(token, "_")
	if len(parts) < 3 || parts[0] != tokenPrefix {
		return Credential{}, &refusal{reason: reasonMalformed}
	}
	t, ok := byID[parts[1]]
	if !ok || t.Hash == "" {
		return Credential{}, &refusal{reason: reasonUnknown}
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(strings.Join(parts[2:], "_"))
	if err != nil || len(secret) != secretSize {
		return Credential{}, &refusal{reason: reasonSecret, id: t.ID}
	}
	sum := sha256.Sum256(secret)
	t.shown = hex.EncodeToString(sum[:])
	is := func(hash string) bool { return subtle.ConstantTimeCompare([]byte(t.shown), []byte(hash)) == 1 }
	if !is(t.Hash) {
		old := slices.IndexFunc(t.Old, func(o OldSecret) bool { return is(o.Hash) })
		if old < 0 {
			return Credential{}, &refusal{reason: reasonSecret, id: t.ID}
		}
		if ends := t.Old[old].Ends; c.stamp(0) >= ends {
			return Credential{}, &refusal{reason: reasonExpired, id: t.ID}
		} else if t.until, err = time.Parse(entry.TimeFormat, ends); err != nil {
			return Credential{}, err
		}
	}
	return t, c.live(t)
}

// NotAllowedError says that a credential does not reach as far as an entry asks.
type NotAllowedError struct{ Field, Reason string }

func (e *NotAllowedError) Error() string { return e.Field + ": " + e.Reason }

// bind fills in what the credential decides and refuses what it does not allow.
func (t Credential) bind(e *entry.Entry) error {
	if e.Registry == "" {
		e.Registry = t.Registry
	}
	if e.Claim == "" {
		e.Claim = t.Claim
	}
	switch {
	case t.Read:
		return &NotAllowedError{"kind", "this token reads the log; it logs nothing"}
	case e.Registry != t.Registry:
		return &NotAllowedError{"registry", fmt.Sprintf("this token logs for %s only", t.Registry)}
	case e.Claim != t.Claim:
		return &NotAllowedError{"claim", fmt.Sprintf("this token has the claim %s", t.Claim)}
	case !slices.Contains(t.Kinds, e.Kind):
		return &NotAllowedError{"kind", fmt.Sprintf("this token does not log entries of kind %q", string(e.Kind))}
	}
	return nil
}

// credentialFile keeps the credentials in a file.
type credentialFile string

func (f credentialFile) read(_ context.Context, version string) ([]byte, string, error) {
	path := string(f)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "absent", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("tokens: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, "", fmt.Errorf("tokens: %s must be a plain file that only its owner can read (chmod 600)", path)
	}
	now := fmt.Sprint(info.ModTime().UnixNano(), " ", info.Size())
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		now += fmt.Sprint(" ", stat.Dev, " ", stat.Ino)
	}
	if now == version {
		return nil, now, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, "", fmt.Errorf("tokens: %w", err)
	}
	if len(raw) == 0 {
		return nil, "", fmt.Errorf("tokens: %s is empty: it was cut off; bring back an older one, or delete it to start with none", path)
	}
	return raw, now, nil
}

func (f credentialFile) change(ctx context.Context, do func([]byte) ([]byte, error)) error {
	path := string(f)
	lock, err := lockFileSoon(path + ".lock") // somebody else may be changing it right now
	if err != nil {
		return err
	}
	defer lock.release()
	raw, _, err := f.read(ctx, "")
	if err != nil {
		return err
	}
	if raw, err = do(raw); err != nil {
		return err
	}
	if err := writeDurably(path, raw, 0o600); err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	return nil
}

// Token is Credential under its old name.
type Token = Credential
