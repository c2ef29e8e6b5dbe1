// Encoding: RFC 8785 for the little of JSON that entries use. Nothing is ever
// escaped, because no string that would need it is valid.

package entry

import (
	"fmt"
	"strconv"
)

// Marshal returns the one encoding of e: a line of canonical JSON without a
// newline. It validates first; the error is a *FieldError.
func (e *Entry) Marshal() ([]byte, error) {
	have := e.present()
	if err := e.validate(have); err != nil {
		return nil, err
	}
	b := e.append(make([]byte, 0, 1024), have)
	if len(b) > MaxSize {
		return nil, &FieldError{"entry", fmt.Sprintf("%d bytes, at most %d", len(b), MaxSize)}
	}
	return b, nil
}

// append encodes the fields that e has, in the order of the table.
func (e *Entry) append(b []byte, have fieldSet) []byte {
	next := byte('{')
	for i := range fields {
		if !have.has(i) {
			continue
		}
		f := &fields[i]
		b = append(b, next)
		b = appendString(b, f.name)
		b = append(b, ':')
		next = ','
		switch {
		case f.str != nil:
			b = appendString(b, *f.str(e))
		case f.num != nil:
			b = strconv.AppendUint(b, **f.num(e), 10)
		case f.list != nil:
			open := byte('[')
			for _, s := range *f.list(e) {
				b = append(b, open)
				b = appendString(b, s)
				open = ','
			}
			b = append(b, ']')
		case f.pub:
			b = e.Publisher.append(b)
		default:
			b = append(b, '1') // v
		}
	}
	return append(b, '}')
}

func (p *Publisher) append(b []byte) []byte {
	next := byte('{')
	for i := range pubFields {
		if s := *pubFields[i].str(p); s != "" {
			b = append(b, next)
			b = appendString(b, pubFields[i].name)
			b = append(b, ':')
			b = appendString(b, s)
			next = ','
		}
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
