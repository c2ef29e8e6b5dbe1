// Validation: the table first, then each value by itself, then what depends on
// several.

package entry

import (
	"fmt"
	"math/bits"
)

// Validate checks e against FORMAT.md. The error is a *FieldError naming the
// first field that breaks a rule: kind and claim, then forbidden and missing
// fields in the order of the leaf, then values in that order, then conditions
// between fields.
func (e *Entry) Validate() error { return e.validate(e.present()) }

// present returns the fields that e has.
func (e *Entry) present() (have fieldSet) {
	for i := range fields {
		if fields[i].present(e) {
			have |= 1 << i
		}
	}
	return have
}

// validate is Validate, given the fields that e has.
func (e *Entry) validate(have fieldSet) error {
	r := compiled[e.Kind]
	switch {
	case e.Kind == "":
		return &FieldError{"kind", "missing"}
	case r == nil:
		return &FieldError{"kind", fmt.Sprintf("unknown kind %s", quote(string(e.Kind)))}
	case e.Claim == "":
		return &FieldError{"claim", "missing"}
	}
	if !claimAllowed(r.claims, e.Claim) {
		return &FieldError{"claim", fmt.Sprintf("%s is not a claim for kind %s (allowed: %s)", quote(string(e.Claim)), e.Kind, r.claims)}
	}

	if bad := have&^r.allowed | r.required&^have; bad != 0 {
		for i := range fields {
			if bad.has(i) && have.has(i) {
				return &FieldError{fields[i].name, fmt.Sprintf("forbidden for kind %s", e.Kind)}
			}
			if bad.has(i) {
				return &FieldError{fields[i].name, fmt.Sprintf("missing: required for kind %s", e.Kind)}
			}
		}
	}

	for s := have; s != 0; s &= s - 1 {
		if err := fields[bits.TrailingZeros64(uint64(s))].value(e); err != nil {
			return err
		}
	}
	return e.conditions()
}

func claimAllowed(allowed []Claim, c Claim) bool {
	for _, a := range allowed {
		if a == c {
			return true
		}
	}
	return false
}

// value checks the value of f in e, which has one.
func (f *field) value(e *Entry) error {
	switch {
	case f.str != nil:
		if reason := f.check(e, *f.str(e)); reason != "" {
			return &FieldError{f.name, reason}
		}
	case f.num != nil:
		if n := **f.num(e); n > maxUint {
			return &FieldError{f.name, fmt.Sprintf("%d is larger than 2^53-1", n)}
		}
	case f.list != nil:
		l := *f.list(e)
		if len(l) > maxList {
			return &FieldError{f.name, fmt.Sprintf("%d items, at most %d", len(l), maxList)}
		}
		for i, s := range l {
			if reason := f.check(e, s); reason != "" {
				return &FieldError{f.name, fmt.Sprintf("item %d: %s", i, reason)}
			}
			if i > 0 && l[i-1] == s {
				return &FieldError{f.name, fmt.Sprintf("item %d: twice in the list", i)}
			}
			if i > 0 && l[i-1] > s {
				return &FieldError{f.name, fmt.Sprintf("item %d: not sorted", i)}
			}
		}
	case f.pub:
		return e.Publisher.validate()
	}
	return nil
}
