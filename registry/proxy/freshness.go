package proxy

// Freshness and the log's good conduct, judged on the newest checkpoint in the
// client's state, never on a file's proof. Old news is a warning; a log that
// went back or shows two histories is refused altogether. A log that has ended
// is followed to the one that takes over, under the same quorum.

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
)

const (
	refreshEvery = 10 * time.Minute
	followEvery  = 30 * time.Second // for a proof of a log that the policy does not name
)

// followed is what the policy and the log have become.
type followed struct {
	policy *c2sp.Policy
	log    *url.URL // of the log that took over; nil: none did
}

// policy is the policy with the logs that took over.
func (p *Proxy) policy() *c2sp.Policy { return p.now.Load().policy }

// follow looks whether the log has ended, at most every followEvery. It reports
// whether the policy has another log now.
func (p *Proxy) follow() bool {
	if p.reader == nil || p.cfg.State == nil {
		return false
	}
	p.following.Lock()
	defer p.following.Unlock()
	if t := p.cfg.Now(); p.followedAt.IsZero() || t.Sub(p.followedAt) >= followEvery {
		p.followedAt = t
		p.Refresh(context.Background())
	}
	return p.now.Load().log != nil
}

type freshness struct {
	mu   sync.Mutex
	bad  *client.Refusal // the log misbehaved
	warn []string        // about each log of the policy
}

// Refresh fetches the log's newest checkpoint into the state, and judges it.
// It does nothing unless a log and a state are configured.
func (p *Proxy) Refresh(ctx context.Context) {
	if p.reader == nil || p.cfg.State == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*logTimeout)
	defer cancel()
	was := p.now.Load()
	f, err := p.cfg.State.Follow(ctx, p.cfg.Policy, p.reader)
	if err == nil {
		if log, perr := url.Parse(f.Reader.URL()); perr == nil && len(f.Handovers) > 0 {
			p.now.Store(&followed{f.Policy, log})
		}
		if now := p.now.Load(); !bytes.Equal(now.policy.Bytes(), was.policy.Bytes()) {
			p.cfg.Logger.Warn("the log was rotated", "what", f.Handovers[len(f.Handovers)-1].String())
		}
	}
	var warn []string
	var refusal *client.Refusal
	if errors.As(err, &refusal) {
		p.cfg.Logger.Error("the log misbehaved", "code", refusal.Code, "check", refusal.Check, "detail", refusal.Detail, "evidence", refusal.Evidence)
	}
	if err != nil {
		warn = append(warn, err.Error())
	}
	done := map[string]bool{}
	for _, l := range p.cfg.Policy.Logs {
		name := l.Key.Name()
		if done[name] || p.cfg.Policy.Retired(name) {
			continue
		}
		done[name] = true
		f := p.cfg.State.Freshness(name, p.cfg.Now())
		switch f.Kind {
		case client.Aging, client.Stale, client.ClockOff:
			warn = append(warn, name+": "+f.String())
			p.cfg.Logger.Warn("freshness", "log", name, "state", f.String())
		}
	}
	p.fresh.mu.Lock()
	defer p.fresh.mu.Unlock()
	p.fresh.warn = warn
	switch {
	case refusal != nil && slices.Contains([]string{client.CodeForkSameSize, client.CodeForkPrefix, client.CodeRollback}, refusal.Code):
		p.fresh.bad = refusal
	case err == nil && p.fresh.bad != nil && p.fresh.bad.Code == client.CodeRollback:
		p.fresh.bad = nil // it has caught up
	}
}

// refusal is not nil once the log is known to have misbehaved.
func (f *freshness) refusal() *client.Refusal {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bad
}

func (f *freshness) warnings() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.warn)
}

// header warns in an answer, without the path of an evidence file.
func (f *freshness) header(h http.Header) {
	if bad := f.refusal(); bad != nil {
		h.Set("Portbook-Warning", clip(printable(bad.Code+": "+bad.Check), 300))
	} else if w := f.warnings(); len(w) > 0 {
		h.Set("Portbook-Warning", clip(printable(w[0]), 300))
	}
}
