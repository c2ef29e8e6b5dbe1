package auditor

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// hold begins an upload from an address that sends body and then nothing more; its
// status comes once it is answered.
func (r *rig) hold(addr, encoding string, body []byte) <-chan int {
	pr, pw := io.Pipe()
	go pw.Write(body)
	r.t.Cleanup(func() { pw.Close() })
	req := httptest.NewRequest("POST", "/add-entries", pr)
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Content-Encoding", encoding)
	req.RemoteAddr = addr + ":1"
	answered := make(chan int, 1)
	go func() {
		rec := httptest.NewRecorder()
		r.h.ServeHTTP(rec, req)
		answered <- rec.Code
	}()
	return answered
}

// pushFrom is the log's honest push of [start, end), from an address.
func (r *rig) pushFrom(addr string, start, end uint64) int {
	req := httptest.NewRequest("POST", "/add-entries", bytes.NewReader(r.push(start, end).body()))
	req.Header.Set("Content-Type", "application/octet-stream")
	req.RemoteAddr = addr + ":1"
	return r.send(req).status
}

// TestStrangersLeaveRoom: four addresses hold all places that strangers have; a
// client that has proven entries before goes on.
func TestStrangersLeaveRoom(t *testing.T) {
	r := newRig(t)
	r.grow(3)
	r.want(r.addCheckpoint(0), 200)
	if s := r.pushFrom("192.0.2.1", 0, 3); s != 200 {
		t.Fatalf("the first push: %d", s)
	}
	r.grow(297)
	r.want(r.addCheckpoint(3), 200)
	p := &push{origin: origin, start: 3, end: 300}
	refused := 0
	for i := range maxUploads {
		answered := r.hold(fmt.Sprintf("10.0.0.%d", i/4), "", p.header())
		for busy := false; !busy && refused == 0; time.Sleep(time.Millisecond) { // until it has a place or an answer
			select {
			case s := <-answered:
				if s != http.StatusServiceUnavailable {
					t.Fatalf("status %d", s)
				}
				refused++
			default:
				r.a.room.mu.Lock()
				busy = r.a.room.all.uploads > i
				r.a.room.mu.Unlock()
			}
		}
	}
	if refused == 0 {
		t.Error("strangers took every place")
	}
	if s := r.pushFrom("198.51.100.7", 3, 300); s != http.StatusServiceUnavailable {
		t.Errorf("another stranger: %d", s)
	}
	if s := r.pushFrom("192.0.2.1", 3, 300); s != 200 {
		t.Errorf("the client that proved entries before: %d", s)
	}
}

// TestUploadMemory: uploads of 17 kB that become 16 MiB each are refused before
// they fill the memory, and what they held is given back.
func TestUploadMemory(t *testing.T) {
	r := newRig(t)
	r.grow(300)
	r.want(r.addCheckpoint(0), 200)
	var raw bytes.Buffer
	zw := gzip.NewWriter(&raw)
	zw.Write((&push{origin: origin, end: 300}).header())
	leaf := append([]byte{0xff, 0xff}, make([]byte, 65535)...)
	for range 255 {
		zw.Write(leaf)
	}
	zw.Flush()
	const uploads = maxStrangers
	codes := make(chan int, uploads)
	for i := range uploads {
		answered := r.hold(fmt.Sprintf("10.0.0.%d", i/4), "gzip", raw.Bytes())
		go func() { codes <- <-answered }()
	}
	for range uploads - 2 { // two have room for 16 MiB each, and wait for their last entry
		if s := <-codes; s != http.StatusServiceUnavailable {
			t.Errorf("status %d", s)
		}
	}
	r.a.room.mu.Lock()
	peak, now := r.a.room.testPeak, r.a.room.all
	r.a.room.mu.Unlock()
	if peak > maxStrangerBytes || now.uploads > 2 {
		t.Errorf("strangers held %d bytes at most, and %+v now", peak, now)
	}
	if s := r.pushFrom("192.0.2.1", 0, 300); s != 200 {
		t.Errorf("the log's own push: %d", s)
	}
}

type deadlines struct {
	http.ResponseWriter
	read []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error  { d.read = append(d.read, t); return nil }
func (d *deadlines) SetWriteDeadline(t time.Time) error { return nil }

// TestPackageDeadline: one byte now and then does not renew the time for a package;
// a package that is whole does.
func TestPackageDeadline(t *testing.T) {
	r := newRig(t)
	r.grow(300)
	r.want(r.addCheckpoint(0), 200)
	body := r.push(0, 300).body()
	rec := &deadlines{ResponseWriter: httptest.NewRecorder()}
	req := httptest.NewRequest("POST", "/add-entries", &trickle{bufio.NewReader(bytes.NewReader(body))})
	req.Header.Set("Content-Type", "application/octet-stream")
	r.h.ServeHTTP(rec, req)
	if got := rec.ResponseWriter.(*httptest.ResponseRecorder).Code; got != 200 {
		t.Fatalf("status %d", got)
	}
	if len(rec.read) != 3 { // the header, and two packages
		t.Errorf("%d deadlines for %d bytes in %d packages", len(rec.read), len(body), 2)
	}
}

// A trickle reads one byte at a time.
type trickle struct{ io.ByteReader }

func (t *trickle) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, errors.New("no room")
	}
	c, err := t.ReadByte()
	if err != nil {
		return 0, err
	}
	b[0] = c
	return 1, nil
}
