package logserver

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
)

// TestRowSorter: rows come in order however many parts they were spilled in.
func TestRowSorter(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for n := range 60 {
		s := rowSorter{most: 7}
		var want, got []digestRow
		for range n {
			var r digestRow
			for i := range r {
				r[i] = byte(random.IntN(2)) // some begin alike
			}
			want = append(want, r)
			if err := s.add(r); err != nil {
				t.Fatal(err)
			}
		}
		slices.SortFunc(want, digestRow.compare)
		if err := s.sorted(func(r digestRow) { got = append(got, r) }); err != nil || !slices.Equal(got, want) {
			t.Errorf("%d rows in %d parts: %v, or in another order", n, len(s.parts), err)
		}
		if parts := max(0, (n-1)/7); len(s.parts) != parts {
			t.Errorf("%d rows in %d parts, want %d", n, len(s.parts), parts)
		}
		s.close()
	}
}

// TestRowSorterHasNoDisk: it is trouble with storage, and names the directory.
func TestRowSorterHasNoDisk(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "absent"))
	s := rowSorter{most: 1}
	err := errors.Join(s.add(digestRow{}), s.add(digestRow{1}))
	if !errors.Is(err, ErrStorage) {
		t.Errorf("%v", err)
	}
}
