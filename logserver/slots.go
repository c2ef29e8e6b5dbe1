package logserver

// Uniqueness: what one digest each slot is pinned to, decided before an entry is
// handed to the storage engine, by the log itself: the rows that decide follow
// from its entries, in its own order, through the index. What is on its way into
// the log is in memory with the sequencer, and nowhere else: see
// docs/decisions/0005-the-log-is-the-reservation.md.

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/portbook/portbook/entry"
)

// ConflictError says that a slot is pinned to another digest, or an id to
// another entry. There is no proof for what was submitted.
type ConflictError struct {
	Slot       entry.Slot // zero for an id
	FirstIndex uint64
	Reason     string
}

func (e *ConflictError) Error() string { return e.Reason }

// PreconditionError says that an entry needs something of the log that is not so.
type PreconditionError struct{ Field, Reason string }

func (e *PreconditionError) Error() string { return e.Field + ": " + e.Reason }

// slotRow is one row of slots.
type slotRow struct {
	digest  []byte
	index   uint64
	removed bool
}

// slotKey is the key an entry is unique under, and what must be equal for a
// second submission to be the same one: the digests of an upload or a conflict;
// for what else carries an id, everything but the time.
func slotKey(e *entry.Entry) (key [32]byte, digest []byte, err error) {
	if e.Kind == entry.KindUpload {
		slot, _ := e.Slot()
		digest, err = digestOf(e)
		return slot.Key(), digest, err
	}
	if e.Kind == entry.KindConflict { // one for each slot and refused digest
		slot, _ := e.Slot()
		digest, err = digestOf(e)
		k := slot.Key()
		return sha256.Sum256(append(append([]byte("conflict\x00"), k[:]...), digest...)), digest, err
	}
	key = sha256.Sum256([]byte("id\x00" + e.Registry + "\x00" + string(e.Claim) + "\x00" + e.ID))
	timeless := *e
	timeless.Time = "1970-01-01T00:00:00Z"
	leaf, err := timeless.Marshal()
	sum := sha256.Sum256(leaf)
	return key, sum[:], err
}

// digestOf is an entry's sha256, sha512, or both in this order: 32, 64 or 96 bytes.
func digestOf(e *entry.Entry) ([]byte, error) {
	return hex.DecodeString(e.SHA256 + e.SHA512)
}

// sameDigest compares two digestOf values by the algorithms that both have.
// comparable is false if there is none.
func sameDigest(a, b []byte) (same, comparable bool) {
	same = true
	if len(a) != 64 && len(b) != 64 {
		same, comparable = bytes.Equal(a[:32], b[:32]), true
	}
	if len(a) >= 64 && len(b) >= 64 {
		same, comparable = same && bytes.Equal(a[len(a)-64:], b[len(b)-64:]), true
	}
	return same && comparable, comparable
}

// slotView is the rows that decide on entries, of the index or of a shared log's
// database. The rules below know no other.
type slotView interface {
	row(key [32]byte) (*slotRow, error) // nil: nothing holds it
	// overwrite is what the registry's logged policy says; "" if there is none.
	overwrite(registry, ecosystem string) (string, error)
	// has reports whether an entry of this kind about it is logged.
	has(m mark) (bool, error)
}

// slotRows can also be changed by an entry that is applied.
type slotRows interface {
	slotView
	// pin gives key to an entry, unless one with the same digest has it.
	pin(key [32]byte, digest []byte, index int64) error
	free(key [32]byte) error
	setRemoved(key [32]byte) error
	setOverwrite(registry, ecosystem, overwrite string) error
	set(m mark, index int64) error
}

// mark is something that entries of the log have said, by either claim: uploads
// of a project (version empty) or of a release, or a baseline of an ecosystem
// (project empty too).
type mark struct{ registry, ecosystem, project, version string }

// key is where a mark stands among the keys of slots, where marks are kept there.
func (m mark) key() [32]byte {
	return sha256.Sum256([]byte("mark\x00" + m.registry + "\x00" + m.ecosystem + "\x00" + m.project + "\x00" + m.version))
}

// keysFor are all keys that verdict and applyTo look at or change for e, whose
// own key is given, marks among them.
func keysFor(e *entry.Entry, own [32]byte) [][32]byte {
	keys := [][32]byte{own}
	if e.File != "" && e.Kind != entry.KindUpload && e.Kind != entry.KindConflict {
		slot := uploadSlot(e)
		for _, slot.Claim = range []entry.Claim{e.Claim, otherClaim(e.Claim)} {
			keys = append(keys, slot.Key())
		}
	}
	if e.Registry != "" && e.Ecosystem != "" {
		keys = append(keys, mark{registry: e.Registry, ecosystem: e.Ecosystem}.key())
		if e.Project != "" {
			keys = append(keys, mark{e.Registry, e.Ecosystem, e.Project, ""}.key())
			if e.Version != "" {
				keys = append(keys, mark{e.Registry, e.Ecosystem, e.Project, e.Version}.key())
			}
		}
	}
	return keys
}

