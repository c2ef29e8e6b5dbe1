package witness

// One row for every MUST of add-checkpoint and of the read API in
// c2sp.org/tlog-witness, and for those of the formats beneath that a witness
// can break. A row is named by the sentence. Three sentences bind the client
// alone (at most 63 proof lines is checked here from the other side).

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// A try is one request and the answer that the sentence demands.
type try struct {
	name   string
	body   []byte
	status int
}

// edit replaces in an honest request, and insists that there was something to replace.
func edit(t *testing.T, b []byte, old, new string) []byte {
	t.Helper()
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%q is not in the request", old)
	}
	return bytes.Replace(b, []byte(old), []byte(new), 1)
}

func TestEveryMust(t *testing.T) {
	// tries runs each request against a fresh witness that has cosigned size
	// `seen` (0: nothing), and checks that an honest request still works after.
	tries := func(seen uint64, list func(t *testing.T, r *rig) []try) func(*testing.T) {
		return func(t *testing.T) {
			r := newRig(t)
			for _, try := range list(t, r) {
				t.Run(try.name, func(t *testing.T) {
					r := &rig{t: t, clock: r.clock, log: r.log, signed: map[string]map[uint64][32]byte{}}
					d, err := CreateDir(context.Background(), filepath.Join(t.TempDir(), "w"), "witness.example/w1", noon.Add(-time.Hour))
					if err != nil {
						t.Fatal(err)
					}
					defer d.Close()
					r.use(d)
					r.trust(r.log)
					if seen > 0 {
						r.must(r.post(r.log.request(0, seen)), http.StatusOK)
					}
					a := r.must(r.post(try.body), try.status)
					if a.status == http.StatusConflict {
						if want := fmt.Sprintf("%d\n", seen); a.body != want {
							t.Errorf("conflict says %q, want %q", a.body, want)
						}
					}
					if a.status != http.StatusOK {
						r.must(r.post(r.log.request(seen, 300)), http.StatusOK)
					}
				})
			}
		}
	}
	hash := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }

	t.Run("The request MUST be an HTTP POST.", func(t *testing.T) {
		r := newRig(t)
		for _, m := range []string{"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "post"} {
			if a := r.do(m, "/add-checkpoint", r.log.request(0, 5)); a.status != 405 || a.header.Get("Allow") != "POST" {
				t.Errorf("%s: status %d, Allow %q", m, a.status, a.header.Get("Allow"))
			}
		}
		if r.head(r.log.origin) != nil {
			t.Error("one of them was served")
		}
	})

	t.Run("The request body MUST be a sequence of an old size line, zero or more consistency proof lines, and an empty line, followed by a checkpoint.",
		tries(5, func(t *testing.T, r *rig) []try {
			good := r.log.request(5, 8)
			proof, note, _ := bytes.Cut(good, []byte("\n\n"))
			return []try{
				{"all of it", good, 200},
				{"nothing", nil, 400},
				{"no old size line", edit(t, good, "old 5\n", ""), 400},
				{"two old size lines", edit(t, good, "old 5\n", "old 5\nold 5\n"), 400},
				{"an empty line too early", edit(t, good, "old 5\n", "old 5\n\n"), 400},
				{"no empty line", edit(t, good, "\n\n", "\n"), 400},
				{"two empty lines", edit(t, good, "\n\n", "\n\n\n"), 400},
				{"no checkpoint", append(slices.Clone(proof), "\n\n"...), 400},
				{"no signatures", edit(t, good, "\n\n—", "\n—"), 400},
				{"something before", append([]byte("\n"), good...), 400},
				{"something after", append(slices.Clone(good), "x\n"...), 400},
				{"the checkpoint alone", note, 400},
				{"a checkpoint that is only a note", body(5, nil, r.log.sign("example.com/log\n8\n")), 400},
				{"size with a leading zero", body(5, nil, r.log.sign("example.com/log\n08\n"+hash(32)+"\n")), 400},
				{"size 2^63", body(5, nil, r.log.sign("example.com/log\n9223372036854775808\n"+hash(32)+"\n")), 400},
				{"a root of 31 bytes", body(5, nil, r.log.sign("example.com/log\n8\n"+hash(31)+"\n")), 400},
				{"a root of 33 bytes", body(5, nil, r.log.sign("example.com/log\n8\n"+hash(33)+"\n")), 400},
				{"no origin", body(5, nil, r.log.sign("\n8\n"+hash(32)+"\n")), 400},
				{"an empty extension line", body(5, nil, r.log.sign("example.com/log\n8\n"+hash(32)+"\n\nx\n")), 400},
			}
		}))

	t.Run("Each line MUST terminate in a newline character (U+000A).", tries(5, func(t *testing.T, r *rig) []try {
		good := r.log.request(5, 8)
		return []try{
			{"CRLF everywhere", bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), 400},
			{"CRLF after old", edit(t, good, "old 5\n", "old 5\r\n"), 400},
			{"no last newline", bytes.TrimSuffix(good, []byte("\n")), 400},
		}
	}))

	t.Run("The old size line MUST consist of the string `old`, a single space (0x20), and the tree size of the previous checkpoint encoded as an ASCII decimal with no leading zeroes (unless the size is zero, in which case the encoding MUST be `0`).",
		tries(5, func(t *testing.T, r *rig) []try {
			var list []try
			for _, line := range []string{"old", "old ", "old  5", "old\t5", " old 5", "Old 5", "OLD 5", "old5", "old 05", "old 00", "old 000",
				"old 5 ", "old 5 junk", "old +5", "old -5", "old -0", "old 5.0", "old 5e0", "old 0x5", "old 5_0", "old ٥", "old 5\x00",
				"old 9223372036854775808", "old 18446744073709551621", "size 5", "old five"} {
				list = append(list, try{line, edit(t, r.log.request(5, 8), "old 5\n", line+"\n"), 400})
			}
			return append(list, try{"old 0", r.log.request(0, 8), 409}, try{"old 5", r.log.request(5, 8), 200})
		}))

	t.Run("Each consistency proof line MUST encode a single hash in base64.", tries(5, func(t *testing.T, r *rig) []try {
		good := r.log.request(5, 8)
		first := "\n" + base64.StdEncoding.EncodeToString(slices.Concat(r.log.tree.consistency(5, 8)[0][:])) + "\n"
		var list []try
		for name, line := range map[string]string{
			"31 bytes": hash(31), "33 bytes": hash(33), "two hashes": hash(64), "no bytes": " ", "no padding": strings.TrimRight(hash(32), "="),
			"bits after the end": strings.TrimSuffix(hash(32), "A=") + "B=", "URL alphabet": "-_" + hash(32)[2:],
			"a space before": " " + hash(32), "a space after": hash(32) + " ", "hex": strings.Repeat("00", 32),
		} {
			list = append(list, try{name, edit(t, good, first, "\n"+line+"\n"), 400})
		}
		return list
	}))

	t.Run("The client MUST NOT send more than 63 consistency proof lines.", tries(5, func(t *testing.T, r *rig) []try {
		return []try{
			{"64", body(5, make([][32]byte, 64), r.log.note(r.log.checkpoint(8))), 400},
			{"63 that prove nothing", body(5, make([][32]byte, 63), r.log.note(r.log.checkpoint(8))), 422},
		}
	}))

	t.Run("The submitted checkpoint MAY include multiple signatures.", tries(5, func(t *testing.T, r *rig) []try {
		cp := r.log.checkpoint(8)
		strangers := make([]c2sp.Signature, 100)
		for i := range strangers {
			strangers[i] = c2sp.Signature{Name: fmt.Sprintf("stranger.example/%d", i), KeyID: uint32(i), Sig: make([]byte, 72)}
		}
		p := r.log.tree.consistency(5, 8)
		return []try{
			{"Verifiers MUST accept at least up to 16 signatures.", body(5, p, r.log.note(cp, strangers[:15]...)), 200},
			{"100 are read", body(5, p, r.log.note(cp, strangers[:99]...)), 200},
			{"101 are refused", body(5, p, r.log.note(cp, strangers...)), 400},
		}
	}))

	t.Run("The witness MUST verify the checkpoint signature against the public key(s) it trusts for the checkpoint origin", func(t *testing.T) {
		r := newRig(t)
		second := &testLog{r.log.origin, mustSigner(t, r.log.origin, c2sp.AlgEd25519), r.log.tree}
		third := &testLog{r.log.origin, mustSigner(t, r.log.origin, c2sp.AlgEd25519), r.log.tree}
		other := newLog(t, "example.com/other")
		r.trust(second)
		r.trust(other)
		r.must(r.post(r.log.request(0, 5)), 200)
		r.must(r.post(second.request(5, 8)), 200)
		r.must(r.post(third.request(8, 9)), 403)                                              // not trusted
		r.must(r.post((&testLog{r.log.origin, other.signer, r.log.tree}).request(8, 9)), 403) // trusted, for another origin
		both, _ := second.signer.Sign(r.log.checkpoint(9).Text())
		r.must(r.post(body(8, r.log.tree.consistency(8, 9), r.log.note(r.log.checkpoint(9), both))), 200)
		if n := r.audit(r.log.origin); len(n.Sigs) != 2+2 {
			t.Errorf("%d signatures are served; two log keys signed, and our two", len(n.Sigs))
		}
		again, _ := r.log.signer.Sign(r.log.checkpoint(9).Text())
		r.must(r.post(body(9, nil, r.log.note(r.log.checkpoint(9), again, again))), 200)
		if n := r.audit(r.log.origin); len(n.Sigs) != 1+2 {
			t.Errorf("%d signatures are served; one log key signed, three times, and our two", len(n.Sigs))
		}
	})
	t.Run("A log that signs with ML-DSA-44 (tlog-checkpoint: Logs SHOULD).", func(t *testing.T) {
		r := newRig(t)
		s := mustSigner(t, "example.com/pq", c2sp.AlgMLDSA44)
		cp := c2sp.Checkpoint{Origin: "example.com/pq", Size: 5, Root: r.log.tree.root(5)}
		sig, err := s.Cosign(cp, noon)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.dir.Store.AddLog(context.Background(), cp.Origin, []*c2sp.Key{s.Key()}); err != nil {
			t.Fatal(err)
		}
		r.must(r.post(body(0, nil, (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes())), 200)
		sig.Sig[100] ^= 1
		r.must(r.post(body(5, nil, (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes())), 403)
	})

	t.Run("These two values MAY be zero if the cosigner doesn't make any statement as to the tree being the largest observed at time of signing (tlog-cosignature, of a log's own signature).", func(t *testing.T) {
		r := newRig(t)
		s := mustSigner(t, "example.com/pq", c2sp.AlgMLDSA44)
		if _, err := r.dir.Store.AddLog(context.Background(), "example.com/pq", []*c2sp.Key{s.Key()}); err != nil {
			t.Fatal(err)
		}
		request := func(old, size uint64, proof [][32]byte, spoil bool) []byte {
			cp := c2sp.Checkpoint{Origin: "example.com/pq", Size: size, Root: r.log.tree.root(size)}
			sig, err := s.SignCheckpoint(context.Background(), cp)
			if err != nil {
				t.Fatal(err)
			}
			if binary.BigEndian.Uint64(sig.Sig) != 0 {
				t.Fatal("this signature has a timestamp: it tests nothing here")
			}
			if spoil {
				sig.Sig[100] ^= 1
			}
			return body(old, proof, (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes())
		}
		r.must(r.post(request(0, 5, nil, true)), 403)
		r.must(r.post(request(0, 5, nil, false)), 200)
		r.must(r.post(request(5, 8, r.log.tree.consistency(5, 8), false)), 200)
		// The read API serves what was verified, and a verifier accepts it.
		policy, err := c2sp.ParsePolicy([]byte("log " + s.Key().String() + "\nwitness w " + r.w.Keys()[0].String() + "\nquorum w\n"))
		if err != nil {
			t.Fatal(err)
		}
		known, err := r.dir.Store.Log(context.Background(), "example.com/pq")
		if err != nil {
			t.Fatal(err)
		}
		if v, err := policy.Verify(known.Head.Note); err != nil || v.Size != 8 {
			t.Error(v, err)
		}
	})

	t.Run("and it MUST ignore signatures from unknown keys.", tries(5, func(t *testing.T, r *rig) []try {
		cp := r.log.checkpoint(8)
		k := r.log.signer.Key()
		junk := make([]byte, 64)
		sameName := c2sp.Signature{Name: k.Name(), KeyID: k.ID() + 1, Sig: junk}
		sameID := c2sp.Signature{Name: "stranger.example", KeyID: k.ID(), Sig: junk}
		p := r.log.tree.consistency(5, 8)
		ours, _ := r.log.signer.Sign(cp.Text())
		before := c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sameName, sameID, ours}}
		alone := c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sameName, sameID}}
		return []try{
			{"same name, other ID, after", body(5, p, r.log.note(cp, sameName)), 200},
			{"same ID, other name, after", body(5, p, r.log.note(cp, sameID)), 200},
			{"both, before", body(5, p, before.Bytes()), 200},
			{"they earn no credit", body(5, p, alone.Bytes()), 403},
		}
	}))

	t.Run(`If the checkpoint origin is unknown, the witness MUST respond with a "404 Not Found" HTTP status code.`, func(t *testing.T) {
		r := newRig(t)
		for _, origin := range []string{"example.com/other", "example.com/log/", "Example.com/log", "example.com/log ", "example.com/lo"} {
			r.must(r.post((&testLog{origin, r.log.signer, r.log.tree}).request(0, 5)), 404)
		}
		// 404 comes before everything that looks at state or signatures.
		r.must(r.post(newLog(t, "example.com/other").request(2, 5)), 404)
		r.must(r.post(body(9, nil, newLog(t, "example.com/other").note(c2sp.Checkpoint{Origin: "example.com/other", Size: 5}))), 404)
	})

	t.Run(`The witness MUST respond with a "403 Forbidden" HTTP status code if either no signature from a trusted key for the origin is present,`,
		tries(5, func(t *testing.T, r *rig) []try {
			impostor := newLog(t, r.log.origin)
			impostor.tree = r.log.tree
			// The witness's own cosignature is no log signature.
			return []try{
				{"another key of that name", impostor.request(5, 8), 403},
				{"403 comes before 400", body(9, nil, impostor.note(r.log.checkpoint(8))), 403},
				{"403 comes before 409", impostor.request(3, 8), 403},
				{"403 comes before 422", impostor.evil(3).request(5, 8), 403},
			}
		}))
	t.Run("or a signature line's key name and ID match a trusted key but the signature itself fails to verify (such a note is malformed per signed-note).",
		tries(5, func(t *testing.T, r *rig) []try {
			cp := r.log.checkpoint(8)
			good, _ := r.log.signer.Sign(cp.Text())
			other, _ := r.log.signer.Sign(r.log.checkpoint(7).Text())
			flip := c2sp.Signature{Name: good.Name, KeyID: good.KeyID, Sig: slices.Clone(good.Sig)}
			flip.Sig[0] ^= 1
			short := c2sp.Signature{Name: good.Name, KeyID: good.KeyID, Sig: good.Sig[:63]}
			long := c2sp.Signature{Name: good.Name, KeyID: good.KeyID, Sig: append(slices.Clone(good.Sig), 0)}
			with := func(sigs ...c2sp.Signature) []byte {
				return body(5, r.log.tree.consistency(5, 8), (&c2sp.Note{Text: cp.Text(), Sigs: sigs}).Bytes())
			}
			return []try{
				{"a flipped bit", with(flip), 403},
				{"of another checkpoint", with(other), 403},
				{"63 bytes", with(short), 403},
				{"65 bytes", with(long), 403},
				{"a good one first", with(good, flip), 403},
				{"a good one after", with(flip, good), 403},
				{"the good one twice", with(good, good), 200},
			}
		}))

	t.Run(`The old size MUST be equal to or lower than the checkpoint size. Otherwise, the witness MUST respond with a "400 Bad Request" HTTP status code.`,
		tries(5, func(t *testing.T, r *rig) []try {
			return []try{
				{"old 9 of size 8", body(9, nil, r.log.note(r.log.checkpoint(8))), 400},
				{"old 5 of size 4: 400, though old is right", body(5, nil, r.log.note(r.log.checkpoint(4))), 400},
				{"old 5 of size 0", body(5, nil, r.log.note(r.log.checkpoint(0))), 400},
				{"equal", r.log.request(5, 5), 200},
			}
		}))

	t.Run("The witness MUST check that the old size matches the size of the latest checkpoint it cosigned for the checkpoint's origin (or zero if it never cosigned a checkpoint for that origin). "+
		`If it doesn't match, the witness MUST respond with a "409 Conflict" HTTP status code.`, func(t *testing.T) {
		t.Run("cosigned 5", tries(5, func(t *testing.T, r *rig) []try {
			return []try{
				{"0", r.log.request(0, 8), 409}, {"4", r.log.request(4, 8), 409}, {"6", r.log.request(6, 8), 409},
				{"a stale one whose proof is good", r.log.request(3, 4), 409},
				{"409 comes before 422: proof", r.log.evil(2).request(3, 8), 409},
				{"409 comes before 422: empty root", body(0, nil, r.log.note(c2sp.Checkpoint{Origin: r.log.origin, Root: r.log.tree.root(1)})), 409},
			}
		}))
		t.Run("never cosigned", tries(0, func(t *testing.T, r *rig) []try {
			return []try{{"1", r.log.request(1, 8), 409}, {"8", r.log.request(8, 8), 409}}
		}))
		t.Run("cosigned the empty tree", func(t *testing.T) {
			r := newRig(t)
			r.must(r.post(r.log.request(0, 0)), 200)
			r.must(r.post(r.log.request(0, 0)), 200)
			if a := r.must(r.post(r.log.request(1, 2)), 409); a.body != "0\n" {
				t.Errorf("%q", a.body)
			}
			r.must(r.post(r.log.request(0, 3)), 200)
		})
		t.Run("of each log by itself", func(t *testing.T) {
			r := newRig(t)
			other := newLog(t, "example.com/other")
			r.trust(other)
			r.must(r.post(r.log.request(0, 5)), 200)
			r.must(r.post(other.request(5, 8)), 409)
			r.must(r.post(other.request(0, 3)), 200)
			r.must(r.post(r.log.request(5, 8)), 200)
		})
	})
	t.Run("The response body MUST consist of the tree size of the latest cosigned checkpoint in decimal, followed by a newline (U+000A). The response MUST have a `Content-Type` of `text/x.tlog.size`.",
		func(t *testing.T) {
			r := newRig(t)
			for i, n := range []uint64{0, 1, 10, 257} {
				a := r.must(r.post(r.log.request(n+1, 300)), 409)
				if ct := a.header["Content-Type"]; a.body != fmt.Sprintf("%d\n", n) || len(ct) != 1 || ct[0] != "text/x.tlog.size" {
					t.Errorf("at size %d: %q %q", n, a.body, ct)
				}
				if next := []uint64{1, 10, 257, 300}[i]; true {
					r.must(r.post(r.log.request(n, next)), 200)
				}
			}
		})

	t.Run(`A checkpoint of size zero MUST have the root hash of the empty tree. Otherwise, the witness MUST respond with a "422 Unprocessable Entity" HTTP status code.`,
		tries(0, func(t *testing.T, r *rig) []try {
			zero := func(root [32]byte) []byte {
				return body(0, nil, r.log.note(c2sp.Checkpoint{Origin: r.log.origin, Root: root}))
			}
			return []try{
				{"32 zero bytes", zero([32]byte{}), 422},
				{"the hash of an empty leaf", zero([32]byte(base64Must("bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0="))), 422},
				{"the hash of the empty string", zero(r.log.tree.root(0)), 200},
			}
		}))

	t.Run("If the old size is zero, the consistency proof MUST be empty, because the empty tree is consistent with any tree, so no proof is necessary.",
		tries(0, func(t *testing.T, r *rig) []try {
			return []try{
				{"one hash", body(0, make([][32]byte, 1), r.log.note(r.log.checkpoint(8))), 422},
				{"the root itself", body(0, [][32]byte{r.log.tree.root(8)}, r.log.note(r.log.checkpoint(8))), 422},
				{"size 0 too", body(0, make([][32]byte, 1), r.log.note(r.log.checkpoint(0))), 422},
				{"none", r.log.request(0, 8), 200},
			}
		}))

	t.Run("Otherwise, the consistency proof lines MUST encode a Merkle Consistency Proof from the old size to the checkpoint size according to RFC 6962, Section 2.1.2.", func(t *testing.T) {
		r := newRig(t)
		old := uint64(0)
		for _, n := range []uint64{1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 255, 256, 257, 1000} {
			r.must(r.post(r.log.request(old, n)), 200)
			r.must(r.post(r.log.request(n, n)), 200)
			old = n
		}
	})
	t.Run(`If the proof is not empty when the old size is zero, or if a Merkle Consistency Proof doesn't verify, the witness MUST respond with a "422 Unprocessable Entity" HTTP status code.`,
		tries(5, func(t *testing.T, r *rig) []try {
			cp := r.log.note(r.log.checkpoint(8))
			good := r.log.tree.consistency(5, 8)
			swapped := slices.Clone(good)
			swapped[0], swapped[1] = swapped[1], swapped[0]
			flipped := slices.Clone(good)
			flipped[0][31] ^= 1
			return []try{
				{"none", body(5, nil, cp), 422},
				{"one short", body(5, good[:len(good)-1], cp), 422},
				{"one too many", body(5, append(slices.Clone(good), [32]byte{}), cp), 422},
				{"two swapped", body(5, swapped, cp), 422},
				{"a flipped bit", body(5, flipped, cp), 422},
				{"from another size", body(5, r.log.tree.consistency(4, 8), cp), 422},
				{"to another size", body(5, r.log.tree.consistency(5, 9), cp), 422},
				{"of another tree", r.log.evil(3).request(5, 8), 422},
				{"between equal sizes", body(5, good, r.log.note(r.log.checkpoint(5))), 422},
				{"2^63-1 leaves", body(5, good, r.log.note(c2sp.Checkpoint{Origin: r.log.origin, Size: 1<<63 - 1})), 422},
			}
		}))

	t.Run("If the old size matches the checkpoint size, the witness MUST check that the root hashes are also identical. "+
		`If they don't match, the witness MUST respond with a "422 Unprocessable Entity" HTTP status code.`,
		tries(5, func(t *testing.T, r *rig) []try {
			return []try{
				{"another root", r.log.evil(3).request(5, 5), 422},
				{"another root and a proof", body(5, r.log.tree.consistency(4, 5), r.log.evil(3).note(r.log.evil(3).checkpoint(5))), 422},
				{"the same root", r.log.request(5, 5), 200},
			}
		}))

	t.Run("the witness MAY log the request even if the checkpoint fails one of the consistency checks above (but MUST NOT cosign the checkpoint)", func(t *testing.T) {
		r := newRig(t)
		r.must(r.post(r.log.request(0, 5)), 200)
		evil := r.log.evil(3)
		r.must(r.post(evil.request(5, 5)), 422) // post checks: no signature, no change
		forks, err := r.dir.Store.Forks(context.Background(), r.log.origin)
		if err != nil || len(forks) != 1 {
			t.Fatalf("%d forks are kept (%v)", len(forks), err)
		}
	})

	t.Run(`If all the checks above pass, the witness MUST update its record of the latest cosigned checkpoint and respond with a "200 Success" HTTP status code.`, func(t *testing.T) {
		r := newRig(t)
		for _, n := range []uint64{0, 3, 5, 5, 8} {
			old := uint64(0)
			if h := r.head(r.log.origin); h != nil {
				old = h.Size
			}
			r.must(r.post(r.log.request(old, n)), 200)
			if h := r.head(r.log.origin); h.Size != n || h.Root != r.log.tree.root(n) {
				t.Errorf("after size %d the record is %+v", n, h)
			}
		}
	})

	t.Run("The response body MUST be a sequence of one or more note signature lines, each starting with the — character (U+2014) and ending with a newline character (U+000A).", func(t *testing.T) {
		r := newRig(t)
		a := r.must(r.post(r.log.request(0, 5)), 200)
		if strings.Count(a.body, "\u2014 witness.example/w1 ") != 2 || !strings.HasPrefix(a.body, "\u2014 ") || strings.Count(a.body, "\n") != 2 || !strings.HasSuffix(a.body, "\n") {
			t.Errorf("%q", a.body)
		}
		// "the client MAY concatenate it to the checkpoint"
		if _, err := c2sp.ParseNote(append(r.log.note(r.log.checkpoint(5)), a.body...)); err != nil {
			t.Error(err)
		}
	})

	t.Run("The signatures MUST be cosignatures from the witness key(s) on the checkpoint.", func(t *testing.T) {
		r := newRig(t)
		a := r.must(r.post(r.log.request(0, 5)), 200)
		sigs, err := c2sp.ParseSignatureLines([]byte(a.body))
		if err != nil {
			t.Fatal(err)
		}
		for i, k := range r.w.Keys() {
			at, err := k.VerifyNote(r.log.checkpoint(5).Text(), sigs[i])
			if err != nil || !at.Equal(noon) {
				t.Errorf("%s: cosigned at %v: %v", k.Alg(), at, err)
			}
			if _, err := k.VerifyNote(r.log.checkpoint(6).Text(), sigs[i]); err == nil {
				t.Errorf("%s: the cosignature is good for another checkpoint", k.Alg())
			}
		}
	})
	t.Run("Witnesses SHOULD use ML-DSA-44 cosignatures.", func(t *testing.T) {
		r := newRig(t)
		a := r.must(r.post(r.log.request(0, 5)), 200)
		sigs, _ := c2sp.ParseSignatureLines([]byte(a.body))
		keys := r.w.Keys()
		if len(keys) != 2 || len(sigs) != 2 || keys[1].Alg() != c2sp.AlgMLDSA44 || keys[0].Name() != keys[1].Name() || bytes.Equal(keys[0].Raw(), keys[1].Raw()) {
			t.Fatalf("%d keys, %d signatures", len(keys), len(sigs))
		}
		// A second key of another kind or name, or that the state is not of.
		for name, second := range map[string]*c2sp.Signer{
			"Ed25519": mustSigner(t, keys[0].Name(), c2sp.AlgEd25519Cosig), "other name": mustSigner(t, "other.example/w", c2sp.AlgMLDSA44), "foreign": mustSigner(t, keys[0].Name(), c2sp.AlgMLDSA44),
		} {
			if _, err := New(Config{Signer: r.dir.Signer, MLDSA: second, Store: r.dir.Store}); err == nil {
				t.Errorf("%s: taken as second key", name)
			}
		}
		// A witness that lost one of its keys does not go on with the other.
		if err := errors.Join(r.dir.Close(), os.Remove(filepath.Join(r.dir.Path, MLDSAKeyFile))); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDir(r.dir.Path); !errors.Is(err, ErrOtherKey) {
			t.Errorf("%v, want %v", err, ErrOtherKey)
		}
	})
	t.Run("(cosignature) Extension lines MAY be included in the checkpoint by the log, and if present MUST be included in the cosigned message.", func(t *testing.T) {
		r := newRig(t)
		cp := r.log.checkpoint(5)
		cp.Extensions = []string{"an extension", "— another one"}
		a := r.must(r.post(body(0, nil, r.log.note(cp))), 200) // post verifies over the whole text
		sigs, _ := c2sp.ParseSignatureLines([]byte(a.body))
		if _, err := r.w.Keys()[0].VerifyNote(r.log.checkpoint(5).Text(), sigs[0]); err == nil {
			t.Error("the cosignature leaves the extension lines out")
		}
	})

	t.Run("If the cosignature format supports subtrees, the cosignature returned by the witness MUST be for the entire tree in the submitted checkpoint", func(t *testing.T) {
		r := newRig(t)
		a := r.must(r.post(r.log.request(0, 5)), 200)
		sigs, _ := c2sp.ParseSignatureLines([]byte(a.body))
		// The format of type 0x04 has no subtrees: a checkpoint is all it can be
		// about. That of 0x06 has, and VerifyNote takes [0, size) alone.
		if k := r.w.Keys()[0]; k.Alg() != c2sp.AlgEd25519Cosig || !k.Matches(sigs[0]) || len(sigs[0].Sig) != 72 {
			t.Errorf("%s", k.Alg())
		}
		if _, err := r.w.Keys()[1].VerifyNote(r.log.checkpoint(5).Text(), sigs[1]); err != nil {
			t.Error(err)
		}
		if _, err := New(Config{Signer: mustSigner(t, "w", c2sp.AlgMLDSA44), Store: r.dir.Store}); err == nil {
			t.Error("another type of key is taken")
		}
	})

	t.Run("The cosignature MUST NOT omit the timestamp, i.e. the timestamp MUST NOT be zero.", func(t *testing.T) {
		r := newRig(t)
		for _, at := range []time.Time{time.Unix(0, 0), time.Unix(-5, 0), {}} {
			r.clock.set(at)
			if a := r.must(r.post(r.log.request(0, 5)), 503); !strings.Contains(a.body, "clock") {
				t.Errorf("%s", a.body)
			}
		}
		r.clock.set(noon)
		a := r.must(r.post(r.log.request(0, 5)), 200)
		sigs, _ := c2sp.ParseSignatureLines([]byte(a.body))
		if at := binary.BigEndian.Uint64(sigs[0].Sig); at != uint64(noon.Unix()) {
			t.Errorf("timestamp %d", at)
		}
	})

	t.Run("The witness MUST persist the new checkpoint before responding.", func(t *testing.T) {
		r := newRig(t)
		r.must(r.post(r.log.request(0, 5)), 200)
		// Another process sees it, without our memory's help.
		other, err := OpenStore(filepath.Join(r.dir.Path, DatabaseFile))
		if err != nil {
			t.Fatal(err)
		}
		l, err := other.Log(context.Background(), r.log.origin)
		if err != nil || l.Head == nil || l.Head.Size != 5 {
			t.Errorf("%+v %v", l, err)
		}
		// What cannot be persisted is not answered: the disk refuses the write.
		if _, err := other.write.Exec(`CREATE TRIGGER full BEFORE UPDATE ON head BEGIN SELECT raise(ABORT, 'disk full'); END`); err != nil {
			t.Fatal(err)
		}
		if a := r.must(r.post(r.log.request(5, 8)), 500); strings.Contains(a.body, "disk full") || strings.Contains(a.body, r.dir.Path) {
			t.Errorf("the answer tells strangers about our disk: %s", a.body)
		}
		if _, err := other.write.Exec(`DROP TRIGGER full`); err != nil {
			t.Fatal(err)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		r.restart()
		r.must(r.post(r.log.request(0, 8)), 409)
		r.must(r.post(r.log.request(5, 8)), 200)
	})

	t.Run("Note that checking the old size against the latest checkpoint and persisting the new checkpoint must be performed atomically, otherwise the following race can occur", func(t *testing.T) {
		// The race of the specification, made certain: B (size N+K) is judged
		// and persisted after A (size N) was judged and before it is persisted.
		r := newRig(t)
		r.must(r.post(r.log.request(0, 5)), 200)
		a := r.log.request(5, 6)
		b := r.log.request(5, 9)
		once := false
		r.w.testBeforeAdvance = func() {
			if !once {
				once = true
				r.must(r.post(b), 200)
			}
		}
		if got := r.must(r.do("POST", "/add-checkpoint", a), 409); got.body != "9\n" {
			t.Errorf("%q", got.body)
		}
		if h := r.head(r.log.origin); h.Size != 9 {
			t.Errorf("rolled back to %d", h.Size)
		}
	})

	t.Run("GET <monitoring prefix>/<origin hash>/checkpoint: The request MUST be an HTTP GET.", func(t *testing.T) {
		r := newRig(t)
		r.must(r.post(r.log.request(0, 5)), 200)
		for _, m := range []string{"POST", "HEAD", "PUT", "DELETE"} {
			if a := r.do(m, "/"+c2sp.OriginHash(r.log.origin)+"/checkpoint", nil); a.status != 405 || a.header.Get("Allow") != "GET" {
				t.Errorf("%s: %d", m, a.status)
			}
		}
	})
	t.Run("The origin hash is the SHA-256 hash of the log's origin, hex encoded, in lowercase.", func(t *testing.T) {
		r := newRig(t)
		r.must(r.post(r.log.request(0, 5)), 200)
		h := c2sp.OriginHash(r.log.origin)
		r.must(r.do("GET", "/"+h+"/checkpoint", nil), 200)
		for _, bad := range []string{strings.ToUpper(h), h[1:], h + "0", c2sp.OriginHash("x"), "example.com%2Flog", "..", "'%20OR%20''='"} {
			if a := r.do("GET", "/"+bad+"/checkpoint", nil); a.status == 200 {
				t.Errorf("%q is served", bad)
			}
		}
		for _, bad := range []string{"/" + h, "/" + h + "/checkpoint/", "/checkpoint", "/x/" + h + "/checkpoint"} {
			r.must(r.do("GET", bad, nil), 404)
		}
	})
	t.Run("The response body MUST be a checkpoint for the log identified by the origin, and it MUST include the cosignature(s) from the witness's key(s) that were returned from add-checkpoint and the cosignature from the log key(s) that the witness verified.", func(t *testing.T) {
		r := newRig(t)
		stranger := c2sp.Signature{Name: "stranger.example", KeyID: 7, Sig: make([]byte, 64)}
		cp := r.log.checkpoint(5)
		a := r.must(r.post(body(0, nil, r.log.note(cp, stranger))), 200)
		sig, _ := r.log.signer.Sign(cp.Text())
		want := cp.Text() + "\n" + sig.Line() + a.body // and nothing of the stranger's
		got := r.do("GET", "/"+c2sp.OriginHash(r.log.origin)+"/checkpoint", nil)
		if got.body != want {
			t.Errorf("served:\n%s\nwant:\n%s", got.body, want)
		}
	})
	t.Run(`If the witness has never cosigned a checkpoint for that log, it MUST respond with a "404 Not Found" HTTP status code instead.`, func(t *testing.T) {
		r := newRig(t)
		path := "/" + c2sp.OriginHash(r.log.origin) + "/checkpoint"
		r.must(r.do("GET", path, nil), 404)
		r.must(r.post(r.log.request(2, 5)), 409)
		r.must(r.do("GET", path, nil), 404)
		r.must(r.post(r.log.request(0, 0)), 200) // the empty tree is a checkpoint too
		r.must(r.do("GET", path, nil), 200)
	})

	t.Run("(signed-note) Signed notes MUST be valid UTF-8 and MUST NOT contain any ASCII control characters (those below U+0020) other than newline.", tries(5, func(t *testing.T, r *rig) []try {
		// No signer signs such a text; the grammar is judged before the signature.
		ext := func(line string) []byte {
			cp := r.log.checkpoint(5)
			cp.Extensions = []string{"é"}
			return edit(t, body(5, nil, r.log.note(cp)), "é", line)
		}
		return []try{{"tab", ext("a\tb"), 400}, {"escape", ext("\x1b[2J"), 400}, {"NUL", ext("\x00"), 400}, {"not UTF-8", ext("\xff"), 400}, {"UTF-8", ext("é"), 200}}
	}))
}

// sign signs a text that need not be a checkpoint.
func (l *testLog) sign(text string) []byte {
	s, err := l.signer.Sign(text)
	if err != nil {
		panic(err)
	}
	return (&c2sp.Note{Text: text, Sigs: []c2sp.Signature{s}}).Bytes()
}

func base64Must(s string) []byte {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}
