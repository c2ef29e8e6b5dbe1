package witness

// sign-subtree of c2sp.org/tlog-witness: one row for each MUST, named by its
// sentence.

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// subproof is SUBTREE_SUBPROOF of draft-ietf-plants-merkle-tree-certs-03,
// section 4.4, by the letter.
func (t *tree) subtreeProof(start, end, lo, n uint64, b bool) [][32]byte {
	if start == 0 && end == n {
		if b {
			return nil
		}
		return [][32]byte{t.mth(lo, lo+n)}
	}
	k := split(n)
	switch {
	case end <= k:
		return append(t.subtreeProof(start, end, lo, k, b), t.mth(lo+k, lo+n))
	case k <= start:
		return append(t.subtreeProof(start-k, end-k, lo+k, n-k, b), t.mth(lo, lo+k))
	default:
		return append(t.subtreeProof(0, end-k, lo+k, n-k, false), t.mth(lo, lo+k))
	}
}

// subtreeRequest asks for [start, end) with a reference checkpoint of size n.
func (l *testLog) subtreeRequest(start, end, n uint64, reference []byte) []byte {
	return (&c2sp.SignSubtree{
		Subtree: c2sp.Subtree{Start: start, End: end, Hash: l.tree.mth(start, end)},
		Proof:   l.tree.subtreeProof(start, end, 0, n, true), Checkpoint: reference,
	}).Bytes()
}

