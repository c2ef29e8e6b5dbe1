package logserver

// The reading calls of the API: proofs of one entry or of many, lookups, and
// entries in order. What is read is what is published; no call says more.

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc"
)

const (
	maxPage      = 1000
	defaultPage  = 100
	maxProofs    = 100     // of one query
	maxQueries   = 256     // of one call
	maxAnswer    = 3 << 20 // bytes of proofs in one answer; gRPC clients take 4 MiB
	maxEntries   = 1 << 16 // of one stream
	proofChunk   = 16      // entries with their proofs in one message of a stream
	maxStreaming = 10 * time.Minute
)

// outOfRangeError says that a stream would leave the published log.
type outOfRangeError struct{ size uint64 }

func (e *outOfRangeError) Error() string {
	return fmt.Sprintf("the published log has %d entries: from and to go up to that", e.size)
}

// view is the published log as one call sees it: one checkpoint, and each bundle
// read once as long as they come in order or near each other.
type view struct {
	log *Log
	p   Published
	t   tree
}

func (l *Log) view(ctx context.Context) *view {
	v := &view{log: l, p: l.Published()}
	v.t = l.tree(int64(v.p.Size))
	v.t.ctx, v.t.src = ctx, &bundleMemo{tileSource: v.t.src}
	return v
}

// bundleMemo remembers a few bundles. It is for one goroutine.
type bundleMemo struct {
	tileSource
	kept [8]struct {
		index uint64
		p     uint8
		raw   []byte
	}
	next int
}

// ReadEntryBundle implements tileSource.
func (m *bundleMemo) ReadEntryBundle(ctx context.Context, index uint64, p uint8) ([]byte, error) {
	for _, k := range m.kept {
		if k.raw != nil && k.index == index && k.p == p {
			return k.raw, nil
		}
	}
	raw, err := m.tileSource.ReadEntryBundle(ctx, index, p)
	if err != nil {
		return nil, err
	}
	k := &m.kept[m.next]
	k.index, k.p, k.raw = index, p, raw
	m.next = (m.next + 1) % len(m.kept)
	return raw, nil
}

// openTokens reads the credentials at path, and decides whether the log may be
// opened to everybody.
func (l *Log) openTokens(path string, id Identity) (err error) {
	if l.Tokens, err = OpenTokens(path, l.cfg.Now); err != nil {
		l.cfg.Logger.Error("credentials cannot be read; nobody is let in until they can be", "err", err)
	} else if _, served := os.Lstat(filepath.Join(filepath.Dir(path), checkpointFile)); served == nil {
		_, err = os.Lstat(path) // a log that was served has had some
	}
	return l.meantPrivate(id, err)
}

// meantPrivate refuses to open a log to everybody for which somebody has handed
// out credentials that read, or of which it cannot be told whether somebody has:
// unread says why its credentials cannot be read, if they cannot, and its
// identity does not say what it is.
func (l *Log) meantPrivate(id Identity, unread error) error {
	if l.cfg.Private {
		return nil
	}
	if unread != nil && id.Private == nil {
		return fmt.Errorf("it cannot be told whether this log is private: %w: serve it with --private, or as a user who can read its credentials; a public log is one whose log.json says \"private\": false", unread)
	}
	for _, t := range l.Tokens.List() {
		if t.Read && t.Revoked == "" {
			return fmt.Errorf("credential %s reads a private log, and this log would be served to everybody: serve it with --private, or revoke every credential that reads", t.ID)
		}
	}
	return nil
}

// mayRead finds who reads; it counts and logs a refusal. In a public log it is
// anybody. The error is as authenticate's, or a *NotAllowedError.
func (l *Log) mayRead(ctx context.Context, shown presented) (by Credential, err error) {
	if !l.cfg.Private {
		return Credential{}, nil
	}
	if by, err = l.Tokens.authenticate(ctx, shown); err == nil && !by.Read {
		err = &NotAllowedError{"token", "this token submits; this log is private, and reading it needs a token made by portbook-log token create --read"}
	}
	if err != nil {
		l.refused(shown.peer, by.ID, err)
	}
	return by, err
}

