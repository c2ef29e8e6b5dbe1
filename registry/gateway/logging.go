// From accepted to proven: submitting files to the log, verifying what it
// answers, trying again.

package gateway

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
)

const (
	submitTimeout = time.Minute          // for one submission
	minRetry      = time.Second          // after the first failure; doubled each time
	maxRetry      = time.Minute          // of the log, whatever it asks for
	maxAsk        = 10 * time.Minute     // of the index
	askFor        = 24 * time.Hour       // how long the index must have said no about an upload whose answer was lost
	askGap        = 6 * time.Hour        // of that, what the time between two answers counts at most
	frozenWait    = 365 * 24 * time.Hour // a log that has ended is not asked again; a restart is
	outFor        = 2 * time.Minute      // how long a failed submission counts as the log being out
)

// repair starts, for everything that is due, one try at finishing it.
func (g *Gateway) repair(ctx context.Context) error {
	now := g.cfg.Now()
	unknown, err := g.outbox.unknown(ctx, now, 64)
	if err != nil {
		return err
	}
	for _, a := range unknown {
		g.ask(a)
	}
	seqs, err := g.outbox.due(ctx, now, 256)
	if err != nil {
		return err
	}
	for _, seq := range seqs {
		g.prove(seq)
	}
	return nil
}

// ask starts finding out about an attempt, unless someone is at it: the handler
// of the upload itself, or an earlier question.
func (g *Gateway) ask(a attempt) {
	if !g.setLive(a.id, true) {
		return
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer g.setLive(a.id, false)
		select {
		case g.asking <- struct{}{}:
			defer func() { <-g.asking }()
		case <-g.ctx.Done():
			return
		}
		if err := g.findOut(g.ctx, a); err != nil && g.ctx.Err() == nil {
			g.log.Error("finding out about an upload failed, will be tried again", "file", a.e.File, "err", err)
		}
	}()
}

// findOut asks the index what became of an upload whose answer was lost.
func (g *Gateway) findOut(ctx context.Context, a attempt) error {
	log := g.log.With("project", a.e.Project, "file", a.e.File, "sha256", a.e.SHA256)
	has, err := g.index.has(ctx, a.e, g.index.readAuth)
	now := g.cfg.Now()
	switch {
	case err == nil && has == hasIt:
		a.e.Time = now.UTC().Format(entry.TimeFormat)
		seq, _, err := g.outbox.accept(ctx, a.id, a.e, a.listed, now)
		if errors.Is(err, errGone) {
			return nil
		} else if err != nil {
			return err
		}
		g.mu.Lock()
		delete(g.absent, a.id)
		g.mu.Unlock()
		log.Info("the index has the upload whose answer was lost: logged without an uploader")
		g.crashForTest("repaired")
		g.prove(seq)
		return nil
	case err == nil && has == hasOther:
		log.Warn("the index has other bytes than the upload whose answer was lost: it did not take them")
		return g.drop(ctx, a.id)
	case err == nil && g.absentFor(a.id, now) >= askFor:
		// Only what the index has answered counts: time in which nobody could ask
		// it says nothing about the file.
		log.Warn("giving up on an upload whose answer was lost: the index has not listed it", "for", askFor)
		return g.drop(ctx, a.id)
	}
	reason := "the index does not list the file"
	if err != nil {
		reason = g.explain(err)
	}
	return g.outbox.stillUnknown(ctx, a.id, now.Add(pause(a.tries, 0, maxAsk)), reason)
}

// An absence is what the index has said of a file that it does not list.
type absence struct {
	last time.Time     // its latest answer
	sum  time.Duration // the time between its answers
}

// absentFor notes that the index answers that it does not list an attempt's file,
// and is how long it has been answering that, as far as this process has asked.
// One answer says nothing, and a long time without questions little.
func (g *Gateway) absentFor(id int64, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	a, asked := g.absent[id]
	if asked {
		a.sum += min(max(now.Sub(a.last), 0), askGap)
	}
	a.last = now
	g.absent[id] = a
	return a.sum
}

// drop forgets an attempt.
func (g *Gateway) drop(ctx context.Context, id int64) error {
	g.mu.Lock()
	delete(g.absent, id)
	g.mu.Unlock()
	return g.outbox.drop(ctx, id)
}

// explain adds to an error of the index what the operator can do about it.
func (g *Gateway) explain(err error) string {
	var status *statusError
	if !errors.As(err, &status) || status.status != http.StatusUnauthorized && status.status != http.StatusForbidden {
		return err.Error()
	}
	if g.index.readAuth == "" {
		return err.Error() + ": give the gateway an account of its own there (--read-user, --read-password-file)"
	}
	return err.Error() + ": the gateway's own account (--read-user) may not read there"
}

// prove starts one try at logging a file, or joins the one in progress. The
// channel is closed when the try is over, however it went.
func (g *Gateway) prove(seq int64) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if over, ok := g.flying[seq]; ok {
		return over
	}
	over := make(chan struct{})
	g.flying[seq] = over
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer func() {
			g.mu.Lock()
			delete(g.flying, seq)
			g.mu.Unlock()
			close(over)
		}()
		select {
		case g.tries <- struct{}{}:
			defer func() { <-g.tries }()
		case <-g.ctx.Done():
			return
		}
		if err := g.try(g.ctx, seq); err != nil && g.ctx.Err() == nil {
			g.log.Error("logging a file failed, will be tried again", "seq", seq, "err", err)
		}
	}()
	return over
}

