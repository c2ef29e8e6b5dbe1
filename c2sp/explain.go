package c2sp

// A policy in plain words: what it takes to satisfy it, to block it, to lie.

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Explain says in whole sentences what the policy trusts: which logs, what the
// quorum is, how many witnesses may fail before nothing verifies, and how many
// must collude before a log can lie. Sentences that begin with "Warning:" name
// what an operator most likely did not want.
func (p *Policy) Explain() []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }

	origins, keys := []string{}, map[string]int{}
	for _, l := range p.Logs {
		if keys[l.Key.name]++; keys[l.Key.name] == 1 {
			origins = append(origins, l.Key.name)
		}
	}
	switch len(origins) {
	case 0:
		say("Warning: no log is named, so no checkpoint is accepted.")
	case 1:
		say("One log is believed: %s (%s).", quoteName(origins[0]), plural(keys[origins[0]], "key", "keys"))
	default:
		say("Any one of %d logs is believed: %s.", len(origins), quoteNames(origins))
	}

	for _, l := range p.Logs {
		if l.Retired {
			say("Key %08x of %s is retired: believed for the first %d entries of that log, and no more.", l.Key.id, quoteName(l.Key.name), l.UpTo)
		}
	}

	if p.Quorum == QuorumNone {
		say("Warning: no witness is needed. Whoever holds a log's key can show different people different histories, and nobody would notice from this policy.")
		return out
	}
	say("A checkpoint counts when it is cosigned by %s.", p.quorumWords())

	q := p.measure()[p.Quorum]
	say("Whoever holds a log's key and %s can make anything verify.", plural(q.satisfy, "suitable witness key", "suitable witness keys"))
	if q.block == 1 {
		say("Warning: no witness may fail: there is one whose loss alone stops everything new from verifying.")
	} else {
		say("Any %s may fail and everything still verifies.", plural(q.block-1, "witness key", "witness keys"))
	}
	switch {
	case q.overlap == 0:
		say("Warning: two quorums need not share a witness. A log can show two histories, each with a full quorum, without any witness lying.")
	case q.overlap == 1:
		say("A log that wants to show two histories needs one witness key that lies with it, since any two quorums share at least one.")
	default:
		say("A log that wants to show two histories needs %d witness keys that lie with it, since any two quorums share at least that many.", q.overlap)
	}
	idle, aside := p.idle()
	if len(idle) > 0 {
		say("Warning: named but without a say in the quorum: %s.", quoteNames(idle))
	}
	if len(aside) > 0 {
		say("Auditors without a say in the quorum, as a log names those that it asks after publishing: %s.", quoteNames(aside))
	}
	return out
}

// A measure counts witnesses in the worst case for the reader.
type measure struct {
	satisfy int // fewest that make it true
	block   int // fewest whose loss makes it impossible
	overlap int // fewest that two ways of making it true share
}

// measure returns the measure of every name. Since each name is a member at
// most once, the groups are a tree and the members of one are independent.
func (p *Policy) measure() map[string]measure {
	m := map[string]measure{}
	for _, w := range p.Witnesses {
		m[w.Name] = measure{1, 1, 1}
	}
	for _, g := range p.Groups {
		least := func(n int, of func(measure) int) (sum int) {
			var all []int
			for _, name := range g.Members {
				all = append(all, of(m[name]))
			}
			slices.Sort(all)
			for _, v := range all[:min(max(n, 0), len(all))] {
				sum += v
			}
			return sum
		}
		n := len(g.Members)
		m[g.Name] = measure{
			satisfy: least(g.K, func(x measure) int { return x.satisfy }),
			block:   least(n-g.K+1, func(x measure) int { return x.block }),
			overlap: least(2*g.K-n, func(x measure) int { return x.overlap }),
		}
	}
	return m
}

// idle returns the witnesses that the quorum does not reach, and the auditors.
func (p *Policy) idle() (witnesses, auditors []string) {
	reached := map[string]bool{p.Quorum: true}
	for i := len(p.Groups) - 1; i >= 0; i-- {
		if g := p.Groups[i]; reached[g.Name] {
			for _, m := range g.Members {
				reached[m] = true
			}
		}
	}
	for _, w := range p.Witnesses {
		switch {
		case reached[w.Name]:
		case w.Auditor:
			auditors = append(auditors, w.Name)
		default:
			witnesses = append(witnesses, w.Name)
		}
	}
	return witnesses, auditors
}

// quorumWords says what the quorum is, such as "2 of (w1, w2, w3)".
func (p *Policy) quorumWords() string {
	if p.Quorum == QuorumNone {
		return "no witness"
	}
	groups := map[string]PolicyGroup{}
	for _, g := range p.Groups {
		groups[g.Name] = g
	}
	var words func(name string) string
	words = func(name string) string {
		g, ok := groups[name]
		if !ok {
			return quoteName(name)
		}
		var parts []string
		for _, m := range g.Members {
			parts = append(parts, words(m))
		}
		if len(parts) == 1 {
			return parts[0]
		}
		k := strconv.Itoa(g.K)
		switch g.K {
		case len(parts):
			k = "all"
		case 1:
			k = "any"
		}
		return k + " of (" + strings.Join(parts, ", ") + ")"
	}
	return words(p.Quorum)
}

// quoteName shows a name as it is if it is plain ASCII, escaped otherwise.
func quoteName(s string) string {
	if q := strconv.QuoteToASCII(s); q != `"`+s+`"` {
		return q
	}
	return s
}

func quoteNames(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = quoteName(s)
	}
	return strings.Join(q, ", ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
