package witness

// Evidence: what the log signed and this witness refused, if it contradicts what
// was cosigned before. It is kept on the disk before the refusal is answered,
// and published for ever:
//
//	GET /evidence/        200 the list: JSON, or a page for a browser
//	GET /evidence/7.txt   200 one file, see c2sp.Evidence
//
// A file accuses by two signatures of the log, and by hashes where the sizes
// differ; nothing in it rests on this witness's word. A proof that does not
// verify is never evidence: anyone can send a good checkpoint with a bad proof.

import (
	"context"
	"crypto/sha256"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// listedEvidence is how many files a list names; the rest is on the next.
const listedEvidence = 100

// suspect looks at a request that the log did sign and check refused, and
// returns the refusal. Two signed trees that contradict each other are evidence
// whatever the answer to this request is. What they are: two of one size; or
// what was cosigned last and a larger tree, if the proof in the request shows
// that the larger began with another tree. A log that has two histories sends
// such proofs by itself, since they are true in the other history. They show
// nothing where the smaller size is a power of two.
//
// So that nobody can fill the journal, what can be repeated is told at most 20
// times, then once in ten seconds.
func (w *Witness) suspect(ctx context.Context, req *request, known *Log, logSigs []c2sp.Signature, refusal error) error {
	f := contradiction(req, known, logSigs)
	var proof *ProofError
	unproven := errors.As(refusal, &proof)
	switch {
	case f == nil && unproven && w.warn.Allow():
		w.log.Warn("a signed checkpoint was not shown to be consistent with the one cosigned before; nothing was cosigned",
			"origin", known.Origin, "old", req.old, "size", req.cp.Size, "reason", proof.Reason)
	case f == nil:
	default:
		f.Seen = w.now()
		kept, err := w.store.keepFork(ctx, f)
		if err != nil {
			return err
		}
		if kept || w.warn.Allow() {
			w.log.Warn("FORK: the log has signed two different trees; nothing was cosigned",
				"origin", known.Origin, "cosigned_size", f.OursSize, "cosigned_root", fmt.Sprintf("%x", known.Head.Root),
				"refused_size", f.Size, "refused_root", fmt.Sprintf("%x", req.cp.Root), "evidence_kept", kept)
		}
		if unproven {
			return &ForkError{known.Origin, f.OursSize, f.Size}
		}
	}
	return refusal
}

// contradiction returns what the request proves against its log, or nil.
func contradiction(req *request, known *Log, logSigs []c2sp.Signature) *Fork {
	head := known.Head
	if head == nil || head.Size == 0 { // any tree may follow the empty one
		return nil
	}
	theirs := c2sp.Note{Text: req.cp.Text(), Sigs: logSigs}
	f := &Fork{Origin: known.Origin, Size: req.cp.Size, OursSize: head.Size, Ours: head.Note, Theirs: theirs.Bytes()}
	switch {
	case req.cp.Size == head.Size && req.cp.Root != head.Root:
	case req.old == head.Size && req.cp.Size > head.Size:
		began, ok := c2sp.RootAt(req.old, req.cp.Size, req.proof, req.cp.Root)
		if !ok || began == head.Root {
			return nil
		}
		f.Hashes = append([][32]byte{began}, req.proof...)
	default:
		return nil
	}
	// What is published convinces everyone who reads it, or it is not published.
	e, err := c2sp.ParseEvidence(f.Evidence(known.Keys).Bytes())
	if err != nil || e.VerifyFork(known.open) != nil {
		return nil
	}
	return f
}

// open is the checkpoint of a note that the log signed.
func (l *Log) open(note []byte) (c2sp.Checkpoint, error) {
	n, err := c2sp.ParseNote(note)
	if err != nil {
		return c2sp.Checkpoint{}, err
	}
	cp, err := c2sp.ParseCheckpoint(n.Text)
	if err != nil {
		return c2sp.Checkpoint{}, err
	}
	if cp.Origin != l.Origin {
		return c2sp.Checkpoint{}, fmt.Errorf("the note is of log %.100q, not of %.100q", cp.Origin, l.Origin)
	}
	_, err = verifyLog(l, n)
	return cp, err
}

// Evidence is the fork as a file, with those of the log's keys in its comments
// that signed it.
func (f *Fork) Evidence(keys []*c2sp.Key) *c2sp.Evidence {
	e := &c2sp.Evidence{First: f.Ours, Second: f.Theirs, Hashes: f.Hashes}
	if f.Hashes != nil {
		e.Claim = c2sp.ClaimInconsistent
	}
	for _, k := range keys {
		signed := false
		for _, note := range [][]byte{f.Ours, f.Theirs} {
			if n, err := c2sp.ParseNote(note); err == nil {
				for _, s := range n.Sigs {
					signed = signed || k.Matches(s)
				}
			}
		}
		if signed {
			e.Remarks = append(e.Remarks, "It is signed with the log's key, which you should know from elsewhere: "+k.String())
		}
	}
	return e
}

// Claim is what the evidence claims.
func (f *Fork) Claim() string {
	if f.OursSize < f.Size {
		return c2sp.ClaimInconsistent
	}
	return c2sp.ClaimSameSize
}

// keepFork stores evidence, once for each size of a log and as much for each log
// as maxForks and maxForkBytes allow. kept is false if it was there, or there is
// enough. Strangers can repeat what is published, so that is found out without
// the database's one writer.
func (s *Store) keepFork(ctx context.Context, f *Fork) (kept bool, err error) {
	if room, err := roomFor(ctx, s.read, f); err != nil || !room {
		return false, err
	}
	if err := s.allCovered(ctx); err != nil { // f.Ours has our cosignatures
		return false, err
	}
	var hashes []byte
	oursSize := sql.NullInt64{Int64: int64(f.OursSize), Valid: f.OursSize < f.Size}
	for _, h := range f.Hashes {
		hashes = append(hashes, h[:]...)
	}
	if hashes == nil {
		hashes = []byte{}
	}
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("writing %s: %w", s.path, err)
	}
	defer tx.Rollback()
	// Who writes this row has the log's evidence to himself.
	if _, err := tx.ExecContext(ctx, "UPDATE log SET added = added WHERE origin = $1", f.Origin); err != nil {
		return false, fmt.Errorf("writing %s: %w", s.path, err)
	}
	if room, err := roomFor(ctx, tx, f); err != nil || !room {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO fork (origin, size, ours_size, ours, theirs, hashes, seen) VALUES ($1, $2, $3, $4, $5, $6, $7)",
		f.Origin, int64(f.Size), oursSize, f.Ours, f.Theirs, hashes, f.Seen.Unix()); err != nil {
		return false, fmt.Errorf("writing %s: %w", s.path, err)
	}
	if err := tx.Commit(); err != nil {
		return false, fmt.Errorf("writing %s: %w", s.path, err)
	}
	return true, nil
}

