package trilliantest

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/types"
)

// TestNeighbours starts each database with Trillian on it, logs a leaf, kills
// everything and finds the leaf again.
func TestNeighbours(t *testing.T) {
	for name, start := range map[string]func(context.Context) (Database, error){
		"PostgreSQL": func(ctx context.Context) (Database, error) { return StartPostgreSQL(ctx, nil) },
		"MariaDB":    func(ctx context.Context) (Database, error) { return StartMariaDB(ctx, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			db, err := start(ctx)
			if Skippable(err) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			tr, err := Start(ctx, Options{Database: db})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			id, err := tr.CreateTree(ctx, trillian.TreeType_LOG)
			if err != nil {
				t.Fatal(err)
			}
			log := trillian.NewTrillianLogClient(tr.Conn)
			if _, err := log.QueueLeaf(ctx, &trillian.QueueLeafRequest{LogId: id, Leaf: &trillian.LogLeaf{LeafValue: []byte("leaf")}}); err != nil {
				t.Fatal(err)
			}
			awaitSize(t, log, id, 1)
			for _, p := range []*Process{tr.Signer, tr.Servers[0], db.Server()} {
				was := p.PID()
				p.Kill()
				if p.PID() != 0 || alive(was) {
					t.Fatalf("%s lives after Kill", p.Name)
				}
			}
			for _, p := range []*Process{db.Server(), tr.Servers[0], tr.Signer} {
				if err := p.Start(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := log.QueueLeaf(ctx, &trillian.QueueLeafRequest{LogId: id, Leaf: &trillian.LogLeaf{LeafValue: []byte("another")}}); err != nil {
				t.Fatal(err)
			}
			awaitSize(t, log, id, 2)
			if err := tr.SetState(ctx, id, trillian.TreeState_FROZEN); err != nil {
				t.Fatal(err)
			}
			if _, err := log.QueueLeaf(ctx, &trillian.QueueLeafRequest{LogId: id, Leaf: &trillian.LogLeaf{LeafValue: []byte("late")}}); err == nil {
				t.Fatal("a frozen tree took a leaf")
			}
		})
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func awaitSize(t *testing.T, log trillian.TrillianLogClient, id int64, want uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r, err := log.GetLatestSignedLogRoot(t.Context(), &trillian.GetLatestSignedLogRootRequest{LogId: id})
		var root types.LogRootV1
		if err == nil {
			err = root.UnmarshalBinary(r.SignedLogRoot.LogRoot)
		}
		if err == nil && root.TreeSize == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("size %d, want %d (%v)", root.TreeSize, want, err)
		}
	}
}

func TestStandby(t *testing.T) {
	ctx := t.Context()
	db, err := StartPostgreSQL(ctx, nil)
	if Skippable(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	standby, err := db.Standby(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer standby.Close()
	if err := standby.Exec(ctx, "CREATE TABLE t()"); err == nil {
		t.Fatal("a standby took a write")
	}
	if err := standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	if err := standby.Exec(ctx, "CREATE TABLE t()"); err != nil {
		t.Fatal(err)
	}
}
