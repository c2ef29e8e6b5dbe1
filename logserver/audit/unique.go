package audit

// Uniqueness over the whole log: what each slot was pinned to at each index, by
// the rules of FORMAT.md and of the registry's policy that was logged by then.
// Slots do not touch each other, so the records are sorted by key and replayed
// slot by slot.

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

const buckets = 256

// IndexDigest is what the uniqueness index holds: Sum is SHA-256 over its rows
// in ascending order of their keys, each the 32 bytes of the key and the index
// of the entry that has it, in 8 bytes, big-endian. Entries [0, Size) are in it.
type IndexDigest struct {
	Size int64
	Rows int64
	Sum  [32]byte
}

// uniqueness gathers what all entries say, and judges it.
type uniqueness struct {
	out  *findings
	most int    // records in memory
	dir  string // for temporary files
	at   int64  // size at which the index's rows are wanted

	regs     [][]uint32 // of each bundle
	gaps     map[int64]bool
	policies map[uint64][]policyChange
	disputes []dispute
	order    []int64
	buckets  [buckets]bucket
	held     int // records in memory
}

type bucket struct {
	held []record
	file *os.File // records that have been written out; nil: none
	n    int      // of them
}

func newUniqueness(out *findings, memory int, dir string) *uniqueness {
	return &uniqueness{out: out, most: max(memory/(recordSize+6), 1024), dir: dir, gaps: map[int64]bool{}, policies: map[uint64][]policyChange{}}
}

func (u *uniqueness) close() {
	for i := range u.buckets {
		if f := u.buckets[i].file; f != nil {
			f.Close() // a temporary file that has no name
		}
	}
}

// take takes what the entries of the next bundle say; sound is false where the
// bundle is missing or damaged, and what it says is not what was signed.
func (u *uniqueness) take(c *chunk, sound bool) error {
	if !sound || c.leaves == nil {
		u.gaps[c.t.index] = true
		u.regs = append(u.regs, nil)
		return nil
	}
	s := &c.said
	u.regs = append(u.regs, slices.Clone(s.regs))
	for _, p := range s.policies {
		u.policies[p.of] = append(u.policies[p.of], p)
	}
	u.disputes = append(u.disputes, s.disputes...)
	u.order = append(u.order, s.order...)
	for _, b := range s.bad {
		u.out.add(Tampering, "entry", fmt.Sprintf("entry %d", b.index), "was logged and is no entry: %s", b.why)
	}
	for _, i := range s.others {
		u.out.cannot("entry %d is of another version of the format: what it says was not checked, only its hash", i)
	}
	for i := range s.records {
		b := &u.buckets[s.records[i].key[0]]
		b.held = append(b.held, s.records[i])
	}
	if u.held += len(s.records); u.held >= u.most {
		return u.spill()
	}
	return nil
}

// spill writes the records that are in memory to files without a name.
func (u *uniqueness) spill() error {
	var buf []byte
	for i := range u.buckets {
		b := &u.buckets[i]
		if len(b.held) == 0 {
			continue
		}
		if b.file == nil {
			f, err := os.CreateTemp(u.dir, "portbook-audit-*")
			if err != nil {
				return err
			}
			b.file = f
			if err := os.Remove(f.Name()); err != nil {
				return err
			}
		}
		buf = buf[:0]
		for j := range b.held {
			buf = b.held[j].append(buf)
		}
		if _, err := b.file.Write(buf); err != nil {
			return fmt.Errorf("temporary file in %s: %w", filepath.Clean(cmp.Or(u.dir, os.TempDir())), err)
		}
		b.n += len(b.held)
		b.held = b.held[:0]
	}
	u.held = 0
	return nil
}

// load is all records of a bucket, by key and index.
func (b *bucket) load() ([]record, error) {
	all := make([]record, b.n, b.n+len(b.held))
	if b.n > 0 {
		raw := make([]byte, b.n*recordSize)
		if _, err := b.file.ReadAt(raw, 0); err != nil && err != io.EOF {
			return nil, err
		}
		for i := range all {
			all[i].decode(raw[i*recordSize:])
		}
	}
	all = append(all, b.held...)
	b.held = nil
	slices.SortFunc(all, func(x, y record) int {
		if c := bytes.Compare(x.key[:], y.key[:]); c != 0 {
			return c
		}
		return cmp.Compare(x.index, y.index)
	})
	return all, nil
}

// judge replays every slot of a log of the given size, and returns the digest of
// the rows that the index must have at size u.at.
func (u *uniqueness) judge(size int64, workers int, r *Report) (IndexDigest, error) {
	for _, d := range u.disputes {
		where := fmt.Sprintf("entry %d", d.index)
		switch {
		case d.of >= d.index:
			u.out.add(Tampering, "refers-to-nothing", where, "it disputes entry %d, which was not there before it", d.of)
		case u.gaps[d.of/perTile]:
		case u.regs[d.of/perTile][d.of%perTile] != d.reg:
			u.out.add(Tampering, "refers-to-nothing", where, "it disputes entry %d, which is not about its registry", d.of)
		}
	}
	for _, o := range u.order {
		switch {
		case o >= 0 && o != size-1:
			u.out.add(Tampering, "after-the-end", fmt.Sprintf("entry %d", o), "it says that the log ends here, and %d more entries follow", size-1-o)
		case o < -1:
			u.out.add(Tampering, "before-the-beginning", fmt.Sprintf("entry %d", ^o), "it says that the log begins here")
		}
	}
	type result struct {
		rows       []byte
		slots, ids int64
		err        error
	}
	results := [buckets]chan result{}
	for i := range results {
		results[i] = make(chan result, 1)
	}
	next := make(chan int)
	ahead := make(chan struct{}, 2*workers) // bounds what is loaded and not yet summed up
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for i := range next {
				var res result
				all, err := u.buckets[i].load()
				res.err = err
				p := replay{u: u}
				for len(all) > 0 && err == nil {
					n := 1
					for n < len(all) && all[n].key == all[0].key {
						n++
					}
					p.key(all[:n])
					all = all[n:]
				}
				res.rows, res.slots, res.ids = p.rows, p.slots, p.ids
				results[i] <- res
			}
		})
	}
	working.Go(func() {
		defer close(next)
		for i := range buckets {
			ahead <- struct{}{}
			next <- i
		}
	})
	defer working.Wait()
	h := sha256.New()
	d := IndexDigest{Size: u.at}
	var failed error
	for i := range results {
		res := <-results[i]
		<-ahead
		failed = cmp.Or(failed, res.err)
		h.Write(res.rows)
		d.Rows += int64(len(res.rows) / rowSize)
		r.Slots += res.slots
		r.IDs += res.ids
	}
	h.Sum(d.Sum[:0])
	return d, failed
}

