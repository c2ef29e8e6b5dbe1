package witness

import (
	"net/http"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
)

// The eleven probes that deployed witnesses are known to answer differently.
func TestElevenProbes(t *testing.T) { eachNew(t, elevenProbes) }

func elevenProbes(t *testing.T, newRig func(testing.TB) *rig) {
	for _, p := range []struct {
		name   string
		seen   uint64 // size cosigned before; 0: log never seen
		body   func(r *rig) []byte
		status int
		answer string // exact body, if not ""
	}{
		{"old 2 for a log never seen", 0, func(r *rig) []byte { return r.log.request(2, 5) }, 409, "0\n"},
		{"old 0 with a proof", 0, func(r *rig) []byte {
			return body(0, r.log.tree.consistency(2, 5), r.log.note(r.log.checkpoint(5)))
		}, 422, ""},
		{"size 0 with a non-empty root", 0, func(r *rig) []byte {
			return body(0, nil, r.log.note(c2sp.Checkpoint{Origin: r.log.origin, Root: r.log.tree.root(1)}))
		}, 422, ""},
		{"same size, other root", 5, func(r *rig) []byte { return r.log.evil(3).request(5, 5) }, 422, ""},
		{"old 05", 5, func(r *rig) []byte {
			return []byte(strings.Replace(string(r.log.request(5, 8)), "old 5\n", "old 05\n", 1))
		}, 400, ""},
		{"old 5 junk", 5, func(r *rig) []byte {
			return []byte(strings.Replace(string(r.log.request(5, 8)), "old 5\n", "old 5 junk\n", 1))
		}, 400, ""},
		{"unknown log", 5, func(r *rig) []byte { return newLog(r.t, "example.com/other").request(0, 5) }, 404, ""},
		{"bad signature", 5, func(r *rig) []byte {
			impostor := newLog(r.t, r.log.origin)
			s, _ := impostor.signer.Sign(r.log.checkpoint(8).Text())
			s.KeyID = r.log.signer.Key().ID()
			n := c2sp.Note{Text: r.log.checkpoint(8).Text(), Sigs: []c2sp.Signature{s}}
			return body(5, r.log.tree.consistency(5, 8), n.Bytes())
		}, 403, ""},
		{"stale old", 5, func(r *rig) []byte { return r.log.request(3, 8) }, 409, "5\n"},
		{"forked proof", 5, func(r *rig) []byte { return r.log.evil(3).request(5, 8) }, 422, ""},
		{"good growth", 5, func(r *rig) []byte { return r.log.request(5, 8) }, 200, ""},
	} {
		t.Run(p.name, func(t *testing.T) {
			r := newRig(t)
			if p.seen > 0 {
				r.must(r.post(r.log.request(0, p.seen)), http.StatusOK)
			}
			a := r.must(r.post(p.body(r)), p.status)
			if p.answer != "" && a.body != p.answer {
				t.Errorf("answer %q, want %q", a.body, p.answer)
			}
			if p.status == 409 && a.header.Get("Content-Type") != "text/x.tlog.size" {
				t.Errorf("Content-Type %q", a.header.Get("Content-Type"))
			}
		})
	}
}
