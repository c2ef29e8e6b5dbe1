package client

// What this user has seen of each log: one file, replaced as a whole, locked
// between processes. It is what makes going back and forking visible.
//
//	portbook-state/v1 <hex SHA-256 of all that follows>
//	{"logs": { "<origin>": {"note": "...", "quorum_time": ..., "fresh_time": ...}},
//	 "handovers": [{"last": "<tlog-proof>", "first": "<tlog-proof>", "at": "<URL>"}]}
//
// Who can change this file can at most make this user forget, or believe that
// what is known is newer than it is: each note in it is signed by its log, and a
// hand-over is verified at each use.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
)

const (
	stateHeader = "portbook-state/v1 "
	maxState    = 64 << 20
	// lockPatience is how long an update waits for another process.
	lockPatience = 10 * time.Second
)

// A State remembers the newest verified checkpoint of each log. It is safe for
// concurrent use, by goroutines and by processes.
type State struct {
	path string

	mu     sync.Mutex
	memory // as last read from, or written to, the file
}

// memory is what a state file holds.
type memory struct {
	logs      map[string]Remembered
	handovers []remembered // the oldest first
}

// A Remembered is the newest checkpoint of a log that was verified here.
type Remembered struct {
	Checkpoint c2sp.Checkpoint
	Note       []byte    // the whole signed note
	QuorumTime time.Time // see c2sp.Verified; zero under quorum none
	FreshTime  time.Time // see c2sp.Verified; zero under quorum none
}

// stored is a Remembered in the file.
type stored struct {
	Note       string    `json:"note"`
	QuorumTime time.Time `json:"quorum_time,omitzero"`
	FreshTime  time.Time `json:"fresh_time,omitzero"`
}

type stateFile struct {
	Logs      map[string]stored `json:"logs"`
	Handovers []storedHandover  `json:"handovers,omitempty"`
}

type storedHandover struct {
	Last  string `json:"last"`
	First string `json:"first"`
	At    string `json:"at"`
}

// OpenState opens the state in the file path. A file that does not exist is an
// empty state, and is made by the first update; its directory too. A file that
// is there and cannot be understood is a [*CannotCheck] and stays as it is.
func OpenState(path string) (*State, error) {
	if path == "" {
		return nil, &CannotCheck{Code: CodeStateUnreadable, Reason: "no state file is named"}
	}
	m, err := readState(path)
	if err != nil {
		return nil, err
	}
	return &State{path: path, memory: m}, nil
}

// Newest returns what is remembered of a log, the time of its quorum, and
// whether there is anything: as this State last read or wrote the file, which
// an update by another process does not change.
func (s *State) Newest(origin string) (Remembered, time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.logs[origin]
	return r, r.QuorumTime, ok
}

// Update verifies note under the policy and makes it what is remembered of its
// log, if it is the newest and agrees with what was remembered before. r serves
// the tiles of the log.
//
// An older note that agrees changes nothing and is no error: the proof of an
// older file carries one. A note that disagrees is a [*Refusal] (PB2xx), and
// where that can be proven to others, evidence is written beside the state
// file; this holds even if too few witnesses cosigned it, since witnesses are
// the first not to cosign a fork. Without history the note is believed.
//
// A note that does not stand under the policy is a [*Refusal] of its signatures
// (PB205), or a [*CannotCheck] if it is no checkpoint, of another log, or below
// the quorum.
func (s *State) Update(ctx context.Context, p *c2sp.Policy, note []byte, r TileReader) error {
	return s.update(ctx, p, note, r, false)
}

// Latest fetches the log's own newest checkpoint and updates the state with it.
// If that is behind what is remembered, the log went back: a [*Refusal].
func (s *State) Latest(ctx context.Context, p *c2sp.Policy, r *Reader) error {
	note, err := r.Checkpoint(ctx)
	if err != nil {
		return err
	}
	return s.update(ctx, p, note, r, true)
}

