package main

// Row monitor-scan.

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

func mkdir(parts ...string) string {
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(err) // a directory below one we have just made
	}
	return dir
}

func digest(s string) (d [32]byte) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(d) {
		panic("not a SHA-256: " + s) // this package made it
	}
	return [32]byte(raw)
}

func rootOf(leaves [][]byte) ([32]byte, error) {
	r := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for _, l := range leaves {
		h := entry.LeafHash(l)
		if err := r.Append(h[:], nil); err != nil {
			return [32]byte{}, err
		}
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(root), nil
}

// monitorScan reads a log's tiles over HTTP on loopback, the server in the same
// process and on the same processors.
func monitorScan(ctx context.Context, quick bool) (Row, error) {
	n, rounds := 400_000, 5
	if quick {
		n, rounds = 100_000, 3
	}
	leaves, err := leavesOf(n)
	if err != nil {
		return Row{}, err
	}
	var rates []float64
	err = inTempDir(func(dir string) error {
		if _, err := rawTessera(ctx, dir, leaves); err != nil {
			return err
		}
		root, err := rootOf(leaves)
		if err != nil {
			return err
		}
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: 5 * time.Second}
		go srv.Serve(lis) // ends with Close
		defer srv.Close()
		reader, err := client.NewReader("http://"+lis.Addr().String(), nil)
		if err != nil {
			return err
		}
		to := c2sp.Checkpoint{Origin: "log.bench.example", Size: uint64(n), Root: root}
		for range rounds {
			seen := 0
			start := time.Now()
			_, err := monitor.Scan(ctx, reader, monitor.Position{Root: c2sp.EmptyRoot}, to, monitor.ScanOptions{}, func(l []monitor.Leaf, _ monitor.Position) error {
				for i := range l {
					if l[i].Err != nil {
						return l[i].Err
					}
				}
				seen += len(l)
				return nil
			})
			if err != nil {
				return err
			}
			if seen != n {
				return fmt.Errorf("scanned %d of %d entries", seen, n)
			}
			rates = append(rates, float64(n)/time.Since(start).Seconds())
		}
		return nil
	})
	if err != nil {
		return Row{}, err
	}
	r := Row{Value: median(rates), Unit: "entries/s", Aim: ">= 200000", Note: fmt.Sprintf("%d entries of %d B over HTTP on loopback, server included", n, len(leaves[0]))}
	r.Met = r.Value >= 200_000
	return r, nil
}
