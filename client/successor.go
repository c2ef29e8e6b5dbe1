package client

// Following a log that has ended to the one that takes over.
//
//	old log's last checkpoint, cosigned by the policy's quorum
//	   ▶ its last entry is a successor leaf, proven            origin, keys, URL
//	   ▶ new log's checkpoint: one of those keys, and the SAME quorum
//	   ▶ its first entry is the predecessor leaf, proven       origin, size, root
//	   ▶ remembered, with both proofs, and verified again at each use
//
// Whoever has the old log's key can log a successor leaf, and honest witnesses
// will cosign it: it is an entry like any other. What they will not do is
// cosign a new log that its operator has not brought to them. So the key alone
// redirects nobody, as long as a quorum of the witnesses takes new logs from
// people only: where they take whatever asks, it does. See docs/decisions on
// rotation.

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	neturl "net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// MaxHandovers is the longest chain of logs that is followed from one that a
// policy names. The policy's owner may name a later one.
const MaxHandovers = 8

// A Handover is what proves, offline, that a log has ended and which one has
// taken over.
type Handover struct {
	Last  []byte // tlog-proof of the successor leaf, the last entry of the old log
	First []byte // tlog-proof of the predecessor leaf, the first entry of the new one
}

// Followed is what a verified Handover says.
type Followed struct {
	From c2sp.Checkpoint // the last of the old log
	To   string          // origin of the new one
	Keys []*c2sp.Key     // with which the new one signs
	URL  string          // where it is read
}

// String says it in words.
func (f *Followed) String() string {
	return fmt.Sprintf("the log %s has ended with %d entries and goes on as %s at %s; both logs say so, under the quorum of your policy", f.From.Origin, f.From.Size, f.To, f.URL)
}

// Verify checks the hand-over under a policy that names the old log, and
// returns that policy as it is afterwards: the old log's keys count up to its
// last size, the new log's count too, and the witnesses and the quorum are the
// same. A hand-over that contradicts itself is a [*Refusal] (PB207, PB208); one
// that the policy cannot judge, for want of a quorum for instance, a
// [*CannotCheck].
func (h *Handover) Verify(p *c2sp.Policy) (*Followed, *c2sp.Policy, error) {
	f, next, err := verifyLast(p, h.Last)
	if err != nil {
		return nil, nil, err
	}
	if err := verifyFirst(next, f, h.First); err != nil {
		return nil, nil, h.evidence(p, err)
	}
	return f, next, nil
}

// evidence completes a refusal of a hand-over by what proves it.
func (h *Handover) evidence(p *c2sp.Policy, err error) error {
	var r *Refusal
	if errors.As(err, &r) && r.Code == CodeHandover && r.proof == nil {
		r.proof = &Evidence{Claim: c2sp.ClaimHandover, First: h.Last, Second: h.First}
		if _, everr := r.proof.Verify(p); everr != nil {
			r.proof = nil
			r.Detail += "; this cannot be proven to others: " + everr.Error()
		}
	}
	return err
}

// leafOf checks that a tlog-proof proves its leaf to be in the tree of its
// checkpoint, which verify has verified, and parses the leaf.
func leafOf(proof []byte, verify func([]byte) (*c2sp.Verified, error)) (*entry.Entry, *c2sp.Proof, *c2sp.Verified, error) {
	pr, err := c2sp.ParseProof(proof)
	if err != nil {
		return nil, nil, nil, cannot(CodeNotFollowed, "the proof of a hand-over", err)
	}
	v, err := verify(pr.Checkpoint)
	if err != nil {
		return nil, pr, nil, headError(err)
	}
	if len(pr.Extra) == 0 || len(pr.Extra) > entry.MaxSize {
		return nil, pr, v, &CannotCheck{Code: CodeNotFollowed, Reason: "the proof of a hand-over carries no entry"}
	}
	if err := c2sp.VerifyInclusion(pr.Index, v.Size, entry.LeafHash(pr.Extra), pr.Hashes, v.Root); err != nil {
		return nil, pr, v, &Refusal{Code: CodeTilesMismatch, Check: "the proof of a hand-over", Detail: err.Error(), Err: err}
	}
	e, err := entry.Parse(pr.Extra)
	if err != nil {
		return nil, pr, v, cannot(CodeNotFollowed, "the entry of a hand-over", err)
	}
	return e, pr, v, nil
}

func badHandover(format string, args ...any) *Refusal {
	return &Refusal{Code: CodeHandover, Check: "a log that takes over from another", Detail: fmt.Sprintf(format, args...)}
}

