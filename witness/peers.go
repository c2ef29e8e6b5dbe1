package witness

// What its peers show: other witnesses of the same logs, asked at the start by
// the monitor retrieval of c2sp.org/tlog-witness, where no mark vouches that the
// database is the newest (docs/decisions/0021).
//
// Each log is held, and nothing of it is cosigned, until every peer was heard and
// one is at least as far as this witness. Where a peer is further, this witness
// may have been, too, and have forgotten it: then it cosigns only a tree that is
// proven to contain both, what it cosigned last itself and the largest that its
// peers show. Two proofs come in two requests; the size in a 409 asks for each.
//
// A peer can make a log wait, and no more: what counts is signed by the log, and
// cosigned by the peer. Who makes a peer show old checkpoints makes this witness
// believe an old copy of its database.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// peerTimeout bounds a whole request to a peer, with a body that trickles in.
const peerTimeout = 10 * time.Second

// Peers that could not be heard, or are behind, are asked again after a second,
// then more and more rarely.
const (
	firstPeerWait = time.Second
	maxPeerWait   = time.Minute
)

// maxTroubles is how many reasons a round adds to the journal.
const maxTroubles = 20

// A Peer is another witness that cosigns the same logs.
type Peer struct {
	Key *c2sp.Key // one of its keys
	URL string    // its monitoring prefix
}

// ParsePeer reads "VKEY URL", the end of a policy's witness line.
func ParsePeer(s string) (Peer, error) {
	vkey, at, ok := strings.Cut(s, " ")
	u, err := url.Parse(at)
	if !ok || err != nil || strings.ContainsAny(at, " \t") || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Peer{}, fmt.Errorf("peer %.200q: want its verifier key, a space, and its URL, as in the witness line that it has for policies", s)
	}
	k, err := c2sp.ParseVKey(vkey)
	if err != nil {
		return Peer{}, fmt.Errorf("peer %.200q: %w", s, err)
	}
	if !k.IsCosigner() {
		return Peer{}, fmt.Errorf("peer %.200q: its key is of type %s, which no witness cosigns with", s, k.Alg())
	}
	return Peer{k, strings.TrimRight(at, "/")}, nil
}

// A tip is a tree.
type tip struct {
	size uint64
	root [32]byte
}

// A hold is a log of which nothing is cosigned for now.
type hold struct {
	why   string // for people
	floor *Head  // the largest that the peers show; nil: they are still to be asked
	own   tip    // the head of this witness when they were asked
	// The largest trees that were proven to contain own, and floor.
	hasOwn, hasFloor tip
}

// peers are the peers of a witness, and what waits for them.
type peers struct {
	list []Peer
	http *http.Client
	wake chan struct{} // capacity 1: a log is to be asked for

	mu   sync.Mutex
	logs map[string]*hold // guarded by mu, with what it points to; nil: the log is held no more
}

