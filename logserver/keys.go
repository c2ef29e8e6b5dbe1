package logserver

// The keys of a log: what the publisher asks them for, and which of them count
// for which checkpoints.
//
// A log has at least one Ed25519 key, and may have an ML-DSA-44 key beside it.
// While a key is rotated, old and new sign together. Every key that is not
// retired signs every checkpoint: a reader needs to know only one of them.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/portbook/portbook/c2sp"
)

// A Signer is one key of a log, wherever it is kept: in memory ([c2sp.Signer]),
// in an HSM, with a cloud's key service.
//
// SignCheckpoint signs c as the log named by the key (see
// [c2sp.Signer.SignCheckpoint]). It may wait for a device, as long as ctx lets
// it. An error means that the key cannot sign right now: publishing waits and
// asks again. What it returns is verified before it is used, so a device can
// delay a log and not make it publish nonsense.
type Signer interface {
	Key() *c2sp.Key
	SignCheckpoint(ctx context.Context, c c2sp.Checkpoint) (c2sp.Signature, error)
}

// ErrSigner means that a key of the log did not sign, or signed wrongly. That is
// trouble with where the key is kept, and says nothing about the log.
var ErrSigner = errors.New("a key of the log cannot sign")

// A KeyState says what a key of a log is good for.
type KeyState string

const (
	KeyActive  KeyState = "active"  // signs; every reader is to know it
	KeyNext    KeyState = "next"    // signs beside the active key of its kind, which it will replace
	KeyRetired KeyState = "retired" // has signed checkpoints up to a size, and signs no more
)

// A LogKey is a key in a log's identity.
type LogKey struct {
	VKey  string   `json:"vkey"`
	State KeyState `json:"state"`
	UpTo  uint64   `json:"up_to,omitempty"` // retired: it signed no tree larger than this

	key *c2sp.Key
}

// Key is the key itself.
func (k LogKey) Key() *c2sp.Key { return k.key }

// checkKeys completes and checks what a log's identity says about keys. An
// identity of before there could be several has none but VKey.
func (id *Identity) checkKeys() error {
	if id.Keys == nil {
		id.Keys = []LogKey{{VKey: id.VKey, State: KeyActive}}
	}
	raw, signs := map[string]bool{}, map[c2sp.Alg]map[KeyState]int{}
	for i := range id.Keys {
		k := &id.Keys[i]
		var err error
		if k.key, err = c2sp.ParseVKey(k.VKey); err != nil {
			return err
		}
		switch alg := k.key.Alg(); {
		case k.key.Name() != id.Origin:
			return fmt.Errorf("key %s does not have the origin %q for its name", k.VKey, id.Origin)
		case alg != c2sp.AlgEd25519 && alg != c2sp.AlgMLDSA44:
			return fmt.Errorf("key %s is of type %s, which no log signs with", k.VKey, alg)
		case raw[string(k.key.Raw())]:
			return fmt.Errorf("key %s is named twice", k.VKey)
		case k.State != KeyRetired && k.UpTo != 0:
			return fmt.Errorf("key %s is %s and good up to size %d: only a retired key ends", k.VKey, k.State, k.UpTo)
		case k.State != KeyActive && k.State != KeyNext && k.State != KeyRetired:
			return fmt.Errorf("key %s has the unknown state %q", k.VKey, k.State)
		}
		raw[string(k.key.Raw())] = true
		if signs[k.key.Alg()] == nil {
			signs[k.key.Alg()] = map[KeyState]int{}
		}
		signs[k.key.Alg()][k.State]++
	}
	for alg, n := range signs {
		if n[KeyActive] > 1 || n[KeyNext] > n[KeyActive] {
			return fmt.Errorf("%d keys of type %s are active and %d next: want one active, and a next one only beside it", n[KeyActive], alg, n[KeyNext])
		}
	}
	main := id.active(c2sp.AlgEd25519)
	if main == nil {
		return errors.New("no active Ed25519 key is named")
	}
	if main.VKey != id.VKey {
		return fmt.Errorf("the vkey %s is not the active Ed25519 key", id.VKey)
	}
	return nil
}

// active is the active key of a type, or nil.
func (id *Identity) active(alg c2sp.Alg) *LogKey { return id.find(alg, KeyActive) }

func (id *Identity) find(alg c2sp.Alg, state KeyState) *LogKey {
	for i := range id.Keys {
		if k := &id.Keys[i]; k.key.Alg() == alg && k.State == state {
			return k
		}
	}
	return nil
}