// Observe compares note with what is remembered, offline: it refuses a fork of
// the remembered size, with evidence, and changes nothing. It is for the
// checkpoints of proofs, which must not make the state look fresh. A note of
// another size, or of a log without history, passes: use [State.Update] to
// compare those.
func (s *State) Observe(p *c2sp.Policy, note []byte) error {
	v, err := p.VerifyLog(note)
	if err != nil {
		return headError(err)
	}
	if old, _, ok := s.Newest(v.Origin); ok && old.Checkpoint.Size == v.Size {
		return s.compare(context.Background(), p, old, v, note, nil)
	}
	return nil
}

func (s *State) update(ctx context.Context, p *c2sp.Policy, note []byte, r TileReader, head bool) error {
	signed, err := p.VerifyLog(note)
	if err != nil {
		return headError(err)
	}
	v, quorumErr := p.Verify(note)
	if quorumErr != nil {
		// Not to be remembered. But if the log signed a fork, or shows a head
		// that it had left behind, that is worth more than to know that its
		// witnesses did not sign: honest ones never do.
		m, err := readState(s.path)
		if err != nil {
			return err
		}
		if old, ok := m.logs[signed.Origin]; ok {
			var refusal *Refusal
			if err := s.compare(ctx, p, old, signed, note, r); errors.As(err, &refusal) && (refusal.Code == CodeForkSameSize || refusal.Code == CodeForkPrefix) {
				return err // also where its evidence could not be written
			}
			if head && signed.Size < old.Checkpoint.Size {
				return s.refuseRollback(p, signed, old)
			}
		}
		return headError(quorumErr)
	}

	// The network is asked without holding the lock, so what is remembered may
	// change meanwhile; then it is compared again.
	for {
		m, err := readState(s.path)
		if err != nil {
			return err
		}
		old, known := m.logs[v.Origin]
		if known {
			err := s.compare(ctx, p, old, v, note, r)
			if head && v.Size < old.Checkpoint.Size {
				// A log that went back may not have the tiles of the larger
				// tree any more. It went back, whether it forked as well or not.
				var refusal *Refusal
				if errors.As(err, &refusal) && refusal.Code == CodeForkPrefix {
					return err
				}
				return s.refuseRollback(p, v, old)
			}
			if err != nil {
				return err
			}
			if v.Size < old.Checkpoint.Size || v.Size == old.Checkpoint.Size && !v.FreshTime.After(old.FreshTime) {
				s.mu.Lock()
				s.memory = m
				s.mu.Unlock()
				return nil
			}
		}
		done, err := s.store(ctx, old.Note, Remembered{Checkpoint: v.Checkpoint, Note: bytes.Clone(note), QuorumTime: v.QuorumTime, FreshTime: v.FreshTime})
		if err != nil || done {
			return err
		}
	}
}

func (s *State) refuseRollback(p *c2sp.Policy, v *c2sp.Verified, old Remembered) *Refusal {
	if r := s.otherKey(p, old.Checkpoint, old.Note); r != nil {
		return r
	}
	return &Refusal{Code: CodeRollback, Check: "the log only grows",
		Detail: fmt.Sprintf("%q now shows size %d; size %d was seen before", v.Origin, v.Size, old.Checkpoint.Size)}
}

// otherKey refuses a history that contradicts a remembered one which no key of
// the policy signed: another log under the same name, or one whose key was
// replaced. That is no evidence that either log lied. It returns nil if the
// policy has the key.
func (s *State) otherKey(p *c2sp.Policy, was c2sp.Checkpoint, note []byte) *Refusal {
	if _, err := p.VerifyLog(note); err == nil {
		return nil
	}
	return &Refusal{Code: CodeOtherKey, Check: "the same log as before",
		Detail: fmt.Sprintf("what is remembered of %q (size %d) was signed by a key that the policy does not have, and this history does not continue it; "+
			"if it is another log on purpose, use another --state file or take %q out of %s", was.Origin, was.Size, was.Origin, s.path)}
}

