package proxy

// What the pages that passed through have said about files.

import (
	"container/list"
	"sync"
	"time"

	"github.com/portbook/portbook/client"
)

// A told is what a page told about one file.
type told struct {
	project  string
	sha256   *[32]byte // nil: the page tells none
	metadata *[32]byte // SHA-256 of the core metadata; nil: the page tells none

	mu       sync.Mutex
	verified *client.Verified // the proof, so that metadata and file need one fetch
	until    time.Time        // how long verified may be used
}

// seen maps file URLs to what was told about them, page by page. The pages
// longest unseen are forgotten when there are too many files.
type seen struct {
	max int

	mu    sync.Mutex
	files map[string]*told // by key
	pages map[string]*list.Element
	order *list.List // of *seenPage, newest in front
	// refused are files that turned out false while they were being sent.
	refused map[string]refusedUntil
}

type seenPage struct {
	project string
	urls    []string
}

type refusedUntil struct {
	err   *client.Refusal
	until time.Time
}

func newSeen(max int) *seen {
	return &seen{max: max, files: map[string]*told{}, pages: map[string]*list.Element{}, order: list.New(), refused: map[string]refusedUntil{}}
}

// page replaces what was known from the project's page.
func (s *seen) page(project string, files map[string]*told) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.pages[project]; e != nil {
		s.forget(e, files)
	}
	pg := &seenPage{project: project}
	for u, t := range files {
		if old := s.files[u]; old != nil && old.project == t.project && same(old.sha256, t.sha256) && same(old.metadata, t.metadata) {
			t = old // keeps the proof
		}
		s.files[u] = t
		pg.urls = append(pg.urls, u)
	}
	s.pages[project] = s.order.PushFront(pg)
	for len(s.files) > s.max && s.order.Len() > 1 {
		s.forget(s.order.Back(), nil)
	}
}

// forget drops a page and its files but those in keep; s.mu is held.
func (s *seen) forget(e *list.Element, keep map[string]*told) {
	pg := s.order.Remove(e).(*seenPage)
	delete(s.pages, pg.project)
	for _, u := range pg.urls {
		if t := s.files[u]; t != nil && t.project == pg.project && keep[u] == nil {
			delete(s.files, u)
		}
	}
}

func (s *seen) file(u string) *told {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[u]
}

// refuse remembers that u was false. The client has got most of it by then;
// when it asks again it is told why.
func (s *seen) refuse(u string, err *client.Refusal, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refused) >= 1000 {
		for k := range s.refused {
			delete(s.refused, k)
			break
		}
	}
	s.refused[u] = refusedUntil{err, now.Add(refusedFor)}
}

func (s *seen) wasRefused(u string, now time.Time) *client.Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.refused[u]
	if !ok {
		return nil
	}
	if now.After(r.until) {
		delete(s.refused, u)
		return nil
	}
	return r.err
}

func same(a, b *[32]byte) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
