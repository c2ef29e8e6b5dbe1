package trillian_test

import (
	"context"
	"errors"
	"testing"
	"time"

	gtrillian "github.com/google/trillian"
	"github.com/portbook/portbook/logserver/enginetest"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
)

// source is a log of the suite's entries, in memory.
func source(t *testing.T, n int) (trillian.Import, *enginetest.Reference) {
	ref := new(enginetest.Reference)
	for i := range n {
		ref.Append(enginetest.Leaf(i))
	}
	return trillian.Import{Size: uint64(n), Root: ref.Root(t, n), Published: uint64(n * 2 / 3),
		Leaves: func(ctx context.Context, from uint64, do func([]byte) error) error {
			for i := int(from); i < n; i++ {
				if err := do(enginetest.Leaf(i)); err != nil {
					return err
				}
			}
			return ctx.Err()
		}}, ref
}

// TestImport imports, interrupted at each stage, and logs on.
func TestImport(t *testing.T) {
	for name, start := range map[string]func() (*trilliantest.Trillian, error){"PostgreSQL": postgres, "MariaDB": mariadb} {
		t.Run(name, func(t *testing.T) {
			tr := need(t, start)
			im, ref := source(t, 1100)
			cfg := trillian.Config{Conn: tr.Conn, Store: dir(t), Poll: 5 * time.Millisecond}
			var err error
			if cfg.TreeID, err = trillian.CreateImport(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			if again, err := trillian.CreateImport(t.Context(), cfg); err != nil || again != cfg.TreeID {
				t.Fatalf("an interrupted import goes on with tree %d, %v", again, err)
			}
			if err := newDriver(t, cfg).Queue(t.Context(), id(1), leaf(1)); !errors.Is(err, trillian.ErrPreordered) {
				t.Fatalf("it takes entries already: %v", err)
			}
			for _, stage := range []string{"adding entries", "waiting for Trillian's signer", "writing tiles"} {
				ctx, cancel := context.WithCancel(t.Context())
				cut := im
				cut.Progress = func(at string, done, of uint64) {
					if at == stage && done > 0 {
						cancel()
					}
				}
				err := newDriver(t, cfg).Import(ctx, cut)
				if err == nil && stage != "waiting for Trillian's signer" { // the signer may be too quick
					t.Fatalf("%s: it was not interrupted", stage)
				}
				cancel()
			}
			d := newDriver(t, cfg)
			if err := d.Import(t.Context(), im); err != nil {
				t.Fatal(err)
			}
			if err := d.Import(t.Context(), im); err != nil { // once more changes nothing
				t.Fatal(err)
			}
			ref.Check(t, d.Reader(), 1100)
			ref.Check(t, d.Reader(), int(im.Published)) // its partial tiles are there
			integrate(t, d, 1)                          // the import used up no token
			if err := d.Queue(t.Context(), id(1), []byte("the first of its own")); err != nil {
				t.Fatal(err)
			}
			awaitSize(t, d, 1101)
			ref.Append([]byte("the first of its own"))
			ref.Check(t, d.Reader(), 1101)
			for size := range 1101 {
				if size%97 == 0 {
					ref.CheckProofs(t, d.Reader(), size, 1101) // old proofs go on
				}
			}
		})
	}
}

// TestImportRefuses: targets that hold something else, and a source that lies.
func TestImportRefuses(t *testing.T) {
	tr := need(t, postgres)
	im, _ := source(t, 300)
	preordered := func() trillian.Config {
		cfg := trillian.Config{Conn: tr.Conn, Store: dir(t), Poll: 5 * time.Millisecond}
		var err error
		if cfg.TreeID, err = trillian.CreateImport(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	frozen := func(cfg trillian.Config, want bool) {
		t.Helper()
		tree, err := gtrillian.NewTrillianAdminClient(tr.Conn).GetTree(t.Context(), &gtrillian.GetTreeRequest{TreeId: cfg.TreeID})
		if err != nil || (tree.TreeType == gtrillian.TreeType_PREORDERED_LOG) != want {
			t.Fatalf("the tree is %v, %v", tree, err)
		}
	}
	t.Run("a LOG with entries", func(t *testing.T) {
		cfg := newLog(t, tr, dir(t))
		queue(t, newDriver(t, cfg), 0, 3)
		awaitHead(t, newDriver(t, cfg), 3)
		if err := newDriver(t, cfg).Import(t.Context(), im); !errors.Is(err, trillian.ErrNotPrefix) {
			t.Fatal(err)
		}
	})
	t.Run("a larger one", func(t *testing.T) {
		cfg := preordered()
		if err := newDriver(t, cfg).Import(t.Context(), im); err != nil {
			t.Fatal(err)
		}
		small, _ := source(t, 299)
		if err := newDriver(t, cfg).Import(t.Context(), small); !errors.Is(err, trillian.ErrNotPrefix) {
			t.Fatal(err)
		}
	})
	t.Run("another beginning", func(t *testing.T) {
		cfg := preordered()
		var leaves []*gtrillian.LogLeaf
		for i := range 5 {
			id := trillian.ImportID(uint64(i), leaf(i))
			leaves = append(leaves, &gtrillian.LogLeaf{LeafValue: leaf(i), LeafIdentityHash: id[:], LeafIndex: int64(i)})
		}
		if _, err := gtrillian.NewTrillianLogClient(tr.Conn).AddSequencedLeaves(t.Context(), &gtrillian.AddSequencedLeavesRequest{LogId: cfg.TreeID, Leaves: leaves}); err != nil {
			t.Fatal(err)
		}
		awaitHead(t, newDriver(t, cfg), 5)
		if err := newDriver(t, cfg).Import(t.Context(), im); !errors.Is(err, trillian.ErrNotPrefix) {
			t.Fatal(err)
		}
	})
	t.Run("another entry that the signer had not seen", func(t *testing.T) {
		// It is at its index before ours comes, so ours is dropped: the roots differ.
		cfg := preordered()
		id := trillian.ImportID(7, leaf(7))
		if _, err := gtrillian.NewTrillianLogClient(tr.Conn).AddSequencedLeaves(t.Context(), &gtrillian.AddSequencedLeavesRequest{LogId: cfg.TreeID,
			Leaves: []*gtrillian.LogLeaf{{LeafValue: leaf(7), LeafIdentityHash: id[:], LeafIndex: 7}}}); err != nil {
			t.Fatal(err)
		}
		if err := newDriver(t, cfg).Import(t.Context(), im); !errors.Is(err, trillian.ErrTampering) {
			t.Fatal(err)
		}
		frozen(cfg, true) // it never becomes a LOG
		if err := newDriver(t, cfg).Import(t.Context(), im); err == nil {
			t.Fatal("the second time it is accepted")
		}
	})
	t.Run("another root", func(t *testing.T) {
		cfg := preordered()
		lie := im
		lie.Root[3] ^= 1
		if err := newDriver(t, cfg).Import(t.Context(), lie); err == nil {
			t.Fatal("accepted")
		}
		if head, err := newDriver(t, cfg).Head(t.Context()); err != nil || head.Size != 0 {
			t.Fatalf("entries were written: %v, %v", head, err)
		}
	})
}
