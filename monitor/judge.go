// Judging: what each verified leaf means for the index, for the rule that one
// file name stands for one file, and for the subscriptions. Everything happens
// inside the transaction that moves the cursor.

package monitor

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
)

// kindUnreadable is the kind of an entry row whose leaf cannot be parsed.
const kindUnreadable = "unreadable"

// maxProjectCache bounds the map from project to row; it is only a cache.
const maxProjectCache = 200_000

// quietDay is how long one alert speaks for all of its quiet key.
const quietDay = 24 * time.Hour

// A finding is an alert before it is known whom it reaches.
type finding struct {
	alert        alert.Alert
	subscription string   // name; empty: about the whole log
	to           []Target // who is told, if they want the severity
	group        string   // alerts of one group within the window are one notice
	quiet        string   // a second alert of one quiet key in a day is recorded only
	proof        bool     // to be sent with the entry's tlog-proof
	unjudged     bool     // told to who said nothing about what is normal: the entry is not marked
}

type judge struct {
	m    *Monitor
	tx   *sql.Tx
	log  *logState
	subs *Subscriptions

	insertEntry, insertSlot, getSlot, setVerdict *sql.Stmt

	ancestors []int64 // logs that this one took over from; nil: not yet looked up

	findings []finding
}

func (m *Monitor) newJudge(ctx context.Context, tx *sql.Tx, log *logState, subs *Subscriptions) (*judge, error) {
	j := &judge{m: m, tx: tx, log: log, subs: subs}
	for _, p := range []struct {
		to  **sql.Stmt
		sql string
	}{
		{&j.insertEntry, `INSERT INTO entry (log, idx, project, kind, digest, leaf) VALUES (?, ?, ?, ?, ?, ?)`},
		{&j.insertSlot, `INSERT OR IGNORE INTO slot (log, key, idx, digest) VALUES (?, ?, ?, ?)`},
		{&j.getSlot, `SELECT idx, digest, freed FROM slot WHERE log = ? AND key = ?`},
		{&j.setVerdict, `UPDATE entry SET verdict = ? WHERE log = ? AND idx = ? AND verdict <> 'tampering'`},
	} {
		var err error
		if *p.to, err = tx.PrepareContext(ctx, p.sql); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
	}
	return j, nil
}

// leaf records one verified leaf and adds what it means to j.findings.
func (j *judge) leaf(ctx context.Context, l Leaf) error {
	e := l.Entry
	if e == nil {
		if _, err := j.insertEntry.ExecContext(ctx, j.log.ID, l.Index, 0, kindUnreadable, 0, l.Bytes); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		version := errors.Is(l.Err, entry.ErrVersion)
		f := finding{alert: unreadableAlert(l.Index, l.Err, version), to: j.subs.Operator.Notify}
		if version { // a newer log: every entry may be like this until this program is updated
			f.quiet = "unreadable|" + j.log.Origin
		}
		j.find(l, nil, f)
		return nil
	}
	var project int64
	var err error
	if e.Project != "" {
		if project, err = j.project(ctx, Watch{e.Registry, e.Ecosystem, e.Project}); err != nil {
			return err
		}
	}
	if _, err := j.insertEntry.ExecContext(ctx, j.log.ID, l.Index, project, string(e.Kind), digestPrefix(e.SHA256), l.Bytes); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	switch e.Kind {
	case entry.KindUpload:
		return j.upload(ctx, l, e)
	case entry.KindConflict:
		return j.conflict(ctx, l, e)
	case entry.KindRegistryPolicy:
		return j.registryPolicy(ctx, l, e)
	case entry.KindCanary:
		t, err := time.Parse(entry.TimeFormat, e.Time)
		if err != nil {
			return nil // Parse checked it
		}
		return j.exec(ctx, `UPDATE log SET canary_at = ? WHERE id = ?`, t.Unix(), j.log.ID)
	case entry.KindSuccessor:
		j.find(l, e, finding{alert: successorAlert(e), to: j.subs.everyone()})
		return nil
	case entry.KindBaseline, entry.KindPredecessor:
		return nil
	}
	return j.change(ctx, l, e)
}

func (j *judge) exec(ctx context.Context, q string, args ...any) error {
	if _, err := j.tx.ExecContext(ctx, q, args...); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}

