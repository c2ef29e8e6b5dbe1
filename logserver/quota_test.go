package logserver

// Quotas hold over all frontends of a shared log, and over a restart of an
// embedded one.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
)

// limitedTo makes a credential that may log uploads and rejects.
func limitedTo(t testing.TB, l *Log, quota int) Credential {
	t.Helper()
	by, _, err := l.Tokens.Create(Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload, entry.KindYank}, Quota: quota})
	if err != nil {
		t.Fatal(err)
	}
	return by
}

func isOverQuota(err error) bool {
	var limit *limitError
	return errors.As(err, &limit) && limit.reason == reasonQuota && limit.after > 0 && limit.after <= 24*time.Hour
}

func fileOf(project string, n int) *entry.Entry {
	return upload(project, fmt.Sprintf("%s-%d.tar.gz", project, n), fmt.Sprint(n))
}

// TestSharedQuota: frontends count together, exactly what is logged anew, and
// one that starts later counts on.
func TestSharedQuota(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	logs := []*Log{r.ready(), r.ready(frontendOnly)}
	const quota = 7
	by := limitedTo(t, logs[0], quota)
	submit := func(l *Log, e *entry.Entry) error {
		_, err := l.Submit(t.Context(), by, e, Sequenced)
		return err
	}
	var passed, refused atomic.Int32
	var mu sync.Mutex
	var in []int
	var wg sync.WaitGroup
	for n := range 40 {
		wg.Go(func() {
			switch err := submit(logs[n%2], fileOf("a", n)); {
			case err == nil:
				passed.Add(1)
				mu.Lock()
				in = append(in, n)
				mu.Unlock()
			case isOverQuota(err):
				refused.Add(1)
			default:
				t.Errorf("file %d: %v", n, err)
			}
		})
	}
	wg.Wait()
	if passed.Load() != quota || refused.Load() != 40-quota {
		t.Fatalf("%d passed and %d were refused, of 40 with a quota of %d", passed.Load(), refused.Load(), quota)
	}
	if size, err := r.engine.Head(t.Context()); err != nil || size != quota {
		t.Errorf("the log has %d entries, %v", size, err)
	}
	for _, n := range in { // the same again is nothing new, at either
		for i, l := range logs {
			if err := submit(l, fileOf("a", n)); err != nil {
				t.Errorf("file %d again at %d: %v", n, i, err)
			}
		}
	}

	// What is not logged anew costs nothing.
	for n := range quota {
		if err := submit(logs[n%2], fileOf("b", 0)); err != nil {
			t.Error(err)
		}
		other := fileOf("b", 0)
		other.SHA256 = strings.Repeat("0", 64)
		wantConflict(t, submit(logs[n%2], other), quota)
		yank := plainEntry(entry.KindYank, n)
		yank.Project, yank.Version = "b", "9.9"
		wantPrecondition(t, submit(logs[n%2], yank), "version")
	}
	// Twins in one message cost one; what is over is refused alone, in order.
	var entries []*entry.Entry
	for n := range quota + 1 {
		entries = append(entries, fileOf("b", 1+n), fileOf("b", 1+n), fileOf(fmt.Sprint("c", n), 0))
	}
	ticket, err := logs[1].queue(t.Context(), by, entries...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := ticket.wait(t.Context(), Sequenced)
	if err != nil || len(out) != len(entries) {
		t.Fatal(len(out), err)
	}
	for i, o := range out {
		if over := i%3 < 2 && i/3 >= quota-1; over != isOverQuota(o.err) || !over && o.err != nil {
			t.Errorf("entry %d of the message, %s: %v", i, entries[i].File, o.err)
		}
	}

	// A frontend that starts now, and another credential.
	l := r.ready(frontendOnly)
	if err := submit(l, fileOf("a", 100)); !isOverQuota(err) {
		t.Errorf("after a start: %v", err)
	}
	if _, err := l.Submit(t.Context(), limitedTo(t, l, quota), fileOf("a", 100), Sequenced); err != nil {
		t.Errorf("another credential: %v", err)
	}
	// A larger quota is one at once, a smaller one too.
	by.Quota = quota + 1
	if err := submit(l, fileOf("a", 101)); err != nil {
		t.Errorf("a larger quota: %v", err)
	}
	by.Quota = 1
	if err := submit(l, fileOf("a", 102)); !isOverQuota(err) {
		t.Errorf("a smaller quota: %v", err)
	}
	if used := r.query("SELECT max(used)::text FROM quotas"); used != fmt.Sprint(quota+1) {
		t.Errorf("%s are counted", used)
	}
	// The counts of today and yesterday are kept, older ones are not.
	r.exec("INSERT INTO quotas (day, key, used, most) SELECT floor(extract(epoch FROM clock_timestamp()) / 86400) - n, 'x', 1, 1 FROM generate_series(1, 3) n")
	r.exec("INSERT INTO rates (id, tokens, granted, at) SELECT n::text, 0, 0, clock_timestamp() - n * interval '40 minutes' FROM generate_series(1, 3) n")
	before := r.query("SELECT count(*)::text FROM quotas WHERE key <> 'x'")
	if err := l.shared.clean(t.Context()); err != nil {
		t.Error(err)
	}
	if now := r.query("SELECT count(*)::text FROM quotas WHERE key <> 'x'"); now != before {
		t.Errorf("of %s counts of today %s are kept", before, now)
	}
	if n := r.query("SELECT (SELECT count(*) FROM quotas WHERE key = 'x') || ' ' || (SELECT count(*) FROM rates)"); n != "1 1" {
		t.Errorf("older counts and rates that are kept: %s", n)
	}
	r.exec("DELETE FROM quotas WHERE key = 'x'")
	// The next day, by the database's clock.
	r.exec("UPDATE quotas SET day = day - 1")
	if err := submit(l, fileOf("a", 103)); err != nil {
		t.Errorf("the next day: %v", err)
	}
	if err := submit(logs[0], fileOf("a", 104)); !isOverQuota(err) {
		t.Errorf("the next day, more: %v", err)
	}
}

// TestSharedQuotaOfFailedDecision: what was not reserved is not counted.
func TestSharedQuotaOfFailedDecision(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	l := r.ready()
	by := limitedTo(t, l, 1)
	r.rename("waiting", "gone") // a statement behind the count fails
	yank := plainEntry(entry.KindRegistryPolicy, 1)
	yank.Overwrite = "replace"
	if _, err := l.Submit(t.Context(), withKinds(by, entry.KindRegistryPolicy), yank, Sequenced); !errors.Is(err, ErrStorage) {
		t.Fatalf("%v", err)
	}
	if n := r.query("SELECT count(*)::text FROM quotas"); n != "0" {
		t.Errorf("%s counts of what was not reserved", n)
	}
	r.rename("gone", "waiting")
	if _, err := l.Submit(t.Context(), withKinds(by, entry.KindRegistryPolicy), yank, Sequenced); err != nil {
		t.Errorf("%v", err)
	}
	other := *yank
	other.ID = id(2)
	if _, err := l.Submit(t.Context(), withKinds(by, entry.KindRegistryPolicy), &other, Sequenced); !isOverQuota(err) {
		t.Errorf("one more: %v", err)
	}
}

func withKinds(c Credential, kinds ...entry.Kind) Credential {
	c.Kinds = kinds
	return c
}

// TestQuotaAfterRestart: an embedded log counts on what its record says of today.
func TestQuotaAfterRestart(t *testing.T) {
	clock := time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC)
	r := newRig(t, 0, 0)
	start := func() *Log { return r.ready(func(c *Config) { c.Now = func() time.Time { return clock } }) }
	l := start()
	by, free := limitedTo(t, l, 5), limitedTo(t, l, 0)
	submit := func(by Credential, e *entry.Entry) error {
		_, err := l.Submit(t.Context(), by, e, Sequenced)
		return err
	}
	must := func(by Credential, e *entry.Entry) {
		t.Helper()
		if err := submit(by, e); err != nil {
			t.Errorf("%s: %v", e.File, err)
		}
	}
	restart := func() {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = start()
	}
	for n := range 2 { // yesterday's, by tomorrow
		must(by, fileOf("a", n))
	}
	clock = clock.Add(4 * time.Hour)
	for n := range 3 {
		must(by, fileOf("a", 10+n))
		must(by, fileOf("b", n))
		must(free, fileOf("a", 20+n))
	}
	must(by, fileOf("a", 10)) // nothing new
	restart()
	must(by, fileOf("a", 13))
	must(by, fileOf("a", 0)) // nor is yesterday's
	restart()                // two runs of the server
	must(by, fileOf("a", 14))
	if err := submit(by, fileOf("a", 15)); !isOverQuota(err) {
		t.Errorf("over the quota of a day with restarts: %v", err)
	}
	restart()
	if err := submit(by, fileOf("a", 15)); !isOverQuota(err) {
		t.Errorf("and after one more: %v", err)
	}
	for n := range 5 { // what was logged today, once more
		must(by, fileOf("a", 10+n))
	}
	must(by, fileOf("b", 3))
	must(by, fileOf("b", 4))
	if err := submit(by, fileOf("b", 5)); !isOverQuota(err) {
		t.Errorf("another project: %v", err)
	}
	must(free, fileOf("a", 30))

	// Who cannot be asked whether it has a quota is counted; a record that is gone
	// is not a reason not to serve.
	tokens := filepath.Join(r.dir, TokensFile)
	raw := readFile(t, tokens)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tokens, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	l = start()
	if err := os.WriteFile(tokens, []byte(raw), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := submit(by, fileOf("a", 15)); !isOverQuota(err) {
		t.Errorf("after a start without credentials: %v", err)
	}
	clock = clock.Add(24 * time.Hour)
	must(by, fileOf("a", 15))
}

// TestSharedRate: frontends take out of one bucket; what a frontend has taken
// and not used is bounded.
func TestSharedRate(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	pool := r.pool()
	const rate, frontends = 50, 4
	by := Credential{ID: "0123456789abcdef", Rate: rate}
	begin := time.Now()
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range frontends {
		b := newSharedRates(pool)
		wg.Go(func() {
			for time.Since(begin) < 1200*time.Millisecond {
				n, err := b.upTo(t.Context(), by, 3)
				if err != nil {
					t.Error(err)
					return
				}
				taken.Add(int64(n))
			}
		})
	}
	wg.Wait()
	most := int64(rate*(1+time.Since(begin).Seconds())) + 1
	if n := taken.Load(); n > most || n < rate {
		t.Errorf("%d frontends took %d of a rate of %d a second in %v, at most %d", frontends, n, rate, time.Since(begin), most)
	}

	// What is leased is used before the database is asked again, and not after.
	b := newSharedRates(pool)
	by.ID = "leases"
	take := func(b *sharedRates, n, want int) {
		t.Helper()
		if got, err := b.upTo(t.Context(), by, n); err != nil || got != want {
			t.Errorf("asked for %d: %d, %v; want %d", n, got, err, want)
		}
	}
	take(b, 1, 1)
	if got := r.query("SELECT granted::text FROM rates WHERE id = 'leases'"); got != fmt.Sprint(rate/leaseParts) {
		t.Errorf("%s were leased", got)
	}
	r.exec("UPDATE rates SET tokens = -1e9 WHERE id = 'leases'") // it is never filled again
	take(b, 2, 2)
	take(b, 10, 2)
	take(b, 10, 0)
	take(newSharedRates(pool), 1, 0)
	b.of["leases"].left, b.of["leases"].until = 3, time.Now()
	take(b, 1, 0) // too late

	// A log's own, refused over the API with a hint; no rate, no question.
	l := r.ready()
	limited := r.all(entry.ClaimIndex)
	limited.ID, limited.Rate = "leases", rate
	_, err := l.Submit(t.Context(), limited, nth(0), Sequenced)
	var limit *limitError
	if !errors.As(err, &limit) || limit.reason != reasonRate {
		t.Errorf("an empty bucket: %v", err)
	}
	r.rename("rates", "gone")
	time.Sleep(leasePause)
	if _, err := l.Submit(t.Context(), limited, nth(0), Sequenced); !errors.Is(err, ErrStorage) {
		t.Errorf("without the table: %v", err)
	}
	limited.Rate = 0
	if _, err := l.Submit(t.Context(), limited, nth(0), Sequenced); err != nil {
		t.Errorf("without a rate: %v", err)
	}
}
