// Package evillog is a small log that can lie: in memory, on the real formats
// (signed notes, checkpoints, cosignatures, tlog-tiles, tlog-proof, the
// add-checkpoint request), with one named method for each kind of misbehaviour.
// It is what readers of a log are tested against; see TestHostileLog.
//
//	log.go      the honest part: it grows, signs, has it cosigned, serves
//	history.go  lies about history: Fork, SplitView, Rollback, Freeze, FutureTime
//	note.go     lies in the checkpoint's text and in its signatures
//	proof.go    lies in what it hands out: proofs, requests to witnesses
//	wire.go     lies in tiles and bundles, and all that HTTP can do to a reader
//
// A lie stays until the end. Lies combine. Methods panic where a test is wrong.
package evillog

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// Config says who the log is.
type Config struct {
	Signer    *c2sp.Signer // the log's Ed25519 key; its name is the origin
	Witnesses []Witness
	Now       func() time.Time // when colluding witnesses say they sign; nil: time.Now
}

// A Log is an http.Handler: the tlog-tiles read API, and GET /v1/proof?sha256=
// of Portbook's log server. It is safe for concurrent use.
type Log struct {
	cfg Config

	mu     sync.Mutex
	tree   *tree  // the history that it signs
	head   uint64 // size of the newest checkpoint
	note   []byte // that checkpoint, as served
	shown  *tree  // where tiles and bundles come from; nil: tree
	frozen bool
	views  []view
	lies   lies
	wire   map[Resource]http.HandlerFunc
}

// A view is another history for some of the readers.
type view struct {
	match func(*http.Request) bool
	log   *Log
}

// lies are what is changed on the way out, in this order.
type lies struct {
	only    []int                 // indices of the witnesses that are asked; nil: all
	date    func(int) uint64      // when witness i says it signs; nil: now
	text    []func(string) string // before it is signed
	sigs    []func(string, []c2sp.Signature) []c2sp.Signature
	note    []func([]byte) []byte // after it is signed
	proof   []func(*c2sp.Proof)
	proofB  []func([]byte) []byte
	request []func(*c2sp.AddCheckpoint)
	tile    []func(c2sp.Tile, []byte) []byte
	bundle  []func(c2sp.Tile, [][]byte) []byte // nil: encoded as it should be
}

// New returns an empty log that has published the empty tree.
func New(cfg Config) *Log {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Log{cfg: cfg, tree: &tree{}, wire: map[Resource]http.HandlerFunc{}}
	l.Publish()
	return l
}

// Origin is the log's name.
func (l *Log) Origin() string { return l.cfg.Signer.Key().Name() }

// Append adds leaves to the tree and publishes it. It returns the index of the
// first.
func (l *Log) Append(leaves ...[]byte) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.tree.size()
	for _, leaf := range leaves {
		l.tree.append(leaf)
	}
	l.publish()
	return first
}

// Upload is Append for entries.
func (l *Log) Upload(entries ...*entry.Entry) uint64 {
	var leaves [][]byte
	for _, e := range entries {
		leaf, err := e.Marshal()
		if err != nil {
			panic("evillog: " + err.Error())
		}
		leaves = append(leaves, leaf)
	}
	return l.Append(leaves...)
}

// Leaf is the leaf at index.
func (l *Log) Leaf(index uint64) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.leaves[index]
}

// Size is the size of the newest checkpoint, whatever that says itself.
func (l *Log) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Publish signs the whole tree again, and has it cosigned.
func (l *Log) Publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.publish()
}

func (l *Log) publish() {
	if l.frozen {
		return
	}
	l.sign(l.tree.size())
}

// sign makes the first size leaves the newest checkpoint.
func (l *Log) sign(size uint64) {
	root := l.tree.root(size)
	text := l.Origin() + "\n" + strconv.FormatUint(size, 10) + "\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n"
	for _, lie := range l.lies.text {
		text = lie(text)
	}
	sigs := []c2sp.Signature{signAny(l.cfg.Signer, text)}
	alone := noteBytes(text, sigs)
	for i, w := range l.cfg.Witnesses {
		if !l.asked(i) {
			continue
		}
		at := uint64(l.cfg.Now().Unix())
		if l.lies.date != nil {
			at = l.lies.date(i)
		}
		lines, err := w.Cosign(text, at, func(old uint64) []byte { return l.request(old, size, alone) })
		if err != nil {
			continue // an honest witness refuses; the liar goes on without it
		}
		sigs = append(sigs, lines...)
	}
	for _, lie := range l.lies.sigs {
		sigs = lie(text, sigs)
	}
	note := noteBytes(text, sigs)
	for _, lie := range l.lies.note {
		note = lie(note)
	}
	l.head, l.note = size, note
}

