package c2sp

// Trust policies, c2sp.org/tlog-policy: the file format. Verifying against one
// is in verify.go, explaining one in explain.go.
//
// Two lines are ours. "retired <vkey> <size> [<url>]" is a log key that is believed
// for checkpoints of at most size entries; other tools refuse a file that has one,
// rather than believe the key without its bound. "auditor <name> <vkey> [<url>]"
// is a witness line of a mirror (c2sp.org/tlog-mirror): it counts as any other
// cosigner does, and a log asks it after publishing, not before.

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

const (
	maxPolicy      = 1 << 20 // bytes of a policy file
	maxPolicyLines = 256     // of each kind: logs, witnesses, groups
)

// QuorumNone is the reserved name: no cosignature is needed.
const QuorumNone = "none"

// A Policy says which logs to believe, and which witnesses must have cosigned.
// [ParsePolicy] makes it; everything that format forbids is refused there.
type Policy struct {
	Logs      []PolicyLog
	Witnesses []PolicyWitness
	Groups    []PolicyGroup // each names only witnesses and groups before it
	Quorum    string        // name of a witness or a group, or [QuorumNone]
}

// A PolicyLog is a log key to believe. Several may share a name, the origin.
type PolicyLog struct {
	Key *Key
	URL string // "" if there is none
	// Retired keys are believed for checkpoints of at most UpTo entries: a key
	// that was rotated out, lost or stolen, or that of a log that has ended.
	Retired bool
	UpTo    uint64
}

// A PolicyWitness is a cosigner key. Name is local to the policy.
type PolicyWitness struct {
	Name string
	Key  *Key
	URL  string // submission prefix, or ""
	// Auditor says that it is a mirror, which cosigns after it has read.
	Auditor bool
}

// A PolicyGroup is satisfied by K of its members.
type PolicyGroup struct {
	Name    string
	K       int
	Members []string
}

// Retired reports whether the policy names the log origin and all its keys there
// are retired: it has no news any more.
func (p *Policy) Retired(origin string) bool {
	retired := false
	for _, l := range p.Logs {
		if l.Key.Name() == origin {
			if !l.Retired {
				return false
			}
			retired = true
		}
	}
	return retired
}

// ParsePolicy reads a policy file. The error is a [*PolicyError].
//
// Besides the syntax it refuses: a local name or a raw key defined twice (even
// under another key name), one raw key as a log's and a witness's, two keys
// with the same name and key ID, a name that is a group member twice anywhere,
// a log key that is not of type 0x01 or 0x06, a witness key that is not of type
// 0x04 or 0x06, and anything but one quorum line. Several keys under one origin
// or cosigner name are fine: that is how keys rotate.
func ParsePolicy(b []byte) (*Policy, error) {
	if len(b) > maxPolicy {
		return nil, &PolicyError{0, fmt.Sprintf("the file has more than %d bytes", maxPolicy)}
	}
	r := policyReader{names: map[string]bool{}, members: map[string]bool{}, raw: map[string]string{}, ids: map[keyID]bool{}}
	s := string(b)
	for line := 1; s != ""; line++ {
		text, rest, ok := strings.Cut(s, "\n")
		if !ok {
			return nil, &PolicyError{line, "the last line has no newline: is the file cut off?"}
		}
		s = rest
		if reason := r.line(text); reason != "" {
			return nil, &PolicyError{line, reason}
		}
	}
	if r.p.Quorum == "" {
		return nil, &PolicyError{0, `no quorum line (write "quorum none" to need no witness)`}
	}
	return &r.p, nil
}

const noComment = "a comment needs a line of its own"

type keyID struct {
	name string
	id   uint32
}

// A policyReader collects what the lines so far have defined.
type policyReader struct {
	p       Policy
	names   map[string]bool   // defined witnesses and groups
	members map[string]bool   // names that are already members of a group
	raw     map[string]string // raw public key -> who has it
	ids     map[keyID]bool
}