// verifyLast checks the old log's half.
func verifyLast(p *c2sp.Policy, last []byte) (*Followed, *c2sp.Policy, error) {
	if p.Quorum == c2sp.QuorumNone {
		return nil, nil, &CannotCheck{Code: CodeNotFollowed, Reason: "the log has ended, and the policy needs no witness: then whoever has the old log's key could send you anywhere, so nothing is followed; put the new log into the policy"}
	}
	e, pr, v, err := leafOf(last, p.Verify)
	if err != nil {
		return nil, nil, err
	}
	if e.Kind != entry.KindSuccessor {
		return nil, nil, &CannotCheck{Code: CodeNotFollowed, Reason: fmt.Sprintf("entry %d of %q does not end it: it is of kind %q", pr.Index, v.Origin, e.Kind)}
	}
	if pr.Index+1 != v.Size {
		return nil, nil, &Refusal{Code: CodeAfterEnd, Check: "nothing comes after the end", proof: &Evidence{Claim: c2sp.ClaimAfterEnd, First: last},
			Detail: fmt.Sprintf("entry %d of %q says that it is the last, and the log signed a tree of %d entries", pr.Index, v.Origin, v.Size)}
	}
	f := &Followed{From: v.Checkpoint, To: e.Origin, URL: e.URL}
	next, err := f.policy(p, e.VKeys)
	if r := (*Refusal)(nil); errors.As(err, &r) && e.Origin == v.Origin {
		r.proof = &Evidence{Claim: c2sp.ClaimAfterEnd, First: last}
	}
	return f, next, err
}

// policy is p after the hand-over. It fills in f.Keys.
func (f *Followed) policy(p *c2sp.Policy, vkeys []string) (*c2sp.Policy, error) {
	if f.To == f.From.Origin {
		return nil, badHandover("%q names itself as the log that takes over from it", f.To)
	}
	next := *p
	next.Logs = slices.Clone(p.Logs)
	ended, named := 0, 0
	for i := range next.Logs {
		switch l := &next.Logs[i]; {
		case l.Key.Name() == f.From.Origin && (!l.Retired || l.UpTo > f.From.Size):
			l.Retired, l.UpTo = true, f.From.Size
		case l.Key.Name() == f.To:
			named++
			if l.Retired {
				ended++
			}
		}
	}
	if named > 0 && named == ended {
		return nil, badHandover("%q is to take over from %q, but it has ended itself", f.To, f.From.Origin)
	}
	known := 0
	for _, vkey := range vkeys {
		k, err := c2sp.ParseVKey(vkey)
		if err != nil || k.Name() != f.To {
			return nil, badHandover("%q names %q as a key of %q, which it cannot be", f.From.Origin, vkey, f.To)
		}
		f.Keys = append(f.Keys, k)
		if slices.ContainsFunc(next.Logs, func(l c2sp.PolicyLog) bool { return l.Key.String() == k.String() }) {
			known++
			continue
		}
		if named == 0 { // a log that the policy names has the keys that the policy says
			next.Logs = append(next.Logs, c2sp.PolicyLog{Key: k, URL: f.URL})
		}
	}
	if named > 0 && known == 0 {
		return nil, badHandover("%q names keys of %q of which the policy, which names that log too, has none", f.From.Origin, f.To)
	}
	parsed, err := c2sp.ParsePolicy(next.Bytes()) // no key twice, none of a witness
	if err != nil {
		return nil, badHandover("%q names keys of %q that the policy cannot have: %v", f.From.Origin, f.To, err)
	}
	return parsed, nil
}

// verifyFirst checks the new log's half under the policy that f made.
func verifyFirst(next *c2sp.Policy, f *Followed, first []byte) error {
	e, pr, v, err := leafOf(first, next.Verify)
	if v != nil && v.Origin != f.To {
		return &CannotCheck{Code: CodeNotFollowed, Reason: fmt.Sprintf("%s serves the log %q, not %q", f.URL, v.Origin, f.To)}
	}
	if err != nil {
		return err
	}
	return f.matches(pr.Index, e)
}