// mayStillRead is nil while what mayRead found is good.
func (l *Log) mayStillRead(ctx context.Context, by Credential) error {
	if !l.cfg.Private {
		return nil
	}
	return l.Tokens.stillGood(ctx, by)
}

// reading lets in a reading call and admits it; the caller must call done.
func (s *service) reading(ctx context.Context) (done func(), err error) {
	if _, err := s.log.mayRead(ctx, s.presents(ctx).presented); err != nil {
		return nil, err
	}
	return s.log.read()
}

// read admits a reading call; the caller must call done.
func (l *Log) read() (done func(), err error) {
	if l.reads.Add(1) > int64(l.cfg.MaxReads) {
		l.reads.Add(-1)
		return nil, fmt.Errorf("%w: %d lookups are under way", ErrOverloaded, l.cfg.MaxReads)
	}
	if l.testReading != nil {
		l.testReading()
	}
	return func() { l.reads.Add(-1) }, nil
}

// readStream is read for a stream, which may last: they have at most half of
// what there is.
func (l *Log) readStream() (done func(), err error) {
	if limit := max(l.cfg.MaxReads/2, 1); l.readStreams.Add(1) > int64(limit) {
		l.readStreams.Add(-1)
		return nil, fmt.Errorf("%w: %d streams of entries are under way", ErrOverloaded, limit)
	}
	one, err := l.read()
	if err != nil {
		l.readStreams.Add(-1)
		return nil, err
	}
	return func() { one(); l.readStreams.Add(-1) }, nil
}

