package auditor

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"testing"

	"github.com/portbook/portbook/c2sp"
)

// series returns the logs that the request counter names, with each status.
func (r *rig) series() map[string]bool {
	r.t.Helper()
	out := map[string]bool{}
	for _, f := range must(r.a.metrics.registry.Gather()) {
		if f.GetName() != "portbook_auditor_requests_total" {
			continue
		}
		for _, m := range f.Metric {
			s := ""
			for _, l := range m.Label {
				s += l.GetName() + "=" + l.GetValue() + " "
			}
			out[s] = true
		}
	}
	return out
}

// TestStrangersNameNoSeries: an origin that nobody trusts is in no metric: when
// the log is unknown, when its client has hung up, and when our database is gone.
// That a client hangs up is no failure of ours.
func TestStrangersNameNoSeries(t *testing.T) {
	r := newRig(t)
	gone, hangUp := context.WithCancel(context.Background())
	hangUp()
	ask := func(ctx context.Context, name string, status int) {
		t.Helper()
		key := must(c2sp.GenerateSigner(name, c2sp.AlgEd25519))
		cp := c2sp.Checkpoint{Origin: name, Size: 1}
		b := (&c2sp.AddCheckpoint{Checkpoint: (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{must(key.Sign(cp.Text()))}}).Bytes()}).Bytes()
		r.want(r.send(httptest.NewRequest("POST", "/add-checkpoint", bytes.NewReader(b)).WithContext(ctx)), status)
		p := &push{origin: name, end: 1}
		req := httptest.NewRequest("POST", "/add-entries", bytes.NewReader(p.body())).WithContext(ctx)
		req.Header.Set("Content-Type", "application/octet-stream")
		r.want(r.send(req), status)
	}
	r.grow(1)
	r.want(r.addCheckpoint(0), 200)
	for i := range 3 {
		ask(t.Context(), fmt.Sprint("stranger/", i), 404)
		ask(gone, fmt.Sprint("hung/up/", i), 404)
	}
	if err := r.dir.Store.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		ask(t.Context(), fmt.Sprint("no/database/", i), 500)
	}
	want := map[string]bool{}
	for _, s := range []string{"log=" + origin + " status=200", "log= status=404", "log= status=500"} {
		want["call=add-checkpoint "+s+" "] = true
	}
	want["call=add-entries log= status=404 "], want["call=add-entries log= status=500 "] = true, true
	if got := r.series(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("series\n%v, want\n%v", got, want)
	}
}
