package auditor

// What uploads may hold of this process at once. Anybody can open one, and who
// sends is known only when a package is proven; so most of it is for everybody,
// and a part is kept for those who have sent entries that were new and proven.

import (
	"slices"
	"sync"
)

const (
	// maxUploads is how many add-entries requests are read at once.
	maxUploads = 16
	// maxUploadBytes is how many bytes of entries they hold in memory, all
	// together; one package has at most 16 MiB.
	maxUploadBytes = 64 << 20
	// strangers' uploads have this much of both.
	maxStrangers     = maxUploads * 3 / 4
	maxStrangerBytes = maxUploadBytes / 2
	// maxProven is how many clients are remembered to have sent what was proven.
	maxProven = 64
)

// A room counts uploads and what they hold.
type room struct {
	mu       sync.Mutex
	all      held     // guarded by mu
	strange  held     // guarded by mu; of clients that are not in proven
	proven   []string // guarded by mu; the newest last
	testPeak int      // guarded by mu; the most bytes held at once
}

type held struct{ uploads, bytes int }

// A guest is one upload under way. Its methods are called by one goroutine.
type guest struct {
	room   *room
	client string
	known  bool // it has proven a package, now or before
	bytes  int
}

// enter takes a place for a client's upload; the guest leaves.
func (r *room) enter(client string) (*guest, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := &guest{room: r, client: client, known: slices.Contains(r.proven, client)}
	if r.all.uploads >= maxUploads || !g.known && r.strange.uploads >= maxStrangers {
		return nil, false
	}
	g.count(1, 0)
	return g, true
}

// count changes the figures; the room is locked.
func (g *guest) count(uploads, bytes int) {
	r := g.room
	r.all.uploads += uploads
	r.all.bytes += bytes
	if !g.known {
		r.strange.uploads += uploads
		r.strange.bytes += bytes
	}
	g.bytes += bytes
	r.testPeak = max(r.testPeak, r.all.bytes)
}

// take asks for n bytes of memory, before they are made.
func (g *guest) take(n int) error {
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	if g.room.all.bytes+n > maxUploadBytes || !g.known && g.room.strange.bytes+n > maxStrangerBytes {
		return &BusyError{"the uploads under way hold as much memory as they may", false}
	}
	g.count(0, n)
	return nil
}

// free gives back all that was taken.
func (g *guest) free() {
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.count(0, -g.bytes)
}

// proved remembers that the client sent entries that were new, and proven.
func (g *guest) proved() {
	r := g.room
	r.mu.Lock()
	defer r.mu.Unlock()
	bytes := g.bytes
	g.count(-1, -bytes) // as a stranger
	g.known = true
	g.count(1, bytes)
	r.proven = append(slices.DeleteFunc(r.proven, func(c string) bool { return c == g.client }), g.client)
	if len(r.proven) > maxProven {
		r.proven = slices.Delete(r.proven, 0, 1)
	}
}

func (g *guest) leave() {
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.count(-1, -g.bytes)
}
