package logserver

// Quotas: how many new entries a day a credential may log for each project, so
// that one stolen or broken uploader cannot flood a project's history.
//
// An embedded log counts in memory, and after a restart what its record of who
// logged what says of today: recall. A shared log counts in its database, in the
// transaction that reserves an entry: see sharedDecision.charge, and
// docs/decisions/0013-what-is-counted-where.md.

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/portbook/portbook/entry"
)

const (
	// maxQuotas projects are counted a day; further ones are refused, as the
	// bound must not be a way around it. Some 15 MiB at most.
	maxQuotas = 1 << 18
	// maxCharged entries are known to have been charged: the same again, as when
	// an answer was lost, shares the charge and is let in when the quota is used up.
	// Beyond, the same again is charged again until it is found to be the same.
	maxCharged = 1 << 18
)

type quotas struct {
	now func() time.Time
	max int // projects; only tests change it

	mu   sync.Mutex
	day  int64               // guarded by mu; of the counts, since 1970 (UTC)
	used map[[16]byte]uint32 // guarded by mu; by credential and project
	paid map[[16]byte]uint32 // guarded by mu; by credential and identity of the entry: how many share its charge
}

func newQuotas(now func() time.Time) *quotas {
	return &quotas{now: now, max: maxQuotas, used: map[[16]byte]uint32{}, paid: map[[16]byte]uint32{}}
}

const daySeconds = 24 * 60 * 60

// quotaKeys are what a submission is counted under: its credential and project,
// and its credential and identity, by which it is known when it comes again.
func quotaKeys(s *submission) (project, identity [16]byte) {
	short := func(what string) [16]byte {
		sum := sha256.Sum256([]byte(s.by + what))
		return [16]byte(sum[:])
	}
	return short("\x00" + s.entry.Ecosystem + "\x00" + s.entry.Project), short("\x01" + string(s.key[:]) + string(s.digest))
}

// overQuota refuses an entry until tomorrow; now is in seconds since 1970.
func overQuota(quota int, now int64) error {
	return &limitError{reasonQuota, fmt.Sprintf("this token may log %d entries a day for a project", quota), time.Duration(daySeconds-now%daySeconds) * time.Second}
}

// charge is what one entry took of a quota, or its share in what the same entry
// took before; the zero charge took nothing. It is given back when the last that
// shares it is: of several that come at once any may be the one that is logged.
type charge struct {
	of             *quotas
	project, entry [16]byte
	alone          bool // it is shared with nobody
	day            int64
}

// take charges a submission to its project's quota of today. Its error is a
// *limitError. The nil quotas, of a shared log, take nothing.
func (q *quotas) take(s *submission) (charge, error) {
	if q == nil || s.quota == 0 {
		return charge{}, nil
	}
	project, identity := quotaKeys(s)
	now := q.now().Unix()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.turn(now)
	if q.paid[identity] > 0 {
		q.paid[identity]++
		return charge{q, project, identity, false, q.day}, nil
	}
	used, counted := q.used[project]
	switch {
	case int(used) >= s.quota:
		return charge{}, overQuota(s.quota, now)
	case !counted && len(q.used) >= q.max:
		return charge{}, &limitError{reasonQuota, fmt.Sprintf("tokens with a quota have logged for %d projects today, which is as many as are counted", q.max), time.Duration(daySeconds-now%daySeconds) * time.Second}
	}
	return charge{q, project, identity, !q.pay(project, identity), q.day}, nil
}

// turn begins a new day if it is one; q.mu is held.
func (q *quotas) turn(now int64) {
	if day := now / daySeconds; day != q.day {
		q.day = day
		clear(q.used)
		clear(q.paid)
	}
}

// pay counts an entry, and reports whether it will be known again; q.mu is held.
func (q *quotas) pay(project, identity [16]byte) (known bool) {
	q.used[project]++
	if known = len(q.paid) < maxCharged; known {
		q.paid[identity] = 1
	}
	return known
}

// recall counts what the record says was logged today, by credentials that may
// have a quota. What nobody is named for is not counted: a server was killed
// between logging and recording it, and nobody was told of it.
func (q *quotas) recall(said *Attribution, limited func(id string) bool, entryAt func(index int64) (*entry.Entry, error)) (n int, err error) {
	now := q.now().Unix()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.turn(now)
	for _, r := range said.runs {
		if r.By == "" || r.Time.Unix()/daySeconds != q.day || !limited(r.By) {
			continue
		}
		for i := range r.Count {
			e, err := entryAt(int64(r.First + i))
			if err != nil {
				return n, err
			}
			s := &submission{entry: e, by: r.By}
			if s.key, s.digest, err = slotKey(e); err != nil {
				return n, err
			}
			project, identity := quotaKeys(s)
			if _, counted := q.used[project]; q.paid[identity] > 0 || !counted && len(q.used) >= q.max {
				continue // it was rejected, and logged again; or no more projects are counted, and those are refused
			}
			q.pay(project, identity)
			n++
		}
	}
	return n, nil
}

// back gives back what an entry took that was not logged anew.
func (c charge) back() {
	if c.of == nil {
		return
	}
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if c.of.day != c.day {
		return
	}
	if !c.alone {
		if c.of.paid[c.entry]--; c.of.paid[c.entry] > 0 {
			return
		}
		delete(c.of.paid, c.entry)
	}
	if c.of.used[c.project] > 0 {
		c.of.used[c.project]--
	}
}
