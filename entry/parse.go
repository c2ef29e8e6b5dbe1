// Decoding: the whole grammar first, byte by byte, then validation. Written by
// hand because encoding/json accepts white space, escapes, duplicate and
// unsorted keys, and tells none of them.

package entry

import (
	"fmt"
	"strings"
)

// Parse reads a leaf. It accepts exactly what Marshal writes; the error is
//
//   - *SyntaxError, with the byte, for what is not one line of canonical JSON
//     made of the fields of version 1;
//   - *FieldError for a field that breaks a rule;
//   - one that matches ErrVersion for a well-formed leaf of another version.
//
// The entry shares no memory with leaf; its strings share one copy of it, so
// clone (strings.Clone) what is kept much longer than the entry.
func Parse(leaf []byte) (*Entry, error) {
	if len(leaf) > MaxSize {
		return nil, &SyntaxError{MaxSize, fmt.Sprintf("longer than %d bytes", MaxSize)}
	}
	p := parser{s: string(leaf)}
	e, have, v, err := p.entry()
	if err != nil {
		var other bool
		if v, other = otherVersion(p.s); !other {
			return nil, err
		}
	}
	if v != 1 {
		return nil, fmt.Errorf("%w: v is %d, not 1", ErrVersion, v)
	}
	if err := e.validate(have); err != nil {
		return nil, err
	}
	return e, nil
}

// A parser reads s at i. Its methods leave i behind what they read.
type parser struct {
	s string
	i int
}

// room is an Entry with room for all that its pointers can point to, so that
// parsing allocates once.
type room struct {
	e   Entry
	p   Publisher
	n   [5]uint64 // one for each integer field
	num int
}

// entry reads the whole line and says which fields it has. v is 1 or another
// version; without v the error is a *FieldError.
func (p *parser) entry() (e *Entry, have fieldSet, v uint64, err error) {
	r := new(room)
	next := 0 // keys come in the order of fields
	err = p.object(func(at int, key string) error {
		for next < len(fields) && fields[next].name != key {
			next++
		}
		if next == len(fields) {
			return p.fail(at, "unknown field %s", quote(key))
		}
		f := &fields[next]
		have |= 1 << next
		err := p.colon()
		switch {
		case err != nil:
		case f.str != nil:
			*f.str(&r.e), err = p.string(key)
		case f.num != nil:
			n := &r.n[r.num]
			r.num++
			*n, err = p.uint(key)
			*f.num(&r.e) = n
		case f.list != nil:
			*f.list(&r.e), err = p.list(key)
		case f.pub:
			r.e.Publisher = &r.p
			err = p.publisher(&r.p)
		default:
			v, err = p.uint(key)
		}
		return err
	})
	switch {
	case err != nil:
		return nil, 0, 0, err
	case p.i < len(p.s):
		return nil, 0, 0, p.fail(p.i, "%s after the end of the entry", p.found())
	case have&versionField == 0:
		return nil, 0, 0, &FieldError{"v", "missing"}
	}
	return &r.e, have, v, nil
}

func (p *parser) publisher(pub *Publisher) error {
	if p.peek() != '{' {
		return p.wrong("publisher", "an object")
	}
	next := 0
	return p.object(func(at int, key string) error {
		for next < len(pubFields) && pubFields[next].name != key {
			next++
		}
		if next == len(pubFields) {
			return p.fail(at, "unknown field %s in publisher", quote(key))
		}
		err := p.colon()
		if err == nil {
			*pubFields[next].str(pub), err = p.string(key)
		}
		return err
	})
}

// object reads an object of at least one member, keys sorted and unique. It
// calls member with each key and where it stands; member reads on from the
// colon to the end of the value.
func (p *parser) object(member func(at int, key string) error) error {
	if p.peek() != '{' {
		return p.fail(p.i, "%s where an object starts with {", p.found())
	}
	p.i++
	if p.peek() == '}' {
		return p.fail(p.i, "empty object")
	}
	last := ""
	for {
		at := p.i
		if p.peek() != '"' {
			return p.fail(at, "%s where a key starts with a quote", p.found())
		}
		key, err := p.text()
		if err != nil {
			return err
		}
		switch {
		case key == last:
			return p.fail(at, "duplicate key %s", quote(key))
		case key < last:
			return p.fail(at, "key %s stands after %s: keys are sorted", quote(key), quote(last))
		}
		last = key
		if err := member(at, key); err != nil {
			return err
		}
		switch p.peek() {
		case ',':
			p.i++
		case '}':
			p.i++
			return nil
		default:
			return p.fail(p.i, "%s where , or } follows a value", p.found())
		}
	}
}

// colon reads the colon after a key.
func (p *parser) colon() error {
	if p.peek() != ':' {
		return p.fail(p.i, "%s where a colon follows the key", p.found())
	}
	p.i++
	return nil
}

