package witness

// Rate limits, by log and by client address. Memory is bounded: when there are
// too many keys, all are forgotten, which errs on the side of the caller.

import (
	"net/http"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// A Rate is how often something may happen: so many times a second, and so many
// at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// maxLimited is how many keys have a limiter of their own, some 100 B each.
const maxLimited = 50_000

type limits struct {
	rate Rate

	mu    sync.Mutex
	byKey map[string]*rate.Limiter // guarded by mu
}

func newLimits(r, standard Rate) *limits {
	if r == (Rate{}) {
		r = standard
	}
	return &limits{rate: r, byKey: map[string]*rate.Limiter{}}
}

// allow takes one from key's allowance.
func (l *limits) allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim := l.byKey[key]
	if lim == nil {
		if len(l.byKey) >= maxLimited {
			clear(l.byKey)
		}
		lim = rate.NewLimiter(rate.Limit(l.rate.PerSecond), l.rate.Burst)
		l.byKey[key] = lim
	}
	return lim.Allow()
}

// clientOf names the client of a request: its IPv4 address, or its IPv6 network
// of /64, which one client has whole.
func clientOf(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	a := at.Addr().Unmap()
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