// indexRows implements slotView on the index, whose keys lead to the entries that
// changed a row; these say how the row is.
type indexRows struct{ *index }

// applyingRows implements slotRows while an entry is applied: what it sets is a
// key that leads to this entry.
type applyingRows struct {
	indexRows
	keys []uint64
}

func (x indexRows) row(key [32]byte) (r *slotRow, err error) {
	var later []*entry.Entry // rejects and removes of the file, after the upload that the walk is looking for
	err = x.newest(rowKey(key), func(i uint64) (bool, error) {
		e, err := x.entryAt(int64(i))
		if err != nil {
			return false, err
		}
		k, digest, err := slotKey(e)
		switch {
		case err != nil:
			return false, err
		case k == key:
			r, err = &slotRow{digest: digest, index: i}, nil
			for _, change := range later {
				if r, err = r.after(change); r == nil || err != nil {
					break
				}
			}
			return false, err
		case e.Kind == entry.KindReject, e.Kind == entry.KindRemove && e.File != "":
			if uploadSlot(e).Key() == key {
				later = append(later, e)
			}
		}
		return true, nil // or another key that begins alike
	})
	return r, err
}

// after is the row once a reject or remove of its file is applied; nil: free.
func (r *slotRow) after(change *entry.Entry) (*slotRow, error) {
	holds, err := r.holds(change)
	if err != nil || !holds {
		return r, err
	}
	if change.Kind == entry.KindReject {
		return nil, nil
	}
	return &slotRow{r.digest, r.index, true}, nil
}

// holds reports whether a reject or remove is about what the row holds: it names
// this digest, or none. What was said of old bytes changes nothing for those that
// replaced them.
func (r *slotRow) holds(change *entry.Entry) (bool, error) {
	digest, err := digestOf(change)
	if err != nil || len(digest) == 0 {
		return err == nil, err
	}
	same, _ := sameDigest(r.digest, digest)
	return same, nil
}

func policyKey(registry, ecosystem string) [32]byte {
	return sha256.Sum256([]byte("policy\x00" + registry + "\x00" + ecosystem))
}

func baselineKey(registry, ecosystem string) [32]byte {
	return sha256.Sum256([]byte("baseline\x00" + registry + "\x00" + ecosystem))
}

func (x indexRows) overwrite(registry, ecosystem string) (overwrite string, err error) {
	err = x.newest(rowKey(policyKey(registry, ecosystem)), func(i uint64) (bool, error) {
		e, err := x.entryAt(int64(i))
		if err == nil && e.Kind == entry.KindRegistryPolicy && e.Registry == registry && e.Ecosystem == ecosystem {
			overwrite = e.Overwrite
			return false, nil
		}
		return true, err
	})
	return overwrite, err
}

func (x indexRows) has(m mark) (has bool, err error) {
	var key uint64
	kind := entry.KindUpload
	switch {
	case m.project == "":
		key, kind = rowKey(baselineKey(m.registry, m.ecosystem)), entry.KindBaseline
	case m.version == "":
		key = hashKey("uploads", m.registry, m.ecosystem, m.project)
	default:
		key = hashKey("release", m.registry, m.ecosystem, m.project, m.version)
	}
	err = x.newest(key, func(i uint64) (bool, error) {
		e, err := x.entryAt(int64(i))
		if err != nil {
			return false, err
		}
		has = e.Kind == kind && e.Registry == m.registry && e.Ecosystem == m.ecosystem && e.Project == m.project && (m.version == "" || e.Version == m.version)
		return !has, nil
	})
	return has, err
}

func (x *applyingRows) pin(key [32]byte, digest []byte, _ int64) error {
	r, err := x.row(key)
	if err == nil && (r == nil || !bytes.Equal(r.digest, digest)) {
		x.keys = append(x.keys, rowKey(key))
	}
	return err
}

func (x *applyingRows) free(key [32]byte) error {
	x.keys = append(x.keys, rowKey(key))
	return nil
}

func (x *applyingRows) setRemoved(key [32]byte) error {
	r, err := x.row(key)
	if err == nil && r != nil && !r.removed {
		x.keys = append(x.keys, rowKey(key))
	}
	return err
}

