package client

// How old what we know of a log is. It is judged on the newest checkpoint in
// the state, never on a file's own proof: a two-year-old file is fine.

import (
	"fmt"
	"time"
)

const (
	// WarnAfter is when a state is worth a warning.
	WarnAfter = 24 * time.Hour
	// StaleAfter is when a caller that insists on freshness refuses.
	StaleAfter = 7 * 24 * time.Hour
	// clockSlack is how far witnesses' clocks may be ahead of ours.
	clockSlack = 5 * time.Minute
)

// A FreshnessKind is one of the answers of [State.Freshness].
type FreshnessKind string

const (
	Fresh     FreshnessKind = "fresh"
	Aging     FreshnessKind = "aging" // older than WarnAfter: warn
	Stale     FreshnessKind = "stale" // older than StaleAfter
	NoHistory FreshnessKind = "no history"
	NoWitness FreshnessKind = "no witness"    // the policy needs none, so nobody dates anything
	ClockOff  FreshnessKind = "clock differs" // a quorum of witnesses is ahead of this computer
)

// Freshness says how old the newest checkpoint of a log is, as data: what to do
// about it is for the caller.
type Freshness struct {
	Kind FreshnessKind
	Age  time.Duration // Fresh, Aging, Stale
	AsOf time.Time     // when a quorum of witnesses said that it is the newest
}

// String says it in words.
func (f Freshness) String() string {
	switch f.Kind {
	case NoHistory:
		return "freshness not checked: nothing is remembered of this log"
	case NoWitness:
		return "freshness not checked: the policy needs no witness"
	case ClockOff:
		return fmt.Sprintf("freshness not checked: witnesses say it is %s already; is the clock right?", f.AsOf.Format(time.RFC3339))
	}
	return fmt.Sprintf("%s: newest known state of the log is %s old", f.Kind, f.Age.Round(time.Second))
}

// Freshness judges what is remembered of a log at the time now. It goes by the
// time at or after which a quorum cosigned (c2sp.Verified.FreshTime), so that
// fewer liars than a quorum cannot make an old state look new. Of a log that has
// ended it is the log that took over whose age counts.
func (s *State) Freshness(origin string, now time.Time) Freshness {
	r, _, ok := s.Newest(s.newest(origin))
	switch {
	case !ok:
		return Freshness{Kind: NoHistory}
	case r.FreshTime.IsZero():
		return Freshness{Kind: NoWitness}
	}
	f := Freshness{Kind: Fresh, Age: max(now.Sub(r.FreshTime), 0), AsOf: r.FreshTime}
	switch {
	case r.FreshTime.After(now.Add(clockSlack)):
		f.Kind, f.Age = ClockOff, 0
	case f.Age > StaleAfter:
		f.Kind = Stale
	case f.Age > WarnAfter:
		f.Kind = Aging
	}
	return f
}
