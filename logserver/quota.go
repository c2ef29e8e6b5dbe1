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

	"github.com/portbook/portbook/entry"
)

// maxQuotas projects are counted a day; further ones are refused, as the bound
// must not be a way around it. Some 20 MiB at most.
const maxQuotas = 1 << 18

type quotas struct {
	now func() time.Time
	max int // projects; only tests change it

	mu   sync.Mutex
	day  int64               // guarded by mu; of the counts, since 1970 (UTC)
	used map[[16]byte]uint32 // guarded by mu; by credential and project
}

func newQuotas(now func() time.Time) *quotas {
	return &quotas{now: now, max: maxQuotas, used: map[[16]byte]uint32{}}
}

const daySeconds = 24 * 60 * 60

// charge is what one entry took of a quota; the zero charge took nothing.
type charge struct {
	of      *quotas
	project [16]byte
	day     int64
}

// take charges e to its project's quota of today. Its error is a *limitError.
func (q *quotas) take(by Credential, e *entry.Entry) (charge, error) {
	if by.Quota == 0 {
		return charge{}, nil
	}
	sum := sha256.Sum256([]byte(by.ID + "\x00" + e.Ecosystem + "\x00" + e.Project))
	project := [16]byte(sum[:])
	now := q.now().Unix()
	day := now / daySeconds
	tomorrow := time.Duration((day+1)*daySeconds-now) * time.Second
	q.mu.Lock()
	defer q.mu.Unlock()
	if day != q.day {
		q.day = day
		clear(q.used)
	}
	used, counted := q.used[project]
	switch {
	case int(used) >= by.Quota:
		return charge{}, &limitError{reasonQuota, fmt.Sprintf("this token may log %d entries a day for a project", by.Quota), tomorrow}
	case !counted && len(q.used) >= q.max:
		return charge{}, &limitError{reasonQuota, fmt.Sprintf("tokens with a quota have logged for %d projects today, which is as many as are counted", q.max), tomorrow}
	}
	q.used[project] = used + 1
	return charge{q, project, day}, nil
}

// back gives back what an entry took that was not logged anew.
func (c charge) back() {
	if c.of == nil {
		return
	}
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if c.of.day == c.day && c.of.used[c.project] > 0 {
		c.of.used[c.project]--
	}
}
