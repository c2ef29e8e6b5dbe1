package c2sp

// The grammar of signed notes, c2sp.org/signed-note. No cryptography here.

import (
	"encoding/base64"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxNote is the most bytes a note may have. One ML-DSA-44 signature line
	// has 3.3 kB, so there is room for more than a hundred.
	MaxNote = 512 << 10
	// MaxSignatures is the most signature lines a note may have.
	MaxSignatures = 100
)

// A Signature is one signature line of a note, known or not.
type Signature struct {
	Name  string // key name: non-empty, without spaces and '+'
	KeyID uint32
	Sig   []byte // what follows the four bytes of the key ID; at least one byte
}

const sigPrefix = "— "

// Line returns the signature line, with its newline.
func (s Signature) Line() string {
	b := make([]byte, 4, 4+len(s.Sig))
	binary.BigEndian.PutUint32(b, s.KeyID)
	b = append(b, s.Sig...)
	return sigPrefix + s.Name + " " + base64.StdEncoding.EncodeToString(b) + "\n"
}

// A Note is a text and all its signature lines, in their order. Nothing about
// it has been verified.
type Note struct {
	Text string // ends with a newline
	Sigs []Signature
}

// ParseNote splits a note into its text and its signature lines. It checks the
// grammar only. The error is a [*MalformedError].
func ParseNote(b []byte) (*Note, error) {
	if len(b) > MaxNote {
		return nil, malformed("note", "longer than %d bytes", MaxNote)
	}
	s := string(b)
	if err := checkText("note", s); err != nil {
		return nil, err
	}
	// The last empty line separates; the text may have empty lines of its own.
	i := strings.LastIndex(s, "\n\n")
	if i < 0 {
		return nil, malformed("note", "no empty line between text and signatures")
	}
	sigs, err := parseSigs("note", s[i+2:])
	if err != nil {
		return nil, err
	}
	return &Note{Text: s[:i+1], Sigs: sigs}, nil
}

// Bytes returns the note as it travels.
func (n *Note) Bytes() []byte {
	b := append([]byte(n.Text), '\n')
	for _, s := range n.Sigs {
		b = append(b, s.Line()...)
	}
	return b
}

// ParseSignatureLines reads one or more signature lines without a text: what a
// witness answers to add-checkpoint (c2sp.org/tlog-witness). The error is a
// [*MalformedError].
func ParseSignatureLines(b []byte) ([]Signature, error) {
	const what = "signature lines"
	if len(b) > MaxNote {
		return nil, malformed(what, "longer than %d bytes", MaxNote)
	}
	s := string(b)
	if err := checkText(what, s); err != nil {
		return nil, err
	}
	return parseSigs(what, s)
}

// parseSigs reads signature lines out of s, which has passed checkText.
func parseSigs(what, s string) ([]Signature, error) {
	if s == "" {
		return nil, malformed(what, "no signature")
	}
	if s[len(s)-1] != '\n' {
		return nil, malformed(what, "the last signature line has no newline")
	}
	n := strings.Count(s, "\n")
	if n > MaxSignatures {
		return nil, malformed(what, "%d signature lines; at most %d are read", n, MaxSignatures)
	}
	sigs := make([]Signature, 0, n)
	for s != "" {
		var line string
		line, s, _ = strings.Cut(s, "\n")
		rest, ok := strings.CutPrefix(line, sigPrefix)
		if !ok {
			return nil, malformed(what, "signature line %d does not begin with an em dash and a space", len(sigs)+1)
		}
		name, b64, _ := strings.Cut(rest, " ")
		if !validName(name) {
			return nil, malformed(what, "signature line %d has key name %s", len(sigs)+1, quote(name))
		}
		sig, ok := decode64(b64)
		if !ok {
			return nil, malformed(what, "signature line %d (%s) is not canonical base64", len(sigs)+1, quote(name))
		}
		if len(sig) < 5 {
			return nil, malformed(what, "signature line %d (%s) has %d bytes: no room for a key ID and a signature", len(sigs)+1, quote(name), len(sig))
		}
		sigs = append(sigs, Signature{Name: name, KeyID: binary.BigEndian.Uint32(sig), Sig: sig[4:]})
	}
	return sigs, nil
}

// validName reports whether name may name a key: non-empty UTF-8 without
// Unicode spaces, '+' and control characters.
func validName(name string) bool {
	if name == "" || !utf8.ValidString(name) {
		return false
	}
	for _, r := range name {
		if r < 0x20 || r == '+' || unicode.IsSpace(r) {
			return false
		}
	}
	return true
}
