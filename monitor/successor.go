// A log that has ended, and the one that takes over: the monitor goes on there
// by itself, once both logs have proven the hand-over under the policy's quorum
// (client.Handover). What was seen of the old log stays in the database.

package monitor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
)

// watched is the log that is being watched.
type watched struct {
	origin string
	policy *c2sp.Policy
	source Source
	url    string // "": as configured
}

// successorOf returns the first successor leaf of a log that is in the database.
func (s *Store) successorOf(ctx context.Context, log int64) (index uint64, leaf []byte, err error) {
	err = s.w.QueryRowContext(ctx, `SELECT idx, leaf FROM entry WHERE log = ? AND kind = 'successor' ORDER BY idx LIMIT 1`, log).Scan(&index, &leaf)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, fmt.Errorf("database: %w", err)
	}
	return index, leaf, nil
}

// handover returns how a log ended; nil if it has not.
func (s *Store) handover(ctx context.Context, log int64) (*client.Handover, error) {
	var h client.Handover
	err := s.w.QueryRowContext(ctx, `SELECT last, first FROM handover WHERE log = ?`, log).Scan(&h.Last, &h.First)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return &h, nil
}

// ancestors are the logs that log took over from, the youngest first.
func (s *Store) ancestors(ctx context.Context, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, log int64) ([]int64, error) {
	var out []int64
	for range client.MaxHandovers {
		err := q.QueryRowContext(ctx, `SELECT log FROM handover WHERE next = ?`, log).Scan(&log)
		if errors.Is(err, sql.ErrNoRows) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		out = append(out, log)
	}
	return out, nil
}

// resume goes to the log that took over before this start. The policy has the
// last word: if it does not bear a hand-over any more, the old log is watched.
func (m *Monitor) resume(ctx context.Context) error {
	for range client.MaxHandovers {
		h, err := m.cfg.Store.handover(ctx, m.state.ID)
		if err != nil || h == nil {
			return err
		}
		f, next, err := h.Verify(m.Policy())
		if err != nil {
			m.log.Warn("the log was rotated, but the policy does not bear it any more; watching the old one", "origin", m.Origin(), "err", err)
			return nil
		}
		state, err := m.cfg.Store.loadLog(ctx, f.To)
		if err != nil {
			return err
		}
		if state == nil {
			return fmt.Errorf("database: the log %q took over and has no row: the database is damaged", f.To)
		}
		if err := m.change(state, f, next); err != nil {
			return err
		}
	}
	return nil
}

// change makes the log that took over the one that is watched.
func (m *Monitor) change(state *logState, f *client.Followed, policy *c2sp.Policy) error {
	src, err := m.openNext(f.URL)
	if err != nil {
		return fmt.Errorf("the log that took over, %s: %w", f.URL, err)
	}
	m.log.Info("the log was rotated", "what", f.String())
	m.now.Store(&watched{f.To, policy, src, f.URL})
	m.state = state
	m.started = m.cfg.Now()
	m.fetched.Store(state.Verified.Size)
	m.examined.root, m.examined.err = [32]byte{}, nil
	return nil
}

func (m *Monitor) openNext(url string) (Source, error) {
	if m.cfg.Open != nil {
		return m.cfg.Open(url)
	}
	if r, ok := m.Source().(*client.Reader); ok {
		return r.Successor(url)
	}
	return client.NewReader(url, nil)
}

// afterEnd tells of a log that signed entries after the one that ends it.
func (m *Monitor) afterEnd(ctx context.Context, head c2sp.Checkpoint) error {
	index, leaf, err := m.cfg.Store.successorOf(ctx, m.state.ID)
	if err != nil {
		return db(err)
	}
	if leaf == nil || index+1 >= head.Size {
		return nil
	}
	why := fmt.Sprintf("entry %d says that the log ends there, and the log signed a tree of %d entries", index, head.Size)
	l := &lie{alert: afterEndAlert(why), proven: true, key: []string{"after-end", fmt.Sprint(index)}, err: errors.New(why)}
	proof, _, err := client.ProveEntry(ctx, m.Source(), head, m.state.HeadNote, index)
	if err != nil {
		return fmt.Errorf("prove entry %d, after which the log went on: %w", index, err)
	}
	m.attach(l, client.AfterEnd(proof))
	return l
}

// attach puts evidence on a lie and into a file, if it proves something to others.
func (m *Monitor) attach(l *lie, ev *client.Evidence) {
	if _, err := ev.Verify(m.Policy()); err != nil {
		l.alert.What += " This cannot be proven to others with the keys of the policy: " + alert.OneLine(err.Error()) + "."
		return
	}
	l.alert.Evidence = string(ev.Bytes())
	if path, err := client.WriteEvidence(m.cfg.EvidenceDir, ev); err != nil {
		m.log.Error("the evidence is in the alert, but could not be written as a file", "dir", m.cfg.EvidenceDir, "err", err)
	} else {
		m.log.Error("evidence written", "origin", m.Origin(), "file", path)
	}
}