const rowSize = 32 + 8

// replay goes through the records of one key after the other.
type replay struct {
	u          *uniqueness
	rows       []byte
	slots, ids int64
}

// holder is what a slot is pinned to.
type holder struct {
	held    bool
	by      record
	removed bool
}

// key judges the records of one key, in the order of the log.
func (p *replay) key(all []record) {
	if all[0].is == anID {
		p.ids++
		for i := 1; i < len(all); i++ {
			p.find(Tampering, "id-twice", all[i].index, "its id, or the conflict that it records, is that of entry %d too", all[0].index)
		}
		if all[0].index < p.u.at {
			p.row(all[0].key, all[0].index)
		}
		return
	}
	var now, then holder
	var before []record // uploads, for conflicts to name
	reached := false
	for i := range all {
		r := &all[i]
		if r.index >= p.u.at && !reached {
			then, reached = now, true
		}
		if r.is == anUpload {
			p.upload(&now, r)
			before = append(before, *r)
			continue
		}
		same := func(o *record) bool { s, comparable := sameDigest(o, r); return s && comparable }
		named := func(o record) bool { return r.has&(has256|has512) == 0 || same(&o) }
		switch r.is {
		case aReject:
			if !now.held || !same(&now.by) {
				p.dangling(r, "it rejects an upload that was not logged")
				break
			}
			now = holder{}
		case aRemove, aStatus:
			if !slices.ContainsFunc(before, named) {
				p.u.out.note("entry %d is about a file that is not in the log with that digest and claim", r.index)
			}
			if r.is == aRemove && now.held && named(now.by) {
				now.removed = true
			}
		case aConflict:
			i := slices.IndexFunc(before, func(o record) bool { return o.index == r.arg })
			if i < 0 {
				p.dangling(r, "it names entry %d, which did not hold this file name before it", r.arg)
			} else if same(&before[i]) {
				p.find(Tampering, "refers-to-nothing", r.index, "it records a conflict with entry %d, which has the same digest", r.arg)
			}
		}
	}
	if !reached {
		then = now
	}
	if len(before) > 0 {
		p.slots++
	}
	if then.held {
		p.row(all[0].key, then.by.index)
	}
}

// upload pins a slot, if it may.
func (p *replay) upload(now *holder, r *record) {
	if !now.held {
		if r.arg >= 0 {
			p.dangling(r, "it replaces entry %d, and nothing held its file name", r.arg)
		}
		*now = holder{held: true, by: *r}
		return
	}
	same, comparable := sameDigest(&now.by, r)
	switch {
	case comparable && same:
		p.find(Leftover, "logged-twice", r.index, "it says the same as entry %d: either proves the file", now.by.index)
		return
	case !comparable:
		p.find(Tampering, "slot-twice", r.index, "entry %d pins its file name by another digest algorithm, so that they cannot be compared", now.by.index)
	case !p.mayOverwrite(now, r):
		p.find(Tampering, "slot-twice", r.index, "entry %d pins its file name to other bytes, and no policy logged before it lets that change", now.by.index)
	}
	*now = holder{held: true, by: *r}
}

// mayOverwrite says whether the policy that was logged before r lets it take a
// slot over.
func (p *replay) mayOverwrite(now *holder, r *record) bool {
	if r.has&byTheIndex == 0 {
		return false
	}
	overwrite := ""
	changes := p.u.policies[r.policy] // in the order of the log
	if n, _ := slices.BinarySearchFunc(changes, r.index, func(c policyChange, at int64) int { return cmp.Compare(c.index, at) }); n > 0 {
		overwrite = changes[n-1].overwrite
	}
	names := r.arg == now.by.index
	switch overwrite {
	case "replace":
		return names
	case "after-remove":
		return now.removed && (names || r.arg < 0)
	}
	return false
}

// sameDigest compares by the algorithms that both have.
func sameDigest(a, b *record) (same, comparable bool) {
	both := a.has & b.has
	same = (both&has256 == 0 || a.sha256 == b.sha256) && (both&has512 == 0 || a.sha512 == b.sha512)
	return same, both&(has256|has512) != 0
}

func (p *replay) row(key [32]byte, index int64) {
	p.rows = append(p.rows, key[:]...)
	p.rows = binary.BigEndian.AppendUint64(p.rows, uint64(index))
}

func (p *replay) find(c Class, kind string, index int64, format string, args ...any) {
	p.u.out.add(c, kind, fmt.Sprintf("entry %d", index), format, args...)
}

// dangling reports an entry that refers to what is not there, unless some of the
// log could not be read.
func (p *replay) dangling(r *record, format string, args ...any) {
	if len(p.u.gaps) == 0 {
		p.find(Tampering, "refers-to-nothing", r.index, format, args...)
	}
}