func (x *applyingRows) setOverwrite(registry, ecosystem, _ string) error {
	x.keys = append(x.keys, rowKey(policyKey(registry, ecosystem)))
	return nil
}

func (x *applyingRows) set(m mark, _ int64) error {
	if m.project == "" { // uploads are found by the keys of lookups
		x.keys = append(x.keys, rowKey(baselineKey(m.registry, m.ecosystem)))
	}
	return nil
}

// apply records that e stands at index, the next one. finds are the keys that
// lookups find it by. An error leaves the index as it was.
func (x indexRows) apply(index uint64, e *entry.Entry, finds []uint64) error {
	rows := applyingRows{x, finds}
	if err := applyTo(&rows, int64(index), e); err != nil {
		return err
	}
	x.append(rows.keys)
	return nil
}

// verdict is the rule of admission: an entry whose key is not in flight may be
// logged (isNew), has the index it is logged at, or is refused. tail is how much
// of the log rows have applied; entryAt reads an entry of it.
func verdict(rows slotView, tail int64, entryAt func(int64) (*entry.Entry, error), e *entry.Entry, key [32]byte, digest []byte) (index uint64, isNew bool, err error) {
	r, err := rows.row(key)
	if err != nil {
		return 0, false, err
	}
	switch {
	case r == nil && e.Kind == entry.KindUpload:
		if e.Replaces != nil {
			err = &PreconditionError{"replaces", "nothing is logged for this file: log it without replaces"}
		}
	case r == nil:
		err = precondition(rows, tail, entryAt, e)
	case e.Kind == entry.KindUpload:
		same, comparable := sameDigest(r.digest, digest)
		if same {
			return r.index, false, nil
		}
		if !comparable {
			return 0, false, otherAlgorithm(r.index)
		}
		var allowed bool
		if allowed, err = mayOverwrite(rows, e, r); err == nil && !allowed {
			err = otherBytes(e, r.index)
		}
	case bytes.Equal(r.digest, digest):
		return r.index, false, nil
	default:
		err = otherEntry(e, r.index)
	}
	return 0, err == nil, err
}

// otherBytes refuses an upload of a file that is logged with another digest.
func otherBytes(e *entry.Entry, first uint64) *ConflictError {
	slot, _ := e.Slot()
	return &ConflictError{Slot: slot, FirstIndex: first, Reason: fmt.Sprintf("%s of %s is pinned to other bytes by index %d", e.File, e.Project, first)}
}

// otherAlgorithm refuses an upload whose digest cannot be compared.
func otherAlgorithm(first uint64) *PreconditionError {
	return &PreconditionError{"sha512", fmt.Sprintf("index %d pins this file by another digest algorithm: send both digests", first)}
}

// otherEntry refuses an entry with an id that another one has.
func otherEntry(e *entry.Entry, first uint64) *ConflictError {
	return &ConflictError{FirstIndex: first, Reason: fmt.Sprintf("id %s belongs to another entry, at index %d: take a new random id", e.ID, first)}
}

// mayOverwrite says whether the registry's logged policy lets e take over a
// slot that another digest holds.
func mayOverwrite(rows slotView, e *entry.Entry, r *slotRow) (bool, error) {
	if e.Claim != entry.ClaimIndex {
		return false, nil
	}
	overwrite, err := rows.overwrite(e.Registry, e.Ecosystem)
	if err != nil {
		return false, err
	}
	named := e.Replaces != nil && *e.Replaces == r.index
	switch overwrite {
	case "replace":
		return named, nil
	case "after-remove":
		return r.removed && (named || e.Replaces == nil), nil
	}
	return false, nil
}

// precondition checks what a status or control entry needs of the log.
func precondition(rows slotView, tail int64, entryAt func(int64) (*entry.Entry, error), e *entry.Entry) error {
	switch e.Kind {
	case entry.KindReject:
		slot, _ := e.Slot()
		r, err := rows.row(slot.Key())
		if err != nil {
			return err
		}
		if r == nil {
			return &PreconditionError{"file", "nothing is logged for this file that could be rejected"}
		}
		digest, err := digestOf(e)
		if err != nil {
			return err
		}
		if same, _ := sameDigest(r.digest, digest); !same {
			return &PreconditionError{"sha256", fmt.Sprintf("index %d logged other bytes for this file: name those", r.index)}
		}
	case entry.KindDispute:
		if *e.Index >= uint64(tail) {
			return &PreconditionError{"index", fmt.Sprintf("the log has no entry %d", *e.Index)}
		}
		disputed, err := entryAt(int64(*e.Index))
		if err != nil {
			return err
		}
		if disputed.Registry != e.Registry {
			return &PreconditionError{"index", fmt.Sprintf("entry %d is not about %s", *e.Index, e.Registry)}
		}
	case entry.KindYank, entry.KindUnyank, entry.KindQuarantine, entry.KindUnquarantine, entry.KindDeprecate, entry.KindUndeprecate,
		entry.KindArchive, entry.KindUnarchive, entry.KindRemove, entry.KindDistTag:
		return named(rows, entryAt, e)
	}
	return nil
}