// roomFor reports whether f is new, and may be kept.
func roomFor(ctx context.Context, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, f *Fork) (bool, error) {
	var n, bytes, had int64
	if err := db.QueryRowContext(ctx, `SELECT count(*), coalesce(sum(length(ours) + length(theirs)), 0), coalesce(max(CASE WHEN size = $2 THEN 1 ELSE 0 END), 0)
		FROM fork WHERE origin = $1`, f.Origin, int64(f.Size)).Scan(&n, &bytes, &had); err != nil {
		return false, fmt.Errorf("reading the evidence kept: %w", err)
	}
	return had == 0 && n < maxForks && (n == 0 || bytes+int64(len(f.Ours)+len(f.Theirs)) <= maxForkBytes), nil
}

const forkColumns = "id, origin, size, coalesce(ours_size, size), ours, theirs, hashes, seen"

// Forks returns the evidence against a log, oldest first.
func (s *Store) Forks(ctx context.Context, origin string) ([]*Fork, error) {
	return s.forks(ctx, "SELECT "+forkColumns+" FROM fork WHERE origin = $1 ORDER BY id", origin)
}

// forkByID returns one piece of evidence, nil if there is none of this number.
func (s *Store) forkByID(ctx context.Context, id int64) (*Fork, error) {
	list, err := s.forks(ctx, "SELECT "+forkColumns+" FROM fork WHERE id = $1", id)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// forksBefore lists evidence, newest first, without the notes.
func (s *Store) forksBefore(ctx context.Context, id int64, limit int) ([]*Fork, error) {
	return s.forks(ctx, "SELECT id, origin, size, coalesce(ours_size, size), '', '', '', seen FROM fork WHERE id < $1 ORDER BY id DESC LIMIT $2", id, limit)
}

func (s *Store) forks(ctx context.Context, query string, args ...any) ([]*Fork, error) {
	rows, err := s.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	defer rows.Close()
	var out []*Fork
	for rows.Next() {
		f := new(Fork)
		var size, ours, seen int64
		var hashes []byte
		if err := rows.Scan(&f.ID, &f.Origin, &size, &ours, &f.Ours, &f.Theirs, &hashes, &seen); err != nil {
			return nil, fmt.Errorf("reading %s: %w", s.path, err)
		}
		for ; len(hashes) >= 32; hashes = hashes[32:] {
			f.Hashes = append(f.Hashes, [32]byte(hashes[:32]))
		}
		f.Size, f.OursSize, f.Seen = uint64(size), uint64(ours), time.Unix(seen, 0)
		out = append(out, f)
	}
	return out, rows.Err()
}

//go:embed evidence.html
var evidenceHTML string

var evidencePage = template.Must(template.Must(statusPage.Clone()).New("evidence").Parse(evidenceHTML))

// Name is the file under which evidence is published.
func (f *Fork) Name() string { return strconv.FormatInt(f.ID, 10) + ".txt" }

// evidenceID is the number in the name of a file; 0 if it is none.
func evidenceID(name string) int64 {
	digits, ok := strings.CutSuffix(name, ".txt")
	id, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || id < 1 || name != (&Fork{ID: id}).Name() {
		return 0
	}
	return id
}

func (w *Witness) serveEvidence(rw http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/evidence/")
	if name == "" {
		w.listEvidence(rw, r)
		return
	}
	var f *Fork
	var l *Log
	var err error
	if id := evidenceID(name); id > 0 {
		f, err = w.store.forkByID(r.Context(), id)
	}
	if err == nil && f != nil {
		l, err = w.store.Log(r.Context(), f.Origin)
	}
	switch {
	case err != nil:
		w.log.Error("reading evidence failed", "error", err)
		problem(rw, http.StatusInternalServerError, "the witness failed; its operator's journal has the cause")
	case f == nil:
		problem(rw, http.StatusNotFound, "there is no such evidence: GET evidence/ lists what there is")
	default:
		b := f.Evidence(l.Keys).Bytes()
		h := rw.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
		h.Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(b)))
		http.ServeContent(rw, r, "", time.Time{}, strings.NewReader(string(b)))
	}
}

