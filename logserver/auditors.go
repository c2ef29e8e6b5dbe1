package logserver

// The log as a client of auditing mirrors: c2sp.org/tlog-mirror, add-checkpoint
// and add-entries. An auditor signs what it has read, so it is asked once a
// checkpoint is published, beside everything else: publishing waits for nobody
// who waits for publishing. Its cosignature is added to the public checkpoint if
// that is still the newest, and proofs are built from the newest checkpoint that
// has one. See docs/decisions/0017-auditors.md.

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
)

const (
	auditPackages = 32 // of one request: what the specification asks for
	// auditRequests bounds the requests for one checkpoint; the next goes on from there.
	auditRequests = 256
	auditTimeout  = 30 * time.Second // of one request
	// auditPause is between two large requests: reading, packing and sending
	// them leaves the machine to uploads.
	auditPause = 100 * time.Millisecond
)

// An auditor is the lines of the publish policy that have its URL.
type auditor struct {
	*cosigner
	next uint64 // the mirror's next entry, as it told us last
	told bool   // that it has
	// confirmed is how many entries it was sent and has said that it has, or has
	// cosigned. They are not sent again.
	confirmed uint64
	wentBack  bool       // the operator was told that it went behind confirmed
	tiles     *tileCache // its own: what it lacks is old, and would drive out what proofs need
}

// newAuditors returns the auditors of a publish policy, none of which may have a
// say in its quorum: it would wait for them, and they for it. A private log has
// none.
func newAuditors(p *c2sp.Policy, private bool) ([]*auditor, error) {
	for _, w := range p.Witnesses {
		if !w.Auditor {
			continue
		}
		if w.Name == p.Quorum || slices.ContainsFunc(p.Groups, func(g c2sp.PolicyGroup) bool { return slices.Contains(g.Members, w.Name) }) {
			return nil, fmt.Errorf("policy: auditor %s is in a group or the quorum: a log publishes before an auditor can read; only a client's policy can ask for it", w.Name)
		}
	}
	list, err := newCosigners(p, true)
	var out []*auditor
	for _, c := range list {
		slow := *c.http
		slow.Timeout = auditTimeout // it reads and writes much more than a witness
		c.http = &slow
		out = append(out, &auditor{cosigner: c, tiles: newTileCache()})
	}
	if private && len(out) > 0 {
		return nil, fmt.Errorf("policy: auditor %s serves its mirror to everybody, and this log is private: take the line out", out[0].name)
	}
	return out, err
}