// project returns the row of a project, making it if need be. The cache is
// filled only here, inside the transaction that makes the row; a transaction
// that fails drops the cache.
func (j *judge) project(ctx context.Context, w Watch) (int64, error) {
	if id, ok := j.m.projects[w]; ok {
		return id, nil
	}
	var id int64
	err := j.tx.QueryRowContext(ctx, `SELECT id FROM project WHERE name = ? AND registry = ? AND ecosystem = ?`, w.Project, w.Registry, w.Ecosystem).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = j.tx.QueryRowContext(ctx, `INSERT INTO project (registry, ecosystem, name) VALUES (?, ?, ?) RETURNING id`, w.Registry, w.Ecosystem, w.Project).Scan(&id)
	}
	if err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	if len(j.m.projects) >= maxProjectCache {
		clear(j.m.projects)
	}
	j.m.projects[w] = id
	return id, nil
}

// digestPrefix is the index key of a sha256: its first eight bytes.
func digestPrefix(hexDigest string) int64 {
	b, err := hex.DecodeString(hexDigest)
	if err != nil || len(b) < 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b))
}

// slotDigest is what a slot is pinned to: sha256, or sha512 where there is no other.
func slotDigest(e *entry.Entry) []byte {
	d := e.SHA256
	if d == "" {
		d = e.SHA512
	}
	b, _ := hex.DecodeString(d) // Parse checked it
	return b
}

type slotState struct {
	index   uint64
	digest  []byte
	removed bool
}

func (j *judge) slot(ctx context.Context, s entry.Slot) (*slotState, error) {
	key := s.Key()
	var st slotState
	err := j.getSlot.QueryRowContext(ctx, j.log.ID, key[:]).Scan(&st.index, &st.digest, &st.removed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return &st, nil
}

// differs reports whether an entry's file is certainly another one than the
// slot's. Where the two name different algorithms, the older leaf is read for
// one they share.
func (j *judge) differs(ctx context.Context, e *entry.Entry, st *slotState) (bool, error) {
	d := slotDigest(e)
	if len(d) == len(st.digest) {
		return !bytes.Equal(d, st.digest), nil
	}
	old, err := j.entryAt(ctx, st.index)
	if err != nil || old == nil {
		return false, err
	}
	return old.SHA512 != "" && e.SHA512 != "" && old.SHA512 != e.SHA512 || old.SHA256 != "" && e.SHA256 != "" && old.SHA256 != e.SHA256, nil
}

func (j *judge) entryAt(ctx context.Context, index uint64) (*entry.Entry, error) {
	var leaf []byte
	err := j.tx.QueryRowContext(ctx, `SELECT leaf FROM entry WHERE log = ? AND idx = ?`, j.log.ID, index).Scan(&leaf)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	e, err := entry.Parse(leaf)
	if err != nil {
		return nil, nil // an unreadable entry holds no slot
	}
	return e, nil
}

func (j *judge) overwrite(ctx context.Context, registry, ecosystem string) (string, error) {
	var policy string
	err := j.tx.QueryRowContext(ctx, `SELECT overwrite FROM registry_policy WHERE log = ? AND registry = ? AND ecosystem = ?`, j.log.ID, registry, ecosystem).Scan(&policy)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("database: %w", err)
	}
	return policy, nil
}

