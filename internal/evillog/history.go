package evillog

// Lies about history. All of them are well-formed and properly signed.

import (
	"bytes"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// Fork signs another history: the first at leaves, then others.
func (l *Log) Fork(at uint64, leaves ...[]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tree = l.tree.prefix(at)
	for _, leaf := range leaves {
		l.tree.append(leaf)
	}
	l.publish()
}

// KeepTiles goes on serving the tiles and bundles of the history so far,
// whatever is signed from now on.
func (l *Log) KeepTiles() { l.ShowTiles(l.Size()) }

// SplitView shows those whom match chooses another history from here on: the
// one so far with these leaves. It returns the log that they see.
func (l *Log) SplitView(match func(*http.Request) bool, leaves ...[]byte) *Log {
	l.mu.Lock()
	other := &Log{cfg: l.cfg, tree: l.tree.prefix(l.tree.size()), wire: maps.Clone(l.wire)}
	other.lies.only, other.lies.date = l.lies.only, l.lies.date
	l.views = append(l.views, view{match, other})
	l.mu.Unlock()
	other.Append(leaves...)
	return other
}

// From chooses the readers at one address.
func From(ip string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		return err == nil && host == ip
	}
}

// Asking chooses the requests for some resources, whoever makes them.
func Asking(rs ...Resource) func(*http.Request) bool {
	return func(r *http.Request) bool {
		for _, want := range rs {
			if want.has(r) {
				return true
			}
		}
		return false
	}
}

// Rollback signs the first size leaves as if there had never been more. The
// tiles of the rest are still there.
func (l *Log) Rollback(size uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sign(size)
	l.frozen = true
}

// Restore is a log restored from a backup: the leaves from size on are gone.
func (l *Log) Restore(size uint64) { l.Fork(size) }

// Replay serves a checkpoint of an earlier size, byte for byte, and freezes.
func (l *Log) Replay(note []byte) {
	n, err := c2sp.ParseNote(note)
	if err != nil {
		panic("evillog: " + err.Error())
	}
	c, err := c2sp.ParseCheckpoint(n.Text)
	if err != nil {
		panic("evillog: " + err.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head, l.note, l.frozen = c.Size, bytes.Clone(note), true
}

// Freeze serves the same checkpoint from now on, whatever is appended.
func (l *Log) Freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frozen = true
}

// FutureTime has the colluding witnesses with these indices (none: all) date
// their cosignatures d ahead.
func (l *Log) FutureTime(d time.Duration, witnesses ...int) {
	l.dated(func(now int64) uint64 { return uint64(now + int64(d/time.Second)) }, witnesses)
}

// CosignTime has colluding witnesses (none: all) write this time, whatever it
// means.
func (l *Log) CosignTime(t uint64, witnesses ...int) {
	l.dated(func(int64) uint64 { return t }, witnesses)
}

func (l *Log) dated(date func(int64) uint64, witnesses []int) {
	l.change(func(ls *lies) {
		ls.date = func(i int) uint64 {
			now := l.cfg.Now().Unix()
			for _, k := range witnesses {
				if k == i {
					return date(now)
				}
			}
			if witnesses == nil {
				return date(now)
			}
			return uint64(now)
		}
	})
}

// ShowTiles serves the tiles and bundles of another history from now on: the
// first at leaves of the true one, then others. More leaves than are signed are
// legal: a log integrates before it publishes.
func (l *Log) ShowTiles(at uint64, leaves ...[]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = l.tree.prefix(at)
	for _, leaf := range leaves {
		l.shown.append(leaf)
	}
}

// change adds a lie and publishes under it.
func (l *Log) change(f func(*lies)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.lies)
	l.publish()
}
