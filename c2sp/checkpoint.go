package c2sp

// Checkpoints: the text of a signed tree head, c2sp.org/tlog-checkpoint.

import (
	"crypto/sha256"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Checkpoint is the tree head of a log: what its signatures are about.
type Checkpoint struct {
	Origin     string   // identity of the log; one non-empty line
	Size       uint64   // number of leaves, below 2^63
	Root       [32]byte // RFC 6962 root hash of the tree of that size
	Extensions []string // opaque lines; never acted on
}

// EmptyRoot is the root hash of the tree of size zero: SHA-256 of nothing.
var EmptyRoot = sha256.Sum256(nil)

// ParseCheckpoint reads the text of a note (without its signatures) as a
// checkpoint. The error is a [*MalformedError].
//
// That a tree of size zero has [EmptyRoot] is not checked here, because a
// witness must answer that case in its own way; [Policy.Verify] checks it.
func ParseCheckpoint(text string) (Checkpoint, error) {
	fail := func(format string, args ...any) (Checkpoint, error) {
		return Checkpoint{}, malformed("checkpoint", format, args...)
	}
	if len(text) > MaxNote {
		return fail("longer than %d bytes", MaxNote)
	}
	if err := checkText("checkpoint", text); err != nil {
		return Checkpoint{}, err
	}
	body, ok := strings.CutSuffix(text, "\n")
	if !ok {
		return fail("the last line has no newline")
	}
	origin, body, ok := strings.Cut(body, "\n")
	if !ok {
		return fail("fewer than three lines")
	}
	size, body, ok := strings.Cut(body, "\n")
	if !ok {
		return fail("fewer than three lines")
	}
	root, body, more := strings.Cut(body, "\n")
	var c Checkpoint
	if c.Origin = origin; origin == "" {
		return fail("the origin line is empty")
	}
	if c.Size, ok = parseSize(size); !ok {
		return fail("tree size %s is not a decimal number below 2^63 without leading zeros", quote(size))
	}
	if c.Root, ok = decodeHash(root); !ok {
		return fail("root hash %s is not canonical base64 of 32 bytes", quote(root))
	}
	if more {
		c.Extensions = strings.Split(body, "\n")
		for _, line := range c.Extensions {
			if line == "" {
				return fail("an extension line is empty")
			}
		}
	}
	return c, nil
}

// Text returns the note text of c: what a log signs.
func (c Checkpoint) Text() string {
	var b strings.Builder
	b.WriteString(c.Origin)
	b.WriteByte('\n')
	b.WriteString(strconv.FormatUint(c.Size, 10))
	b.WriteByte('\n')
	b.WriteString(encodeHash(c.Root))
	b.WriteByte('\n')
	for _, line := range c.Extensions {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

// checkText refuses what no note may contain: bytes that are not UTF-8, and
// control characters below U+0020 other than newline.
func checkText(what, s string) error {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 && s[i] != '\n' {
			return malformed(what, "control character 0x%02x at byte %d", s[i], i)
		}
	}
	if !utf8.ValidString(s) {
		return malformed(what, "not UTF-8")
	}
	return nil
}

// quote shows a piece of foreign input in an error: escaped, and not at length.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "..."
	}
	return strconv.QuoteToASCII(s)
}