// matches says whether the entry e at index is the predecessor leaf that takes
// over from f.From.
func (f *Followed) matches(index uint64, e *entry.Entry) error {
	if index != 0 {
		return &CannotCheck{Code: CodeNotFollowed, Reason: fmt.Sprintf("entry %d of %q is not its first", index, f.To)}
	}
	if e.Kind != entry.KindPredecessor {
		return badHandover("%q is to take over from %q, but its first entry does not say so: it is of kind %q", f.To, f.From.Origin, e.Kind)
	}
	if e.Origin != f.From.Origin || *e.Size != f.From.Size || e.Root != hex.EncodeToString(f.From.Root[:]) {
		return badHandover("%q takes over from %q at %d entries with root %s; the log that names it is %q, which ended at %d with root %x",
			f.To, e.Origin, *e.Size, e.Root, f.From.Origin, f.From.Size, f.From.Root)
	}
	return nil
}

// A LogReader is what is read of a log to follow it. [*Reader] is one.
type LogReader interface {
	Checkpoint(ctx context.Context) ([]byte, error)
	Bundle(ctx context.Context, index uint64, width int) ([][]byte, error)
	Inclusion(ctx context.Context, index, size uint64) ([][32]byte, error)
	TileReader
}

// ProveEntry builds the tlog-proof of the entry at index in the tree of a
// checkpoint, of which note is the signed form. It is checked before it is
// returned: tiles that do not prove it are a [*Refusal].
func ProveEntry(ctx context.Context, r LogReader, c c2sp.Checkpoint, note []byte, index uint64) ([]byte, *entry.Entry, error) {
	leaf, err := readLeaf(ctx, r, c.Size, index)
	if err != nil {
		return nil, nil, err
	}
	return proveLeaf(ctx, r, c, note, index, leaf)
}

func readLeaf(ctx context.Context, r LogReader, size, index uint64) ([]byte, error) {
	if index >= size {
		return nil, &CannotCheck{Code: CodeMissing, Reason: fmt.Sprintf("a tree of %d entries has no entry %d", size, index)}
	}
	width := int(min(c2sp.TileWidth, size-index/c2sp.TileWidth*c2sp.TileWidth))
	leaves, err := r.Bundle(ctx, index/c2sp.TileWidth, width)
	if err != nil {
		return nil, err
	}
	if len(leaves) != width {
		return nil, &CannotCheck{Code: CodeBadAnswer, Reason: fmt.Sprintf("%d entries where there are %d", len(leaves), width)}
	}
	return leaves[index%c2sp.TileWidth], nil
}

func proveLeaf(ctx context.Context, r LogReader, c c2sp.Checkpoint, note []byte, index uint64, leaf []byte) ([]byte, *entry.Entry, error) {
	hashes, err := r.Inclusion(ctx, index, c.Size)
	if err != nil {
		return nil, nil, err
	}
	if err := c2sp.VerifyInclusion(index, c.Size, entry.LeafHash(leaf), hashes, c.Root); err != nil {
		return nil, nil, &Refusal{Code: CodeTilesMismatch, Check: "the log's tiles",
			Detail: fmt.Sprintf("entry %d that %q serves is not the one it signed: %v", index, c.Origin, err), Err: err}
	}
	e, err := entry.Parse(leaf)
	if err != nil {
		return nil, nil, cannot(CodeNotFollowed, fmt.Sprintf("entry %d of %q", index, c.Origin), err)
	}
	return (&c2sp.Proof{Extra: leaf, Index: index, Hashes: hashes, Checkpoint: note}).Bytes(), e, nil
}

// successorKind is in the bytes of every successor leaf.
var successorKind = []byte(`"kind":"` + string(entry.KindSuccessor) + `"`)

// LastEntry returns the tlog-proof of the successor leaf that a tree ends with,
// and the leaf; nil if it does not end with one.
func LastEntry(ctx context.Context, r LogReader, c c2sp.Checkpoint, note []byte) ([]byte, *entry.Entry, error) {
	if c.Size == 0 {
		return nil, nil, nil
	}
	leaf, err := readLeaf(ctx, r, c.Size, c.Size-1)
	if err != nil || !bytes.Contains(leaf, successorKind) {
		return nil, nil, err
	}
	if e, err := entry.Parse(leaf); err != nil || e.Kind != entry.KindSuccessor {
		return nil, nil, nil
	}
	return proveLeaf(ctx, r, c, note, c.Size-1, leaf)
}