// headError says what it means that a checkpoint does not stand on its own.
func headError(err error) error {
	var quorum *c2sp.QuorumError
	switch {
	case errors.Is(err, c2sp.ErrBadSignature), errors.Is(err, c2sp.ErrNoLogSignature):
		return &Refusal{Code: CodeHeadSignature, Check: "the log's checkpoint", Detail: err.Error(), Err: err}
	case errors.Is(err, c2sp.ErrUnknownLog):
		return cannot(CodeOtherLog, "the log's checkpoint", err)
	case errors.As(err, &quorum):
		return cannot(CodeHeadQuorum, "the log's checkpoint", err)
	}
	return cannot(CodeNotCheckpoint, "the log's checkpoint", err)
}

// compare says whether v, of which note is the signed form, and what is
// remembered can be of one history.
func (s *State) compare(ctx context.Context, p *c2sp.Policy, old Remembered, v *c2sp.Verified, note []byte, r TileReader) error {
	a, b := old.Checkpoint, v.Checkpoint
	first, second := old.Note, note
	if a.Size > b.Size {
		a, b, first, second = b, a, second, first
	}
	if a.Size == b.Size {
		if a.Root == b.Root {
			return nil
		}
		return s.refuseFork(p, old, CodeForkSameSize, &Evidence{First: first, Second: second},
			fmt.Sprintf("%q signed two different trees of size %d", a.Origin, a.Size))
	}
	if r == nil {
		return &CannotCheck{Code: CodeUnreachable, Reason: fmt.Sprintf("sizes %d and %d of %q cannot be compared without the log's tiles", a.Size, b.Size, a.Origin)}
	}
	hashes, err := prefixHashes(ctx, r, a.Size, b.Size)
	if err != nil {
		return err
	}
	atA, atB, err := c2sp.PrefixRoots(a.Size, b.Size, hashes)
	if err != nil {
		return fmt.Errorf("comparing sizes %d and %d: %w", a.Size, b.Size, err)
	}
	if atB != b.Root {
		return &Refusal{Code: CodeTilesMismatch, Check: "the log's tiles",
			Detail: fmt.Sprintf("the tiles of %q do not lead to the root it signed for size %d, so it is not shown that this tree begins with the one of size %d", a.Origin, b.Size, a.Size)}
	}
	if atA == a.Root {
		return nil
	}
	return s.refuseFork(p, old, CodeForkPrefix, &Evidence{First: first, Second: second, Hashes: hashes},
		fmt.Sprintf("the tree of size %d that %q signed does not begin with the one of size %d that it signed too", b.Size, a.Origin, a.Size))
}

// refuseFork writes the evidence and makes the refusal.
func (s *State) refuseFork(p *c2sp.Policy, old Remembered, code string, e *Evidence, detail string) error {
	if r := s.otherKey(p, old.Checkpoint, old.Note); r != nil {
		return r
	}
	r := &Refusal{Code: code, Check: "one history for everyone", Detail: detail}
	if _, err := e.Verify(p); err != nil {
		r.Detail += "; this cannot be proven to others: " + err.Error()
		return r
	}
	path, err := WriteEvidence(filepath.Join(filepath.Dir(s.path), "evidence"), e)
	if err != nil {
		r.Detail += "; " + err.Error()
	}
	r.Evidence = path
	return r
}

// store replaces the file with r in it, if what the file remembers of the log
// is still the note was. It reports whether it was.
func (s *State) store(ctx context.Context, was []byte, r Remembered) (done bool, err error) {
	err = s.change(ctx, func(m *memory) error {
		if bytes.Equal(m.logs[r.Checkpoint.Origin].Note, was) {
			m.logs[r.Checkpoint.Origin], done = r, true
		}
		return nil
	})
	return done && err == nil, err
}

