package witness

import (
	"fmt"
	"strings"
	"testing"
)

// series returns the logs that the request counter names.
func (r *rig) series() []string {
	r.t.Helper()
	families, err := r.w.metrics.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	var logs []string
	for _, f := range families {
		if f.GetName() != "portbook_witness_requests_total" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "log" && l.GetValue() != "" {
					logs = append(logs, l.GetValue())
				}
			}
		}
	}
	return logs
}

// TestStrangersNameNoSeries: an origin that nobody trusts is in no metric,
// whatever the answer: unknown, retired, or that the database is gone.
func TestStrangersNameNoSeries(t *testing.T) {
	for name, breaks := range map[string]struct {
		do     func(*rig) error
		status int
	}{
		"unknown":     {func(*rig) error { return nil }, 404},
		"retired":     {func(r *rig) error { _, err := r.dir.Store.Retire(t.Context(), "moved", noon); return err }, 410},
		"no database": {func(r *rig) error { return r.dir.Store.read.Close() }, 500},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if err := breaks.do(r); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				l := *r.log
				l.origin = fmt.Sprintf("stranger/%d", i)
				r.must(r.do("POST", "/add-checkpoint", l.request(0, 1)), breaks.status)
			}
			if s := r.series(); len(s) > 0 {
				t.Errorf("series of strangers: %q", s)
			}
		})
	}
}

// TestLongLabel: a log that is known is counted, by its hash where its name is long.
func TestLongLabel(t *testing.T) {
	r := newRig(t)
	long := newLog(t, "log.example/"+strings.Repeat("x", maxLabel))
	r.trust(long)
	r.must(r.do("POST", "/add-checkpoint", r.log.request(0, 1)), 200)
	r.must(r.do("POST", "/add-checkpoint", long.request(1, 2)), 409) // a name too long for an ML-DSA-44 cosignature
	families, err := r.w.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if len(l.GetValue()) > maxLabel {
					t.Errorf("%s has a label of %d bytes", f.GetName(), len(l.GetValue()))
				}
			}
		}
	}
	if s := r.series(); len(s) != 2 {
		t.Errorf("series %q, want one for each of two logs", s)
	}
}
