package logserver

// Quotas: how many new entries a day a credential may log for each project, so
// that one stolen or broken uploader cannot flood a project's history.
//
// The counts are in memory, of this process: a restart forgets those of the
// day, and several frontends count apart. Rates and quotas are there to bound
// damage, not to bill.

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"
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
// *limitError.
func (q *quotas) take(by Credential, s *submission) (charge, error) {
	if by.Quota == 0 {
		return charge{}, nil
	}
	short := func(s string) [16]byte {
		sum := sha256.Sum256([]byte(by.ID + s))
		return [16]byte(sum[:])
	}
	project := short("\x00" + s.entry.Ecosystem + "\x00" + s.entry.Project)
	identity := short("\x01" + string(s.key[:]) + string(s.digest))
	now := q.now().Unix()
	day := now / daySeconds
	tomorrow := time.Duration((day+1)*daySeconds-now) * time.Second
	q.mu.Lock()
	defer q.mu.Unlock()
	if day != q.day {
		q.day = day
		clear(q.used)
		clear(q.paid)
	}
	if q.paid[identity] > 0 {
		q.paid[identity]++
		return charge{q, project, identity, false, day}, nil
	}
	used, counted := q.used[project]
	switch {
	case int(used) >= by.Quota:
		return charge{}, &limitError{reasonQuota, fmt.Sprintf("this token may log %d entries a day for a project", by.Quota), tomorrow}
	case !counted && len(q.used) >= q.max:
		return charge{}, &limitError{reasonQuota, fmt.Sprintf("tokens with a quota have logged for %d projects today, which is as many as are counted", q.max), tomorrow}
	}
	q.used[project] = used + 1
	alone := len(q.paid) >= maxCharged
	if !alone {
		q.paid[identity] = 1
	}
	return charge{q, project, identity, alone, day}, nil
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