// named checks that what a status is about is logged, for this registry and
// ecosystem, by either claim: a project or release by an upload of it, a file by
// the upload that holds its slot, with the digest and version that the status
// names (the status's own claim first, then the other's). Where a baseline is
// logged there are files from before the log, so that what is not logged may
// exist all the same; a file that is logged must still be the one named.
func named(rows slotView, entryAt func(int64) (*entry.Entry, error), e *entry.Entry) error {
	missing := func(field, what string) error {
		if old, err := rows.has(mark{registry: e.Registry, ecosystem: e.Ecosystem}); old || err != nil {
			return err
		}
		return &PreconditionError{field, fmt.Sprintf("no upload of this %s is logged, and no baseline that might list it: log one first", what)}
	}
	if e.File == "" {
		field, what := "project", "project"
		if e.Version != "" {
			field, what = "version", "release"
		}
		if ok, err := rows.has(mark{e.Registry, e.Ecosystem, e.Project, e.Version}); ok || err != nil {
			return err
		}
		return missing(field, what)
	}
	slot := uploadSlot(e)
	var r *slotRow
	for _, slot.Claim = range []entry.Claim{e.Claim, otherClaim(e.Claim)} {
		var err error
		if r, err = rows.row(slot.Key()); err != nil {
			return err
		}
		if r != nil {
			break
		}
	}
	if r == nil {
		return missing("file", "file")
	}
	digest, err := digestOf(e)
	if err != nil {
		return err
	}
	same, comparable := sameDigest(r.digest, digest)
	switch {
	case !comparable:
		return otherAlgorithm(r.index)
	case !same && e.SHA256 == "":
		return &PreconditionError{"sha512", fmt.Sprintf("index %d logged other bytes for this file: name those", r.index)}
	case !same:
		return &PreconditionError{"sha256", fmt.Sprintf("index %d logged other bytes for this file: name those", r.index)}
	}
	upload, err := entryAt(int64(r.index))
	if err != nil {
		return err
	}
	if upload.Version != e.Version {
		return &PreconditionError{"version", fmt.Sprintf("index %d logged this file with version %q", r.index, upload.Version)}
	}
	return nil
}

func otherClaim(c entry.Claim) entry.Claim {
	if c == entry.ClaimIndex {
		return entry.ClaimObserved
	}
	return entry.ClaimIndex
}

// applyTo records in rows that e stands at index. Replaying the log from its
// first entry gives the same rows as living through it.
func applyTo(rows slotRows, index int64, e *entry.Entry) error {
	key, digest, err := slotKey(e)
	if err != nil {
		return err
	}
	if err := rows.pin(key, digest, index); err != nil {
		return err
	}
	switch e.Kind {
	case entry.KindReject:
		err = ifHeld(rows, e, rows.free)
	case entry.KindRemove:
		if e.File != "" {
			err = ifHeld(rows, e, rows.setRemoved)
		}
	case entry.KindRegistryPolicy:
		err = rows.setOverwrite(e.Registry, e.Ecosystem, e.Overwrite)
	case entry.KindBaseline:
		err = rows.set(mark{registry: e.Registry, ecosystem: e.Ecosystem}, index)
	case entry.KindUpload:
		if err = rows.set(mark{e.Registry, e.Ecosystem, e.Project, ""}, index); err == nil && e.Version != "" {
			err = rows.set(mark{e.Registry, e.Ecosystem, e.Project, e.Version}, index)
		}
	}
	return err
}

// ifHeld runs change on the upload slot of a reject or remove, if the slot is
// held by what e is about.
func ifHeld(rows slotRows, e *entry.Entry, change func(key [32]byte) error) error {
	k := uploadSlot(e).Key()
	r, err := rows.row(k)
	if err != nil || r == nil {
		return err
	}
	if holds, err := r.holds(e); err != nil || !holds {
		return err
	}
	return change(k)
}

// uploadSlot is the slot of the file that e is about, under e's own claim.
func uploadSlot(e *entry.Entry) entry.Slot {
	return entry.Slot{Registry: e.Registry, Ecosystem: e.Ecosystem, Claim: e.Claim, Project: e.Project, File: e.File}
}
