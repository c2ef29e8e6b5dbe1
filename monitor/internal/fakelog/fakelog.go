// Package fakelog is a log for the monitor's tests, built on the C2SP signers
// and tiles, that can be told to lie. Each lie is a method named after it.
package fakelog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// Log is a log held in memory, with its witnesses. It is an http.Handler that
// serves c2sp.org/tlog-tiles. It panics where a test is wrong.
type Log struct {
	Origin string
	Policy *c2sp.Policy

	mu        sync.Mutex
	signer    *c2sp.Signer
	witnesses []*c2sp.Signer
	now       func() time.Time
	leaves    [][]byte
	levels    [][][32]byte
	note      []byte

	down      bool
	blind     int // witnesses that do not cosign
	wrongLeaf map[uint64][]byte
	extra     bool
	shortTile bool
	noTiles   bool
	garbage   []byte // served as the checkpoint
}

// New returns an empty, published log whose policy asks for quorum of
// witnesses. With no witnesses the quorum is none.
func New(origin string, witnesses, quorum int, now func() time.Time) *Log {
	l := &Log{Origin: origin, now: now}
	l.signer = must(c2sp.GenerateSigner(origin, c2sp.AlgEd25519))
	var b strings.Builder
	fmt.Fprintf(&b, "log %s\n", l.signer.Key())
	names := ""
	for i := range witnesses {
		w := must(c2sp.GenerateSigner(fmt.Sprintf("w%d.test", i+1), c2sp.AlgEd25519Cosig))
		l.witnesses = append(l.witnesses, w)
		fmt.Fprintf(&b, "witness w%d %s\n", i+1, w.Key())
		names += fmt.Sprintf(" w%d", i+1)
	}
	if witnesses == 0 {
		b.WriteString("quorum none\n")
	} else {
		fmt.Fprintf(&b, "group quorum-of %d%s\nquorum quorum-of\n", quorum, names)
	}
	l.Policy = must(c2sp.ParsePolicy([]byte(b.String())))
	l.Publish()
	return l
}

// Next returns an empty, published log of another name with the same witnesses
// and quorum.
func (l *Log) Next(origin string) *Log {
	n := &Log{Origin: origin, now: l.now, witnesses: l.witnesses, signer: must(c2sp.GenerateSigner(origin, c2sp.AlgEd25519))}
	n.Policy = must(c2sp.ParsePolicy(bytes.Replace(l.Policy.Bytes(), []byte(l.signer.Key().String()), []byte(n.signer.Key().String()), 1)))
	n.Publish()
	return n
}

// VKey is the log's key.
func (l *Log) VKey() string { return l.signer.Key().String() }

// End logs the leaf that hands over to another log and returns what the log
// ends with.
func (l *Log) End(origin, url, vkey string) c2sp.Checkpoint {
	l.AddEntry(&entry.Entry{Kind: entry.KindSuccessor, Claim: entry.ClaimLog, Time: "2026-11-21T05:00:00Z", ID: strings.Repeat("ab", 16),
		Origin: origin, VKeys: []string{vkey}, URL: url})
	return c2sp.Checkpoint{Origin: l.Origin, Size: l.Size(), Root: l.Root()}
}

// Begin logs the leaf that takes over from a log that ended with c.
func (l *Log) Begin(c c2sp.Checkpoint) {
	l.AddEntry(&entry.Entry{Kind: entry.KindPredecessor, Claim: entry.ClaimLog, Time: "2026-11-21T05:00:00Z", ID: strings.Repeat("cd", 16),
		Origin: c.Origin, Size: entry.Uint(c.Size), Root: hex.EncodeToString(c.Root[:])})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Add appends leaves and publishes.
func (l *Log) Add(leaves ...[]byte) uint64 {
	l.mu.Lock()
	first := uint64(len(l.leaves))
	for _, b := range leaves {
		l.append(b)
	}
	l.mu.Unlock()
	l.Publish()
	return first
}

// AddEntry appends entries and publishes.
func (l *Log) AddEntry(es ...*entry.Entry) uint64 {
	var leaves [][]byte
	for _, e := range es {
		leaves = append(leaves, must(e.Marshal()))
	}
	return l.Add(leaves...)
}

func (l *Log) append(leaf []byte) {
	l.leaves = append(l.leaves, bytes.Clone(leaf))
	h := entry.LeafHash(leaf)
	for level := 0; ; level++ {
		if level == len(l.levels) {
			l.levels = append(l.levels, nil)
		}
		l.levels[level] = append(l.levels[level], h)
		n := len(l.levels[level])
		if n%256 != 0 {
			return
		}
		h = root(l.levels[level][n-256:])
	}
}

// root is the RFC 6962 tree hash of hashes.
func root(hashes [][32]byte) [32]byte {
	switch n := len(hashes); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return hashes[0]
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		a, b := root(hashes[:k]), root(hashes[k:])
		return sha256.Sum256(append(append([]byte{1}, a[:]...), b[:]...))
	}
}

// Size is the number of leaves.
func (l *Log) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.leaves))
}

// Root is the root of the whole tree.
func (l *Log) Root() [32]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return root(l.level0())
}