func TestEverySubtreeMust(t *testing.T) {
	// reference is the checkpoint of size 14 with our cosignatures alone.
	reference := func(r *rig, n uint64) []byte {
		r.t.Helper()
		r.must(r.post(r.log.request(0, n)), 200)
		note := r.audit(r.log.origin)
		ours := c2sp.Note{Text: note.Text}
		for _, s := range note.Sigs {
			for _, k := range r.w.Keys() {
				if k.Matches(s) {
					ours.Sigs = append(ours.Sigs, s)
				}
			}
		}
		return ours.Bytes()
	}
	ask := func(r *rig, body []byte, status int) answer {
		r.t.Helper()
		a := r.do("POST", "/sign-subtree", body)
		if a.status != status {
			r.t.Errorf("status %d, want %d: %s", a.status, status, a.body)
		}
		if a.status != 200 && strings.Contains(a.body, "\u2014 ") {
			r.t.Errorf("an answer of status %d carries a signature", a.status)
		}
		return a
	}

	t.Run("The request MUST be an HTTP POST.", func(t *testing.T) {
		r := newRig(t)
		for _, m := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			if a := r.do(m, "/sign-subtree", nil); a.status != 405 || a.header.Get("Allow") != "POST" {
				t.Errorf("%s: %d", m, a.status)
			}
		}
	})
	t.Run("If the request is invalid according to the rules above, the witness MUST respond with a \"400 Bad Request\" HTTP status code.", func(t *testing.T) {
		r := newRig(t)
		ref := reference(r, 14)
		good := r.log.subtreeRequest(8, 13, 14, ref)
		hash := base64.StdEncoding.EncodeToString(make([]byte, 32))
		ask(r, good, 200)
		for name, b := range map[string][]byte{
			"empty":                   nil,
			"no subtree":              edit(t, good, "subtree 8", "old 8"),
			"leading zero":            edit(t, good, "subtree 8 13", "subtree 08 13"),
			"leading zero at the end": edit(t, good, "subtree 8 13", "subtree 8 013"),
			"one number":              edit(t, good, "subtree 8 13", "subtree 8"),
			"three numbers":           edit(t, good, "subtree 8 13", "subtree 8 13 14"),
			"sign":                    edit(t, good, "subtree 8 13", "subtree +8 13"),
			"two blanks":              edit(t, good, "subtree 8 13", "subtree 8  13"),
			"too large":               edit(t, good, "subtree 8 13", "subtree 8 9223372036854775808"),
			"empty range":             edit(t, good, "subtree 8 13", "subtree 8 8"),
			"backwards":               edit(t, good, "subtree 8 13", "subtree 8 7"),
			"not aligned":             edit(t, good, "subtree 8 13", "subtree 4 13"),
			"beyond the tree":         r.log.subtreeRequest(8, 15, 16, ref),
			"short hash":              edit(t, good, "13\n", "13\nAAAA\n"),
			"CRLF":                    edit(t, good, "13\n", "13\r\n"),
			"64 hashes":               edit(t, good, "\n\n", "\n"+strings.Repeat(hash+"\n", 64)+"\n"),
			"no note":                 good[:len(good)-len(ref)],
			"no empty line":           edit(t, good, "\n\n", "\n"),
		} {
			t.Run(name, func(t *testing.T) {
				r.t = t
				ask(r, b, 400)
			})
		}
	})
	t.Run("If the Merkle Consistency Proof doesn't verify, the witness MUST respond with a \"422 Unprocessable Entity\" HTTP status code.", func(t *testing.T) {
		r := newRig(t)
		ref := reference(r, 14)
		evil := r.log.evil(9)
		ask(r, evil.subtreeRequest(8, 13, 14, ref), 422)
		s, err := c2sp.ParseSignSubtree(r.log.subtreeRequest(8, 13, 14, ref))
		if err != nil {
			t.Fatal(err)
		}
		short := *s
		short.Proof = s.Proof[1:]
		ask(r, short.Bytes(), 422)
		long := *s
		long.Proof = append(long.Proof, s.Hash)
		ask(r, long.Bytes(), 422)
		other := *s
		other.Hash = r.log.tree.mth(8, 12)
		ask(r, other.Bytes(), 422)
		ask(r, s.Bytes(), 200)
	})
	t.Run("If the checkpoint origin is unknown, the witness MUST respond with a \"404 Not Found\" HTTP status code.", func(t *testing.T) {
		r := newRig(t)
		stranger := newLog(t, "stranger.example/log")
		cp := stranger.checkpoint(14)
		sig, err := r.dir.Signer.Cosign(cp, noon)
		if err != nil {
			t.Fatal(err)
		}
		ask(r, stranger.subtreeRequest(8, 13, 14, (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()), 404)
	})
	t.Run("The witness MUST verify that the checkpoint includes a valid cosignature from one of its own keys. If the witness can't verify the checkpoint, it MUST respond with a \"403 Forbidden\" HTTP status code.", func(t *testing.T) {
		r := newRig(t)
		ref := reference(r, 14)
		note, err := c2sp.ParseNote(ref)
		if err != nil {
			t.Fatal(err)
		}
		cp := r.log.checkpoint(14)
		ask(r, r.log.subtreeRequest(8, 13, 14, r.log.note(cp)), 403) // the log's own signature alone
		other := mustSigner(t, r.w.Keys()[0].Name(), c2sp.AlgMLDSA44)
		theirs, _ := other.Cosign(cp, noon)
		ask(r, r.log.subtreeRequest(8, 13, 14, (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{theirs}}).Bytes()), 403)
		zero, err := r.dir.MLDSA.CosignSubtree(cp.Origin, c2sp.Subtree{End: 14, Hash: cp.Root})
		if err != nil {
			t.Fatal(err)
		}
		ask(r, r.log.subtreeRequest(8, 13, 14, (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{zero}}).Bytes()), 403) // no statement that it was seen
		moved := c2sp.Note{Text: r.log.evil(3).checkpoint(14).Text(), Sigs: note.Sigs}
		ask(r, r.log.evil(3).subtreeRequest(8, 13, 14, moved.Bytes()), 403)
		for i := range note.Sigs { // either key will do
			one := c2sp.Note{Text: note.Text, Sigs: note.Sigs[i : i+1]}
			ask(r, r.log.subtreeRequest(8, 13, 14, one.Bytes()), 200)
		}
	})
	t.Run("The cosignature format MUST support subtree cosigning. If the cosignature format supports timestamps, the timestamp MUST be zero.", func(t *testing.T) {
		r := newRig(t)
		ref := reference(r, 300)
		for _, s := range [][2]uint64{{0, 1}, {8, 13}, {0, 256}, {256, 300}, {255, 256}, {0, 300}, {299, 300}} {
			a := ask(r, r.log.subtreeRequest(s[0], s[1], 300, ref), 200)
			if a.header.Get("Content-Type") != "text/plain; charset=utf-8" {
				t.Errorf("Content-Type %q", a.header.Get("Content-Type"))
			}
			sigs, err := c2sp.ParseSignatureLines([]byte(a.body))
			if err != nil || len(sigs) != 1 {
				t.Fatalf("%d lines: %v", len(sigs), err)
			}
			sub := c2sp.Subtree{Start: s[0], End: s[1], Hash: r.log.tree.mth(s[0], s[1])}
			if err := r.dir.MLDSA.Key().VerifySubtree(r.log.origin, sub, sigs[0]); err != nil { // which insists on zero
				t.Error(err)
			}
		}
	})
	t.Run("It is OPTIONAL for a witness to support this API.", func(t *testing.T) {
		r := newRig(t)
		ref := reference(r, 14)
		w, err := New(Config{Signer: r.dir.Signer, Store: r.dir.Store, Now: func() time.Time { return noon }})
		if err != nil {
			t.Fatal(err)
		}
		r.w, r.h = w, w.Handler()
		note, err := c2sp.ParseNote(ref)
		if err != nil {
			t.Fatal(err)
		}
		note.Sigs = note.Sigs[:1]
		if a := ask(r, r.log.subtreeRequest(8, 13, 14, note.Bytes()), http.StatusNotFound); !strings.Contains(a.body, "no key") {
			t.Errorf("%s", a.body)
		}
	})
	t.Run("It changes nothing.", func(t *testing.T) {
		r := newRig(t)
		ref := reference(r, 14)
		r.must(r.post(r.log.request(14, 20)), 200)
		before := r.head(r.log.origin)
		ask(r, r.log.subtreeRequest(8, 13, 14, ref), 200) // a previously observed checkpoint
		if after := r.head(r.log.origin); after.Size != before.Size || after.Root != before.Root {
			t.Error("the state moved")
		}
		n, err := r.dir.Store.Generation(context.Background())
		if err != nil || n != 2 {
			t.Errorf("%d writes: %v", n, err)
		}
	})
}
