package audit

// Every checkpoint ever seen. Tiles say what a log is now; only checkpoints that
// somebody kept say what it was. The archive is a directory with one file for
// each tree head; the audit holds the tree against all of them and adds those
// it saw. They should lie where the log's operator cannot change them.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Seen is a checkpoint that somebody was shown.
type Seen struct {
	From string // for people: a file's name, a witness's URL
	Raw  []byte // the signed note
	// Published says that it was the log's public checkpoint, so that the log may
	// never show a smaller one. What a witness has may not be published yet.
	Published bool

	archived bool // it came from the archive
}

// seen is a checkpoint that is signed by the log.
type seen struct {
	Seen
	checkpoint Checkpoint
}

// The suffixes of an archive's files.
const (
	suffixPublished = ".published"
	suffixSeen      = ".seen"
)

// readHistory reads an archive. A directory that is not there is an empty one.
func readHistory(dir string) ([]Seen, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Seen
	for _, f := range files {
		published := strings.HasSuffix(f.Name(), suffixPublished)
		if !f.Type().IsRegular() || !published && !strings.HasSuffix(f.Name(), suffixSeen) {
			continue
		}
		raw, err := directory(dir).read(context.Background(), f.Name(), maxNote)
		if err != nil && !missing(err) {
			return nil, err
		}
		all = append(all, Seen{"history/" + f.Name(), raw, published, true})
	}
	return all, nil
}

// addHistory writes a checkpoint into an archive, durably, unless one for the
// same tree head is there.
func addHistory(dir string, s seen) error {
	root := hex.EncodeToString(s.checkpoint.Root[:8])
	name := fmt.Sprintf("%020d-%s%s", s.checkpoint.Size, root, suffixSeen)
	if s.Published {
		name = strings.TrimSuffix(name, suffixSeen) + suffixPublished
	}
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(s.Raw)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readSeen sorts what was seen: by the log's key or not, and by size.
func readSeen(all []Seen, origin string, keys []signer, out *findings) []seen {
	var good []seen
	for _, s := range all {
		c, err := parseCheckpoint(s.Raw, keys)
		if err == nil && c.Origin != origin {
			err = fmt.Errorf("is of log %q", c.Origin)
		}
		if err != nil {
			if s.archived {
				out.add(Damage, "history", s.From, "%v", err)
			} else {
				out.cannot("%s: says nothing about this log: %v", s.From, err)
			}
			continue
		}
		good = append(good, seen{s, c})
	}
	slices.SortStableFunc(good, func(a, b seen) int {
		return cmp.Or(cmp.Compare(a.checkpoint.Size, b.checkpoint.Size), bytes.Compare(a.checkpoint.Root[:], b.checkpoint.Root[:]))
	})
	// Two roots of one size need no tree to convict the log.
	for i := 1; i < len(good); i++ {
		a, b := good[i-1], good[i]
		if a.checkpoint.Size == b.checkpoint.Size && a.checkpoint.Root != b.checkpoint.Root {
			out.add(Tampering, "fork", a.From, "the log signed two trees of size %d: the other is %s. Keep both files: they prove it to anyone", a.checkpoint.Size, b.From)
		}
	}
	return good
}

// WitnessPath is where a witness shows the newest checkpoint that it cosigned
// for a log (c2sp.org/tlog-witness), below its URL.
func WitnessPath(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return hex.EncodeToString(sum[:]) + "/" + checkpoint
}

// askWitness reads a witness's newest checkpoint of the log. One that never
// cosigned it has none.
func askWitness(ctx context.Context, base, origin string) (Seen, bool, error) {
	s, err := newSite(base, "")
	if err != nil {
		return Seen{}, false, err
	}
	raw, err := s.read(ctx, WitnessPath(origin), maxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return Seen{}, false, nil
	}
	return Seen{From: "witness " + base, Raw: raw}, err == nil, err
}
