// How the test index misbehaves: one named method for each thing that real
// indexes, or the people who break into them, do wrong.

package world

import (
	"fmt"
	"os"
	"time"
)

// faults is what an Index has been told to do wrong.
type faults struct {
	down           bool
	slow           time.Duration
	reject         string
	acceptThen500  bool
	acceptThenDrop bool
	overwrite      bool
	lieAboutDigest bool
	htmlOnly       bool
}

func (x *Index) set(change func(*faults)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change(&x.faults)
}

// Down makes every request end with a dropped connection.
func (x *Index) Down(on bool) { x.set(func(f *faults) { f.down = on }) }

// Slow makes every request wait for d before anything happens. 0 ends it.
func (x *Index) Slow(d time.Duration) { x.set(func(f *faults) { f.slow = d }) }

// RejectUploads refuses every upload with 403 and this reason. "" ends it.
func (x *Index) RejectUploads(reason string) { x.set(func(f *faults) { f.reject = reason }) }

// AcceptThen500 stores and lists uploads, and answers 500 to whoever sent them.
func (x *Index) AcceptThen500(on bool) { x.set(func(f *faults) { f.acceptThen500 = on }) }

// AcceptThenDrop stores and lists uploads, and drops the connection unanswered.
func (x *Index) AcceptThenDrop(on bool) { x.set(func(f *faults) { f.acceptThenDrop = on }) }

// AllowOverwrite lets an upload replace a file of the same name, as an index does
// that lets people delete a file and upload the name again.
func (x *Index) AllowOverwrite(on bool) { x.set(func(f *faults) { f.overwrite = on }) }

// LieAboutDigest puts a SHA-256 on the pages that no file has.
func (x *Index) LieAboutDigest(on bool) { x.set(func(f *faults) { f.lieAboutDigest = on }) }

// HTMLOnly makes the index like Gitea or pypiserver: HTML pages without hash,
// size or upload time, no metadata files, 201 for a new file and 409 for a name
// that exists.
func (x *Index) HTMLOnly(on bool) { x.set(func(f *faults) { f.htmlOnly = on }) }

// change applies a change to the state of one file and saves it.
func (x *Index) change(file string, change func(*indexFile) error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.state.Files[file]
	if f == nil {
		return fmt.Errorf("the index has no file %s", file)
	}
	if err := change(f); err != nil {
		return err
	}
	return x.save()
}

// SwapFile replaces the bytes of a file behind everyone's back. With updateHash
// the pages show the new digest and size, else they still show the old ones.
func (x *Index) SwapFile(project, file string, newBytes []byte, updateHash bool) error {
	return x.change(file, func(f *indexFile) error {
		if f.Project != normalize(project) {
			return fmt.Errorf("%s belongs to %s, not to %s", file, f.Project, project)
		}
		if err := os.WriteFile(x.filePath(f), newBytes, 0o644); err != nil {
			return err
		}
		if !updateHash {
			return nil
		}
		f.SHA256, f.Size, f.MetadataSHA256 = hexSHA256(newBytes), int64(len(newBytes)), ""
		if meta, err := wheelMetadata(x.filePath(f)); err == nil {
			f.MetadataSHA256 = hexSHA256(meta)
		}
		return nil
	})
}

// Hide takes a file off the pages; its URL still works.
func (x *Index) Hide(file string) error {
	return x.change(file, func(f *indexFile) error { f.Hidden = true; return nil })
}

// Yank marks a file as yanked, for this reason (PEP 592).
func (x *Index) Yank(file, reason string) error {
	return x.change(file, func(f *indexFile) error { f.Yanked = reason; return nil })
}

// Delete removes a file and every trace of it: its name is free again.
func (x *Index) Delete(file string) error {
	return x.change(file, func(f *indexFile) error {
		delete(x.state.Files, file)
		return os.Remove(x.filePath(f))
	})
}

// Has tells whether the index has stored a file of this name, and the SHA-256 of
// the bytes it would serve now.
func (x *Index) Has(file string) (sha256 string, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.state.Files[file]
	if f == nil {
		return "", false
	}
	b, err := os.ReadFile(x.filePath(f))
	return hexSHA256(b), err == nil
}