func (l *Log) asked(i int) bool {
	for _, k := range l.lies.only {
		if k == i {
			return true
		}
	}
	return l.lies.only == nil
}

func noteBytes(text string, sigs []c2sp.Signature) []byte {
	return (&c2sp.Note{Text: text, Sigs: sigs}).Bytes()
}

// Note is what /checkpoint serves.
func (l *Log) Note() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.note)
}

// Proof is the tlog-proof of the leaf at index in the newest checkpoint.
func (l *Log) Proof(index uint64) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &c2sp.Proof{Extra: l.tree.leaves[index], Index: index, Checkpoint: l.note}
	if index < l.head {
		p.Hashes = l.tree.inclusion(index, l.head)
	}
	for _, lie := range l.lies.proof {
		lie(p)
	}
	b := p.Bytes()
	for _, lie := range l.lies.proofB {
		b = lie(b)
	}
	return b
}

// AddCheckpoint is the body of a request to cosign the newest checkpoint, for a
// witness that has cosigned size old.
func (l *Log) AddCheckpoint(old uint64) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.request(old, l.head, l.note)
}

func (l *Log) request(old, size uint64, note []byte) []byte {
	a := &c2sp.AddCheckpoint{Old: old, Proof: l.tree.consistency(old, size), Checkpoint: note}
	for _, lie := range l.lies.request {
		lie(a)
	}
	return a.Bytes()
}

// ServeHTTP serves the log.
func (l *Log) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	for _, v := range l.views {
		if v.match(r) {
			l.mu.Unlock()
			v.log.ServeHTTP(w, r)
			return
		}
	}
	res, body := l.answer(r)
	wire := l.wire[res]
	if wire == nil && res != "" {
		wire = l.wire[Everything]
	}
	l.mu.Unlock()
	switch {
	case wire != nil:
		wire(w, r.WithContext(withBody(r.Context(), body)))
	case body == nil:
		http.NotFound(w, r)
	default:
		w.Write(body)
	}
}

// answer says what is asked for and what there is; nil: nothing.
func (l *Log) answer(r *http.Request) (Resource, []byte) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	switch name {
	case "checkpoint":
		return Checkpoint, l.note
	case "v1/proof":
		return Proofs, l.proofs(r.URL.Query().Get("sha256"))
	}
	t, err := c2sp.ParseTilePath(name)
	if err != nil {
		return "", nil
	}
	shown := l.shown
	if shown == nil {
		shown = l.tree
	}
	if t.Level >= 0 {
		b := shown.tile(t)
		for _, lie := range l.lies.tile {
			b = lie(t, b)
		}
		return Tiles, b
	}
	entries := shown.bundle(t)
	for _, lie := range l.lies.bundle {
		if b := lie(t, entries); b != nil {
			return Bundles, b
		}
	}
	if entries == nil {
		return Bundles, nil
	}
	return Bundles, encodeBundle(entries)
}

// encodeBundle is c2sp.org/tlog-tiles, "Log Entries".
func encodeBundle(entries [][]byte) []byte {
	b := []byte{}
	for _, e := range entries {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(e))), e...)
	}
	return b
}

// proofs answers GET /v1/proof?sha256=; nil: none. l.mu is held.
func (l *Log) proofs(sha256 string) []byte {
	type proof struct {
		Index string `json:"index"`
		Leaf  []byte `json:"leaf"`
		Proof []byte `json:"proof"`
	}
	var list []proof
	for i, leaf := range l.tree.leaves {
		if e, err := entry.Parse(leaf); err == nil && e.SHA256 == sha256 {
			l.mu.Unlock()
			b := l.Proof(uint64(i))
			l.mu.Lock()
			list = append(list, proof{fmt.Sprint(i), leaf, b})
		}
	}
	if list == nil {
		return nil
	}
	b, err := json.Marshal(map[string]any{"proofs": list})
	if err != nil {
		panic("evillog: " + err.Error())
	}
	return b
}
