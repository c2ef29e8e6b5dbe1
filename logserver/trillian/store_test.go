package trillian_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/portbook/portbook/logserver/trillian/bucket"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
)

var s3 = sync.OnceValues(func() (*trilliantest.S3, error) {
	s, err := trilliantest.StartS3(context.Background())
	if err == nil {
		end(s.Close)
	}
	return s, err
})

var buckets atomic.Int64

func newBucket(t *testing.T) bucket.Bucket {
	s := need(t, s3)
	name := fmt.Sprintf("bucket-%d", buckets.Add(1))
	if err := s.MakeBucket(name); err != nil {
		t.Fatal(err)
	}
	return bucket.Bucket{Client: client(t, s.Endpoint), Name: name, Prefix: "log/"}
}

func client(t *testing.T, endpoint string) *minio.Client {
	s := need(t, s3)
	c, err := minio.New(endpoint, &minio.Options{Creds: credentials.NewStaticV4(s.AccessKey, s.Secret, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestStores runs the promises of Store on both of them.
func TestStores(t *testing.T) {
	for name, make := range map[string]func(*testing.T) trillian.Store{
		"directory": dir,
		"bucket":    func(t *testing.T) trillian.Store { return newBucket(t) },
	} {
		t.Run(name, func(t *testing.T) { testStore(t, make(t)) })
	}
}

func testStore(t *testing.T, s trillian.Store) {
	ctx := t.Context()
	if _, err := s.Get(ctx, "tile/0/000"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("an absent object: %v", err)
	}
	a, b := trillian.Object{Name: "tile/0/000", Content: []byte("a")}, trillian.Object{Name: "tile/0/000.p/7", Content: []byte("b")}
	for range 2 { // the same again is fine
		if err := s.Create(ctx, a, b); err != nil {
			t.Fatal(err)
		}
	}
	var conflict *trillian.ConflictError
	err := s.Create(ctx, trillian.Object{Name: "tile/0/001", Content: []byte("c")}, trillian.Object{Name: a.Name, Content: []byte("other")})
	if !errors.As(err, &conflict) || conflict.Name != a.Name || !errors.Is(err, trillian.ErrTampering) {
		t.Fatalf("other bytes under a name: %v", err)
	}
	if got, err := s.Get(ctx, a.Name); err != nil || string(got) != "a" {
		t.Fatalf("it was overwritten: %q, %v", got, err)
	}

	if err := s.Swap(ctx, "checkpoint", []byte("0"), []byte("1")); !errors.Is(err, trillian.ErrChanged) {
		t.Fatalf("swap of what is absent: %v", err)
	}
	if err := s.Swap(ctx, "checkpoint", nil, []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := s.Swap(ctx, "checkpoint", nil, []byte("2")); !errors.Is(err, trillian.ErrChanged) {
		t.Fatalf("swap of nothing, where something is: %v", err)
	}
	if err := s.Swap(ctx, "checkpoint", []byte("0"), []byte("2")); !errors.Is(err, trillian.ErrChanged) {
		t.Fatalf("swap of something else: %v", err)
	}
	if err := s.Swap(ctx, "checkpoint", []byte("1"), []byte("2")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(ctx, "checkpoint"); err != nil || string(got) != "2" {
		t.Fatalf("%q, %v", got, err)
	}

	// Of many swaps of one content, one wins.
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			err := s.Swap(ctx, "checkpoint", []byte("2"), fmt.Appendf(nil, "winner %d", i))
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, trillian.ErrChanged) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d swaps won", won.Load())
	}
	// Of many creations with different bytes, one wins and the others hear of it.
	won.Store(0)
	for i := range 16 {
		wg.Go(func() {
			err := s.Create(ctx, trillian.Object{Name: "tile/0/002", Content: fmt.Append(nil, i)})
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, trillian.ErrTampering) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d creations won", won.Load())
	}

	if err := s.RemoveAll(ctx, "tile/0/000.p/"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveAll(ctx, "tile/0/000.p/"); err != nil { // nothing is left
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, b.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("removed: %v", err)
	}
	if _, err := s.Get(ctx, a.Name); err != nil {
		t.Fatalf("RemoveAll took what it should not: %v", err)
	}
	large := bytes.Repeat([]byte("x"), 256*65_537)
	if err := s.Create(ctx, trillian.Object{Name: "tile/entries/000", Content: large}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(ctx, "tile/entries/000"); err != nil || !bytes.Equal(got, large) {
		t.Fatalf("the largest bundle: %d bytes, %v", len(got), err)
	}
}

// TestDirStaysInside refuses names that leave the directory.
func TestDirStaysInside(t *testing.T) {
	outer := t.TempDir()
	d := trillian.Dir(filepath.Join(outer, "log"))
	for _, name := range []string{"../x", "/x", "a/../../x", ""} {
		if err := d.Create(t.Context(), trillian.Object{Name: name, Content: []byte("x")}); err == nil {
			t.Errorf("%q was created", name)
		}
		if err := d.Swap(t.Context(), name, nil, []byte("x")); err == nil {
			t.Errorf("%q was swapped", name)
		}
	}
	if err := d.RemoveAll(t.Context(), "../"); err == nil {
		t.Error("the parent was removed")
	}
	if list, err := os.ReadDir(outer); err != nil || len(list) > 1 {
		t.Fatalf("%v, %v", list, err)
	}
}

// TestBucketCheck accepts the service that the tests use, and refuses one that
// ignores the conditions of writes.
func TestBucketCheck(t *testing.T) {
	b := newBucket(t)
	if err := b.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := (bucket.Bucket{Client: b.Client, Name: "no-such-bucket"}).Check(t.Context()); err == nil {
		t.Error("an absent bucket was accepted")
	}
	for _, ignored := range []string{"If-Match", "If-None-Match", ""} {
		there := map[string]bool{}
		lax := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				for _, h := range []string{"If-Match", "If-None-Match"} {
					if r.Header.Get(h) != "" && h != ignored && there[r.URL.Path] {
						w.WriteHeader(http.StatusPreconditionFailed)
						return
					}
				}
				there[r.URL.Path] = true
			}
			w.Header().Set("ETag", `"0123"`)
		}))
		defer lax.Close()
		b.Client = client(t, lax.Listener.Addr().String())
		// With nothing ignored it fails too, but later: this service keeps no content.
		err := b.Check(t.Context())
		if err == nil || ignored != "" != strings.Contains(err.Error(), "cannot fence") || !strings.Contains(err.Error(), ignored) {
			t.Errorf("a service that ignores %q: %v", ignored, err)
		}
	}
}
