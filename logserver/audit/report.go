package audit

// What an audit says.

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
)

// Class is how bad a finding is.
type Class string

// The classes, worst first.
const (
	Tampering Class = "tampering" // what the log signed contradicts itself, or breaks the log's rules
	Damage    Class = "damage"    // storage does not give what was signed
	Leftover  Class = "leftover"  // bytes that nothing needs, and that harm nobody
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Class  Class  `json:"class"`
	Kind   string `json:"kind"`  // one of a fixed set of words
	Where  string `json:"where"` // a path, "entry 17", "history/…"
	Detail string `json:"detail"`
}

// Report is the outcome of an audit.
type Report struct {
	Origin string `json:"origin"`
	// Size and Root are of the published checkpoint. Covered is how many entries
	// were checked: in a directory, those that are not published yet too.
	Size    int64    `json:"size"`
	Root    [32]byte `json:"-"`
	RootHex string   `json:"root"`
	Covered int64    `json:"covered"`

	Tiles       int64 `json:"tiles"`   // and bundles, read and checked
	Seen        int   `json:"seen"`    // other checkpoints that this tree was held against
	Slots       int64 `json:"slots"`   // file names that a digest is pinned to
	IDs         int64 `json:"ids"`     // entries with an id, each once
	IndexRows   int64 `json:"rows"`    // rows the uniqueness index must have; see IndexChecked
	Superseded  int64 `json:"partial"` // partial tiles that wider ones replace
	Unpublished int64 `json:"beyond"`  // files that no published size needs

	IndexChecked bool `json:"index_checked"`

	Findings []Finding     `json:"findings"`
	Counts   map[Class]int `json:"counts"` // of all findings; at most 100 of a kind are listed
	// Unread is what could not be read or checked: then all good was not said.
	Unread []string `json:"unread"`
	Notes  []string `json:"notes"`
}

// mostOfKind findings of one kind are listed; all are counted.
const mostOfKind = 100

// findings gathers from several goroutines.
type findings struct {
	mu     sync.Mutex
	list   []Finding      // guarded by mu
	kinds  map[string]int // guarded by mu
	counts map[Class]int  // guarded by mu
	unread []string       // guarded by mu
	missed int            // guarded by mu; unread that are not listed
	notes  []string       // guarded by mu
}

func newFindings() *findings { return &findings{kinds: map[string]int{}, counts: map[Class]int{}} }

func (f *findings) add(c Class, kind, where, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[c]++
	if f.kinds[kind]++; f.kinds[kind] <= mostOfKind {
		f.list = append(f.list, Finding{c, kind, where, fmt.Sprintf(format, args...)})
	}
}

func (f *findings) cannot(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.unread) < mostOfKind {
		f.unread = append(f.unread, fmt.Sprintf(format, args...))
	} else {
		f.missed++
	}
}

func (f *findings) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.notes) < mostOfKind {
		f.notes = append(f.notes, fmt.Sprintf(format, args...))
	}
}

// into puts everything into the report, the worst first.
func (f *findings) into(r *Report) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rank := map[Class]int{Tampering: 0, Damage: 1, Leftover: 2}
	slices.SortStableFunc(f.list, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank[a.Class], rank[b.Class]), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Where, b.Where), cmp.Compare(a.Detail, b.Detail))
	})
	slices.Sort(f.unread)
	r.Findings, r.Counts, r.Notes, r.Unread = f.list, f.counts, f.notes, f.unread
	if f.missed > 0 {
		r.Unread = append(r.Unread, fmt.Sprintf("and %d more", f.missed))
	}
}

// Outcome of an audit, as the programs' exit codes have it.
type Outcome int

// The outcomes.
const (
	AllGood     Outcome = 0 // leftovers may be listed
	Found       Outcome = 1 // tampering or damage
	CannotCheck Outcome = 3 // something could not be read, and nothing was found in the rest
)

// Outcome says how the audit ended.
func (r *Report) Outcome() Outcome {
	switch {
	case r.Counts[Tampering]+r.Counts[Damage] > 0:
		return Found
	case len(r.Unread) > 0:
		return CannotCheck
	}
	return AllGood
}