// listEvidence lists what is published, newest first, so many at a time.
func (w *Witness) listEvidence(rw http.ResponseWriter, r *http.Request) {
	before := int64(1<<63 - 1)
	if s := r.URL.Query().Get("before"); s != "" {
		var err error
		if before, err = strconv.ParseInt(s, 10, 64); err != nil || before < 1 {
			problem(rw, http.StatusBadRequest, "before: want the number of a piece of evidence")
			return
		}
	}
	list, err := w.store.forksBefore(r.Context(), before, listedEvidence+1)
	if err != nil {
		w.log.Error("listing the evidence failed", "error", err)
		problem(rw, http.StatusInternalServerError, "the witness failed; its operator's journal has the cause")
		return
	}
	next := ""
	if len(list) > listedEvidence {
		list = list[:listedEvidence]
		next = fmt.Sprintf("?before=%d", list[len(list)-1].ID)
	}
	h := rw.Header()
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", pagePolicy)
		if err := evidencePage.Execute(rw, struct {
			Name string
			List []*Fork
			Next string
		}{w.keys[0].Name(), list, next}); err != nil {
			w.log.Debug("the list of evidence was not read to its end", "error", err)
		}
		return
	}
	type listed struct {
		File       string `json:"file"` // relative to the list
		Log        string `json:"log"`  // its origin
		Claim      string `json:"claim"`
		FirstSize  uint64 `json:"first_size"`
		SecondSize uint64 `json:"second_size"`
		Seen       string `json:"seen"` // when it was refused
	}
	out := struct {
		Witness  string   `json:"witness"`
		Evidence []listed `json:"evidence"`
		Next     string   `json:"next,omitempty"` // relative: older evidence
	}{w.keys[0].Name(), []listed{}, next}
	for _, f := range list {
		out.Evidence = append(out.Evidence, listed{f.Name(), f.Origin, f.Claim(), f.OursSize, f.Size, f.Seen.UTC().Format(time.RFC3339)})
	}
	h.Set("Content-Type", "application/json")
	if err := json.NewEncoder(rw).Encode(out); err != nil {
		w.log.Debug("the list of evidence was not read to its end", "error", err)
	}
}
