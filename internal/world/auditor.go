package world

// Auditing mirrors of the world's log.

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness/auditor"
)

// Auditor is a real auditing mirror at an address of its own, which can be
// stopped and started.
type Auditor struct {
	Name    string // in the policy
	Key     *c2sp.Key
	Address string // host:port, the same for life
	Auditor *auditor.Auditor
	dir     *auditor.Dir

	mu   sync.Mutex
	stop func() error // guarded by mu; nil while stopped
}

func (w *World) newAuditor(ctx context.Context, name string) (*Auditor, error) {
	dir, err := auditor.CreateDir(ctx, filepath.Join(w.Dir, "auditor-"+name), "auditor.portbook.example/"+name, time.Now())
	if err != nil {
		return nil, err
	}
	key := w.LogKey.Key()
	if _, err := dir.Store.AddLog(ctx, key.Name(), []*c2sp.Key{key}); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	a, err := auditor.New(ctx, auditor.Config{Dir: dir, Logger: w.opts.Logger, Poll: 50 * time.Millisecond})
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return &Auditor{Name: name, Key: dir.Keys()[0], Address: "127.0.0.1:0", Auditor: a, dir: dir}, nil
}

// Start makes the auditor reachable, and lets it follow the log if it is to.
func (a *Auditor) Start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop != nil {
		return nil
	}
	lis, err := net.Listen("tcp", a.Address)
	if err != nil {
		return err
	}
	a.Address = lis.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Auditor.Serve(ctx, lis, a.Auditor.Handler()) }()
	a.stop = func() error { cancel(); return <-ended }
	return nil
}

// Stop makes it unreachable, and it reads nothing.
func (a *Auditor) Stop() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop == nil {
		return nil
	}
	err := a.stop()
	a.stop = nil
	return err
}

// Follow lets the auditor read the log at a URL; without, it waits for pushes.
func (a *Auditor) Follow(ctx context.Context, origin, url string) error {
	return a.dir.SetURL(ctx, origin, url)
}

func (a *Auditor) close() error { return errors.Join(a.Stop(), a.dir.Close()) }