// Take reads the new log's half of a hand-over, of which last is the old one's.
// open opens the log at an address.
func Take(ctx context.Context, p *c2sp.Policy, last []byte, open func(url string) (LogReader, error)) (*Handover, *Followed, *c2sp.Policy, error) {
	f, next, err := verifyLast(p, last)
	if err != nil {
		return nil, nil, nil, err
	}
	fail := func(err error) (*Handover, *Followed, *c2sp.Policy, error) {
		return nil, nil, nil, fmt.Errorf("the log %q has ended and names %q as the one that goes on: %w", f.From.Origin, f.To, err)
	}
	r, err := open(f.URL)
	if err != nil {
		return fail(cannot(CodeNotFollowed, f.URL, err))
	}
	note, err := r.Checkpoint(ctx)
	if err != nil {
		return fail(err)
	}
	v, err := next.Verify(note)
	if err != nil {
		return fail(headError(err))
	}
	if v.Origin != f.To {
		return fail(&CannotCheck{Code: CodeNotFollowed, Reason: fmt.Sprintf("%s serves the log %q", f.URL, v.Origin)})
	}
	if v.Size == 0 {
		return fail(&CannotCheck{Code: CodeNotFollowed, Reason: "it has no entries yet"})
	}
	first, _, err := ProveEntry(ctx, r, v.Checkpoint, note, 0)
	if err != nil {
		return fail(err)
	}
	h := &Handover{Last: last, First: first}
	done, next, err := h.Verify(p)
	if err != nil {
		return fail(err)
	}
	return h, done, next, nil
}

// A Following is where a log is read now, after all its hand-overs.
type Following struct {
	Policy    *c2sp.Policy // with the logs that took over
	Reader    *Reader      // of the newest
	Handovers []*Followed  // the oldest first; none if the log goes on itself
}

// Policy is p with the logs that took over from logs that it names, as far as
// it is remembered and still verifies under p. See [State.Follow].
func (s *State) Policy(p *c2sp.Policy) *c2sp.Policy {
	s.mu.Lock()
	list := slices.Clone(s.handovers)
	s.mu.Unlock()
	for range min(len(list), MaxHandovers) {
		for i, h := range list {
			// One that does not verify, since the policy has other logs or
			// witnesses now, adds nothing.
			if _, next, err := h.Verify(p); err == nil {
				p = next
				list = slices.Delete(list, i, i+1)
				break
			}
		}
	}
	return p
}

// Follow is [State.Latest], and goes on to the log that took over if this one
// has ended: what proves that is remembered, and from then on the old log is
// not asked any more. r reads the log that the policy names.
func (s *State) Follow(ctx context.Context, p *c2sp.Policy, r *Reader) (*Following, error) {
	f := &Following{Policy: p, Reader: r}
	if f.Policy = s.Policy(p); !bytes.Equal(f.Policy.Bytes(), p.Bytes()) {
		// Along what is remembered.
		s.mu.Lock()
		list := slices.Clone(s.handovers)
		s.mu.Unlock()
		q := p
		for again := true; again; {
			again = false
			for i, h := range list {
				if h.at != f.Reader.base {
					continue
				}
				done, next, err := h.Verify(q)
				if err != nil {
					continue
				}
				reader, err := f.Reader.Successor(done.URL)
				if err != nil {
					return nil, cannot(CodeNotFollowed, done.URL, err)
				}
				q, f.Reader, f.Handovers = next, reader, append(f.Handovers, done)
				list, again = slices.Delete(list, i, i+1), true
				break
			}
		}
	}
	for {
		note, err := f.Reader.Checkpoint(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.update(ctx, f.Policy, note, f.Reader, true); err != nil {
			return nil, s.afterEnd(p, note, err)
		}
		v, err := f.Policy.Verify(note)
		if err != nil {
			return nil, headError(err)
		}
		last, _, err := LastEntry(ctx, f.Reader, v.Checkpoint, note)
		var cannot *CannotCheck
		if errors.As(err, &cannot) || err == nil && last == nil {
			return f, nil // whether it has ended is not known, or it has not: how old it is tells
		}
		if err != nil {
			return nil, err
		}
		if len(f.Handovers) == MaxHandovers {
			return nil, &CannotCheck{Code: CodeNotFollowed, Reason: fmt.Sprintf("more than %d logs, each the successor of the one before: name a later one in the policy", MaxHandovers)}
		}
		var reader *Reader
		h, done, next, err := Take(ctx, f.Policy, last, func(url string) (_ LogReader, err error) {
			reader, err = f.Reader.Successor(url)
			return reader, err
		})
		if err != nil {
			return nil, s.writeEvidence(err)
		}
		if err := s.hand(ctx, f.Policy, remembered{*h, f.Reader.base}); err != nil {
			return nil, s.writeEvidence(err)
		}
		f.Policy, f.Reader, f.Handovers = next, reader, append(f.Handovers, done)
	}
}

// afterEnd says what it means that a log whose end is remembered shows note.
func (s *State) afterEnd(p *c2sp.Policy, note []byte, err error) error {
	var r *Refusal
	if !errors.As(err, &r) || r.Code != CodeHeadSignature {
		return err
	}
	v, verr := p.VerifyLog(note)
	if verr != nil {
		return err
	}
	for _, h := range s.handed() {
		if f, _, herr := h.Verify(p); herr == nil && f.From.Origin == v.Origin && v.Size > f.From.Size {
			return &Refusal{Code: CodeAfterEnd, Check: "nothing comes after the end",
				Detail: fmt.Sprintf("%q ended with %d entries, and shows a signed tree of %d", v.Origin, f.From.Size, v.Size)}
		}
	}
	return err
}

// writeEvidence writes what proves a refusal beside the state.
func (s *State) writeEvidence(err error) error {
	var r *Refusal
	if errors.As(err, &r) && r.proof != nil && r.Evidence == "" {
		path, werr := WriteEvidence(filepath.Join(filepath.Dir(s.path), "evidence"), r.proof)
		if werr != nil {
			r.Detail += "; " + werr.Error()
		}
		r.Evidence = path
	}
	return err
}

func (s *State) handed() []remembered {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.handovers)
}