// newPeers checks that list can vouch for a witness with these keys. It returns
// nil for an empty one.
func newPeers(list []Peer, own []*c2sp.Key) (*peers, error) {
	if len(list) == 0 {
		return nil, nil
	}
	for _, p := range list {
		for _, k := range own {
			if p.Key.Name() == k.Name() {
				return nil, fmt.Errorf("peer %s is this witness itself: nobody vouches for himself", p.Key.Name())
			}
		}
	}
	return &peers{list: slices.Clone(list), wake: make(chan struct{}, 1), logs: map[string]*hold{},
		http: &http.Client{Timeout: peerTimeout,
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
				TLSHandshakeTimeout: peerTimeout, IdleConnTimeout: 30 * time.Second, DisableCompression: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// of returns what holds a log, nil if nothing does. A log that was never asked
// for is held, and asked for. The caller has the lock.
func (p *peers) of(origin string) *hold {
	h, known := p.logs[origin]
	if !known {
		h = &hold{why: "its peers have not been heard yet"}
		p.logs[origin] = h
		p.ring()
	}
	return h
}

// ring has HearPeers ask again at once.
func (p *peers) ring() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// held is how many logs wait.
func (p *peers) held() (n int) {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.logs {
		if h != nil {
			n++
		}
	}
	return n
}

// advanced is told of what was cosigned.
func (p *peers) advanced(origin string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.logs[origin] = nil
}

// tipOf is the tree of a head; the empty one's without a head.
func tipOf(h *Head) tip {
	if h == nil {
		return tip{0, c2sp.EmptyRoot}
	}
	return tip{h.Size, h.Root}
}

// judge is check, with what the peers show.
func (w *Witness) judge(ctx context.Context, req *request, known *Log, logSigs []c2sp.Signature) error {
	refusal := check(req, known.Head)
	if w.peers != nil {
		var conflict *ConflictError
		if refusal == nil || errors.As(refusal, &conflict) {
			return w.judgeHeld(ctx, req, known, logSigs, refusal)
		}
	}
	if refusal != nil {
		return w.suspect(ctx, req, known, logSigs, refusal)
	}
	return nil
}

// judgeHeld judges a request that is good by what this witness knows itself, or
// starts from another size than its own (refusal).
func (w *Witness) judgeHeld(ctx context.Context, req *request, known *Log, logSigs []c2sp.Signature, refusal error) error {
	w.peers.mu.Lock()
	h := w.peers.of(known.Origin)
	if h != nil && h.floor != nil && h.own != tipOf(known.Head) { // another instance was here
		*h = hold{why: "its head has moved since its peers were heard"}
		w.peers.ring()
	}
	switch {
	case h == nil && refusal == nil:
		w.peers.mu.Unlock()
		return nil
	case h == nil || h.floor == nil && refusal != nil:
		w.peers.mu.Unlock()
		return w.suspect(ctx, req, known, logSigs, refusal)
	case h.floor == nil:
		defer w.peers.mu.Unlock()
		return &HeldError{known.Origin, h.why}
	}
	now := tip{req.cp.Size, req.cp.Root}
	if refusal == nil && now.size >= h.hasOwn.size {
		h.hasOwn = now
	}
	floored := check(req, h.floor)
	if floored == nil && now.size >= h.hasFloor.size {
		h.hasFloor = now
	}
	hasOwn := refusal == nil || h.hasOwn == now || h.own.size == 0
	hasFloor := floored == nil || h.hasFloor == now || now == tipOf(h.floor)
	as := &Log{Origin: known.Origin, Keys: known.Keys, Head: h.floor}
	w.peers.mu.Unlock()
	var conflict *ConflictError
	switch {
	case hasOwn && hasFloor:
		return nil
	case floored != nil && (hasOwn || !errors.As(floored, &conflict)):
		return w.suspect(ctx, req, as, logSigs, floored)
	}
	return w.suspect(ctx, req, known, logSigs, refusal)
}

// HearPeers asks the peers about every log that is held, again and again, until
// ctx ends. Without it a witness with peers cosigns nothing.
func (w *Witness) HearPeers(ctx context.Context) {
	if w.peers == nil {
		return
	}
	defer w.peers.http.CloseIdleConnections()
	var before map[string]bool
	wait := firstPeerWait
	for {
		waiting, trouble, err := w.hear(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			w.log.Error("the logs cannot be read", "error", err)
		}
		told := 0
		for why := range trouble { // each once, not each time
			if before[why] {
				continue
			}
			if told++; told > maxTroubles {
				w.log.Warn("not signing yet, for other reasons like these", "reasons", len(trouble)-maxTroubles)
				break
			}
			w.log.Warn("not signing yet: "+why, "logs", waiting)
		}
		if waiting == 0 && len(before) > 0 {
			w.log.Info("all peers were heard about every log")
		}
		before = trouble
		var again <-chan time.Time
		if wait = min(2*wait, maxPeerWait); waiting == 0 && err == nil {
			wait = firstPeerWait
		} else {
			again = time.After(wait / 2)
		}
		select {
		case <-again:
		case <-w.peers.wake:
			wait = firstPeerWait
		case <-ctx.Done():
			return
		}
	}
}

// hear asks every peer once about each log that waits for that. waiting is how
// many still do afterwards, and trouble why.
func (w *Witness) hear(ctx context.Context) (waiting int, trouble map[string]bool, err error) {
	logs, err := w.store.Logs(ctx)
	if err != nil {
		return 0, nil, err
	}
	p := w.peers
	p.mu.Lock()
	logs = slices.DeleteFunc(logs, func(l *Log) bool { h := p.of(l.Origin); return h == nil || h.floor != nil })
	p.mu.Unlock()
	shown := make([]map[string]heard, len(p.list))
	var asked sync.WaitGroup
	for i, peer := range p.list {
		asked.Go(func() { shown[i] = p.ask(ctx, peer, logs) })
	}
	asked.Wait()
	trouble = map[string]bool{}
	for _, l := range logs {
		next, err := w.compare(ctx, l, p.list, shown)
		if err != nil {
			return 0, nil, err
		}
		p.mu.Lock()
		if p.logs[l.Origin] != nil { // it was not brought up in between
			p.logs[l.Origin] = next
		}
		p.mu.Unlock()
		switch {
		case next != nil && next.floor == nil:
			waiting++
			trouble[next.why] = true
		case next != nil:
			w.log.Warn("this witness is behind its peers; nothing of the log is cosigned until it is proven to contain what both have cosigned", "origin", l.Origin, "why", next.why)
		}
	}
	return waiting, trouble, nil
}

// heard is what one peer shows of a log.
type heard struct {
	head *Head // nil: it has cosigned nothing
	err  error
}

// ask asks one peer about logs. One that is out is not asked for the rest.
func (p *peers) ask(ctx context.Context, peer Peer, logs []*Log) map[string]heard {
	out := make(map[string]heard, len(logs))
	var gone error
	for _, l := range logs {
		if gone != nil {
			out[l.Origin] = heard{err: gone}
			continue
		}
		status, body, err := p.get(ctx, strings.TrimRight(peer.URL, "/")+"/"+c2sp.OriginHash(l.Origin)+"/checkpoint")
		switch {
		case err != nil:
			gone = err
			out[l.Origin] = heard{err: err}
		case status == http.StatusNotFound:
			out[l.Origin] = heard{}
		case status != http.StatusOK:
			out[l.Origin] = heard{err: fmt.Errorf("it answers HTTP %d", status)}
		default:
			head, err := peer.read(l, body)
			out[l.Origin] = heard{head, err}
		}
	}
	return out
}

func (p *peers) get(ctx context.Context, at string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("User-Agent", "portbook-witness")
	res, err := p.http.Do(req)
	if err != nil {
		var where *url.Error
		if errors.As(err, &where) {
			err = where.Err
		}
		return 0, nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return res.StatusCode, nil, nil
	}
	body, err = io.ReadAll(io.LimitReader(res.Body, c2sp.MaxNote+1))
	if err == nil && len(body) > c2sp.MaxNote {
		err = fmt.Errorf("it answers more than %d bytes", c2sp.MaxNote)
	}
	return res.StatusCode, body, err
}

// read returns the checkpoint that a peer shows of l, if the log signed it and
// the peer cosigned it. Its note has the log's signatures alone.
func (peer Peer) read(l *Log, raw []byte) (*Head, error) {
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return nil, err
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return nil, err
	}
	if cp.Origin != l.Origin {
		return nil, fmt.Errorf("it shows a checkpoint of log %.100q", cp.Origin)
	}
	sigs, err := verifyLog(l, note)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(note.Sigs, peer.Key.Matches)
	if at < 0 {
		return nil, errors.New("it shows a checkpoint without its own cosignature")
	}
	when, err := peer.Key.VerifyNote(note.Text, note.Sigs[at])
	if err != nil {
		return nil, err
	}
	return &Head{Size: cp.Size, Root: cp.Root, Time: when, Note: (&c2sp.Note{Text: note.Text, Sigs: sigs}).Bytes()}, nil
}

// compare returns what holds l after the peers were asked, nil if nothing does.
func (w *Witness) compare(ctx context.Context, l *Log, list []Peer, shown []map[string]heard) (*hold, error) {
	var most *Head
	var who string
	troubles := map[string]bool{}
	for i, peer := range list {
		h := shown[i][l.Origin]
		if h.err != nil {
			troubles[fmt.Sprintf("peer %s: %v", peer.Key.Name(), h.err)] = true
		} else if h.head != nil && (most == nil || h.head.Size > most.Size) {
			most, who = h.head, peer.Key.Name()
		}
	}
	if len(troubles) > 0 {
		return &hold{why: strings.Join(slices.Sorted(maps.Keys(troubles)), "; ") + ": every peer has to be heard; take one that is gone for good out of --peer"}, nil
	}
	own := tipOf(l.Head)
	switch {
	case most == nil && own.size == 0:
		return nil, nil
	case most == nil:
		return &hold{why: fmt.Sprintf("no peer has cosigned log %.100q, so nobody can tell whether this database is an old copy: give a peer that does (--peer), or a mark on another file system (--mark)", l.Origin)}, nil
	case most.Size < own.size:
		return &hold{why: fmt.Sprintf("log %.100q: its peers show size %d and this witness has cosigned %d: one of them has to be as far; or give a mark on another file system (--mark)", l.Origin, most.Size, own.size)}, nil
	case most.Size > own.size:
		return &hold{own: own, floor: most, why: fmt.Sprintf("%s has cosigned size %d, this witness %d", who, most.Size, own.size)}, nil
	case most.Root == own.root:
		return nil, nil
	}
	kept, err := w.store.KeepFork(ctx, &Fork{Origin: l.Origin, Size: own.size, OursSize: own.size, Ours: l.Head.Note, Theirs: most.Note, Seen: w.now()})
	if err != nil {
		return nil, err
	}
	if kept {
		w.log.Warn("FORK: the log has signed two different trees, one cosigned here and one by a peer", "origin", l.Origin, "size", own.size, "peer", who)
	}
	return &hold{why: fmt.Sprintf("log %.100q has signed two different trees of size %d: see /evidence/", l.Origin, own.size)}, nil
}
