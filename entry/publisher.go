// The nested object publisher: which fields go with which kind of identity
// (FORMAT.md section 5), and that none is an e-mail address.

package entry

import (
	"fmt"
	"strings"
)

// A publisherRule is one row of the table; kind itself is always required.
type publisherRule struct {
	kind               string
	required, optional string
	minParts, maxParts int // segments of repository; 0 = any number
}

var publisherRules = []publisherRule{
	{"github", "repository workflow", "issuer subject repository_id owner_id environment", 2, 2},
	{"gitlab", "repository workflow", "issuer subject repository_id owner_id environment", 2, 0},
	{"google", "subject", "issuer", 0, 0},
	{"activestate", "repository", "issuer subject owner_id", 2, 2},
	{"npm", "repository", "workflow issuer subject repository_id owner_id environment", 2, 0},
	{"oidc", "issuer subject", "", 0, 0},
}

// PublisherKinds lists the kinds of publisher of version 1.
func PublisherKinds() []string {
	var ks []string
	for _, r := range publisherRules {
		ks = append(ks, r.kind)
	}
	return ks
}

// pubSet is setOf for publisher.
func pubSet(names string) (s fieldSet) {
	for _, n := range strings.Fields(names) {
		for i := range pubFields {
			if pubFields[i].name == n {
				s |= 1 << i
			}
		}
	}
	return s
}

var publisherSets = func() (t []struct{ required, allowed fieldSet }) {
	for _, r := range publisherRules {
		req := pubSet("kind " + r.required)
		t = append(t, struct{ required, allowed fieldSet }{req, req | pubSet(r.optional)})
	}
	return t
}()

// validate checks p; errors are *FieldError with fields "publisher.NAME".
func (p *Publisher) validate() error {
	var rule *publisherRule
	var need, may fieldSet
	for i := range publisherRules {
		if publisherRules[i].kind == p.Kind {
			rule, need, may = &publisherRules[i], publisherSets[i].required, publisherSets[i].allowed
		}
	}
	if p.Kind == "" {
		return &FieldError{"publisher.kind", "missing"}
	}
	if rule == nil {
		return &FieldError{"publisher.kind", fmt.Sprintf("%s is none of %s", quote(p.Kind), strings.Join(PublisherKinds(), ", "))}
	}
	for i := range pubFields {
		name, s := pubFields[i].name, *pubFields[i].str(p)
		switch {
		case s == "" && need.has(i):
			return &FieldError{"publisher." + name, fmt.Sprintf("missing: required for publisher kind %s", p.Kind)}
		case s == "":
			continue
		case !may.has(i):
			return &FieldError{"publisher." + name, fmt.Sprintf("forbidden for publisher kind %s", p.Kind)}
		}
		if reason := rule.refuse(name, s); reason != "" {
			return &FieldError{"publisher." + name, reason}
		}
	}
	return nil
}

// refuse checks the value s of one field of a publisher of this kind.
func (r *publisherRule) refuse(name, s string) string {
	switch i := allowed(s, classText); {
	case len(s) > 256:
		return fmt.Sprintf("%s: longer than 256", quote(s))
	case i >= 0:
		return badByte(s, i)
	case s[0] == ' ' || s[len(s)-1] == ' ':
		return fmt.Sprintf("%s: space at the start or end", quote(s))
	case looksLikeEmail(s):
		return "looks like an e-mail address; an identity that is one is written as a commitment, kind google"
	}
	switch name {
	case "issuer":
		return refuseURL(nil, s)
	case "repository":
		n, reason := refuseSegments(s, classRepo)
		if reason != "" {
			return reason
		}
		if n < r.minParts || r.maxParts > 0 && n > r.maxParts {
			return fmt.Sprintf("%s is not OWNER/NAME", quote(s))
		}
	case "repository_id", "owner_id":
		if r.kind == "activestate" {
			return refuseUUID(s)
		}
		if len(s) > 20 || allowed(s, classDigit) >= 0 || s[0] == '0' && len(s) > 1 {
			return fmt.Sprintf("%s is not a decimal number of 1 to 20 digits without leading zeros", quote(s))
		}
	case "subject":
		if r.kind == "google" {
			return refuseHex(s, 64)
		}
	}
	return ""
}

// refuseUUID wants the form 8-4-4-4-12 in lower-case hex: ActiveState counts
// in UUIDs.
func refuseUUID(s string) string {
	ok := len(s) == 36
	for i := 0; ok && i < len(s); i++ {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			ok = s[i] == '-'
		} else {
			ok = class[s[i]]&classHex != 0
		}
	}
	if !ok {
		return fmt.Sprintf("%s is not a lower-case UUID", quote(s))
	}
	return ""
}

// looksLikeEmail finds local@domain.tld anywhere in s, also with the @ written
// %40. A Git reference after an @ (x.yml@refs/heads/main, x.yml@v1.2) is none:
// its last label before a slash has no dot or does not start with a letter.
func looksLikeEmail(s string) bool {
	if strings.IndexByte(s, '@') < 0 && strings.IndexByte(s, '%') < 0 {
		return false
	}
	s = strings.ReplaceAll(s, "%40", "@")
	for i := 1; i < len(s); i++ {
		if s[i] != '@' || strings.IndexByte(" /:<>@(),;", s[i-1]) >= 0 {
			continue
		}
		end := i + 1
		for end < len(s) && (class[s[end]]&classRepo != 0 && s[end] != '_') {
			end++
		}
		domain := strings.Trim(s[i+1:end], ".")
		dot := strings.LastIndexByte(domain, '.')
		if dot < 1 {
			continue
		}
		tld := domain[dot+1:]
		if len(tld) >= 2 && (tld[0]|0x20 >= 'a' && tld[0]|0x20 <= 'z') {
			return true
		}
	}
	return false
}