// remembered is a hand-over in the state, and where the old log was read.
type remembered struct {
	Handover
	at string
}

// names is which logs it is about, as it says itself.
func (h *remembered) names() (from, to string, err error) {
	pr, err := c2sp.ParseProof(h.Last)
	if err != nil {
		return "", "", err
	}
	n, err := c2sp.ParseNote(pr.Checkpoint)
	if err != nil {
		return "", "", err
	}
	c, err := c2sp.ParseCheckpoint(n.Text)
	if err != nil {
		return "", "", err
	}
	e, err := entry.Parse(pr.Extra)
	if err != nil {
		return "", "", err
	}
	return c.Origin, e.Origin, nil
}

// hand remembers a hand-over that was verified under p. Another successor of
// the same log is refused.
func (s *State) hand(ctx context.Context, p *c2sp.Policy, h remembered) error {
	mine, _, err := h.Verify(p)
	if err != nil {
		return err
	}
	return s.change(ctx, func(file *memory) error {
		for i, have := range file.handovers {
			was, _, err := have.Verify(p)
			if err != nil || was.From.Origin != mine.From.Origin {
				continue
			}
			if was.From.Size != mine.From.Size || was.From.Root != mine.From.Root || was.To != mine.To {
				return badHandover("%q has ended twice: with %d entries it handed over to %q, with %d to %q", was.From.Origin, was.From.Size, was.To, mine.From.Size, mine.To)
			}
			file.handovers[i] = h
			return nil
		}
		file.handovers = append(file.handovers, h)
		return nil
	})
}

// newest is the log that took over from origin, if that is remembered, and
// whoever took over from that one.
func (s *State) newest(origin string) string {
	list := s.handed()
	for range min(len(list), MaxHandovers) {
		for _, h := range list {
			if from, to, err := h.names(); err == nil && from == origin {
				origin = to
				break
			}
		}
	}
	return origin
}

// Successor returns a reader of the log that takes over, at an address that the
// old log gave: nothing that was meant for the old one is sent there, plain http
// is not fallen back to, and from a public address it does not lead to a private
// one. Where an HTTP proxy is asked instead, that one judges addresses.
func (r *Reader) Successor(url string) (*Reader, error) {
	if strings.HasPrefix(r.base, "https://") && !strings.HasPrefix(url, "https://") {
		return nil, fmt.Errorf("%s: the log before it is read over https", url)
	}
	t, ok := r.hc.Transport.(*http.Transport)
	if ok {
		t = t.Clone()
	} else if t, ok = ownTransport().(*http.Transport); !ok { // ours may add a token
		return NewReader(url, nil)
	}
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	before, err := neturl.Parse(r.base)
	if err != nil {
		return nil, err
	}
	viaProxy := false
	if t.Proxy != nil {
		proxy, err := t.Proxy(req)
		viaProxy = err == nil && proxy != nil
	}
	if !viaProxy {
		stayPublic(t, before.Hostname())
	}
	return NewReader(url, &http.Client{Transport: t, Timeout: r.hc.Timeout})
}