// change reads the file, and writes what do makes of it, as one step among
// processes.
func (s *State) change(ctx context.Context, do func(*memory) error) error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return cannot(CodeStateUnwritable, "the state file", err)
	}
	unlock, err := lockState(ctx, s.path+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	m, err := readState(s.path)
	if err != nil {
		return err
	}
	if err := do(&m); err != nil {
		return err
	}
	if err := writeState(s.path, m); err != nil {
		return cannot(CodeStateUnwritable, "the state file", err)
	}
	s.mu.Lock()
	s.memory = m
	s.mu.Unlock()
	return nil
}

// lockState takes the lock between processes. Its file stays.
func lockState(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, cannot(CodeStateUnwritable, "the state file's lock", err)
	}
	for start := time.Now(); ; {
		ok, err := tryLock(f)
		if ok {
			return func() { f.Close() }, nil // closing unlocks
		}
		if err == nil && time.Since(start) > lockPatience {
			err = fmt.Errorf("%s is held by another process for more than %s", path, lockPatience)
		}
		if err == nil {
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(10 * time.Millisecond):
				continue
			}
		}
		f.Close()
		return nil, cannot(CodeStateUnwritable, "the state file's lock", err)
	}
}

// readState reads the file. Its error is a *CannotCheck.
func readState(path string) (memory, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return memory{logs: map[string]Remembered{}}, nil
	}
	if err != nil {
		return memory{}, cannot(CodeStateUnreadable, "the state file", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err == nil && len(b) > maxState {
		err = fmt.Errorf("it has more than %d bytes", maxState)
	}
	var m memory
	if err == nil {
		m, err = parseState(b)
	}
	if err != nil {
		return m, &CannotCheck{Code: CodeStateUnreadable, Err: err,
			Reason: fmt.Sprintf("the state file %s is damaged: %v. Restore it, or move it away to begin without history", path, err)}
	}
	return m, nil
}

func parseState(b []byte) (m memory, err error) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	sum, ok2 := strings.CutPrefix(string(head), stateHeader)
	if !ok || !ok2 {
		return m, fmt.Errorf("it does not begin with %q", stateHeader)
	}
	if have := sha256.Sum256(body); sum != hex.EncodeToString(have[:]) {
		return m, errors.New("its checksum does not fit")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	var file stateFile
	if err := dec.Decode(&file); err != nil {
		return m, err
	}
	m.logs = make(map[string]Remembered, len(file.Logs))
	for origin, l := range file.Logs {
		n, err := c2sp.ParseNote([]byte(l.Note))
		if err != nil {
			return m, err
		}
		c, err := c2sp.ParseCheckpoint(n.Text)
		if err != nil {
			return m, err
		}
		if c.Origin != origin {
			return m, fmt.Errorf("a checkpoint of %q stands under %q", c.Origin, origin)
		}
		m.logs[origin] = Remembered{Checkpoint: c, Note: []byte(l.Note), QuorumTime: l.QuorumTime, FreshTime: l.FreshTime}
	}
	for _, h := range file.Handovers {
		r := remembered{Handover{[]byte(h.Last), []byte(h.First)}, h.At}
		if _, _, err := r.names(); err != nil {
			return m, err
		}
		m.handovers = append(m.handovers, r)
	}
	return m, nil
}

func writeState(path string, m memory) error {
	file := stateFile{Logs: make(map[string]stored, len(m.logs))}
	for _, h := range m.handovers {
		file.Handovers = append(file.Handovers, storedHandover{string(h.Last), string(h.First), h.at})
	}
	for origin, r := range m.logs {
		file.Logs[origin] = stored{Note: string(r.Note), QuorumTime: r.QuorumTime, FreshTime: r.FreshTime}
	}
	body, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	body = append(body, '\n')
	sum := sha256.Sum256(body)
	return replaceFile(path, append([]byte(stateHeader+hex.EncodeToString(sum[:])+"\n"), body...))
}
