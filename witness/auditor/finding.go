package auditor

// What an auditor publishes of a log that broke a rule: a file that names the
// claim and holds, for each leaf it is about, a tlog-proof under a checkpoint
// that the log signed. Whoever has the log's key can check it offline, but for
// one thing: that no entry between the two of a second digest allows it. For
// that the mirror is there to be read.

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/portbook/portbook/c2sp"
)

const findingHeader = "portbook-finding/v1\n"

var claimWords = map[string]string{
	KindMalformed:    "The log signed a tree with an entry that breaks the grammar that binds every version.",
	KindSecondDigest: "The log gave one file name two contents, and no entry between the two allows it.",
	KindAfterEnd:     "The log signed an entry after the one that ended it.",
	KindUnreadable:   "The log holds an entry of a version that this auditor does not know. That is no accusation.",
}

// evidence makes the file of a finding, whose entries are in the tree of p, all
// of which the mirror has.
func evidence(ctx context.Context, m *mirror, p pending, f *Finding) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s# %s\n# %s\nclaim %s\n", findingHeader, claimWords[f.Kind], oneLine(f.Reason), f.Kind)
	t := newTree(ctx, m, p.cp.Size)
	show := func(name string, index uint64) error {
		leaf, err := m.leaf(index)
		if err != nil {
			return err
		}
		path, err := t.path(index, index+1)
		if err != nil {
			return err
		}
		proof := (&c2sp.Proof{Extra: leaf, Index: index, Hashes: path, Checkpoint: p.note}).Bytes()
		b.WriteString(name + "\n")
		for _, line := range strings.SplitAfter(strings.TrimSuffix(string(proof), "\n"), "\n") {
			b.WriteString("| " + strings.TrimSuffix(line, "\n") + "\n")
		}
		return nil
	}
	about := []uint64{f.Index}
	if f.First != nil {
		about = []uint64{*f.First, f.Index}
	}
	for i, index := range about {
		if err := show([]string{"first", "second"}[i], index); err != nil {
			return nil, err
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