// upload keeps the rule that a slot has one digest, and compares the uploader
// with what the project's subscriptions expect.
func (j *judge) upload(ctx context.Context, l Leaf, e *entry.Entry) error {
	slot, _ := e.Slot()
	key := slot.Key()
	res, err := j.insertSlot.ExecContext(ctx, j.log.ID, key[:], l.Index, slotDigest(e))
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	isNew, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	var replaced *uint64
	if isNew == 0 {
		st, err := j.slot(ctx, slot)
		if err != nil {
			return err
		}
		differs, err := j.differs(ctx, e, st)
		if err != nil {
			return err
		}
		if !differs {
			return nil // logged again; there is nothing new to tell
		}
		policy, err := j.overwrite(ctx, e.Registry, e.Ecosystem)
		if err != nil {
			return err
		}
		named := e.Replaces != nil && *e.Replaces == st.index
		allowed := policy == "replace" && named || policy == "after-remove" && st.removed && (named || e.Replaces == nil)
		if e.Claim != entry.ClaimIndex || !allowed {
			j.tampering(l, e, secondDigestAlert(e, st.index))
			return nil // the slot keeps its first digest: that is the one people know
		}
		if err := j.exec(ctx, `UPDATE slot SET idx = ?, digest = ?, freed = 0 WHERE log = ? AND key = ?`, l.Index, slotDigest(e), j.log.ID, key[:]); err != nil {
			return err
		}
		replaced = &st.index
	} else if before, err := j.heldBefore(ctx, e, key); err != nil {
		return err
	} else if before != nil {
		j.tampering(l, e, secondDigestInNextAlert(e, *before))
		return nil
	}

	// What the registry commits to and what it is seen to serve must agree.
	other := slot
	other.Claim = entry.ClaimObserved
	if e.Claim == entry.ClaimObserved {
		other.Claim = entry.ClaimIndex
	}
	st, err := j.slot(ctx, other)
	if err != nil {
		return err
	}
	if st != nil {
		differs, err := j.differs(ctx, e, st)
		if err != nil {
			return err
		}
		if differs {
			policy, err := j.overwrite(ctx, e.Registry, e.Ecosystem)
			if err != nil {
				return err
			}
			if policy == "" || policy == "never" {
				j.tampering(l, e, servedDiffersAlert(e, st.index))
			}
		} else if e.Claim == entry.ClaimObserved {
			return nil // the same file, told when the registry logged it
		}
	}

	for _, sub := range j.subs.For(Watch{e.Registry, e.Ecosystem, e.Project}) {
		a, unjudged := alert.Alert{}, false
		if replaced != nil {
			a = replacedAlert(e, *replaced)
		} else if why := sub.Expect.surprise(e); why != "" {
			a, unjudged = uploadAlert(e, why), sub.Expect.silent()
		} else {
			continue
		}
		j.find(l, e, finding{alert: a, subscription: sub.Name, to: sub.Notify, proof: true, unjudged: unjudged,
			group: fmt.Sprintf("%q %q %q %q %q", sub.Name, e.Registry, e.Ecosystem, e.Project, e.Version)})
	}
	return nil
}

// silent reports whether nothing is said about which uploads are normal.
func (x *Expect) silent() bool { return x.Uploads == "" && len(x.Publishers) == 0 }

// surprise says why an upload is unexpected; empty if it is expected.
func (x *Expect) surprise(e *entry.Entry) string {
	switch {
	case x.Uploads == "none":
		return "The project is frozen: its subscription expects no uploads at all."
	case x.Uploads == "any":
		return ""
	case x.silent():
		return "The subscription names no expected publisher, so you hear of every upload."
	}
	for i := range x.Publishers {
		if x.Publishers[i].Matches(e.Publisher) {
			return ""
		}
	}
	want := x.Publishers[0].String()
	if n := len(x.Publishers) - 1; n > 0 {
		want += fmt.Sprintf(" (or %d more)", n)
	}
	return fmt.Sprintf("Expected: %s. This upload came %s.", want, authWords(e))
}

func (j *judge) conflict(ctx context.Context, l Leaf, e *entry.Entry) error {
	a := conflictAlert(e)
	if a.Severity == alert.Tampering {
		j.tampering(l, e, a)
		return nil
	}
	for _, sub := range j.subs.For(Watch{e.Registry, e.Ecosystem, e.Project}) {
		j.find(l, e, finding{alert: a, subscription: sub.Name, to: sub.Notify, proof: true,
			quiet: fmt.Sprintf("conflict %q %q %q %q %q", sub.Name, e.Registry, e.Ecosystem, e.Project, e.File)})
	}
	return nil
}

func (j *judge) registryPolicy(ctx context.Context, l Leaf, e *entry.Entry) error {
	was, err := j.overwrite(ctx, e.Registry, e.Ecosystem)
	if err != nil {
		return err
	}
	if err := j.exec(ctx, `INSERT INTO registry_policy (log, registry, ecosystem, overwrite, idx) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET overwrite = excluded.overwrite, idx = excluded.idx`, j.log.ID, e.Registry, e.Ecosystem, e.Overwrite, l.Index); err != nil {
		return err
	}
	if was == "" {
		was = "never" // what holds where nothing is logged
	}
	if was == e.Overwrite {
		return nil
	}
	for _, sub := range j.subs.inRegistry(e.Registry, e.Ecosystem) {
		j.find(l, e, finding{alert: registryPolicyAlert(e, was), subscription: sub.Name, to: sub.Notify, proof: true})
	}
	return nil
}

