package logserver

// How the keys of a log change:
//
//	AddKey          ─▶ an ML-DSA-44 key beside the Ed25519 key
//	BeginRotation   ─▶ old (active) and new (next) sign together
//	FinishRotation  ─▶ old is retired at the size it signed last, new is active
//	RetireKey       ─▶ without a replacement: the next key, or the ML-DSA-44 key
//
// Each changes log.json in one step, while the log is not being served, and
// takes effect at the next start. The retired keys stay there for good: what
// they signed is the log's word. Of a shared log, which is served meanwhile, see
// shared_identity.go.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/portbook/portbook/c2sp"
)

// changeKeys lets change edit the identity of the log in dir, which must not be
// served meanwhile, and stores it. last is the tree that the log signed last.
func changeKeys(dir string, change func(id *Identity, last anchorState) error) (Identity, error) {
	if _, err := ReadIdentity(dir); err != nil { // before a lock file is made where there is no log
		return Identity{}, err
	}
	lock, err := lockFile(filepath.Join(dir, lockFileName))
	if err != nil {
		return Identity{}, err
	}
	defer lock.release()
	id, err := ReadIdentity(dir)
	if err != nil {
		return id, err
	}
	if id.Freeze != nil {
		return id, errEnds
	}
	anchor, err := openAnchor(id.Anchor, id.Origin)
	if err != nil {
		return id, err
	}
	defer anchor.close()
	if err := change(&id, anchor.known()); err != nil {
		return id, err
	}
	return id, writeIdentity(dir, id)
}

var errEnds = errors.New("the log ends, and its keys with it: the log that follows has keys of its own")

// refuseKnown says why key cannot become a key of the log.
func (id *Identity) refuseKnown(key *c2sp.Key) error {
	if key.Name() != id.Origin {
		return fmt.Errorf("key %s is named %q: a key of this log has its origin %q for a name", name(key), key.Name(), id.Origin)
	}
	for _, k := range id.Keys {
		if string(k.key.Raw()) != string(key.Raw()) {
			continue
		}
		if k.State == KeyRetired {
			return fmt.Errorf("key %s was retired at size %d: a retired key never comes back", name(key), k.UpTo)
		}
		return fmt.Errorf("key %s is a key of this log already (%s)", name(key), k.State)
	}
	return nil
}

// AddKey makes key, of a type that no key of the log has, sign beside the others.
func AddKey(dir string, key *c2sp.Key) (Identity, error) { return changeKeys(dir, addKey(key)) }

func addKey(key *c2sp.Key) func(*Identity, anchorState) error {
	return func(id *Identity, _ anchorState) error {
		if err := id.refuseKnown(key); err != nil {
			return err
		}
		if have := id.active(key.Alg()); have != nil {
			return fmt.Errorf("the log has a key of type %s, %08x: a new one replaces it by key rotate begin", key.Alg(), have.key.ID())
		}
		id.Keys = append(id.Keys, LogKey{VKey: key.String(), State: KeyActive, key: key})
		return nil
	}
}

// BeginRotation makes key sign beside the active key of its type, which it
// will replace.
func BeginRotation(dir string, key *c2sp.Key) (Identity, error) {
	return changeKeys(dir, beginRotation(key))
}

func beginRotation(key *c2sp.Key) func(*Identity, anchorState) error {
	return func(id *Identity, _ anchorState) error {
		if err := id.refuseKnown(key); err != nil {
			return err
		}
		if next := id.find(key.Alg(), KeyNext); next != nil {
			return fmt.Errorf("key %s is the next one already: finish that rotation, or retire the key, before another begins", name(next.key))
		}
		if id.active(key.Alg()) == nil {
			return fmt.Errorf("the log has no key of type %s to replace: key add makes this one sign beside the others", key.Alg())
		}
		id.Keys = append(id.Keys, LogKey{VKey: key.String(), State: KeyNext, key: key})
		return nil
	}
}

// RetireKey takes the key with the ID out of use: the next one of a rotation
// that is given up, or the ML-DSA-44 key. The active Ed25519 key is replaced by
// a rotation, never taken away.
func RetireKey(dir string, keyID uint32) (Identity, error) {
	return changeKeys(dir, retireKey(keyID))
}

