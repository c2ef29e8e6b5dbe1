// The head: is the checkpoint that the log shows now one to go on from?

package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
)

func leafHash(leaf []byte) [32]byte { return entry.LeafHash(leaf) }

// A lie is a sign that the log, or somebody in its name, showed two truths. It
// is proven where evidence convinces a third party; then it is told at once.
type lie struct {
	alert  alert.Alert
	proven bool
	key    []string // what makes it the same lie when it is met again
	err    error
}

func (l *lie) Error() string { return l.err.Error() }
func (l *lie) Unwrap() error { return l.err }

// accept reads the log's checkpoint, compares it with the last one accepted,
// records it if it is newer, and returns the one to scan up to.
//
// The log's own signature is checked first, and a fork is told even where too
// few witnesses cosigned it: not to cosign one is what witnesses are for.
func (m *Monitor) accept(ctx context.Context) (c2sp.Checkpoint, error) {
	none := c2sp.Checkpoint{}
	note, err := m.Source().Checkpoint(ctx)
	if err != nil {
		return none, fmt.Errorf("read the log's checkpoint: %w", err)
	}
	signed, err := m.Policy().VerifyLog(note)
	if errors.Is(err, c2sp.ErrBadSignature) || errors.Is(err, c2sp.ErrNoLogSignature) {
		// The words come from whoever serves the address: they are no part of the
		// ID, or everyone could be told the same thing without end.
		class := "bad"
		if errors.Is(err, c2sp.ErrNoLogSignature) {
			class = "none"
		}
		return none, &lie{alert: headSignatureAlert(alert.OneLine(err.Error())), key: []string{"head-signature", class, m.cfg.Now().UTC().Format(time.DateOnly)}, err: err}
	}
	if err != nil {
		return none, fmt.Errorf("the log's checkpoint: %w", err)
	}
	if signed.Origin != m.Origin() {
		return none, fmt.Errorf("the address serves the log %q, not %q", signed.Origin, m.Origin())
	}
	l := m.state
	err = m.compare(ctx, m.Source(), signed.Checkpoint, note)
	if signed.Size < l.HeadSize {
		// A log that went back may have lost the tiles that would show whether
		// it forked too. The monitor has read every leaf: it needs none.
		if err != nil && m.examined.root == signed.Root && m.examined.err != nil {
			err = m.examined.err // known; hashing every leaf at every look would be too much
		} else if err != nil && l.Verified.Size == l.HeadSize {
			if own := m.compare(ctx, ownTiles{m.cfg.Store, l.ID}, signed.Checkpoint, note); errors.As(own, new(*lie)) {
				err = own
				m.examined.root, m.examined.err = signed.Root, own
			}
		}
		if proven := (*lie)(nil); errors.As(err, &proven) && proven.proven {
			return none, err
		}
		if ctx.Err() != nil {
			return none, ctx.Err()
		}
		return none, &lie{alert: rollbackAlert(l.HeadSize, signed.Size), key: []string{"rollback", fmt.Sprint(l.HeadSize), fmt.Sprint(signed.Size)},
			err: fmt.Errorf("the log went back from %d to %d entries", l.HeadSize, signed.Size)}
	}
	if err != nil {
		return none, err
	}
	v, err := m.Policy().Verify(note)
	if err != nil {
		return none, fmt.Errorf("the log's checkpoint: %w", err)
	}
	if v.Size > l.HeadSize || len(l.HeadNote) == 0 || v.FreshTime.After(l.HeadTime) {
		if err := m.cfg.Store.setHead(ctx, l.ID, v.Size, v.Root, note, v.FreshTime); err != nil {
			return none, db(err)
		}
		l.HeadSize, l.HeadRoot, l.HeadNote, l.HeadTime = v.Size, v.Root, note, v.FreshTime
	}
	return c2sp.Checkpoint{Origin: m.Origin(), Size: l.HeadSize, Root: l.HeadRoot}, nil
}