// keyring is all keys of a log: those that sign, and all that ever did.
type keyring struct {
	origin string
	held   []*signing // every signer that was given; of a shared log also those whose key is not the log's yet, or no more

	mu      sync.RWMutex // of what change changes; of a shared log alone
	keys    []LogKey     // guarded by mu
	signing []*signing   // guarded by mu; one for each key that is not retired; Ed25519 first
	lacking error        // guarded by mu; why this server cannot sign: a key that signs is not held; nil if none was
}

// signing is a signer that is asked for one signature at a time.
type signing struct {
	Signer
	busy sync.Mutex // held while it is asked
}

// newKeyring matches signers to the keys of an identity: each key that is not
// retired needs its signer, and no other may be there.
func newKeyring(id Identity, signers []Signer) (*keyring, error) {
	r := &keyring{origin: id.Origin, keys: id.Keys}
	given := map[string]Signer{}
	for _, s := range signers {
		given[s.Key().String()] = s
	}
	for _, k := range id.Keys {
		s := given[k.VKey]
		delete(given, k.VKey)
		switch {
		case s != nil && k.State == KeyRetired:
			return nil, fmt.Errorf("key %s was retired at size %d and signs no more: do not give it", name(k.key), k.UpTo)
		case s == nil && k.State != KeyRetired:
			return nil, fmt.Errorf("key %s of this log (%s) is not given: every key signs every checkpoint", name(k.key), k.State)
		case s != nil:
			r.signing = append(r.signing, &signing{Signer: s})
		}
	}
	for _, s := range given {
		return nil, fmt.Errorf("key %s is not a key of this log, which is %s: see portbook-log key show", name(s.Key()), id.VKey)
	}
	slices.SortStableFunc(r.signing, func(a, b *signing) int { return int(a.Key().Alg()) - int(b.Key().Alg()) })
	return r, nil
}

// sharedKeyring is newKeyring for a log whose keys change while it is served: a
// signer may be there whose key is not the log's yet, or no more. It signs nothing.
func sharedKeyring(id Identity, signers []Signer) (*keyring, error) {
	r := &keyring{origin: id.Origin}
	for _, s := range signers {
		if s.Key().Name() != id.Origin {
			return nil, fmt.Errorf("key %s is not a key of this log, which is %s: see portbook-log key show", name(s.Key()), id.VKey)
		}
		r.held = append(r.held, &signing{Signer: s})
	}
	r.change(id)
	return r, r.cannotSign()
}

// changes counts the changes that made an identity's keys what they are: a key is
// added once and retired once, and none is taken out.
func (id Identity) changes() int {
	n := len(id.Keys)
	for _, k := range id.Keys {
		if k.State == KeyRetired {
			n++
		}
	}
	return n
}

// change makes the keys those of id, unless they are newer: whoever read the
// database last may be late. It reports whether anything changed.
func (r *keyring) change(id Identity) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys != nil && id.changes() <= (Identity{Keys: r.keys}).changes() {
		return false
	}
	r.keys, r.signing, r.lacking = id.Keys, nil, nil
	for _, k := range id.Keys {
		at := slices.IndexFunc(r.held, func(s *signing) bool { return s.Key().String() == k.VKey })
		switch {
		case k.State == KeyRetired:
		case at >= 0:
			r.signing = append(r.signing, r.held[at])
		case len(r.held) > 0:
			r.lacking = fmt.Errorf("%w: key %s of this log (%s) is not given to this server: every key signs every checkpoint", ErrSigner, name(k.key), k.State)
		}
	}
	slices.SortStableFunc(r.signing, func(a, b *signing) int { return int(a.Key().Alg()) - int(b.Key().Alg()) })
	return true
}

// cannotSign is why not all keys that sign are here; nil if they are.
func (r *keyring) cannotSign() error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.lacking
}

// idle are the keys that are held and do not sign.
func (r *keyring) idle() (keys []*c2sp.Key) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, s := range r.held {
		if !slices.Contains(r.signing, s) {
			keys = append(keys, s.Key())
		}
	}
	return keys
}

// all are the keys of the log, retired ones among them.
func (r *keyring) all() []LogKey {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.keys
}

// name names a key in an error: its name is the log's, so the ID tells them apart.
func name(k *c2sp.Key) string { return fmt.Sprintf("%08x (%s) of %s", k.ID(), k.Alg(), k.Name()) }