// line reads one line, without its newline. It returns what is wrong with it.
func (r *policyReader) line(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c == '\r' {
			return "carriage return: lines end with a newline only"
		} else if c < 0x20 && c != '\t' || c == 0x7f {
			return fmt.Sprintf("control character 0x%02x", c)
		}
	}
	f := strings.FieldsFunc(s, func(c rune) bool { return c == ' ' || c == '\t' })
	if len(f) == 0 || f[0][0] == '#' {
		return ""
	}
	switch f[0] {
	case "log":
		return r.log(f[1:], false)
	case "retired":
		return r.log(f[1:], true)
	case "witness", "auditor":
		return r.witness(f[0], f[1:])
	case "group":
		return r.group(f[1:])
	case "quorum":
		return r.quorum(f[1:])
	}
	return fmt.Sprintf("unknown keyword %s: log, retired, witness, auditor, group or quorum expected", quote(f[0]))
}

func (r *policyReader) log(f []string, retired bool) string {
	var l PolicyLog
	if retired {
		if len(f) < 2 || len(f) > 3 {
			return "a retired line is: retired <vkey> <size> [<url>]"
		}
		var ok bool
		if l.UpTo, ok = parseSize(f[1]); !ok {
			return fmt.Sprintf("size %s is not a decimal number below 2^63 without leading zeros", quote(f[1]))
		}
		l.Retired = true
		f = append([]string{f[0]}, f[2:]...)
	}
	if len(f) < 1 || len(f) > 2 {
		return "a log line is: log <vkey> [<url>]"
	}
	if len(r.p.Logs) == maxPolicyLines {
		return fmt.Sprintf("more than %d logs", maxPolicyLines)
	}
	key, reason := r.key(f[0], "a log")
	if reason != "" {
		return reason
	}
	if key.alg != AlgEd25519 && key.alg != AlgMLDSA44 {
		return fmt.Sprintf("key %s is of type %s; a log's is 0x01 or 0x06", quote(key.name), key.alg)
	}
	l.Key = key
	if len(f) == 2 {
		if f[1][0] == '#' {
			return noComment
		}
		l.URL = f[1]
	}
	r.p.Logs = append(r.p.Logs, l)
	return ""
}

func (r *policyReader) witness(keyword string, f []string) string {
	if len(f) < 2 || len(f) > 3 {
		return fmt.Sprintf("a line of this kind is: %s <name> <vkey> [<url>]", keyword)
	}
	if len(r.p.Witnesses) == maxPolicyLines {
		return fmt.Sprintf("more than %d witnesses", maxPolicyLines)
	}
	if reason := r.define(f[0]); reason != "" {
		return reason
	}
	key, reason := r.key(f[1], "witness "+quote(f[0]))
	if reason != "" {
		return reason
	}
	if !key.IsCosigner() {
		return fmt.Sprintf("key %s is of type %s; a witness's is 0x04 or 0x06", quote(key.name), key.alg)
	}
	w := PolicyWitness{Name: f[0], Key: key, Auditor: keyword == "auditor"}
	if len(f) == 3 {
		if f[2][0] == '#' {
			return noComment
		}
		w.URL = f[2]
	}
	r.p.Witnesses = append(r.p.Witnesses, w)
	return ""
}

