package submit_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
)

// cutter forwards connections to a log, and cuts them when it is told to.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

func cuttable(t *testing.T, target string) (*cutter, string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	c := &cutter{}
	t.Cleanup(func() { lis.Close(); c.cut() })
	go func() {
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(target, "http://"))
			if err != nil {
				in.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			go io.Copy(in, out)
			go io.Copy(out, in)
		}
	}()
	return c, "http://" + lis.Addr().String()
}

// TestStreamResumes: the connection breaks again and again; each entry is
// answered once, in order, with an index of its own; a second run under the same
// name goes on where the first ended.
func TestStreamResumes(t *testing.T) {
	l := start(t)
	for _, o := range []submit.StreamOptions{{Wait: submit.Sequenced}, {}, {Wait: submit.Sequenced, Name: "backfill", Window: 64}} {
		t.Run(fmt.Sprintf("wait %d, name %q", o.Wait, o.Name), func(t *testing.T) {
			c, url := cuttable(t, l.url)
			client, err := submit.Dial(url, l.token)
			check(t, err)
			defer client.Close()
			const n = 400
			base := 1000*int(o.Wait) + 10_000*len(o.Name)
			var next, answered uint64
			seen := map[uint64]bool{}
			run := func(until uint64) error {
				return client.Stream(t.Context(), o, func() (*entry.Entry, error) {
					if next == until {
						return nil, io.EOF
					}
					next++
					return upload(base+int(next), fmt.Sprint(base, next)), nil
				}, func(position uint64, r submit.Result) error {
					if r.Err != nil || position != answered || seen[r.Ack.Index] {
						t.Errorf("answer %d where %d was due: %+v", position, answered, r)
					}
					if (r.Ack.Proof == nil) != (o.Wait == submit.Sequenced) {
						t.Errorf("answer %d: a proof of %d bytes", position, len(r.Ack.Proof))
					}
					seen[r.Ack.Index] = true
					if answered++; answered%150 == 0 {
						c.cut()
					}
					return nil
				})
			}
			check(t, run(n))
			if answered != n {
				t.Fatalf("%d of %d answered", answered, n)
			}
			if o.Name == "" {
				return
			}
			o.From = func(accepted uint64) error {
				if accepted != n {
					t.Errorf("it stands at %d, not %d", accepted, n)
				}
				return nil
			}
			check(t, run(n+10))
			if answered != n+10 {
				t.Errorf("%d answered", answered)
			}
		})
	}
}