// sign has every key sign c, all at once, and verifies what comes back. It
// returns at the latest when ctx ends, also if a signer does not. Its errors
// are ErrSigner.
func (r *keyring) sign(ctx context.Context, c c2sp.Checkpoint) ([]c2sp.Signature, error) {
	type answer struct {
		i   int
		sig c2sp.Signature
		err error
	}
	r.mu.RLock()
	signing, lacking := r.signing, r.lacking
	r.mu.RUnlock()
	if lacking != nil {
		return nil, lacking
	}
	answers := make(chan answer, len(signing))
	for i, s := range signing {
		go func() {
			if !s.busy.TryLock() {
				answers <- answer{i: i, err: errors.New("it still has not answered for an earlier checkpoint")}
				return
			}
			defer s.busy.Unlock()
			sig, err := s.SignCheckpoint(ctx, c)
			if err == nil && !s.Key().Matches(sig) {
				err = errors.New("it returned the signature of another key; it is not used")
			} else if err == nil {
				if s.Key().VerifyLog(c.Text(), sig) != nil {
					err = errors.New("it returned a wrong signature; it is not used")
				}
			}
			answers <- answer{i, sig, err}
		}()
	}
	sigs, problems := make([]c2sp.Signature, len(signing)), make([]error, len(signing))
	late := errors.New("it has not answered in time")
	for i := range problems {
		problems[i] = late
	}
	for range signing {
		select {
		case a := <-answers:
			sigs[a.i], problems[a.i] = a.sig, a.err
			continue
		case <-ctx.Done():
		}
		break
	}
	for i, err := range problems {
		if err != nil {
			problems[i] = fmt.Errorf("%w: key %s: %w", ErrSigner, name(signing[i].Key()), err)
		}
	}
	return sigs, errors.Join(problems...)
}

// signed reports whether the log signed a note: whether a key of it did, and
// that key had not been retired before. A wrong signature by any of its keys
// spoils the note.
func (r *keyring) signed(note *c2sp.Note) error {
	c, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return err
	}
	ours := false
	late := ""
	for _, k := range r.all() {
		for _, s := range note.Sigs {
			if !k.key.Matches(s) {
				continue
			}
			if err := k.key.VerifyLog(note.Text, s); err != nil {
				return err
			}
			if k.State == KeyRetired && c.Size > k.UpTo {
				late = fmt.Sprintf("; key %s, which was retired at size %d, signed size %d: somebody else has that key", name(k.key), k.UpTo, c.Size)
				continue
			}
			ours = true
		}
	}
	if !ours {
		return errors.New("this log did not sign it" + late)
	}
	return nil
}

// ownPolicy makes the log's keys the policy's, or checks that it names one of
// them, and completes it: what is published bears every key's signature.
func (r *keyring) ownPolicy(p *c2sp.Policy) error {
	named := map[string]c2sp.PolicyLog{}
	for _, l := range p.Logs {
		named[l.Key.String()] = l
	}
	var missing []c2sp.PolicyLog
	var signing []*c2sp.Key // also where the signers are on another server
	for _, k := range r.all() {
		if k.State != KeyRetired {
			signing = append(signing, k.key)
		}
	}
	slices.SortStableFunc(signing, func(a, b *c2sp.Key) int { return int(a.Alg()) - int(b.Alg()) })
	for _, k := range signing {
		l, ok := named[k.String()]
		if l.Retired {
			return fmt.Errorf("policy: key %s of this log is called retired, and it signs", name(k))
		}
		if !ok {
			missing = append(missing, c2sp.PolicyLog{Key: k})
		}
	}
	if len(p.Logs) > 0 && len(missing) == len(signing) {
		return fmt.Errorf("policy: none of its log lines has this log's key %s", signing[0])
	}
	for _, k := range r.all() {
		for _, w := range p.Witnesses {
			if bytes.Equal(w.Key.Raw(), k.key.Raw()) {
				return fmt.Errorf("policy: witness %s has the public key of this log's key %s: nobody witnesses himself", w.Name, name(k.key))
			}
		}
	}
	p.Logs = append(slices.Clone(p.Logs), missing...)
	return nil
}

// PolicyLines are the lines about this log for the policies of readers: every
// key, the retired ones with the size up to which they are believed. url is
// where the log is read, or "".
func (id Identity) PolicyLines(url string) []string {
	var p c2sp.Policy
	for _, k := range id.Keys {
		p.Logs = append(p.Logs, c2sp.PolicyLog{Key: k.key, URL: url, Retired: k.State == KeyRetired, UpTo: k.UpTo})
	}
	lines := strings.Split(string(p.Bytes()), "\n")
	return lines[:len(id.Keys)]
}