// compare says whether a checkpoint that the log signed and the last one
// accepted can be of one history. The tiles are asked for the subtrees that
// make up the larger tree, cut where the smaller ends: if they hash to the
// larger signed root, they also say what the smaller root must have been.
func (m *Monitor) compare(ctx context.Context, tiles TileReader, c c2sp.Checkpoint, note []byte) error {
	l := m.state
	if len(l.HeadNote) == 0 {
		return nil // the first one is believed; init and --accept-new-baseline say so
	}
	ev := client.Evidence{First: l.HeadNote, Second: note}
	small, large := c2sp.Checkpoint{Size: l.HeadSize, Root: l.HeadRoot}, c
	if c.Size < l.HeadSize {
		small, large = large, small
		ev.First, ev.Second = ev.Second, ev.First
	}
	if small.Size == large.Size {
		if small.Root == large.Root {
			return nil
		}
		return m.fork(ev, c, fmt.Sprintf("The log signed two different trees of %d entries", c.Size))
	}
	t := newTree(tiles, large.Size)
	p := NewPosition()
	left, err := t.extend(ctx, &p, small.Size)
	if err != nil {
		return fmt.Errorf("compare the sizes %d and %d: %w", small.Size, large.Size, err)
	}
	atSmall := p.Root
	right, err := t.extend(ctx, &p, large.Size)
	if err != nil {
		return fmt.Errorf("compare the sizes %d and %d: %w", small.Size, large.Size, err)
	}
	if p.Root != large.Root {
		err := &InconsistentError{0, large.Size, "its tiles do not lead to the root it signed for this size"}
		return &lie{alert: tilesAlert(err.Error()), key: []string{"tiles", fmt.Sprint(l.Verified.Size)}, err: err}
	}
	if atSmall == small.Root {
		return nil
	}
	ev.Hashes = append(left, right...)
	return m.fork(ev, c, fmt.Sprintf("The tree of %d entries that the log signed does not begin with the tree of %d entries that it signed too", large.Size, small.Size))
}

// fork writes the evidence and returns the lie. Where the evidence cannot be
// checked with the policy's keys (a key was dropped since), the fork is told
// all the same, without it.
func (m *Monitor) fork(ev client.Evidence, c c2sp.Checkpoint, detail string) error {
	l := &lie{alert: forkAlert(detail), proven: true, key: []string{"fork", fmt.Sprint(c.Size), fmt.Sprintf("%x", c.Root)}, err: errors.New(detail)}
	if _, err := ev.Verify(m.Policy()); err != nil {
		l.alert.What += " This cannot be proven to others with the keys of the policy: " + alert.OneLine(err.Error()) + "."
		return l
	}
	l.alert.Evidence = string(ev.Bytes())
	if path, err := client.WriteEvidence(m.cfg.EvidenceDir, &ev); err != nil {
		m.log.Error("the evidence is in the alert, but could not be written as a file", "dir", m.cfg.EvidenceDir, "err", err)
	} else {
		m.log.Error("the log forked; evidence written", "origin", m.Origin(), "file", path)
	}
	return l
}

// tellLie owes everyone an alert and records why the monitor stands still. The
// same lie met again has the same ID.
func (m *Monitor) tellLie(ctx context.Context, l *lie) error {
	m.state.Tampering = l.alert.Title
	a := l.alert
	a.Log = m.Origin()
	if m.cfg.PageURL != "" {
		a.Page = m.cfg.PageURL
	}
	a.ID = alert.ID(append([]string{m.Origin(), "log"}, l.key...)...)
	if err := m.cfg.Store.setTampering(ctx, m.state.ID, a.Title); err != nil {
		return err
	}
	m.subsMu.Lock()
	defer m.subsMu.Unlock()
	return m.cfg.Store.oweNow(ctx, m.state.ID, 0, finding{alert: a, to: m.subs.Load().everyone()})
}