func retireKey(keyID uint32) func(*Identity, anchorState) error {
	return func(id *Identity, last anchorState) error {
		at := slices.IndexFunc(id.Keys, func(k LogKey) bool { return k.key.ID() == keyID })
		if at < 0 {
			return fmt.Errorf("no key of this log has the ID %08x", keyID)
		}
		k := &id.Keys[at]
		switch {
		case k.State == KeyRetired:
			return fmt.Errorf("key %s was retired at size %d already", name(k.key), k.UpTo)
		case k.State == KeyActive && id.find(k.key.Alg(), KeyNext) != nil:
			return fmt.Errorf("key %s is being replaced: key rotate finish retires it", name(k.key))
		case k.State == KeyActive && k.key.Alg() == c2sp.AlgEd25519:
			return fmt.Errorf("key %s is the one that every reader knows: replace it by key rotate begin", name(k.key))
		}
		k.State, k.UpTo = KeyRetired, last.size
		return nil
	}
}

// FinishRotation retires each active key that has a next one at the size that
// was signed last, and makes the next one active. It refuses until the public
// checkpoint bears the next key's signature, and until witnesses enough for the
// quorum of policy, the publish policy, accept what the remaining keys sign:
// else the log could publish nothing after it.
func FinishRotation(ctx context.Context, dir string, policy *c2sp.Policy) (Identity, error) {
	return changeKeys(dir, func(id *Identity, last anchorState) error {
		rest, err := id.finishRotation(last)
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(filepath.Join(dir, checkpointFile))
		if err != nil {
			return fmt.Errorf("public checkpoint: %w", withoutPath(err))
		}
		return overlapIsDone(ctx, raw, directory(filepath.Join(dir, engineDir)), policy, rest)
	})
}

// finishRotation makes the next keys active, and returns all that sign from now on.
func (id *Identity) finishRotation(last anchorState) (rest []*c2sp.Key, err error) {
	retired := map[c2sp.Alg]bool{}
	for i := range id.Keys {
		k := &id.Keys[i]
		retired[k.key.Alg()] = retired[k.key.Alg()] || k.State == KeyNext
	}
	for i := range id.Keys {
		switch k := &id.Keys[i]; {
		case k.State == KeyActive && retired[k.key.Alg()]:
			k.State, k.UpTo = KeyRetired, last.size
		case k.State == KeyActive:
			rest = append(rest, k.key)
		case k.State == KeyNext:
			k.State = KeyActive
			rest = append(rest, k.key)
		}
	}
	if !retired[c2sp.AlgEd25519] && !retired[c2sp.AlgMLDSA44] {
		return nil, errors.New("no rotation has begun: no key is the next one")
	}
	id.VKey = id.active(c2sp.AlgEd25519).VKey
	return rest, nil
}

// policyKnows refuses a publish policy that names other keys only.
func policyKnows(p *c2sp.Policy, keys []*c2sp.Key) error {
	for _, l := range p.Logs {
		for _, k := range keys {
			if l.Key.String() == k.String() && !l.Retired {
				return nil
			}
		}
	}
	if len(p.Logs) > 0 {
		return fmt.Errorf("policy: none of its log lines has the new key %s: add it first", keys[0])
	}
	return nil
}

// overlapIsDone refuses to go on with keys alone before the policy, readers and
// witnesses can know them. raw is the public checkpoint.
func overlapIsDone(ctx context.Context, raw []byte, src tileSource, policy *c2sp.Policy, keys []*c2sp.Key) error {
	if err := policyKnows(policy, keys); err != nil {
		return err
	}
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return fmt.Errorf("public checkpoint: %w", err)
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return fmt.Errorf("public checkpoint: %w", err)
	}
	alone := &c2sp.Note{Text: note.Text}
	for _, k := range keys {
		at := slices.IndexFunc(note.Sigs, func(s c2sp.Signature) bool { return k.Matches(s) && k.VerifyLog(note.Text, s) == nil })
		if at < 0 {
			return fmt.Errorf("key %s has not signed the public checkpoint: serve the log with all its keys first, and let readers learn the new one", name(k))
		}
		alone.Sigs = append(alone.Sigs, note.Sigs[at])
	}
	witnesses, err := newWitnesses(policy)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	var problems []error
	for _, w := range witnesses {
		t := tree{ctx, src, int64(cp.Size), newTileCache()}
		_, err := w.cosign(ctx, alone, cp, t.consistency)
		var claim *claimError
		if errors.As(err, &claim) { // it looks at the signature before it looks at the size
			err = nil
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		have[w.name] = true
	}
	if !policy.Satisfied(have) {
		return fmt.Errorf("too few witnesses accept a checkpoint that the new key alone has signed; have their operators add it (portbook-witness add-log --another-key): %w", errors.Join(problems...))
	}
	return nil
}