// followEnd goes on to the log that takes over, if this one has ended and all
// that is owed about it has its proofs. A successor that contradicts it is
// tampering; one that cannot be followed yet is trouble, and tried again.
func (m *Monitor) followEnd(ctx context.Context) error {
	s, l := m.cfg.Store, m.state
	index, leaf, err := s.successorOf(ctx, l.ID)
	if err != nil {
		return db(err)
	}
	if leaf == nil || index+1 != l.HeadSize || l.Verified.Size != l.HeadSize {
		return nil
	}
	if h, err := s.handover(ctx, l.ID); err != nil {
		return db(err)
	} else if h != nil { // followed before, under another policy: see resume
		_, _, err := h.Verify(m.Policy())
		return fmt.Errorf("the log has ended, and the policy does not bear what it handed over to: %w", err)
	}
	waiting, err := s.unproven(ctx, l.ID, 1)
	if err != nil || len(waiting) > 0 {
		return db(err) // again next round
	}
	chain, err := s.ancestors(ctx, s.w, l.ID)
	if err != nil {
		return db(err)
	}
	if len(chain) >= client.MaxHandovers {
		return fmt.Errorf("the log has ended, and %d logs have already taken over from one another: put the next one into the policy and watch it with a new database", len(chain))
	}
	head := c2sp.Checkpoint{Origin: m.Origin(), Size: l.HeadSize, Root: l.HeadRoot}
	last, _, err := client.ProveEntry(ctx, m.Source(), head, l.HeadNote, index)
	var h *client.Handover
	var f *client.Followed
	var next *c2sp.Policy
	if err == nil {
		h, f, next, err = client.Take(ctx, m.Policy(), last, func(url string) (client.LogReader, error) { return m.openNext(url) })
	}
	var refusal *client.Refusal
	if errors.As(err, &refusal) {
		return m.refuseSuccessor(ctx, refusal, err)
	}
	if err != nil {
		return err
	}
	if err := m.takeOver(ctx, h, f); err != nil {
		return db(err)
	}
	state, err := s.loadLog(ctx, f.To)
	if err != nil {
		return db(err)
	}
	return m.change(state, f, next)
}

// refuseSuccessor tells of a successor that contradicts the log that named it.
func (m *Monitor) refuseSuccessor(ctx context.Context, r *client.Refusal, err error) error {
	l := &lie{alert: badSuccessorAlert(alert.OneLine(r.Detail)), key: []string{"successor", r.Code, m.cfg.Now().UTC().Format("2006-01-02")}, err: err}
	if ev := r.Proof(); ev != nil {
		l.proven, l.key = true, []string{"successor", r.Code}
		m.attach(l, ev)
	}
	m.misled = true
	return errors.Join(l, db(m.tellLie(ctx, l)))
}

// takeOver records the hand-over, with what everyone is told of it.
func (m *Monitor) takeOver(ctx context.Context, h *client.Handover, f *client.Followed) error {
	l := m.state
	// What was wrong with the log that is not watched any more is over.
	for _, kind := range []string{condSilent, condClock, condBacklog} {
		if err := m.condition(ctx, kind, false, m.cfg.Now(), 0, ""); err != nil {
			return err
		}
	}
	a := rotatedAlert(f)
	a.Log, a.Page = m.Origin(), m.cfg.PageURL
	a.ID = alert.ID(m.Origin(), "log", "rotated", f.To)
	m.subsMu.Lock()
	defer m.subsMu.Unlock()
	err := m.cfg.Store.tx(ctx, func(tx *sql.Tx) error {
		var next int64
		if _, err := tx.ExecContext(ctx, `INSERT INTO log (origin, alert_from, verified_root, head_root) VALUES (?, 0, ?, ?) ON CONFLICT DO NOTHING`,
			f.To, emptyRoot[:], emptyRoot[:]); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if err := tx.QueryRowContext(ctx, `SELECT id FROM log WHERE origin = ?`, f.To).Scan(&next); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO handover (log, next, last, first) VALUES (?, ?, ?, ?)`, l.ID, next, string(h.Last), string(h.First)); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE log SET tampering = '' WHERE id = ?`, l.ID); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		return owe(ctx, tx, l.ID, finding{alert: a, to: m.subs.Load().everyone()}, m.cfg.Now(), 0)
	})
	if err == nil {
		m.misled = false
	}
	return err
}

// heldBefore reports whether a log that this one took over from pinned the slot
// of e to other bytes, and at which index: a new log begins without slots.
func (j *judge) heldBefore(ctx context.Context, e *entry.Entry, key [32]byte) (*uint64, error) {
	if j.ancestors == nil {
		list, err := j.m.cfg.Store.ancestors(ctx, j.tx, j.log.ID)
		if err != nil {
			return nil, err
		}
		j.ancestors = append([]int64{}, list...)
	}
	for _, log := range j.ancestors {
		var st slotState
		err := j.getSlot.QueryRowContext(ctx, log, key[:]).Scan(&st.index, &st.digest, &st.removed)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		d := slotDigest(e)
		if len(d) != len(st.digest) || string(d) == string(st.digest) {
			return nil, nil
		}
		var policy string
		err = j.tx.QueryRowContext(ctx, `SELECT overwrite FROM registry_policy WHERE log = ? AND registry = ? AND ecosystem = ?`, log, e.Registry, e.Ecosystem).Scan(&policy)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("database: %w", err)
		}
		if policy == "replace" || policy == "after-remove" && st.removed {
			return nil, nil
		}
		return &st.index, nil
	}
	return nil, nil
}