// health judges how old the newest state is and how far behind the cursor is,
// and keeps the conditions.
func (m *Monitor) health(ctx context.Context, readErr error) error {
	now := m.cfg.Now()
	l := m.state
	told := l.Tampering != ""
	if told && (readErr == nil || errors.As(readErr, new(*lie))) {
		return nil // told as what it is; it must not be worded as an outage too
	}
	fresh := l.HeadTime
	switch {
	case len(l.HeadNote) == 0:
		fresh = m.started // nothing was ever read
	case fresh.IsZero() && readErr == nil:
		fresh = now // a policy without witnesses: nobody dates anything
	case fresh.IsZero():
		fresh = m.started
		if ms := m.lastRead.Load(); ms != 0 {
			fresh = time.UnixMilli(ms)
		}
	}
	cause := "The log answers, but what it shows is old."
	if readErr != nil {
		cause = "Last cause: " + alert.OneLine(readErr.Error()) + "."
	}
	ahead := fresh.Sub(now) > clockSlack
	if err := m.condition(ctx, condSilent, now.Sub(fresh) > m.cfg.StaleAfter, fresh, 0, cause); err != nil || told {
		return err // a log that misbehaved and then fell silent is silent all the same
	}
	if err := m.condition(ctx, condClock, ahead, now, 0, fmt.Sprintf(
		"A quorum of witnesses says that it is %s; this machine's clock says %s.", fresh.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))); err != nil {
		return err
	}
	behind := l.HeadSize - l.Verified.Size
	why := "It is working through them."
	if readErr != nil {
		why = cause
	}
	return m.condition(ctx, condBacklog, behind > 0, now, m.cfg.StaleAfter, fmt.Sprintf("The log has %d entries; %d of them have been verified here. %s", l.HeadSize, l.Verified.Size, why))
}

// condition keeps one infrastructure trouble: it begins at since, is told once
// it has lasted for after, and its end is told to those who heard of it.
func (m *Monitor) condition(ctx context.Context, kind string, active bool, since time.Time, after time.Duration, detail string) error {
	s, now, log := m.cfg.Store, m.cfg.Now(), m.state.ID
	c, err := s.getCondition(ctx, log, kind)
	if err != nil {
		return err
	}
	if !active && c == nil {
		return nil
	}
	id := func(c *condition, what string) string {
		return alert.ID(m.Origin(), "condition", kind, what, fmt.Sprint(c.since.Unix()))
	}
	m.subsMu.Lock()
	defer m.subsMu.Unlock()
	to := m.subs.Load().everyone()
	if kind == condBacklog || kind == condClock {
		to = m.subs.Load().Operator.Notify
	}
	if !active {
		var fs []finding
		if c.told {
			a := recoveredAlert(kind, c.since, now)
			a.ID, a.Log, a.Page = id(c, "over"), m.Origin(), m.cfg.PageURL
			fs = append(fs, finding{alert: a, to: to})
		}
		return s.endCondition(ctx, log, kind, fs)
	}
	if c == nil {
		c = &condition{since: since.Truncate(time.Second)}
	}
	c.detail = detail
	var fs []finding
	if !c.told && now.Sub(c.since) >= after {
		c.told = true
		a := conditionAlert(kind, detail, c.since)
		a.ID, a.Log, a.Page = id(c, "begun"), m.Origin(), m.cfg.PageURL
		fs = append(fs, finding{alert: a, to: to})
	}
	return s.putCondition(ctx, log, kind, c, fs)
}

// ReadEvidence lists the evidence files beside the database, newest first, for
// the web page.
func (m *Monitor) ReadEvidence() ([]string, error) {
	list, err := os.ReadDir(m.cfg.EvidenceDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range list {
		if f.Type().IsRegular() && bytes.HasPrefix([]byte(f.Name()), []byte("portbook-evidence-")) {
			names = append(names, f.Name())
		}
	}
	return names, nil
}

// EvidenceDir is where evidence files are.
func (m *Monitor) EvidenceDir() string { return m.cfg.EvidenceDir }
