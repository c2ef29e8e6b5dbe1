package auditor

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/fullfile"
	"github.com/portbook/portbook/witness"
)

// TestNothingAboveTheMarkIsShown: an auditor whose mark cannot be written shows and
// signs nothing that it does not know, by no way, and goes on when it can.
func TestNothingAboveTheMarkIsShown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mark := filepath.Join(t.TempDir(), "mark")
	if err := errors.Join(r.dir.Store.CreateMark(t.Context(), mark), r.dir.Store.UseMark(t.Context(), mark)); err != nil {
		t.Fatal(err)
	}
	r.grow(5)
	if err := r.round(); err != nil {
		t.Fatal(err)
	}
	mend, err := fullfile.Break(mark)
	if err != nil {
		t.Fatal(err)
	}
	r.grow(2)
	for range 3 { // from the second time on the head is in the database
		if err := r.follow(); !errors.Is(err, witness.ErrMarkFails) {
			t.Errorf("%v, want %v", err, witness.ErrMarkFails)
		}
		n, err := r.dir.Store.Generation(t.Context())
		if err != nil || n != 2 {
			t.Errorf("%d writes, and the mark stands at 1 (%v)", n, err)
		}
	}
	base := "/" + c2sp.OriginHash(origin)
	for _, path := range []string{base + "/checkpoint", base + "/tile/0/000.p/7", "/"} {
		if a := r.get(path); a.status != 500 || strings.Contains(a.body, "\u2014 ") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if err := r.a.Ping(t.Context()); !errors.Is(err, witness.ErrMarkFails) {
		t.Errorf("%v, want %v", err, witness.ErrMarkFails)
	}
	if err := mend(); err != nil {
		t.Fatal(err)
	}
	if err := r.a.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	r.grow(1)
	if err := r.round(); err != nil {
		t.Fatal(err)
	}
	r.verify()
	if r.size() != 8 {
		t.Errorf("cosigned %d of 8", r.size())
	}
}
