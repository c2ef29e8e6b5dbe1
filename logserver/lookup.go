package logserver

// Lookups: the entries about a project, a file or a digest. The index leads to
// them; what is answered is what the leaves say.

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/portbook/portbook/entry"
)

// lookupKeys are what one can look up: the entries that any of these lead to.
type lookupKeys []uint64

// keyOf is the key of a thing of some kind, which the strings name: leaf (the
// hash's 32 bytes), sha256, sha512, project (registry, ecosystem, project), file
// (these and the file).
func keyOf(what string, parts ...string) lookupKeys {
	switch what {
	case "leaf":
		return lookupKeys{findKey([32]byte([]byte(parts[0])))}
	case "project": // a project's uploads are apart from what else is said of it
		return lookupKeys{hashKey("project", parts...), hashKey("uploads", parts...)}
	}
	return lookupKeys{hashKey(what, parts...)}
}

func hashKey(what string, parts ...string) uint64 {
	var room [512]byte
	b := append(room[:0], what...)
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return findKey(sha256.Sum256(b))
}

// findKeys appends the lookup keys that lead to an entry.
func findKeys(keys []uint64, leafHash [32]byte, e *entry.Entry) []uint64 {
	keys = append(keys, findKey(leafHash))
	if e.SHA256 != "" {
		keys = append(keys, hashKey("sha256", e.SHA256))
	}
	if e.SHA512 != "" {
		keys = append(keys, hashKey("sha512", e.SHA512))
	}
	switch {
	case e.Kind == entry.KindUpload:
		keys = append(keys, hashKey("uploads", e.Registry, e.Ecosystem, e.Project))
		if e.Version != "" {
			keys = append(keys, hashKey("release", e.Registry, e.Ecosystem, e.Project, e.Version))
		}
	case e.Project != "":
		keys = append(keys, hashKey("project", e.Registry, e.Ecosystem, e.Project))
	}
	if e.File != "" {
		keys = append(keys, hashKey("file", e.Registry, e.Ecosystem, e.Project, e.File))
	}
	return keys
}

// found is an entry that a lookup led to.
type found struct {
	index uint64
	leaf  []byte
	entry *entry.Entry // empty if this server cannot read the leaf
}

// find returns up to n published entries from index from on that the keys lead
// to and that match says yes to, oldest first. It covers t, and waits for the
// index to get there. more says where to go on, 0 if there is nothing further.
func (x *index) find(t tree, keys lookupKeys, from uint64, n int, match func(*found) bool) (hits []found, more uint64, err error) {
	ctx, size := t.ctx, uint64(t.size)
	if size > 0 {
		if _, err := x.covered.wait(ctx, size-1, nil); err != nil {
			return nil, 0, fmt.Errorf("%w: the lookup index has not caught up with the log yet: try again", ErrNotPublished)
		}
	}
	for from < size {
		const page = 256
		var indexes []uint64
		for _, k := range keys {
			some, err := x.page(k, from, size, page)
			if err != nil {
				return nil, 0, fmt.Errorf("%w: lookup index: %w", ErrStorage, withoutPath(err))
			}
			indexes = append(indexes, some...)
		}
		slices.Sort(indexes)
		indexes = slices.Compact(indexes)
		last := len(indexes) < page
		for _, i := range indexes[:min(len(indexes), page)] {
			if err := ctx.Err(); err != nil {
				return nil, 0, fmt.Errorf("%w: the lookup took too long", ErrOverloaded)
			}
			from = i + 1
			leaf, err := x.leaf(i)
			if err != nil {
				return nil, 0, err
			}
			e, err := entry.Parse(leaf)
			if err != nil {
				e = &entry.Entry{} // it matches no name and no digest
			}
			f := found{i, leaf, e}
			if !match(&f) {
				continue
			}
			if len(hits) == n {
				return hits, i, nil
			}
			hits = append(hits, f)
		}
		if last {
			break
		}
	}
	return hits, 0, nil
}
