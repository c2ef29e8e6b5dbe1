package main

// What a log that lies can answer to a submission.

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
)

// A lyingLog answers as it is told.
type lyingLog func(e *entry.Entry) (*submit.Ack, error)

func (l lyingLog) Submit(_ context.Context, e *entry.Entry) (*submit.Ack, error) { return l(e) }

// logged is what an honest log with the witnesses w1 and w2 answers.
func logged(t *testing.T, e *entry.Entry, index uint64) *submit.Ack {
	t.Helper()
	leaf, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	l := &fakeLog{origin: "log.example/test", leaves: map[uint64][]byte{index: leaf}}
	p := &c2sp.Proof{Extra: leaf, Index: index, Checkpoint: l.note(5, false, []string{"w1", "w2"}, time.Now()).Bytes()}
	hashes, err := l.tree(5, false).InclusionProof(index, 5)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, [32]byte(h))
	}
	return &submit.Ack{Index: index, Proof: p.Bytes()}
}

func submitPolicy(t *testing.T) *c2sp.Policy {
	t.Helper()
	p, err := c2sp.ParsePolicy([]byte("log " + signer("log.example/test", c2sp.AlgEd25519).Key().String() +
		"\nwitness w1 " + witnessSigner("w1").Key().String() + "\nwitness w2 " + witnessSigner("w2").Key().String() + "\ngroup g all w1 w2\nquorum g\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func submitFile(t *testing.T, name, content string) upload {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	o := entryOptions{registry: "pypi.example", claim: "index", ecosystem: "pypi"}
	u, err := o.upload(t.Context(), path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestSubmitBelievesNoAnswer(t *testing.T) {
	other := func(change func(e *entry.Entry)) lyingLog {
		return func(e *entry.Entry) (*submit.Ack, error) {
			c := *e
			change(&c)
			return logged(t, &c, 2), nil
		}
	}
	for _, tc := range []struct {
		name, code string
		log        lyingLog
	}{
		{"nothing", "PB101", func(*entry.Entry) (*submit.Ack, error) { return &submit.Ack{}, nil }},
		{"garbage", "PB101", func(*entry.Entry) (*submit.Ack, error) { return &submit.Ack{Proof: []byte("ok\n")}, nil }},
		{"other bytes", "PB115", other(func(e *entry.Entry) { e.SHA256 = strings.Repeat("0", 64) })},
		{"another file", "PB114", other(func(e *entry.Entry) { e.File = "six-1.16.0.tar.gz" })},
		{"another registry", "PB111", other(func(e *entry.Entry) { e.Registry = "evil.example" })},
		{"another project", "PB113", other(func(e *entry.Entry) { e.Project = "evil" })},
		{"another claim", "PB118", other(func(e *entry.Entry) { e.Claim = entry.ClaimObserved })},
		{"another index", "PB107", func(e *entry.Entry) (*submit.Ack, error) {
			ack := logged(t, e, 2)
			ack.Index = 3
			return ack, nil
		}},
		{"no witness", "PB106", func(e *entry.Entry) (*submit.Ack, error) {
			ack := logged(t, e, 2)
			lines := strings.SplitAfter(string(ack.Proof), "\n")
			ack.Proof = []byte(strings.Join(lines[:len(lines)-3], ""))
			return ack, nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := submitFile(t, "six-1.17.0.tar.gz", "six")
			s := submitting{log: tc.log, policy: submitPolicy(t)}
			r := s.one(t.Context(), u)
			if r.Outcome != outcomeRefused || r.Code != tc.code || r.Verified {
				t.Errorf("%+v, want a refusal with %s", r, tc.code)
			}
			files, err := os.ReadDir(filepath.Dir(u.path))
			if err != nil || len(files) != 1 {
				t.Errorf("left behind: %v, %v", files, err)
			}
		})
	}
	t.Run("an honest answer", func(t *testing.T) {
		u := submitFile(t, "six-1.17.0.tar.gz", "six")
		s := submitting{policy: submitPolicy(t), log: lyingLog(func(e *entry.Entry) (*submit.Ack, error) { return logged(t, e, 2), nil })}
		if r := s.one(t.Context(), u); r.Outcome != outcomeLogged || !r.Verified || *r.Index != 2 {
			t.Errorf("%+v", r)
		}
	})
}

// A log that is out for a moment is asked again; one that refuses is not.
func TestSubmitTriesAgainOnlyWhenOut(t *testing.T) {
	u := submitFile(t, "six-1.17.0.tar.gz", "six")
	asked := 0
	s := submitting{policy: submitPolicy(t), wait: time.Minute, log: lyingLog(func(e *entry.Entry) (*submit.Ack, error) {
		if asked++; asked == 1 {
			return nil, &submit.Unavailable{Reason: "no quorum"}
		}
		return logged(t, e, 2), nil
	})}
	if r := s.one(t.Context(), u); r.Outcome != outcomeLogged || asked != 2 {
		t.Errorf("asked %d times: %+v", asked, r)
	}
	for _, tc := range []struct {
		err     error
		outcome string
	}{
		{&submit.Conflict{FirstIndex: 3, Reason: "taken"}, outcomeRefused},
		{&submit.Invalid{Field: "file", Reason: "no"}, outcomeRefused},
		{submit.ErrUnauthorized, outcomeRefused},
		{&submit.Frozen{Origin: "next.example", Reason: "it goes on as next.example"}, outcomeRefused},
		{errors.New("what is this?"), outcomeCannot},
	} {
		asked = 0
		s := submitting{wait: time.Minute, log: lyingLog(func(*entry.Entry) (*submit.Ack, error) { asked++; return nil, tc.err })}
		if r := s.one(t.Context(), u); r.Outcome != tc.outcome || asked != 1 {
			t.Errorf("%v: asked %d times: %+v", tc.err, asked, r)
		}
	}
}

// Nothing is ever written over a first proof, even if it comes to be there
// between the look and the write.
func TestFirstProofIsNeverOverwritten(t *testing.T) {
	u := submitFile(t, "six-1.17.0.tar.gz", "six")
	first := u.path + proofSuffix
	s := submitting{policy: submitPolicy(t), log: lyingLog(func(e *entry.Entry) (*submit.Ack, error) {
		if err := os.WriteFile(first, []byte("another run's"), 0o644); err != nil {
			return nil, err
		}
		return logged(t, e, 2), nil
	})}
	r := s.one(t.Context(), u)
	if r.Outcome != outcomeLogged || r.Proof != u.path+refreshedSuffix {
		t.Errorf("%+v", r)
	}
	if b, err := os.ReadFile(first); err != nil || string(b) != "another run's" {
		t.Errorf("%q, %v", b, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(u.path), ".portbook-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files left: %v, %v", left, err)
	}
}

// Many files keep their order, and each gets its own answer.
func TestSubmitManyKeepsOrder(t *testing.T) {
	var uploads []upload
	for i := range 50 {
		uploads = append(uploads, submitFile(t, "p-1."+string(rune('0'+i/10))+"."+string(rune('0'+i%10))+".tar.gz", "x"))
	}
	s := submitting{policy: submitPolicy(t), log: lyingLog(func(e *entry.Entry) (*submit.Ack, error) {
		time.Sleep(time.Duration(len(e.Version)%3) * time.Millisecond)
		return logged(t, e, 2), nil
	})}
	i := 0
	s.all(t.Context(), uploads, func(r submitResult) {
		if r.File != uploads[i].path || r.Outcome != outcomeLogged {
			t.Errorf("result %d: %+v", i, r)
		}
		i++
	})
	if i != len(uploads) {
		t.Errorf("%d results", i)
	}
}
