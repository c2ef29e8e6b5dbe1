package witness

// One row for every MUST of c2sp.org/tlog-cosignature that a witness can break,
// against the bytes that it answers with. Keys, messages and structures are put
// together here by the letter of the specification: nothing is asked of package
// c2sp but to read base64 lines.

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"filippo.io/mldsa"
	"github.com/portbook/portbook/c2sp"
)

func TestEveryCosignatureMust(t *testing.T) {
	r := newRig(t)
	cp := r.log.checkpoint(5)
	cp.Extensions = []string{"an extension", "and another"}
	a := r.must(r.post(body(0, nil, r.log.note(cp))), 200)
	sigs, err := c2sp.ParseSignatureLines([]byte(a.body))
	if err != nil || len(sigs) != 2 {
		t.Fatal(sigs, err)
	}
	ed, pq := sigs[0], sigs[1]
	raw := func(i int) []byte { // of the vkey, without our codec
		_, b64, _ := strings.Cut(strings.SplitN(r.w.Keys()[i].String(), "+", 2)[1], "+")
		b, err := base64.StdEncoding.DecodeString(b64)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const name = "witness.example/w1"
	keyID := func(alg byte, key []byte) uint32 {
		h := sha256.Sum256(slices.Concat([]byte(name), []byte("\n"), []byte{alg}, key))
		return binary.BigEndian.Uint32(h[:])
	}
	edKey, pqKey := raw(0), raw(1)

	t.Run(`The key ID for Ed25519 cosignatures MUST be computed as SHA-256(<name> || "\n" || 0x04 || 32-byte Ed25519 cosigner public key)[:4]`, func(t *testing.T) {
		if edKey[0] != 4 || len(edKey) != 1+32 || ed.KeyID != keyID(4, edKey[1:]) || ed.Name != name {
			t.Errorf("%x %08x %s", edKey[0], ed.KeyID, ed.Name)
		}
	})
	t.Run(`The key ID for ML-DSA-44 cosignatures MUST be computed as SHA-256(<name> || "\n" || 0x06 || 1312-byte ML-DSA-44 cosigner public key)[:4]`, func(t *testing.T) {
		if pqKey[0] != 6 || len(pqKey) != 1+1312 || pq.KeyID != keyID(6, pqKey[1:]) || pq.Name != name {
			t.Errorf("%x %08x %s", pqKey[0], pq.KeyID, pq.Name)
		}
	})
	t.Run("The signature MUST be a timestamped_signature structure.", func(t *testing.T) {
		if len(ed.Sig) != 8+64 || len(pq.Sig) != 8+2420 {
			t.Errorf("%d and %d bytes", len(ed.Sig), len(pq.Sig))
		}
	})
	at := binary.BigEndian.Uint64(ed.Sig)
	t.Run("timestamp is the time at which the cosignature was generated, as a POSIX timestamp. It MUST NOT exceed 2^63 - 1", func(t *testing.T) {
		if at != uint64(noon.Unix()) || binary.BigEndian.Uint64(pq.Sig) != at || at > 1<<63-1 {
			t.Errorf("%d and %d", at, binary.BigEndian.Uint64(pq.Sig))
		}
	})
	t.Run("The signed message MUST be two newline (U+000A) terminated lines (one header line and one timestamp line) followed by the whole note body of the cosigned checkpoint "+
		"(including the final newline, but not including any signature lines). The header line MUST be the fixed string cosignature/v1. "+
		"The timestamp line MUST consist of the string time, a single space (0x20), and timestamped_signature.timestamp encoded as an ASCII decimal with no leading zeroes. "+
		"Extension lines, if present, MUST be included in the cosigned message.", func(t *testing.T) {
		root := r.log.tree.root(5)
		text := "example.com/log\n5\n" + base64.StdEncoding.EncodeToString(root[:]) + "\nan extension\nand another\n"
		if !ed25519.Verify(edKey[1:], fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text), ed.Sig[8:]) {
			t.Error("the signature is over something else")
		}
	})
	message := func(timestamp, start, end uint64, hash [32]byte) []byte {
		b := []byte("subtree/v1\n\x00")
		b = append(append(b, byte(len(name))), name...)
		b = binary.BigEndian.AppendUint64(b, timestamp)
		b = append(append(b, byte(len(r.log.origin))), r.log.origin...)
		b = binary.BigEndian.AppendUint64(b, start)
		b = binary.BigEndian.AppendUint64(b, end)
		return append(b, hash[:]...)
	}
	public, err := mldsa.NewPublicKey(mldsa.MLDSA44(), pqKey[1:])
	if err != nil {
		t.Fatal(err)
	}
	t.Run("The signed message MUST be a cosigned_message structure. If signing a checkpoint, start MUST be zero; end is the size of the tree.", func(t *testing.T) {
		if err := mldsa.Verify(public, message(at, 0, 5, r.log.tree.root(5)), pq.Sig[8:], nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("If start is not zero, timestamp MUST be zero.", func(t *testing.T) {
		reference := []byte(r.must(r.do("GET", "/"+c2sp.OriginHash(r.log.origin)+"/checkpoint", nil), 200).body)
		for _, s := range [][2]uint64{{4, 5}, {2, 4}, {0, 4}} {
			a := r.must(r.do("POST", "/sign-subtree", r.log.subtreeRequest(s[0], s[1], 5, reference)), 200)
			lines, err := c2sp.ParseSignatureLines([]byte(a.body))
			if err != nil || len(lines) != 1 || lines[0].KeyID != pq.KeyID {
				t.Fatal(lines, err)
			}
			if binary.BigEndian.Uint64(lines[0].Sig) != 0 {
				t.Errorf("[%d, %d) is signed with a timestamp", s[0], s[1])
			}
			if err := mldsa.Verify(public, message(0, s[0], s[1], r.log.tree.mth(s[0], s[1])), lines[0].Sig[8:], nil); err != nil {
				t.Errorf("[%d, %d): %v", s[0], s[1], err)
			}
		}
	})
	t.Run("A cosigner operator that operates multiple Ed25519 cosigners MUST use distinct public keys for each cosigner. A given tuple MUST imply a single set of statements.", func(t *testing.T) {
		seen := map[string]bool{string(edKey[1:]): true, string(pqKey[1:]): true}
		for range 3 {
			for _, k := range newRig(t).w.Keys() { // of the same name
				if seen[string(k.Raw())] {
					t.Error("two witnesses have one key")
				}
				seen[string(k.Raw())] = true
			}
		}
		// Neither can the key be had as that of a log, which says something else.
		own := r.w.Keys()[0]
		asLog, err := c2sp.NewLogKey("example.com/own", own.Raw())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.dir.Store.AddLog(t.Context(), "example.com/own", []*c2sp.Key{asLog}); err == nil || !strings.Contains(err.Error(), "own key") {
			t.Errorf("the witness's own key is taken as a log's: %v", err)
		}
	})
}
