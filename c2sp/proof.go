package c2sp

// Proofs as one text file, c2sp.org/tlog-proof@v1.

import (
	"encoding/base64"
	"strconv"
	"strings"
)

// MaxProof is the most bytes a proof may have.
const MaxProof = 512 << 10

const proofHeader = "c2sp.org/tlog-proof@v1\n"

// A Proof says that something is at Index in the log whose checkpoint it
// carries. Nothing about it has been verified; Extra least of all.
type Proof struct {
	Extra      []byte // unauthenticated; nil if the proof has none
	Index      uint64
	Hashes     [][32]byte // inclusion proof, from the leaf's sibling upwards
	Checkpoint []byte     // the signed note, verbatim
}

// ParseProof reads a proof. The checkpoint in it is checked for its grammar, no
// signature is verified. The error is a [*MalformedError].
func ParseProof(b []byte) (*Proof, error) {
	if len(b) > MaxProof {
		return nil, malformed("proof", "longer than %d bytes", MaxProof)
	}
	s, ok := strings.CutPrefix(string(b), proofHeader)
	if !ok {
		return nil, malformed("proof", "the first line is not %s", strings.TrimSuffix(proofHeader, "\n"))
	}
	var p Proof
	line, rest, _ := strings.Cut(s, "\n")
	if v, ok := strings.CutPrefix(line, "extra "); ok {
		if p.Extra, ok = decode64(v); !ok {
			return nil, malformed("proof", "the extra line is not canonical base64")
		}
		if len(p.Extra) == 0 {
			return nil, malformed("proof", "the extra line is empty; it must then be left out")
		}
		line, rest, _ = strings.Cut(rest, "\n")
	}
	v, ok := strings.CutPrefix(line, "index ")
	if !ok {
		return nil, malformed("proof", "no index line")
	}
	if p.Index, ok = parseSize(v); !ok {
		return nil, malformed("proof", "index %s is not a decimal number below 2^63 without leading zeros", quote(v))
	}
	var err error
	if p.Hashes, rest, err = parseHashLines("proof", rest); err != nil {
		return nil, err
	}
	p.Checkpoint = []byte(rest)
	if err := checkSignedCheckpoint(p.Checkpoint); err != nil {
		return nil, err
	}
	return &p, nil
}

// Bytes returns the proof as it is stored.
func (p *Proof) Bytes() []byte {
	b := []byte(proofHeader)
	if len(p.Extra) > 0 {
		b = append(b, "extra "...)
		b = base64.StdEncoding.AppendEncode(b, p.Extra)
		b = append(b, '\n')
	}
	b = append(b, "index "...)
	b = strconv.AppendUint(b, p.Index, 10)
	b = append(b, '\n')
	b = appendHashLines(b, p.Hashes)
	return append(b, p.Checkpoint...)
}

// parseHashLines reads base64 hashes, one a line, up to and including an empty
// line, and returns what follows it.
func parseHashLines(what, s string) (hashes [][32]byte, rest string, err error) {
	for {
		line, after, ok := strings.Cut(s, "\n")
		if !ok {
			return nil, "", malformed(what, "it ends before the checkpoint")
		}
		s = after
		if line == "" {
			return hashes, s, nil
		}
		if len(hashes) == maxProofHashes {
			return nil, "", malformed(what, "more than %d hashes", maxProofHashes)
		}
		h, ok := decodeHash(line)
		if !ok {
			return nil, "", malformed(what, "hash line %d, %s, is not canonical base64 of 32 bytes", len(hashes)+1, quote(line))
		}
		hashes = append(hashes, h)
	}
}

// appendHashLines writes what parseHashLines reads.
func appendHashLines(b []byte, hashes [][32]byte) []byte {
	for _, h := range hashes {
		b = base64.StdEncoding.AppendEncode(b, h[:])
		b = append(b, '\n')
	}
	return append(b, '\n')
}

// checkSignedCheckpoint checks the grammar of a signed note that must be a
// checkpoint.
func checkSignedCheckpoint(b []byte) error {
	n, err := ParseNote(b)
	if err != nil {
		return err
	}
	_, err = ParseCheckpoint(n.Text)
	return err
}