// auditing asks the policy's auditors about each published checkpoint, until ctx
// ends.
func (p *publisher) auditing(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	done := map[string]time.Time{} // auditor: when what it was asked about last was published
	busy := map[string]bool{}
	pause := map[string]time.Duration{}
	ended := make(chan func(), 1)
	for {
		now, changed := p.board.get()
		for _, w := range p.quorum.Load().auditors {
			// Asked for each publication of our own; and wherever the newest note lacks
			// its line, for a shared log's servers may show each other's.
			if now.Note == nil || busy[w.url] || w.signed(now.Note) && (now.At.IsZero() || done[w.url].Equal(now.At)) {
				continue
			}
			busy[w.url] = true
			asking.Go(func() {
				start := time.Now()
				sigs, err := w.audit(ctx, now, p.tree(int64(now.Size)))
				if err == nil {
					err = p.attach(ctx, now, sigs)
				}
				p.metrics.witness(w.name, err, time.Since(start))
				tell := func() {
					busy[w.url] = false
					if err == nil || ctx.Err() != nil {
						if pause[w.url] > 0 && !w.wentBack {
							p.logger.Info("the auditor cosigns again", "auditor", w.name)
						}
						done[w.url], pause[w.url] = now.At, 0
						return
					}
					if errors.Is(err, errAuditorBack) {
						if !w.wentBack {
							w.wentBack = true
							p.logger.Error("an auditor asks again for what it has confirmed; it is sent nothing until it has caught up from the public tiles", "auditor", w.name, "err", err)
						}
					} else if pause[w.url] == 0 {
						p.logger.Warn("no cosignature of the auditor; publishing goes on, and it is asked again", "auditor", w.name, "err", err)
					}
					pause[w.url] = min(max(2*pause[w.url], 250*time.Millisecond), 5*time.Second)
					busy[w.url] = true // until then
					time.AfterFunc(pause[w.url], func() {
						select {
						case ended <- func() { busy[w.url] = false }:
						case <-ctx.Done():
						}
					})
				}
				select {
				case ended <- tell:
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-changed:
		case f := <-ended:
			f()
		case <-ctx.Done():
			return
		}
	}
}

// signed reports whether the auditor has a line on a note of ours.
func (w *auditor) signed(raw []byte) bool {
	note, err := c2sp.ParseNote(raw)
	return err == nil && slices.ContainsFunc(w.keys, func(k c2sp.PolicyWitness) bool { return slices.ContainsFunc(note.Sigs, k.Key.Matches) })
}

// awaitAudits gives the auditors the time of one round with the last checkpoint
// that will be published.
func (p *publisher) awaitAudits(ctx context.Context) {
	limit := time.NewTimer(p.roundLimit)
	defer limit.Stop()
	for {
		now, changed := p.board.get()
		if now.audits >= len(p.quorum.Load().auditors) {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// errAuditorAhead: the auditor follows a newer checkpoint already. Its word about
// this one is not needed.
var errAuditorAhead = errors.New("the auditor is at a newer checkpoint")

// errAuditorBack: the auditor lost what it had, or lies. Sending it everything
// anew, as often as it likes, would let it keep the log busy; an honest one reads
// the tiles by itself.
var errAuditorBack = errors.New("the auditor went back")

// audit gives the mirror what it lacks of a published checkpoint, whose tree is
// t, and returns its verified cosignatures.
func (w *auditor) audit(ctx context.Context, p Published, t tree) ([]cosignature, error) {
	note, err := c2sp.ParseNote(p.Note)
	if err != nil {
		return nil, err
	}
	t.ctx, t.cache = ctx, w.tiles
	if err := w.offer(ctx, p, t); err != nil {
		return nil, err
	}
	for conflicts, n := 0, 0; n < auditRequests; n++ {
		start := p.Size // an empty upload: a mirror that has it all cosigns, another says what it lacks
		if w.told {
			start = min(w.next, p.Size)
		}
		end, body, err := w.upload(p, t, start)
		if err != nil {
			return nil, err
		}
		status, answer, err := w.addEntries(ctx, body)
		if err != nil {
			w.told = false // perhaps a refusal that the connection broke under: ask with an empty upload first
			return nil, err
		}
		switch status {
		case http.StatusOK:
			w.next, w.told, w.confirmed = p.Size, true, max(w.confirmed, p.Size)
			return w.pick(answer, note.Text)
		case http.StatusAccepted, http.StatusConflict:
			size, next, err := parseMirrorInfo(answer)
			if err != nil {
				return nil, fmt.Errorf("auditor %s: answered %d: %w", w.name, status, err)
			}
			if next < w.confirmed {
				w.told = false
				return nil, fmt.Errorf("auditor %s: %w: it says that %d is next, and it has confirmed %d entries", w.name, errAuditorBack, next, w.confirmed)
			}
			w.next, w.told = next, true
			if status == http.StatusConflict {
				if size != p.Size {
					return nil, fmt.Errorf("auditor %s: %w (%d)", w.name, errAuditorAhead, size)
				}
				if conflicts++; conflicts > 3 {
					return nil, fmt.Errorf("auditor %s: it refuses entries from %d, which it asked for", w.name, start)
				}
			} else if next < end {
				return nil, fmt.Errorf("auditor %s: it was sent entries [%d, %d) and says that %d is next", w.name, start, end, next)
			} else {
				w.confirmed = max(w.confirmed, end)
			}
			if (status == http.StatusAccepted || conflicts > 1) && !sleep(ctx, auditPause) {
				return nil, ctx.Err()
			}
		default:
			return nil, fmt.Errorf("auditor %s: answered %d %s", w.name, status, printable(answer))
		}
	}
	return nil, fmt.Errorf("auditor %s: it has %d of %d entries; the rest follows", w.name, w.next, p.Size)
}

// offer makes p the mirror's pending checkpoint.
func (w *auditor) offer(ctx context.Context, p Published, t tree) error {
	for attempt := 0; ; attempt++ {
		old := w.size.Load()
		if old > int64(p.Size) {
			old = 0
		}
		proof, err := t.consistency(old)
		if err != nil {
			return err
		}
		status, answer, err := w.post(ctx, (&c2sp.AddCheckpoint{Old: uint64(old), Proof: proof, Checkpoint: p.Note}).Bytes())
		if err != nil {
			return err
		}
		switch status {
		case http.StatusOK:
			w.size.Store(int64(p.Size))
			return nil
		case http.StatusConflict:
			size, err := parseSize(answer)
			if err != nil {
				return fmt.Errorf("auditor %s: conflict without a size", w.name)
			}
			w.size.Store(size)
			if size > int64(p.Size) {
				return nil // it may know this one all the same
			}
			if attempt > 2 || size == old {
				return fmt.Errorf("auditor %s: contradicts itself about its pending checkpoint (%d)", w.name, size)
			}
		default:
			return fmt.Errorf("auditor %s: answered %d %s", w.name, status, printable(answer))
		}
	}
}

// upload is the body of add-entries from start on, of at most auditPackages
// packages; end is how far they go.
func (w *auditor) upload(p Published, t tree, start uint64) (end uint64, body []byte, err error) {
	cp, err := c2sp.ParseCheckpoint(textOf(p.Note))
	if err != nil {
		return 0, nil, err
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(len(cp.Origin)))
	b = append(b, cp.Origin...)
	b = binary.BigEndian.AppendUint64(b, start)
	b = binary.BigEndian.AppendUint64(b, p.Size)
	b = binary.BigEndian.AppendUint16(b, 0) // no ticket: none is needed
	end = start
	for n := 0; n < auditPackages && end < p.Size; n++ {
		first := end / tileWidth * tileWidth
		to := min(first+tileWidth, p.Size)
		leaves, err := t.leaves(int64(end), int(to-end))
		if err != nil {
			return 0, nil, err
		}
		for _, leaf := range leaves {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
		}
		// The subtree is a node of the tree: its audit path is that of its first
		// leaf without what lies inside of it.
		proof, err := t.inclusion(int64(first))
		if err != nil {
			return 0, nil, err
		}
		proof = proof[bits.Len64(to-first-1):]
		b = append(b, byte(len(proof)))
		for _, h := range proof {
			b = append(b, h[:]...)
		}
		end = to
	}
	return end, b, nil
}

func textOf(raw []byte) string {
	text, _, _ := strings.Cut(string(raw), "\n\n")
	return text + "\n"
}

func (w *auditor) addEntries(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	zw.Write(body)
	if err := zw.Close(); err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/add-entries", &packed)
	if err != nil {
		return 0, nil, fmt.Errorf("auditor %s: %w", w.name, err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Content-Encoding", "gzip")
	return w.do(req)
}

// parseMirrorInfo reads a body of text/x.tlog.mirror-info. The ticket is not
// needed: who has no memory of our checkpoints is told them again.
func parseMirrorInfo(b []byte) (size, next uint64, err error) {
	lines := strings.Split(string(b), "\n")
	if len(lines) != 4 || lines[3] != "" {
		return 0, 0, errors.New("not the three lines of mirror-info")
	}
	a, err := parseSize([]byte(lines[0] + "\n"))
	if err != nil {
		return 0, 0, err
	}
	n, err := parseSize([]byte(lines[1] + "\n"))
	return uint64(a), uint64(n), err
}

// attach adds an auditor's cosignatures to a checkpoint that was published: to
// the public one if it is still the newest, and to the one that proofs are built
// from.
func (p *publisher) attach(ctx context.Context, to Published, sigs []cosignature) error {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	latest, _ := p.board.get()
	newest := latest.Size == to.Size && latest.Root == to.Root
	if newest {
		to = latest // perhaps cosigned anew meanwhile, or by another auditor
	}
	note, err := c2sp.ParseNote(to.Note)
	if err != nil {
		return err
	}
	for _, s := range sigs {
		note.Sigs = append(slices.DeleteFunc(note.Sigs, func(had c2sp.Signature) bool { return had.Name == s.sig.Name && had.KeyID == s.sig.KeyID }), s.sig)
	}
	q := p.quorum.Load()
	to.Note = note.Bytes()
	to.audits = q.audits(to.Note)
	if newest {
		select {
		case <-p.latched:
			return errLatched
		default:
		}
		if err := p.publish(ctx, to.Note); err != nil {
			return fmt.Errorf("%w: public checkpoint: %w", ErrStorage, withoutPath(err))
		}
		p.board.set(to)
		return nil
	}
	p.board.remember(to)
	return nil
}

// audits is how many of the policy's auditors have cosigned a note.
func (q *quorum) audits(raw []byte) (n int) {
	if len(q.auditors) == 0 {
		return 0
	}
	v, err := q.policy.VerifyLog(raw)
	if err != nil {
		return 0
	}
	for _, w := range q.auditors {
		if slices.ContainsFunc(w.keys, func(k c2sp.PolicyWitness) bool {
			return slices.ContainsFunc(v.Cosignatures, func(c c2sp.Cosignature) bool { return c.Witness == k.Name })
		}) {
			n++
		}
	}
	return n
}

// carry adds to a note that is about to be published the auditors' cosignatures
// that the newest one has, if it is of the same tree: a checkpoint that is only
// cosigned anew loses nothing, and gets newer ones a moment later.
func (p *publisher) carry(note *c2sp.Note, cp c2sp.Checkpoint) {
	q := p.quorum.Load()
	was, _ := p.board.get()
	if len(q.auditors) == 0 || was.Size != cp.Size || was.Root != cp.Root {
		return
	}
	old, err := c2sp.ParseNote(was.Note)
	if err != nil || old.Text != note.Text {
		return
	}
	for _, s := range old.Sigs {
		for _, w := range q.auditors {
			for _, k := range w.keys {
				if !k.Key.Matches(s) {
					continue
				}
				if _, err := k.Key.VerifyNote(note.Text, s); err == nil {
					note.Sigs = append(note.Sigs, s)
				}
			}
		}
	}
}

// auditedFor is how long a checkpoint with more auditors' cosignatures is kept
// for proofs while newer ones have fewer.
const auditedFor = time.Minute

// remember keeps p for proofs if no better one is kept.
func (b *board) remember(p Published) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keep(p)
}

// keep is remember with b.mu held.
func (b *board) keep(p Published) {
	if p.audits == 0 || p.Size < b.audited.Size {
		return
	}
	if p.audits >= b.audited.audits || time.Since(b.audited.At) > auditedFor {
		b.audited = p
	}
}

// forget lets proofs be built from the newest checkpoint alone: under another
// policy an older one may be good for nothing.
func (b *board) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.audited = Published{}
}

// forProof is the checkpoint that a proof of an entry is built from: the newest,
// or the newest that auditors have cosigned if that covers the entry.
func (b *board) forProof(newest Published, index uint64) Published {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.audited; a.Quorum && a.audits > newest.audits && index < a.Size && a.Size <= newest.Size {
		return a
	}
	return newest
}