// try submits one file to the log and stores what comes of it. The error is one
// of our own storage.
func (g *Gateway) try(ctx context.Context, seq int64) error {
	f, err := g.outbox.file(ctx, seq)
	if err != nil {
		return err
	}
	if f.state != Accepted && f.state != Submitted {
		return nil
	}
	if err := g.outbox.submitted(ctx, seq); err != nil {
		return err
	}
	g.crashForTest("submitted")
	log := g.log.With("project", f.e.Project, "file", f.e.File, "sha256", f.e.SHA256)
	proof, index, err := g.submit(ctx, f.e)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var conflict *submit.Conflict
	var invalid *submit.Invalid
	var frozen *submit.Frozen
	switch {
	case err == nil:
		g.crashForTest("logged")
		if err := g.outbox.proven(ctx, seq, index, proof, g.cfg.Now()); err != nil {
			return err
		}
		g.crashForTest("proven")
		log.Info("proven", "index", index, "after", g.cfg.Now().Sub(f.acceptedAt).Round(time.Millisecond))
		if g.setLogError(time.Time{}) {
			log.Info("the log is back: retrying what it would not take")
			return g.outbox.hurry(ctx)
		}
		return nil
	case errors.As(err, &conflict):
		log.Error("THE INDEX ACCEPTED OTHER BYTES UNDER A NAME THAT IS LOGGED: the file is withheld; find out who overwrote it", "first_index", conflict.FirstIndex)
		return g.outbox.conflict(ctx, seq, conflict.FirstIndex, err.Error())
	case errors.As(err, &frozen):
		// For good: this file and all after it wait for the next start, with
		// another log. Nothing is asked again meanwhile.
		g.setLogError(g.cfg.Now())
		if g.frozen.Swap(frozen) == nil {
			log.Error("THE LOG HAS ENDED: files that the index accepts are held off the pages until this gateway is started with the log that took over (--log, a token of that log, and its key in --policy)",
				"err", err, "successor", frozen.Origin, "url", frozen.URL)
		}
		return g.outbox.retry(ctx, seq, g.cfg.Now().Add(frozenWait), err.Error())
	case errors.As(err, &invalid):
		log.Error("the log refuses the entry of an accepted file: it stays off the pages", "err", err)
	default:
		g.setLogError(g.cfg.Now())
		log.Warn("accepted by the index but not logged yet: held off the pages", "err", err, "tries", f.tries+1)
	}
	var away *submit.Unavailable
	var after time.Duration
	if errors.As(err, &away) {
		after = away.RetryAfter
	}
	return g.outbox.retry(ctx, seq, g.cfg.Now().Add(pause(f.tries, after, maxRetry)), err.Error())
}

// submit hands e to the log and returns a proof that verifies under our policy
// and is about this very file.
func (g *Gateway) submit(ctx context.Context, e *entry.Entry) ([]byte, uint64, error) {
	if frozen := g.frozen.Load(); frozen != nil {
		return nil, 0, frozen
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	ack, err := g.cfg.Log.Submit(ctx, e)
	if err != nil {
		return nil, 0, err
	}
	f := client.File{Registry: e.Registry, Ecosystem: e.Ecosystem, Project: e.Project, Name: e.File}
	if _, err := hex.Decode(f.SHA256[:], []byte(e.SHA256)); err != nil {
		return nil, 0, err
	}
	v, err := client.Verify(g.cfg.Policy, f, ack.Proof)
	if err != nil {
		return nil, 0, fmt.Errorf("the log answered with a proof that does not verify: %w", err)
	}
	if v.Entry.Claim != entry.ClaimIndex {
		return nil, 0, fmt.Errorf("the log answered with the proof of an entry of claim %q", v.Entry.Claim)
	}
	return ack.Proof, v.Index, nil
}

// pause is how long to wait after the given number of failures before, when the
// other side asks for at least after. It is never more than most.
func pause(tries int, after, most time.Duration) time.Duration {
	d := minRetry << min(tries, 10)
	d = min(max(d, after), most)
	return d - time.Duration(rand.Int64N(int64(d)/4))
}

// setLogError notes when the log failed us, or with the zero time that it works;
// it tells whether it had failed before.
func (g *Gateway) setLogError(at time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := !g.logError.IsZero()
	g.logError = at
	return before
}

// logOut says why the log cannot be counted on now; nil if it can.
func (g *Gateway) logOut(ctx context.Context) error {
	if frozen := g.frozen.Load(); frozen != nil {
		return frozen
	}
	g.mu.Lock()
	failed := g.logError
	g.mu.Unlock()
	if !failed.IsZero() && g.cfg.Now().Sub(failed) < outFor {
		held, err := g.outbox.held(ctx)
		if err != nil {
			return err
		}
		if held > 0 {
			return fmt.Errorf("%d accepted files wait for it", held)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return g.cfg.Log.Ready(ctx)
}

// setLive notes who works on an attempt; false if someone does already.
func (g *Gateway) setLive(id int64, on bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if on && g.live[id] {
		return false
	}
	if on {
		g.live[id] = true
	} else {
		delete(g.live, id)
	}
	return true
}
