package proxy

// Honest counts: what passed, what was refused, what could not be checked.

import "sync"

// An Outcome is what became of one file.
type Outcome int

const (
	Verified Outcome = iota + 1
	Refused
	CannotCheck
)

// A Report is what a proxy did since it started. A file counts once, however
// often it was asked for: as refused if it ever was, else by its last outcome.
type Report struct {
	Verified, Refused, CannotCheck int
	// Problems are the files behind the last two numbers, in order of
	// appearance, the first 100.
	Problems []Problem
	// LogRefused says how the log misbehaved; "" if it is not known to have.
	LogRefused string
	// Warnings are sentences about the log's freshness.
	Warnings []string
}

// A Problem is a file that did not pass.
type Problem struct {
	File    string // its URL at the index
	Outcome Outcome
	Code    string
	Detail  string
}

// maxRemembered bounds the files told apart; past it a file asked for twice
// counts twice.
const maxRemembered = 200_000

type counts struct {
	mu       sync.Mutex
	outcomes map[string]Outcome
	n        [CannotCheck + 1]int
	problems []Problem
}

func (c *counts) add(file string, o Outcome, code, detail string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outcomes == nil {
		c.outcomes = make(map[string]Outcome)
	}
	old, known := c.outcomes[file]
	if known {
		if old == o || old == Refused {
			return
		}
		c.n[old]--
		if old == CannotCheck { // it is known now
			for i, p := range c.problems {
				if p.File == file {
					c.problems = append(c.problems[:i], c.problems[i+1:]...)
					break
				}
			}
		}
	}
	if known || len(c.outcomes) < maxRemembered {
		c.outcomes[file] = o
	}
	c.n[o]++
	if o != Verified && len(c.problems) < 100 {
		c.problems = append(c.problems, Problem{file, o, code, detail})
	}
}

// Report returns the counts so far.
func (p *Proxy) Report() Report {
	p.counts.mu.Lock()
	defer p.counts.mu.Unlock()
	misbehaved := ""
	if bad := p.fresh.refusal(); bad != nil {
		misbehaved = bad.Error()
	}
	return Report{LogRefused: misbehaved,
		Verified: p.counts.n[Verified], Refused: p.counts.n[Refused], CannotCheck: p.counts.n[CannotCheck],
		Problems: append([]Problem(nil), p.counts.problems...),
		Warnings: p.fresh.warnings(),
	}
}