func (l *Log) level0() [][32]byte {
	if len(l.levels) == 0 {
		return nil
	}
	return l.levels[0]
}

// Leaf is the leaf at index.
func (l *Log) Leaf(index uint64) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaves[index]
}

// Publish signs the whole tree now and has the witnesses cosign it.
func (l *Log) Publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.publish(len(l.leaves))
}

func (l *Log) publish(size int) {
	c := c2sp.Checkpoint{Origin: l.Origin, Size: uint64(size), Root: root(l.level0()[:size])}
	n := &c2sp.Note{Text: c.Text()}
	n.Sigs = append(n.Sigs, must(l.signer.Sign(n.Text)))
	for i, w := range l.witnesses {
		if i >= l.blind {
			n.Sigs = append(n.Sigs, must(w.Cosign(c, l.now())))
		}
	}
	l.note = n.Bytes()
}

// Note is the checkpoint as served.
func (l *Log) Note() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.note)
}

// The lies.

// Fork rewrites every leaf from at on, and publishes the other history.
func (l *Log) Fork(at int, leaves ...[]byte) {
	l.mu.Lock()
	old := l.leaves
	l.leaves, l.levels = nil, nil
	for _, b := range old[:at] {
		l.append(b)
	}
	for _, b := range leaves {
		l.append(b)
	}
	l.mu.Unlock()
	l.Publish()
}

// Rollback publishes only the first size leaves and forgets the others.
func (l *Log) Rollback(size int) { l.Fork(size) }

// Replay serves an old checkpoint again.
func (l *Log) Replay(note []byte) { l.set(func() { l.note = note }) }

// Blind makes the first n witnesses stop cosigning.
func (l *Log) Blind(n int) { l.set(func() { l.blind = n }) }

// Down makes every answer a 503.
func (l *Log) Down(down bool) { l.set(func() { l.down = down }) }

// WrongLeaf serves other bytes for a leaf than are in the tree; nil stops it.
func (l *Log) WrongLeaf(index uint64, leaf []byte) {
	l.set(func() {
		if l.wrongLeaf = map[uint64][]byte{index: leaf}; leaf == nil {
			l.wrongLeaf = nil
		}
	})
}

// ExtraLeaf serves bundles with one leaf too many.
func (l *Log) ExtraLeaf(on bool) { l.set(func() { l.extra = on }) }

// ShortTile serves tiles of hashes without their last byte.
func (l *Log) ShortTile(on bool) { l.set(func() { l.shortTile = on }) }

// NoTiles answers 404 for tiles of hashes.
func (l *Log) NoTiles(on bool) { l.set(func() { l.noTiles = on }) }

// Garbage serves b as the checkpoint; nil stops it.
func (l *Log) Garbage(b []byte) { l.set(func() { l.garbage = b }) }

func (l *Log) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// ServeHTTP serves the log.
func (l *Log) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/")
	if path == "checkpoint" {
		if l.garbage != nil {
			w.Write(l.garbage)
			return
		}
		w.Write(l.note)
		return
	}
	t, err := c2sp.ParseTilePath(path)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	first := int(t.Index) * 256
	if t.Level < 0 {
		if first+t.Width > len(l.leaves) {
			http.NotFound(w, r)
			return
		}
		var b []byte
		for i, leaf := range l.leaves[first : first+t.Width] {
			if lie, ok := l.wrongLeaf[uint64(first+i)]; ok {
				leaf = lie
			}
			b = binary.BigEndian.AppendUint16(b, uint16(len(leaf)))
			b = append(b, leaf...)
		}
		if l.extra {
			b = append(b, 0, 1, 'x')
		}
		w.Write(b)
		return
	}
	if l.noTiles || t.Level >= len(l.levels) || first+t.Width > len(l.levels[t.Level]) {
		http.NotFound(w, r)
		return
	}
	var b []byte
	for _, h := range l.levels[t.Level][first : first+t.Width] {
		b = append(b, h[:]...)
	}
	if l.shortTile {
		b = b[:len(b)-1]
	}
	w.Write(b)
}

// Upload is an upload entry of a PyPI project by a GitHub repository (none: by
// token), with a digest made of seed.
func Upload(project, version, file, repository, seed string) *entry.Entry {
	sum := sha256.Sum256([]byte(seed))
	e := &entry.Entry{
		Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: "pypi.test", Ecosystem: entry.PyPI,
		Project: project, Version: version, File: file, Size: entry.Uint(1000), SHA256: hex.EncodeToString(sum[:]),
		Time: "2026-11-21T05:00:00Z", Auth: "token",
	}
	if repository != "" {
		e.Auth = "trusted-publisher"
		e.Publisher = &entry.Publisher{Kind: "github", Repository: repository, Workflow: "release.yml", Environment: "pypi"}
	}
	return e
}

// Status is an entry of a kind that needs only a project.
func Status(kind entry.Kind, project, version string, id int) *entry.Entry {
	return &entry.Entry{
		Kind: kind, Claim: entry.ClaimIndex, Registry: "pypi.test", Ecosystem: entry.PyPI,
		Project: project, Version: version, Time: "2026-11-21T05:00:00Z", ID: fmt.Sprintf("%032x", id),
	}
}
