package auditor

import (
	"context"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/evillog"
)

// BenchmarkFollow: a log of 25 600 uploads over loopback, to its cosignature: each
// bundle proven, stored with its fsyncs, parsed and checked.
func BenchmarkFollow(b *testing.B) {
	const entries = 100 * 256
	signer := must(c2sp.GenerateSigner(origin, c2sp.AlgEd25519))
	log := evillog.New(evillog.Config{Signer: signer})
	list := make([]*entry.Entry, entries)
	for i := range list {
		list[i] = uploaded(i)
	}
	log.Upload(list...)
	srv := httptest.NewServer(log)
	defer srv.Close()
	ctx := context.Background()
	var index, mirrored int64 // bytes on disk
	for b.Loop() {
		d := must(CreateDir(ctx, filepath.Join(b.TempDir(), "a"), "auditor.example/a1", time.Now().Add(-time.Hour)))
		must(d.Store.AddLog(ctx, origin, []*c2sp.Key{signer.Key()}))
		a := must(New(ctx, Config{Dir: d}))
		book := must(a.book(ctx, origin))
		src := newSource(srv.URL)
		if _, err := a.round(ctx, book, src); err != nil {
			b.Fatal(err)
		}
		src.http.CloseIdleConnections()
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		index, mirrored = must(os.Stat(filepath.Join(d.Path, indexFile))).Size(), 0
		filepath.WalkDir(book.mirror.dir, func(_ string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				mirrored += must(e.Info()).Size()
			}
			return err
		})
	}
	b.ReportMetric(float64(index)/entries, "index-B/entry")
	b.ReportMetric(float64(mirrored)/entries, "mirror-B/entry")
	b.ReportMetric(float64(entries*b.N)/b.Elapsed().Seconds(), "entries/s")
}