// GetProof implements pb.LogServer.
func (s *service) GetProof(ctx context.Context, req *pb.GetProofRequest) (*pb.GetProofResponse, error) {
	done, err := s.reading(ctx)
	if err != nil {
		return nil, s.fail(err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, s.log.cfg.MaxWait)
	defer cancel()
	left := maxAnswer
	proofs, err := s.log.view(ctx).proofs(req, &left)
	if err != nil {
		return nil, s.fail(err)
	}
	return &pb.GetProofResponse{Proofs: proofs}, nil
}

// GetProofs implements pb.LogServer.
func (s *service) GetProofs(ctx context.Context, req *pb.GetProofsRequest) (*pb.GetProofsResponse, error) {
	done, err := s.reading(ctx)
	if err != nil {
		return nil, s.fail(err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, s.log.cfg.MaxWait)
	defer cancel()
	if n := len(req.Queries); n < 1 || n > maxQueries {
		return nil, s.fail(&entry.FieldError{Field: "queries", Reason: fmt.Sprintf("%d of them: want 1 to %d", n, maxQueries)})
	}
	v := s.log.view(ctx)
	left := maxAnswer
	res := &pb.GetProofsResponse{}
	for i, q := range req.Queries {
		proofs, err := v.proofs(q, &left)
		if ctx.Err() != nil {
			return nil, s.fail(fmt.Errorf("after %d of %d queries: %w", i, len(req.Queries), ctx.Err()))
		}
		answer := &pb.ProofAnswer{Proofs: proofs}
		if err != nil {
			answer = &pb.ProofAnswer{Error: streamError(s.status(err))}
		}
		res.Answers = append(res.Answers, answer)
	}
	return res, nil
}

var errAnswerFull = fmt.Errorf("%w: the answer is full: ask for this one and what follows again", ErrOverloaded)

// proofs answers one query. It takes the bytes of its answer off left, and gives
// none where they do not fit; a query that has nothing before it gets at least
// its first proof.
func (v *view) proofs(req *pb.GetProofRequest, left *int) ([]*pb.LoggedEntry, error) {
	first := *left == maxAnswer
	if *left <= 0 {
		return nil, errAnswerFull
	}
	hits, err := v.query(req)
	if err != nil {
		return nil, err
	}
	var out []*pb.LoggedEntry
	for _, h := range hits {
		p := v.log.board.forProof(v.p, h.index)
		t := v.t
		t.size = int64(p.Size)
		proof, err := v.log.proveIn(t, p, h.index, h.leaf)
		if err != nil {
			return nil, err
		}
		raw := proof.Bytes()
		if *left -= len(proof.Extra) + len(raw) + 32; *left < 0 && len(out) > 0 && first {
			break
		} else if *left < 0 && !first {
			return nil, errAnswerFull
		}
		out = append(out, &pb.LoggedEntry{Index: h.index, Leaf: proof.Extra, Proof: raw})
	}
	return out, nil
}

// query finds the entries that a query asks for: at least one.
func (v *view) query(req *pb.GetProofRequest) (hits []found, err error) {
	var want string
	switch by := req.GetBy().(type) {
	case *pb.GetProofRequest_Index:
		want = fmt.Sprintf("entry %d", by.Index)
		if by.Index < v.p.Size {
			hits = []found{{index: by.Index}}
		}
	case *pb.GetProofRequest_LeafHash:
		want = "leaf hash " + by.LeafHash
		if err := checkHex("leaf_hash", by.LeafHash, 32); err != nil {
			return nil, err
		}
		raw, err := hex.DecodeString(by.LeafHash)
		if err != nil {
			return nil, err
		}
		hits, _, err = v.log.lookup.find(v.t, keyOf("leaf", string(raw)), 0, 1, func(f *found) bool {
			return entry.LeafHash(f.leaf) == [32]byte(raw)
		})
		if err != nil {
			return nil, err
		}
	case *pb.GetProofRequest_Sha256:
		want = "file with sha256 " + by.Sha256
		if err := checkHex("sha256", by.Sha256, 32); err != nil {
			return nil, err
		}
		hits, _, err = v.log.lookup.find(v.t, keyOf("sha256", by.Sha256), 0, maxProofs, func(f *found) bool {
			return f.entry.SHA256 == by.Sha256 && f.entry.Kind == entry.KindUpload
		})
	case *pb.GetProofRequest_Sha512:
		want = "file with sha512 " + by.Sha512
		if err := checkHex("sha512", by.Sha512, 64); err != nil {
			return nil, err
		}
		hits, _, err = v.log.lookup.find(v.t, keyOf("sha512", by.Sha512), 0, maxProofs, func(f *found) bool {
			return f.entry.SHA512 == by.Sha512 && f.entry.Kind == entry.KindUpload
		})
	default:
		return nil, &entry.FieldError{Field: "by", Reason: "name an index, a leaf_hash, a sha256 or a sha512"}
	}
	if err != nil {
		return nil, err
	}
	if len(hits) == 0 {
		return nil, &notFoundError{want + " is not in the published log"}
	}
	return hits, nil
}

func checkHex(field, s string, size int) error {
	if raw, err := hex.DecodeString(s); err != nil || len(raw) != size || hex.EncodeToString(raw) != s {
		return &entry.FieldError{Field: field, Reason: fmt.Sprintf("want %d lower-case hex digits", 2*size)}
	}
	return nil
}

// Entries implements pb.LogServer.
func (s *service) Entries(req *pb.EntriesRequest, stream grpc.ServerStreamingServer[pb.EntriesResponse]) error {
	by, err := s.log.mayRead(stream.Context(), s.presents(stream.Context()).presented)
	if err != nil {
		return s.fail(err)
	}
	done, err := s.log.readStream()
	if err != nil {
		return s.fail(err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(stream.Context(), maxStreaming)
	defer cancel()
	v := s.log.view(ctx)
	from, to := req.From, req.To
	switch {
	case v.p.Note == nil:
		return s.fail(&notFoundError{"the log has not published a checkpoint yet"})
	case from > v.p.Size || to > v.p.Size:
		return s.fail(&outOfRangeError{v.p.Size})
	case to == 0:
		to = min(from+maxEntries, v.p.Size)
	case to < from:
		return s.fail(&entry.FieldError{Field: "to", Reason: "it is before from"})
	case to-from > maxEntries:
		return s.fail(&entry.FieldError{Field: "to", Reason: fmt.Sprintf("at most %d entries a call: ask for the rest after these", maxEntries)})
	}
	chunk := &pb.EntriesResponse{Checkpoint: v.p.Note}
	for {
		if err := s.log.mayStillRead(ctx, by); err != nil {
			return s.fail(err)
		}
		n := min(tileWidth-from%tileWidth, to-from)
		if req.Proofs {
			n = min(n, proofChunk)
		}
		if n > 0 {
			leaves, err := v.t.leaves(int64(from), int(n))
			if err != nil {
				return s.fail(err)
			}
			for i, leaf := range leaves {
				e := &pb.LoggedEntry{Index: from + uint64(i), Leaf: leaf}
				if req.Proofs {
					proof, err := v.log.proveIn(v.t, v.p, e.Index, leaf)
					if err != nil {
						return s.fail(err)
					}
					e.Proof = proof.Bytes()
				}
				chunk.Entries = append(chunk.Entries, e)
			}
			from += n
		}
		if err := sendWithin(ctx, stream, chunk); err != nil {
			return s.fail(err)
		}
		if from >= to {
			return nil
		}
		chunk = &pb.EntriesResponse{}
	}
}

var errSlowReader = errors.New("the reader is too slow: go on after the last entry that arrived")

// sendWithin sends a message, which waits while the reader's window is full: at
// most slowest. Returning from the call ends a send that still waits.
func sendWithin[M any](ctx context.Context, stream interface {
	Context() context.Context
	Send(*M) error
}, m *M) error {
	sent := make(chan error, 1)
	go func() { sent <- stream.Send(m) }()
	limit := time.NewTimer(slowest)
	defer limit.Stop()
	select {
	case err := <-sent:
		return err
	case <-limit.C:
		return errSlowReader
	case <-ctx.Done():
		if stream.Context().Err() == nil {
			return errSlowReader // maxStreaming is over
		}
		return ctx.Err()
	}
}

// Lookup implements pb.LogServer.
func (s *service) Lookup(ctx context.Context, req *pb.LookupRequest) (*pb.LookupResponse, error) {
	done, err := s.reading(ctx)
	if err != nil {
		return nil, s.fail(err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, s.log.cfg.MaxWait)
	defer cancel()
	if err := checkLookup(req); err != nil {
		return nil, s.fail(err)
	}
	n := int(req.PageSize)
	if n == 0 {
		n = defaultPage
	}
	var from uint64
	if req.PageToken != "" {
		if from, err = strconv.ParseUint(req.PageToken, 10, 63); err != nil {
			return nil, s.fail(&entry.FieldError{Field: "page_token", Reason: "want the next_page_token of the page before"})
		}
	}
	key := keyOf("project", req.Registry, req.Ecosystem, req.Project)
	if req.File != "" {
		key = keyOf("file", req.Registry, req.Ecosystem, req.Project, req.File)
	}
	hits, more, err := s.log.lookup.find(s.log.view(ctx).t, key, from, n, func(f *found) bool {
		return f.entry.Registry == req.Registry && f.entry.Ecosystem == req.Ecosystem && f.entry.Project == req.Project &&
			(req.File == "" || f.entry.File == req.File)
	})
	if err != nil {
		return nil, s.fail(err)
	}
	res := &pb.LookupResponse{}
	for _, h := range hits {
		res.Entries = append(res.Entries, &pb.LoggedEntry{Index: h.index, Leaf: h.leaf})
	}
	if more != 0 {
		res.NextPageToken = strconv.FormatUint(more, 10)
	}
	return res, nil
}

func checkLookup(req *pb.LookupRequest) error {
	if err := entry.CheckRegistry(req.Registry); err != nil {
		return inField("registry", err)
	}
	if err := entry.CheckProject(req.Ecosystem, req.Project); err != nil {
		return inField("project", err)
	}
	if req.File != "" {
		if err := entry.CheckFile(req.Ecosystem, req.File); err != nil {
			return inField("file", err)
		}
	}
	if req.PageSize < 0 || req.PageSize > maxPage {
		return &entry.FieldError{Field: "page_size", Reason: fmt.Sprintf("want 0 to %d", maxPage)}
	}
	return nil
}

func inField(field string, err error) error {
	var f *entry.FieldError
	if errors.As(err, &f) {
		return f
	}
	return &entry.FieldError{Field: field, Reason: err.Error()}
}