// change is every kind that changes a project without uploading to it.
func (j *judge) change(ctx context.Context, l Leaf, e *entry.Entry) error {
	w := Watch{e.Registry, e.Ecosystem, e.Project}
	switch e.Kind {
	case entry.KindReject:
		slot, _ := e.Slot()
		st, err := j.slot(ctx, slot)
		if err != nil {
			return err
		}
		if st != nil {
			differs, err := j.differs(ctx, e, st)
			if err != nil {
				return err
			}
			if !differs {
				key := slot.Key()
				if err := j.exec(ctx, `DELETE FROM slot WHERE log = ? AND key = ?`, j.log.ID, key[:]); err != nil {
					return err
				}
			}
		}
	case entry.KindRemove:
		if e.File != "" {
			slot := entry.Slot{Registry: e.Registry, Ecosystem: e.Ecosystem, Claim: e.Claim, Project: e.Project, File: e.File}
			st, err := j.slot(ctx, slot)
			if err != nil {
				return err
			}
			if st != nil {
				differs, err := j.differs(ctx, e, st)
				if err != nil {
					return err
				}
				if !differs { // else of other bytes than the name stands for
					key := slot.Key()
					if err := j.exec(ctx, `UPDATE slot SET freed = 1 WHERE log = ? AND key = ?`, j.log.ID, key[:]); err != nil {
						return err
					}
				}
			}
		}
	case entry.KindDispute:
		disputed, err := j.entryAt(ctx, *e.Index)
		if err != nil {
			return err
		}
		if disputed == nil || disputed.Project == "" || disputed.Registry != e.Registry {
			return nil // it concerns nobody's project; the row keeps it
		}
		w = Watch{disputed.Registry, disputed.Ecosystem, disputed.Project}
	}
	for _, sub := range j.subs.For(w) {
		if slices.Contains(sub.Expect.Changes, e.Kind) {
			continue
		}
		if e.Kind == entry.KindPublisherAdd && slices.ContainsFunc(sub.Expect.Publishers, func(x ExpectedPublisher) bool { return x.Matches(e.Publisher) }) {
			continue
		}
		j.find(l, e, finding{alert: changeAlert(e, w), subscription: sub.Name, to: sub.Notify, proof: true})
	}
	return nil
}

// tampering tells the operator and, each under its own ID, the subscriptions
// of the project. It is never grouped and never quiet.
func (j *judge) tampering(l Leaf, e *entry.Entry, a alert.Alert) {
	j.find(l, e, finding{alert: a, to: j.subs.Operator.Notify, proof: true})
	for _, sub := range j.subs.For(Watch{e.Registry, e.Ecosystem, e.Project}) {
		j.find(l, e, finding{alert: a, subscription: sub.Name, to: sub.Notify, proof: true})
	}
}

// find completes a finding about a leaf. What was logged before the monitor's
// beginning is history: only tampering in it is told.
func (j *judge) find(l Leaf, e *entry.Entry, f finding) {
	if l.Index < j.log.AlertFrom && f.alert.Severity != alert.Tampering {
		return
	}
	f.alert = j.m.aboutEntry(f.alert, l.Index, l.Bytes, e)
	h := entry.LeafHash(l.Bytes)
	f.alert.ID = alert.ID(j.log.Origin, "entry", strconv.FormatUint(l.Index, 10), hex.EncodeToString(h[:]), f.alert.Kind, f.subscription)
	j.findings = append(j.findings, f)
}

// mark records on the entry's row what a finding says of it, for the page: a
// word, never who was told.
func (j *judge) mark(ctx context.Context, f finding) error {
	v := f.alert.Severity
	if f.alert.Index == nil || f.unjudged || v != alert.Tampering && v != alert.Unexpected {
		return nil
	}
	if _, err := j.setVerdict.ExecContext(ctx, string(v), j.log.ID, *f.alert.Index); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}
