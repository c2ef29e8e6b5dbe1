package logserver

import (
	"bufio"
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/prometheus/client_golang/prometheus"
	"gopkg.in/yaml.v3"
)

// scrape reads the metrics as Prometheus does: series with labels -> value.
func scrape(t *testing.T, l *Log) map[string]float64 {
	t.Helper()
	w := httptest.NewRecorder()
	l.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("GET /metrics: %d", w.Code)
	}
	out := map[string]float64{}
	for lines := bufio.NewScanner(w.Body); lines.Scan(); {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if strings.HasPrefix(series, "portbook_") && ok {
			if i := strings.LastIndex(lines.Text(), " "); strings.Contains(series, "{") { // a label may hold a blank
				series, value = lines.Text()[:i], lines.Text()[i+1:]
			}
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			out[series] = v
		}
	}
	return out
}

// TestMetricsMove: each figure that an operator pages on follows what happens.
func TestMetricsMove(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	r.must(l, nth(0))
	r.must(l, nth(1))
	waitFor(t, "readiness", func() bool { return l.Ready() == nil })
	m := scrape(t, l)
	for series, want := range map[string]float64{
		"portbook_log_tree_size":                             2,
		"portbook_log_in_flight":                             0,
		"portbook_log_in_flight_limit":                       32768,
		"portbook_log_ready":                                 1,
		"portbook_log_latched":                               0,
		`portbook_log_submit_seconds_count{wait="cosigned"}`: 2,
	} {
		if got, ok := m[series]; !ok || got != want {
			t.Errorf("%s = %v (there: %v), want %v", series, got, ok, want)
		}
	}
	if age := m["portbook_log_checkpoint_age_seconds"]; age < -2 || age > 60 {
		t.Errorf("checkpoint age %v s, want about 0", age)
	}
	for _, w := range r.witnesses {
		if m[`portbook_log_witness_seconds_count{outcome="ok",witness="`+w.name+`"}`] == 0 && w != r.witnesses[2] {
			t.Errorf("no cosignature of %s is counted", w.name)
		}
	}

	s := &service{log: l}
	if err := s.fail(errNoCredential); err == nil {
		t.Error("no error")
	}
	r.witnesses[0].down()
	r.witnesses[1].down()
	go r.submit(l, nth(2))
	waitFor(t, "the failing rounds to be counted", func() bool {
		m = scrape(t, l)
		return m[`portbook_log_publish_seconds_count{outcome="no quorum"}`] > 0 &&
			m[`portbook_log_witness_seconds_count{outcome="failed",witness="w1"}`] > 0 && m["portbook_log_ready"] == 0 && m["portbook_log_in_flight"] == 1
	})
	if m[`portbook_log_refusals_total{reason="UNAUTHENTICATED"}`] != 1 {
		t.Errorf("the refusal is not counted: %v", m)
	}

	l.latch(&guardError{errNoAnchor})
	if m = scrape(t, l); m["portbook_log_latched"] != 1 {
		t.Error("the latch does not show")
	}
}

// TestNotReadyOnceStale: a checkpoint whose cosignatures have aged, or are of
// the future, does not make a log ready, whatever its last round said.
func TestNotReadyOnceStale(t *testing.T) {
	r := newRig(t, 3, 2)
	offset := time.Duration(0)
	l := r.ready(func(c *Config) {
		c.Republish = time.Hour
		c.Now = func() time.Time { return time.Now().Add(offset) }
	})
	waitFor(t, "readiness", func() bool { return l.Ready() == nil })
	for _, c := range []struct {
		offset time.Duration
		want   string
	}{{3 * time.Hour, "cosigned 3h"}, {-time.Hour, "in the future"}} {
		offset = c.offset
		if err := l.Ready(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("clock moved by %v: %v, want %q", c.offset, err, c.want)
		}
	}
	offset = 0
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
}

// TestSetPolicy: a witness that is added at run time is asked from then on, and
// what the new policy does not allow is acknowledged no more.
func TestSetPolicy(t *testing.T) {
	r := newRig(t, 3, 2)
	all := r.policy
	lines := strings.SplitAfter(r.policy, "\n")
	r.policy = lines[0] + "quorum w1\n"
	l := r.ready()
	r.must(l, nth(0))

	// A policy of another log, and a witness nobody can reach, change nothing.
	other, err := c2sp.GenerateSigner("other.example/log", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"log " + other.Key().String() + "\n" + all, "witness w1 " + r.witnesses[0].key.String() + "\nquorum w1\n"} {
		p, err := c2sp.ParsePolicy([]byte(bad))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.SetPolicy(p); err == nil {
			t.Errorf("accepted: %s", bad)
		}
	}
	r.must(l, nth(1))

	// The published checkpoint lacks the second cosignature now: a round adds it.
	r.policy = all
	was := l.Published()
	if err := l.SetPolicy(r.config().Policy); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a checkpoint of the new quorum", func() bool {
		p := l.Published()
		return p.Size == was.Size && p.Quorum
	})
	policy := r.config().Policy
	policy.Logs = []c2sp.PolicyLog{{Key: r.signer.Key()}}
	if _, err := policy.Verify(l.Published().Note); err != nil {
		t.Error(err)
	}
	if _, err := policy.Verify(was.Note); err == nil {
		t.Error("the old checkpoint had the new quorum already: the test shows nothing")
	}
	r.must(l, nth(2))
	r.witnesses[1].down()
	r.witnesses[2].down()
	if _, err := r.submit(l, nth(3)); err == nil {
		t.Error("acknowledged below the new quorum")
	}
}

// TestAlertRules: the rules we ship are about figures that there are.
func TestAlertRules(t *testing.T) {
	raw, err := os.ReadFile("../deploy/prometheus/portbook-log.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	descs := make(chan *prometheus.Desc, 1000)
	l := &Log{}
	newMetrics(l).registry.Describe(descs)
	close(descs)
	for d := range descs {
		name := strings.Split(d.String(), `"`)[1]
		for _, suffix := range []string{"", "_count", "_sum", "_bucket"} {
			have[name+suffix] = true
		}
	}
	rules := 0
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			rules++
			if r.Alert == "" || r.Annotations["summary"] == "" || r.Labels["severity"] != "page" && r.Labels["severity"] != "ticket" {
				t.Errorf("%s: a rule has a name, a severity (page or ticket) and a summary", r.Alert)
			}
			names := regexp.MustCompile(`portbook_log_[a-z_]+`).FindAllString(r.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s is about nothing of ours", r.Alert)
			}
			for _, name := range names {
				if !have[name] {
					t.Errorf("%s: there is no %s", r.Alert, name)
				}
			}
		}
	}
	if rules < 8 {
		t.Errorf("%d rules", rules)
	}
}
