package gateway_test

// A log in memory, with one witness, that can be down, slow, forgetful and
// untruthful. It keeps one digest to a slot, as the real one does.

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
)

type fakeLog struct {
	signer, witness *c2sp.Signer
	policy          *c2sp.Policy

	mu        sync.Mutex
	leaves    [][]byte
	hashes    [][32]byte
	held      map[entry.Slot]int // slot → index
	submits   int
	down      bool // answers nothing, takes nothing
	ready     bool // says so, even if down
	thenFail  bool // logs, and answers that it could not
	lie       func([]byte) []byte
	slow      time.Duration // before anything
	unwilling error         // answers this
}

func newFakeLog(t *testing.T) *fakeLog {
	t.Helper()
	l := &fakeLog{held: map[entry.Slot]int{}}
	var err error
	if l.signer, err = c2sp.GenerateSigner("log.example", c2sp.AlgEd25519); err != nil {
		t.Fatal(err)
	}
	if l.witness, err = c2sp.GenerateSigner("witness.example", c2sp.AlgEd25519Cosig); err != nil {
		t.Fatal(err)
	}
	l.policy, err = c2sp.ParsePolicy([]byte("log " + l.signer.Key().String() + "\nwitness w " + l.witness.Key().String() + "\nquorum w\n"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *fakeLog) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *fakeLog) Ready(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down && !l.ready {
		return errors.New("the fake log is down")
	}
	return nil
}

func (l *fakeLog) Submit(ctx context.Context, e *entry.Entry) (*submit.Ack, error) {
	l.mu.Lock()
	slow := l.slow
	l.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.submits++
	if l.down {
		return nil, &submit.Unavailable{}
	}
	if l.unwilling != nil {
		return nil, l.unwilling
	}
	leaf, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	slot, _ := e.Slot()
	i, taken := l.held[slot]
	if taken {
		if first, _ := entry.Parse(l.leaves[i]); first.SHA256 != e.SHA256 {
			return nil, &submit.Conflict{FirstIndex: uint64(i)}
		}
	} else {
		i = len(l.leaves)
		l.held[slot] = i
		l.leaves = append(l.leaves, leaf)
		l.hashes = append(l.hashes, entry.LeafHash(leaf))
	}
	if l.thenFail {
		return nil, &submit.Unavailable{RetryAfter: time.Millisecond}
	}
	proof, err := l.proof(i)
	if l.lie != nil {
		proof = l.lie(proof)
	}
	return &submit.Ack{Index: uint64(i), Proof: proof}, err
}

func (l *fakeLog) proof(i int) ([]byte, error) {
	cp := c2sp.Checkpoint{Origin: "log.example", Size: uint64(len(l.hashes)), Root: treeRoot(l.hashes)}
	sig, err := l.signer.Sign(cp.Text())
	if err != nil {
		return nil, err
	}
	cosig, err := l.witness.Cosign(cp, time.Now())
	if err != nil {
		return nil, err
	}
	note := &c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig, cosig}}
	p := &c2sp.Proof{Extra: l.leaves[i], Index: uint64(i), Hashes: treePath(i, l.hashes), Checkpoint: note.Bytes()}
	return p.Bytes(), nil
}

// entries are the entries logged so far.
func (l *fakeLog) entries(t *testing.T) []*entry.Entry {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*entry.Entry
	for _, leaf := range l.leaves {
		e, err := entry.Parse(leaf)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// treeRoot and treePath are RFC 6962, section 2.1, word for word.
func treeRoot(h [][32]byte) [32]byte {
	switch len(h) {
	case 0:
		return c2sp.EmptyRoot
	case 1:
		return h[0]
	}
	k := split(len(h))
	return nodeHash(treeRoot(h[:k]), treeRoot(h[k:]))
}

func treePath(i int, h [][32]byte) [][32]byte {
	if len(h) <= 1 {
		return nil
	}
	if k := split(len(h)); i < k {
		return append(treePath(i, h[:k]), treeRoot(h[k:]))
	} else {
		return append(treePath(i-k, h[k:]), treeRoot(h[:k]))
	}
}

func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

// ServeHTTP lets a gateway in another process use the log; see remoteLog.
func (l *fakeLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	leaf, _ := io.ReadAll(r.Body)
	e, err := entry.Parse(leaf)
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	ack, err := l.Submit(r.Context(), e)
	if err != nil {
		http.Error(w, err.Error(), 503)
		return
	}
	json.NewEncoder(w).Encode(ack)
}
