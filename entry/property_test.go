package entry

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawEntry makes any valid entry: a random row of the table, each permitted
// field or not, and then what the conditions want.
func drawEntry(t *rapid.T) *Entry {
	r := rapid.SampledFrom(rules).Draw(t, "rule")
	e := &Entry{Kind: r.kind, Claim: rapid.SampledFrom(r.kind.Claims()).Draw(t, "claim")}
	ecosystem := rapid.SampledFrom(Ecosystems()).Draw(t, "ecosystem")
	if r.kind == KindDistTag {
		ecosystem = NPM
	}
	required := setOf(always + " " + r.required)
	allowed := required | setOf(r.conditional+" "+r.optional)
	has := map[string]bool{}
	for i := range fields {
		has[fields[i].name] = required.has(i) || allowed.has(i) && rapid.Bool().Draw(t, fields[i].name+"?")
	}
	if r.conditional != "" {
		slotClaim := e.Claim
		if r.kind == KindConflict {
			slotClaim = rapid.SampledFrom([]Claim{ClaimIndex, ClaimObserved}).Draw(t, "slot_claim")
			e.SlotClaim = slotClaim
		}
		if has["file"] {
			if ecosystem != Generic && r.kind != KindConflict {
				has["version"] = true
			}
			if !(ecosystem == NPM && slotClaim == ClaimObserved && has["sha512"]) {
				has["sha256"] = true
			}
		} else {
			has["sha256"], has["sha512"] = false, false
			if r.kind == KindYank || r.kind == KindUnyank {
				has["version"] = true
			}
		}
		if r.kind == KindUpload {
			has["size"] = has["size"] || e.Claim == ClaimIndex
			has["upload_time"] = has["upload_time"] && e.Claim == ClaimObserved
			has["replaces"] = has["replaces"] && e.Claim == ClaimIndex
		}
	}
	if has["ecosystem"] {
		e.Ecosystem = ecosystem
	}
	for i := range fields {
		f := &fields[i]
		if !has[f.name] {
			continue
		}
		switch {
		case f.num != nil:
			*f.num(e) = Uint(rapid.Uint64Range(0, maxUint).Draw(t, f.name))
		case f.list != nil:
			g := hexString(64)
			if f.name == "vkeys" {
				g = rapid.StringMatching(`[a-z./]{1,20}\+[0-9a-f]{8}\+([A-Za-z0-9/]{4}){1,3}`)
			}
			*f.list(e) = rapid.Custom(func(t *rapid.T) []string {
				l := rapid.SliceOfNDistinct(g, 1, 4, rapid.ID[string]).Draw(t, f.name)
				return sorted(l)
			}).Draw(t, f.name)
		case f.pub:
			e.Publisher = drawPublisher(t)
		case f.str != nil && *f.str(e) == "":
			*f.str(e) = drawString(t, f.name, ecosystem)
		}
	}
	return e
}

func sorted(l []string) []string {
	for i := range l {
		for j := i; j > 0 && l[j-1] > l[j]; j-- {
			l[j-1], l[j] = l[j], l[j-1]
		}
	}
	return l
}

func hexString(n int) *rapid.Generator[string] {
	return rapid.StringMatching(fmt.Sprintf("[0-9a-f]{%d}", n))
}

var registries = rapid.OneOf(
	rapid.StringMatching(`[a-z][a-z0-9]{0,9}(-[a-z0-9]{1,3})?(\.[a-z]{2,5})?(:8[1-9][0-9]{2})?(/[A-Za-z0-9_~-]{1,8}){0,2}`),
	rapid.StringMatching(`192\.0\.2\.[1-9](/\.\.\.)?`),
	rapid.StringMatching(`\[2001:db8::[1-9a-f]\](:81)?`))

func drawString(t *rapid.T, field, ecosystem string) string {
	pattern := map[string]string{
		"id":      "[0-9a-f]{32}",
		"sha512":  "[0-9a-f]{128}",
		"tag":     `[a-z]{1,9}`,
		"version": `[!#-\[\]-~]([ !#-\[\]-~]{0,40}[!#-\[\]-~])?`,
		"origin":  `[!#-*,-\[\]-~]{1,60}`,
	}[field]
	switch field {
	case "auth":
		return rapid.SampledFrom([]string{"trusted-publisher", "token", "password", "other"}).Draw(t, field)
	case "overwrite":
		return rapid.SampledFrom([]string{"never", "after-remove", "replace"}).Draw(t, field)
	case "slot_claim":
		return "index"
	case "reason":
		return rapid.SampledFrom(Reasons()).Draw(t, field)
	case "registry":
		return registries.Draw(t, field)
	case "url":
		return rapid.SampledFrom([]string{"https://", "http://"}).Draw(t, "scheme") + registries.Draw(t, field) + rapid.SampledFrom([]string{"", "/"}).Draw(t, "slash")
	case "time", "upload_time":
		pattern = "(19[7-9][0-9]|[2-9][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z"
	case "project":
		pattern = map[string]string{
			PyPI:    "[a-z0-9]{1,8}(-[a-z0-9]{1,4}){0,3}",
			NPM:     `(@[A-Za-z0-9_~!*'()-][A-Za-z0-9._~!*'()-]{0,8}/)?[A-Za-z0-9_~!*'()-][A-Za-z0-9._~!*'()-]{0,12}`,
			Conda:   "[a-z0-9_-][a-z0-9._-]{0,12}",
			Generic: `[A-Za-z0-9_+@~-][A-Za-z0-9._+@~-]{0,6}(/[A-Za-z0-9_+@~-][A-Za-z0-9._+@~-]{0,6}){0,3}`,
		}[ecosystem]
	case "file":
		part := `[A-Za-z0-9_+!~@=-][A-Za-z0-9._+!~@=-]{0,12}`
		pattern = map[string]string{
			PyPI:    part,
			NPM:     part + `[*'()]?\.tgz`,
			Conda:   part + "/" + part + `\.(conda|tar\.bz2)`,
			Generic: part + "(/" + part + "){0,3}",
		}[ecosystem]
	}
	if pattern == "" {
		pattern = "[0-9a-f]{64}"
	}
	return rapid.StringMatching(pattern).Draw(t, field)
}