// list reads an array of strings, at least one.
func (p *parser) list(key string) ([]string, error) {
	if p.peek() != '[' {
		return nil, p.wrong(key, "an array")
	}
	rest := p.s[p.i:]
	l := make([]string, 0, strings.Count(rest[:strings.IndexByte(rest, ']')+1], ",")+1)
	err := p.array(func() error {
		if p.peek() != '"' {
			return p.wrong(key, "an array of strings")
		}
		s, err := p.text()
		l = append(l, s)
		return err
	})
	return l, err
}

// array reads an array of at least one item; item reads each.
func (p *parser) array(item func() error) error {
	p.i++ // [
	if p.peek() == ']' {
		return p.fail(p.i, "empty array")
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch p.peek() {
		case ',':
			p.i++
		case ']':
			p.i++
			return nil
		default:
			return p.fail(p.i, "%s where , or ] follows an item", p.found())
		}
	}
}

// string reads the value of a string field.
func (p *parser) string(key string) (string, error) {
	if p.peek() != '"' {
		return "", p.wrong(key, "a string")
	}
	return p.text()
}

// text reads a string at its quote: printable ASCII, no escapes, not empty.
func (p *parser) text() (string, error) {
	start := p.i + 1
	for i := start; i < len(p.s); i++ {
		if class[p.s[i]]&classText != 0 {
			continue
		}
		switch b := p.s[i]; {
		case b == '"' && i == start:
			return "", p.fail(p.i, "empty string")
		case b == '"':
			p.i = i + 1
			return p.s[start:i], nil
		case b == '\\':
			return "", p.fail(i, "escape: nothing in an entry is escaped")
		case b >= 0x80:
			return "", p.fail(i, "byte 0x%02x is not ASCII", b)
		default:
			return "", p.fail(i, "control character 0x%02x", b)
		}
	}
	return "", p.fail(len(p.s), "the line ends inside a string")
}

// uint reads an integer from 0 to 2^53-1.
func (p *parser) uint(key string) (uint64, error) {
	start := p.i
	var n uint64
	for p.i < len(p.s) && class[p.s[p.i]]&classDigit != 0 {
		n = n*10 + uint64(p.s[p.i]-'0')
		if n > maxUint {
			return 0, p.fail(start, "%s is larger than 2^53-1", key)
		}
		p.i++
	}
	switch {
	case p.i == start:
		return 0, p.wrong(key, "an integer from 0 to 2^53-1")
	case p.s[start] == '0' && p.i > start+1:
		return 0, p.fail(start, "leading zero")
	case p.peek() == '.' || p.peek() == 'e' || p.peek() == 'E':
		return 0, p.fail(p.i, "%s has a fraction or an exponent: only integers", key)
	}
	return n, nil
}

// peek is the byte at i, 0 at the end (a byte 0 is never legal).
func (p *parser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

// found words what stands at i.
func (p *parser) found() string {
	if p.i >= len(p.s) {
		return "the end of the line"
	}
	switch b := p.s[p.i]; {
	case b == ' ' || b == '\t' || b == '\n' || b == '\r':
		return "white space"
	case b < 0x20 || b > 0x7e:
		return fmt.Sprintf("byte 0x%02x", b)
	default:
		return fmt.Sprintf("character %q", b)
	}
}

// wrong words the refusal of a value of another type than the field's.
func (p *parser) wrong(key, want string) error {
	switch p.peek() {
	case 'n':
		return p.fail(p.i, "%s: null: a field is never null, leave it out", key)
	case '-':
		return p.fail(p.i, "%s: negative number, want %s", key, want)
	}
	return p.fail(p.i, "%s: %s, want %s", key, p.found(), want)
}

func (p *parser) fail(at int, format string, args ...any) error {
	return &SyntaxError{at, fmt.Sprintf(format, args...)}
}

// maxDepth bounds nesting in leaves of other versions.
const maxDepth = 8

// otherVersion reports whether s keeps the grammar that binds every version
// (FORMAT.md section 8) and has an integer v other than 1, and which.
func otherVersion(s string) (v uint64, ok bool) {
	p := parser{s: s}
	hasV := false
	err := p.object(func(_ int, key string) error {
		err := p.colon()
		if err != nil {
			return err
		}
		if key == "v" {
			hasV = true
			v, err = p.uint(key)
			return err
		}
		return p.any(2)
	})
	return v, err == nil && p.i == len(s) && hasV && v != 1
}

// any reads a value of another version, the outermost object being depth 1.
func (p *parser) any(depth int) error {
	switch b := p.peek(); {
	case depth > maxDepth && (b == '{' || b == '['):
		return p.fail(p.i, "nested deeper than %d", maxDepth)
	case b == '{':
		return p.object(func(int, string) error {
			if err := p.colon(); err != nil {
				return err
			}
			return p.any(depth + 1)
		})
	case b == '[':
		return p.array(func() error { return p.any(depth + 1) })
	case b == '"':
		_, err := p.text()
		return err
	default:
		_, err := p.uint("value")
		return err
	}
}
