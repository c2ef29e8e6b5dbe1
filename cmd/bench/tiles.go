package main

// Row tile-get.

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/internal/world"
)

// tileGet asks both servers, in this process, for the same tiles and bundles.
func tileGet(ctx context.Context, quick bool) (Row, error) {
	n, gets, rounds := 100_000, 20_000, 5
	if quick {
		n, gets, rounds = 20_000, 5_000, 3
	}
	var ours, plain []float64
	err := inTempDir(func(dir string) error {
		w, err := world.New(ctx, dir, world.Options{Witnesses: 3, Quorum: 2})
		if err != nil {
			return err
		}
		defer w.Close()
		c, err := w.Log.Submitter(benchRegistry)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := stream(ctx, c, submit.Cosigned, 0, n); err != nil {
			return err
		}
		var files string
		for _, m := range must(filepath.Glob(filepath.Join(dir, "*", "log", "tile"))) {
			files = filepath.Dir(m)
		}
		if files == "" {
			return fmt.Errorf("no tiles below %s", dir)
		}
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: http.FileServer(http.Dir(files)), ReadHeaderTimeout: 5 * time.Second}
		go srv.Serve(lis) // ends with Close
		defer srv.Close()
		var paths []string
		for i := range n / 256 {
			for _, p := range []string{"tile/0/%03d", "tile/entries/%03d"} {
				p = fmt.Sprintf(p, i)
				if _, err := os.Stat(filepath.Join(files, p)); err == nil {
					paths = append(paths, p)
				}
			}
		}
		for range rounds {
			a, err := getRate(ctx, w.Log.URL, paths, gets)
			if err != nil {
				return err
			}
			b, err := getRate(ctx, "http://"+lis.Addr().String(), paths, gets)
			if err != nil {
				return err
			}
			ours, plain = append(ours, a), append(plain, b)
		}
		return nil
	})
	if err != nil {
		return Row{}, err
	}
	r := Row{Value: median(ours), Unit: "GETs/s", Aim: "ratio >= 0.9", Note: "tiles and entry bundles in turn, 4 connections on loopback, clients in the same process"}
	r = r.against("net/http file server", median(plain))
	r.Met = *r.Ratio >= 0.9
	return r, nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // a pattern written above
	}
	return v
}

func getRate(ctx context.Context, base string, paths []string, gets int) (float64, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true}}
	defer client.CloseIdleConnections()
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for range 4 {
		wg.Go(func() {
			for {
				i := int(next.Add(1))
				if i > gets || failed.Load() != nil {
					return
				}
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+paths[i%len(paths)], nil)
				if err == nil {
					var res *http.Response
					if res, err = client.Do(req); err == nil {
						_, err = io.Copy(io.Discard, res.Body)
						res.Body.Close()
						if res.StatusCode != http.StatusOK {
							err = fmt.Errorf("%s: %s", req.URL, res.Status)
						}
					}
				}
				if err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(gets) / time.Since(start).Seconds(), nil
}
