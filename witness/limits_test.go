package witness

import (
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// limited is a rig with these limits.
func limited(t *testing.T, perLog, perClient Rate) *rig {
	t.Helper()
	r := newRig(t)
	w, err := New(Config{Signer: r.dir.Signer, MLDSA: r.dir.MLDSA, Store: r.dir.Store, Now: r.clock.now, PerLog: perLog, PerClient: perClient})
	if err != nil {
		t.Fatal(err)
	}
	r.w, r.h = w, w.Handler()
	return r
}

// TestOneLogIsLimited: a log that grows too often waits, another does not, and
// neither is told anything about itself.
func TestOneLogIsLimited(t *testing.T) {
	r := limited(t, Rate{PerSecond: 0.001, Burst: 3}, Rate{})
	for n := range uint64(3) {
		r.must(r.post(r.log.request(n, n+1)), 200)
	}
	a := r.must(r.post(r.log.request(3, 4)), 429)
	if a.header.Get("Retry-After") != "1" || !strings.Contains(a.body, "example.com/log") {
		t.Errorf("%v %s", a.header, a.body)
	}
	if h := r.head(r.log.origin); h.Size != 3 {
		t.Errorf("the state moved to %d", h.Size)
	}
	// What is wrong is still said to be wrong, and costs no allowance.
	r.must(r.post(r.log.request(2, 4)), 409)
	other := newLog(t, "example.com/other")
	r.trust(other)
	r.must(r.post(other.request(0, 5)), 200)
}

// TestRefusalsCostALogNothing: what strangers send in a log's name does not use
// up what the log may do.
func TestRefusalsCostALogNothing(t *testing.T) {
	r := limited(t, Rate{PerSecond: 0.001, Burst: 2}, Rate{})
	first := r.log.request(0, 5)
	r.must(r.post(first), 200)
	again := body(5, nil, r.log.note(r.log.checkpoint(5)))
	before, err := r.dir.Store.Generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same := r.must(r.post(again), 200).body
	for range 50 {
		r.must(r.post(first), 409)
		r.must(r.post(edit(t, r.log.request(5, 6), "6\n", "7\n")), 403)
		if got := r.must(r.post(again), 200).body; got != same { // within the same second
			t.Fatal("the same checkpoint in the same second has another answer")
		}
	}
	if after, err := r.dir.Store.Generation(t.Context()); err != nil || after != before {
		t.Errorf("repetitions were written: %d, then %d (%v)", before, after, err)
	}
	r.must(r.post(r.log.request(5, 6)), 200)
	// A second later it is a new statement, which costs.
	r.clock.set(noon.Add(time.Second))
	r.must(r.post(body(6, nil, r.log.note(r.log.checkpoint(6)))), 429)
}

// TestOneClientIsLimited: by address, an IPv6 client by its network.
func TestOneClientIsLimited(t *testing.T) {
	r := limited(t, Rate{}, Rate{PerSecond: 0.001, Burst: 2})
	ask := func(from string) int {
		req := httptest.NewRequest("POST", "/add-checkpoint", strings.NewReader("nonsense"))
		req.RemoteAddr = from
		rec := httptest.NewRecorder()
		r.h.ServeHTTP(rec, req)
		return rec.Code
	}
	for i, row := range []struct {
		from string
		want int
	}{
		{"192.0.2.1:1000", 400}, {"192.0.2.1:1001", 400}, {"192.0.2.1:1002", 429}, {"192.0.2.2:1000", 400},
		{"[2001:db8::1]:1", 400}, {"[2001:db8::2]:1", 400}, {"[2001:db8::3]:1", 429}, {"[2001:db8:0:1::3]:1", 400},
		{"[::ffff:192.0.2.1]:7", 429},
	} {
		if got := ask(row.from); got != row.want {
			t.Errorf("%d, %s: %d, want %d", i, row.from, got, row.want)
		}
	}
}

// TestLimitsAreBounded: keys without end cost no memory without end.
func TestLimitsAreBounded(t *testing.T) {
	l := newLimits(Rate{PerSecond: 1, Burst: 1}, Rate{})
	for i := range 3 * maxLimited {
		l.allow(strconv.Itoa(i))
	}
	if len(l.byKey) > maxLimited {
		t.Errorf("%d keys", len(l.byKey))
	}
}