func drawPublisher(t *rapid.T) *Publisher {
	r := rapid.SampledFrom(publisherRules).Draw(t, "publisher")
	p := &Publisher{Kind: r.kind}
	need, may := pubSet(r.required), pubSet(r.required+" "+r.optional)
	for i, f := range pubFields {
		if !may.has(i) || !need.has(i) && !rapid.Bool().Draw(t, f.name+"?") {
			continue
		}
		pattern := `[!#-?A-\[\]-~]{1,30}` // no @
		switch f.name {
		case "issuer":
			pattern = `https://[a-z]{1,9}\.example(/[a-z]{1,5})?`
		case "repository":
			pattern = `[A-Za-z0-9_-]{1,9}/[A-Za-z0-9_-][A-Za-z0-9._-]{0,9}`
		case "owner_id", "repository_id":
			pattern = `[1-9][0-9]{0,10}`
			if r.kind == "activestate" {
				pattern = `[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`
			}
		case "subject":
			if r.kind == "google" {
				pattern = "[0-9a-f]{64}"
			}
		}
		*f.str(p) = strings.ReplaceAll(rapid.StringMatching(pattern).Draw(t, f.name), "%40", "_")
	}
	return p
}

// Parse undoes Marshal, and the bytes are the only ones.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEntry(t)
		b, err := e.Marshal()
		if err != nil {
			t.Fatalf("Marshal %+v: %v", e, err)
		}
		got, err := Parse(b)
		if err != nil {
			t.Fatalf("Parse %s: %v", b, err)
		}
		if !reflect.DeepEqual(got, e) {
			t.Fatalf("Parse %s\n got %+v\nwant %+v", b, got, e)
		}

		// Any one byte changed, dropped or doubled is another leaf or none.
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		for _, m := range [][]byte{
			append(append(bytes.Clone(b[:i]), rapid.Byte().Draw(t, "byte")), b[i+1:]...),
			append(bytes.Clone(b[:i]), b[i+1:]...),
			append(append(bytes.Clone(b[:i+1]), b[i]), b[i+1:]...),
			b[:i],
		} {
			checkLeaf(t, m)
		}
	})
}

// A field taken from or put into a valid entry against the table is refused by
// name, by Marshal and by Parse alike.
func TestTableIsEnforced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEntry(t)
		var r rule
		for _, r = range rules {
			if r.kind == e.Kind {
				break
			}
		}
		required := setOf(always + " " + r.required)
		allowed := required | setOf(r.conditional+" "+r.optional)
		i := rapid.IntRange(0, len(fields)-1).Draw(t, "field")
		f := &fields[i]
		ecosystem := e.Ecosystem
		if ecosystem == "" {
			ecosystem = PyPI
		}
		switch {
		case f.name == "v":
			return
		case required.has(i):
			clearField(f, e)
		case !allowed.has(i):
			switch {
			case f.num != nil:
				*f.num(e) = Uint(0)
			case f.list != nil:
				*f.list(e) = []string{"x"}
			case f.pub:
				e.Publisher = &Publisher{}
			default:
				*f.str(e) = "x"
			}
		default:
			return
		}
		_, err := e.Marshal()
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != f.name {
			t.Fatalf("%s without or with %s: %v", e.Kind, f.name, err)
		}
		if f.name == "kind" || f.pub {
			return
		}
		_, err = Parse(e.append(nil, e.present()))
		if !errors.As(err, &fe) || fe.Field != f.name {
			t.Fatalf("Parse: %v, want field %s", err, f.name)
		}
	})
}

func clearField(f *field, e *Entry) {
	switch {
	case f.str != nil:
		*f.str(e) = ""
	case f.num != nil:
		*f.num(e) = nil
	case f.list != nil:
		*f.list(e) = nil
	case f.pub:
		e.Publisher = nil
	}
}