func (r *policyReader) group(f []string) string {
	if len(f) < 3 {
		return "a group line is: group <name> all|any|<k> <member>..."
	}
	if len(r.p.Groups) == maxPolicyLines {
		return fmt.Sprintf("more than %d groups", maxPolicyLines)
	}
	g := PolicyGroup{Name: f[0], Members: f[2:]}
	n := len(g.Members)
	switch f[1] {
	case "all":
		g.K = n
	case "any":
		g.K = 1
	default:
		k, ok := parseSize(f[1])
		if !ok {
			return fmt.Sprintf("threshold %s is not \"all\", \"any\" or a decimal number", quote(f[1]))
		}
		if k < 1 || k > uint64(n) {
			return fmt.Sprintf("a threshold of %d is not 1..%d, the number of members", k, n)
		}
		g.K = int(k)
	}
	for _, m := range g.Members {
		if m == QuorumNone {
			return `"none" cannot be a group member`
		}
		if !r.names[m] {
			return fmt.Sprintf("member %s is not defined on a line before this one", quote(m))
		}
		if r.members[m] {
			return fmt.Sprintf("%s is a group member twice: it would count in two ways", quote(m))
		}
		r.members[m] = true
	}
	if reason := r.define(g.Name); reason != "" {
		return reason
	}
	r.p.Groups = append(r.p.Groups, g)
	return ""
}

func (r *policyReader) quorum(f []string) string {
	if len(f) != 1 {
		return "a quorum line is: quorum <name>"
	}
	if r.p.Quorum != "" {
		return "a second quorum line"
	}
	if f[0] != QuorumNone && !r.names[f[0]] {
		return fmt.Sprintf("quorum %s is not defined on a line before this one", quote(f[0]))
	}
	r.p.Quorum = f[0]
	return ""
}

// define takes a local name.
func (r *policyReader) define(name string) string {
	if name == QuorumNone {
		return `the name "none" is reserved`
	}
	if r.names[name] {
		return fmt.Sprintf("the name %s is defined twice", quote(name))
	}
	r.names[name] = true
	return ""
}

// key reads a vkey and takes its raw key for owner.
func (r *policyReader) key(vkey, owner string) (*Key, string) {
	k, err := ParseVKey(vkey)
	if err != nil {
		return nil, err.Error()
	}
	// Ed25519 keys of either type are one key if their bytes are equal; the
	// length tells them from ML-DSA-44 keys.
	if other, taken := r.raw[string(k.raw)]; taken {
		return nil, fmt.Sprintf("the public key of %s is already that of %s", quote(k.name), other)
	}
	if r.ids[keyID{k.name, k.id}] {
		return nil, fmt.Sprintf("a second key with name %s and key ID %08x", quote(k.name), k.id)
	}
	r.raw[string(k.raw)] = owner
	r.ids[keyID{k.name, k.id}] = true
	return k, ""
}

// Bytes returns the policy as a file without comments. Parsing it gives an
// equal policy.
func (p *Policy) Bytes() []byte {
	var b bytes.Buffer
	line := func(f ...string) {
		for i, s := range f {
			if s == "" {
				continue
			}
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(s)
		}
		b.WriteByte('\n')
	}
	for _, l := range p.Logs {
		if l.Retired {
			line("retired", l.Key.String(), strconv.FormatUint(l.UpTo, 10), l.URL)
		} else {
			line("log", l.Key.String(), l.URL)
		}
	}
	for _, w := range p.Witnesses {
		keyword := "witness"
		if w.Auditor {
			keyword = "auditor"
		}
		line(keyword, w.Name, w.Key.String(), w.URL)
	}
	for _, g := range p.Groups {
		line(append([]string{"group", g.Name, strconv.Itoa(g.K)}, g.Members...)...)
	}
	line("quorum", p.Quorum)
	return b.Bytes()
}

// Satisfied reports whether cosignatures by the witnesses with these policy
// names are a quorum.
func (p *Policy) Satisfied(names map[string]bool) bool {
	if p.Quorum == QuorumNone {
		return true
	}
	done := make(map[string]bool, len(p.Witnesses)+len(p.Groups))
	for _, w := range p.Witnesses {
		done[w.Name] = names[w.Name]
	}
	for _, g := range p.Groups {
		n := 0
		for _, m := range g.Members {
			if done[m] {
				n++
			}
		}
		done[g.Name] = g.K >= 1 && n >= g.K
	}
	return done[p.Quorum]
}
