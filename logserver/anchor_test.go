package logserver

// FAULTS b2 for the anchor: its disk fails for a moment, in a real server, at
// each kind of call. Nothing is acknowledged meanwhile that should not be, the
// write side does not latch, and it goes on when the disk does.

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

func TestAnchorDiskFails(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a traced server is slow, more so under the race detector")
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: faults cannot be injected")
	}
	for _, row := range []struct {
		name, inject string
		dir          bool // the fault is in the anchor's directory, not in its file
	}{
		{"reading it", "read:error=EIO:when=9..10", false},
		{"opening it", "openat:error=EIO:when=5..6", false},
		{"read-only file system", "renameat,renameat2:error=EROFS:when=2", false},
		{"no space", "renameat,renameat2:error=ENOSPC:when=2", false},
		{"uncertain: renamed, then the directory's fsync fails", "fsync:error=EIO:when=2", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, 1, 1)
			// The anchor in a directory of its own, so that its calls are told apart.
			own := filepath.Join(filepath.Dir(r.dir), "disk")
			if err := os.Mkdir(own, 0o755); err != nil {
				t.Fatal(err)
			}
			id := strings.Replace(readFile(t, filepath.Join(r.dir, identityFile)), r.anchor, filepath.Join(own, "anchor"), 1)
			if err := os.Rename(r.anchor, filepath.Join(own, "anchor")); err != nil {
				t.Fatal(err)
			}
			r.anchor = filepath.Join(own, "anchor")
			if err := os.WriteFile(filepath.Join(r.dir, identityFile), []byte(id), 0o644); err != nil {
				t.Fatal(err)
			}
			l := r.ready()
			_, secret, err := l.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
			if err != nil {
				t.Fatal(err)
			}
			l.Close()

			path, trace := r.anchor, filepath.Join(t.TempDir(), "trace")
			if row.dir {
				path = own
			}
			cmd := exec.Command(strace, "-f", "-qq", "-o", trace, "-P", path, "-e", "inject="+row.inject, os.Args[0], r.dir, r.signer.SKey(), r.policy)
			cmd.Env = append(os.Environ(), childEnv+"=1")
			errors := filepath.Join(t.TempDir(), "stderr") // no pipe: the server may outlive its tracer
			file, err := os.Create(errors)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			cmd.Stderr = file
			said := func() string { return readFile(t, errors) }
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stop := sync.OnceFunc(func() {
				endLockHolder(t, filepath.Join(r.dir, lockFileName)) // and with it its tracer
				cmd.Wait()
			})
			defer stop()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatalf("the server did not start: %s", said())
			}
			address, web, _ := strings.Cut(strings.TrimSpace(line), " ")
			conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := pb.NewLogClient(conn)
			var last *Ack
			failed := 0
			for n := range 12 {
				for deadline := time.Now().Add(20 * time.Second); ; {
					ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+secret), 3*time.Second)
					res, err := client.Submit(ctx, &pb.SubmitRequest{Entry: pbEntry(nth(n))})
					cancel()
					if err == nil {
						p, err := c2sp.ParseProof(res.Proof)
						if err != nil {
							t.Fatal(err)
						}
						last = &Ack{Index: res.Index, Proof: p}
						r.check(last)
						if last.Index != uint64(n) {
							t.Errorf("entry %d was acknowledged at %d", n, last.Index)
						}
						break
					}
					failed++
					if strings.Contains(err.Error(), r.anchor) {
						t.Errorf("the submitter was told a path: %v", err)
					}
					if time.Now().After(deadline) {
						t.Fatalf("entry %d: %v\n%s", n, err, said())
					}
					time.Sleep(20 * time.Millisecond)
				}
			}
			faults := strings.Count(readFile(t, trace), "(INJECTED)")
			if body := fetch("http://" + web + "/readyz"); body == nil {
				t.Error("it is not ready")
			}
			if strings.Contains(said(), "an operator must look") {
				t.Errorf("it latched: %s", said())
			}
			t.Logf("%d faults injected, %d submissions failed for a time", faults, failed)
			if faults < 2 {
				t.Errorf("%d faults were injected: the row tests nothing", faults)
			}
			stop()
			l = r.ready()
			r.must(l, nth(12))
			r.replayed(l)
		})
	}
}

// endLockHolder ends a server, by the id that it wrote into its lock.
func endLockHolder(t *testing.T, path string) {
	t.Helper()
	var pid int
	if _, err := fmt.Sscanf(readFile(t, path), "process %d on", &pid); err != nil || pid == os.Getpid() {
		return
	}
	if p, err := os.FindProcess(pid); err == nil {
		p.Kill()
	}
}
