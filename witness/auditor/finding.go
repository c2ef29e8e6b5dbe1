package auditor

// What an auditor publishes of a log that broke a rule, as a file with a
// tlog-proof of each leaf it is about, under a checkpoint that the log signed.
//
// A malformed entry and one after the end are evidence that the log's key proves
// alone (c2sp.Evidence, portbook evidence verify). A second digest is not: that no
// entry between the two allows it is for those to see who read the mirror. Its
// file says so.

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/portbook/portbook/c2sp"
)

const findingHeader = "portbook-finding/v1\n"

// evidence makes the file of a finding that blocks, whose entries are in the tree
// of p, all of which the mirror has.
func evidence(ctx context.Context, m *mirror, p pending, f *Finding) ([]byte, error) {
	t := newTree(ctx, m, p.cp.Size)
	proof := func(index uint64) ([]byte, error) {
		leaf, err := m.leaf(index)
		if err != nil {
			return nil, err
		}
		path, err := t.path(index, index+1)
		if err != nil {
			return nil, err
		}
		return (&c2sp.Proof{Extra: leaf, Index: index, Hashes: path, Checkpoint: p.note}).Bytes(), nil
	}
	about := f.Index
	if f.First != nil {
		about = *f.First
	}
	first, err := proof(about)
	if err != nil {
		return nil, err
	}
	switch f.Kind {
	case KindMalformed:
		return (&c2sp.Evidence{Claim: c2sp.ClaimMalformed, First: first, Remarks: []string{oneLine(f.Reason)}}).Bytes(), nil
	case KindAfterEnd:
		return (&c2sp.Evidence{Claim: c2sp.ClaimAfterEnd, First: first, Remarks: []string{oneLine(f.Reason)}}).Bytes(), nil
	}
	second, err := proof(f.Index)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(findingHeader)
	fmt.Fprintf(&b, "# The log gave one file name two contents: %s.\n", oneLine(f.Reason))
	b.WriteString("# Below are the proofs of the two entries. That nothing allows it, a reject, or a\n" +
		"# registry policy and what that asks for, is for you to see in the entries between them.\n")
	fmt.Fprintf(&b, "claim %s\n", f.Kind)
	for _, part := range []struct {
		name  string
		proof []byte
	}{{"first", first}, {"second", second}} {
		b.WriteString(part.name + "\n")
		for line := range bytes.Lines(part.proof) {
			b.WriteString("| ")
			b.Write(line)
		}
	}
	return b.Bytes(), nil
}

// oneLine is a reason as a comment may hold it.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}
