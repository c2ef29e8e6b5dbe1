package world

// A planned rotation, as docs/rotation.md has it.

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/logserver"
)

// Rotate ends the log and has a new one take over, with the same witnesses. The
// old one stays served for reading. Site and policy are left as they are.
func (w *World) Rotate(ctx context.Context, origin string) (next *Log, err error) {
	key, err := c2sp.GenerateSigner(origin, c2sp.AlgEd25519)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(w.Dir, "next")
	if err := logserver.Init(ctx, dir, filepath.Join(w.Dir, "next-anchor"), key.Key()); err != nil {
		return nil, err
	}
	old := w.LogKey.Key().Name()
	if err := logserver.AwaitPredecessor(dir, old); err != nil {
		return nil, err
	}
	for _, wit := range w.Witnesses {
		if _, err := wit.store.AddLog(ctx, origin, []*c2sp.Key{key.Key()}); err != nil {
			return nil, err
		}
	}
	// Its address must be known before the old log can name it.
	reserved := &Log{world: w, dir: dir}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	reserved.URL = "http://" + lis.Addr().String()
	if err := lis.Close(); err != nil {
		return nil, err
	}
	if err := logserver.Freeze(w.Log.dir, logserver.Successor{Origin: origin, VKeys: []string{key.Key().String()}, URL: reserved.URL}, time.Now()); err != nil {
		return nil, err
	}
	last, err := w.awaitEnd(ctx)
	if err != nil {
		return nil, err
	}
	if err := logserver.Begin(ctx, dir, c2sp.Checkpoint{Origin: old, Size: last.Size, Root: last.Root}, time.Now()); err != nil {
		return nil, err
	}
	reserved.key = key
	return reserved, reserved.Start(ctx)
}

func (w *World) awaitEnd(ctx context.Context) (logserver.Published, error) {
	for {
		p, leaf, err := logserver.Ended(w.Log.dir)
		if err != nil || leaf != nil {
			return p, err
		}
		select {
		case <-ctx.Done():
			return p, errors.Join(ctx.Err(), errors.New("the log does not end"))
		case <-time.After(10 * time.Millisecond):
		}
	}
}
