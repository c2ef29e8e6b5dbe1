package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/registry/gateway"
)

// remoteLog is a fakeLog in another process.
type remoteLog string

func (l remoteLog) Ready(context.Context) error { return nil }

func (l remoteLog) Submit(ctx context.Context, e *entry.Entry) (*submit.Ack, error) {
	leaf, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	resp, err := http.Post(string(l), "", bytes.NewReader(leaf))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return nil, errors.New(resp.Status)
	}
	var ack submit.Ack
	return &ack, json.NewDecoder(resp.Body).Decode(&ack)
}

// childConfig is what a killed gateway is started with.
type childConfig struct {
	Index, Log, Dir, Policy string
	KillAt                  string
}

// TestMain runs, when asked to by TestKilledAnywhere, a gateway that kills itself
// with SIGKILL at a named point.
func TestMain(m *testing.M) {
	if c := os.Getenv("PORTBOOK_TEST_GATEWAY"); c != "" {
		if err := child([]byte(c)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(config []byte) error {
	var c childConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return err
	}
	policy, err := c2sp.ParsePolicy([]byte(c.Policy))
	if err != nil {
		return err
	}
	index, err := url.Parse(c.Index)
	if err != nil {
		return err
	}
	g, err := gateway.New(context.Background(), gateway.Config{
		Registry: registry, Index: index.JoinPath("simple/"), Upload: index.JoinPath("legacy/"),
		Dir: c.Dir, Log: remoteLog(c.Log), Policy: policy,
	})
	if err != nil {
		return err
	}
	g.CrashForTest(func(point string) {
		if point == c.KillAt {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	srv := httptest.NewServer(g)
	fmt.Println(srv.URL)
	return g.Run(context.Background())
}

// TestKilledAnywhere kills a gateway with SIGKILL at each point of an upload's way.
// Whatever the uploader heard: a file that the index has is logged exactly once,
// is not on a page before it is proven, and is proven soon after the next start;
// a file that the index does not have leaves no trace.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		point string
		taken bool // by the index
		user  string
	}{
		{"received", false, "alice"},
		{"forwarding", false, "alice"},
		{"refused", false, "nobody"},
		{"index-accepted", true, "alice"},
		{"accepted", true, "alice"},
		{"submitted", true, "alice"},
		{"logged", true, "alice"},
		{"proven", true, "alice"},
	} {
		for _, htmlOnly := range []bool{false, true} {
			if htmlOnly && c.point != "index-accepted" {
				continue // the index is asked at this one point
			}
			t.Run(fmt.Sprintf("%s,htmlOnly=%v", c.point, htmlOnly), func(t *testing.T) {
				t.Parallel()
				s := newStage(t)
				s.stop()
				s.index.HTMLOnly(htmlOnly)
				log := httptest.NewServer(s.log)
				defer log.Close()
				d := wheel("demo", "1.0")
				if err := s.uploadToChild(log.URL, c.point, c.user, d); err == nil {
					t.Error("the uploader got an answer")
				}
				if _, has := s.index.Has(d.file); has != c.taken {
					t.Fatalf("the index has the file: %v", has)
				}
				before := len(s.log.entries(t))
				if c.point != "proven" { // first with the log out, to see what the pages show
					s.log.set(func() { s.log.down = true })
					s.start()
					s.checkWithheld(d)
					s.stop()
					s.log.set(func() { s.log.down = false })
				}
				s.start()
				if c.taken {
					s.eventually("listed", func() bool { return s.listed(d) })
					e := s.checkProven(d).Entry
					if confirmed := c.point != "index-accepted"; (e.Uploader != "") != confirmed {
						t.Errorf("answer recorded: %v, uploader %q", confirmed, e.Uploader)
					}
					if n := len(s.log.entries(t)); n != 1 || before > 1 {
						t.Errorf("%d entries", n)
					}
				}
				// Either way the uploader can repeat the upload, and nothing is logged twice.
				code, reason, _ := s.upload("alice", d)
				if want := 200; code != want && !(htmlOnly && code == 409) {
					t.Errorf("repeated upload: %s", reason)
				}
				s.checkProven(d)
				s.eventually("nothing pending", func() bool { return len(s.pending()) == 0 })
				if n := len(s.log.entries(t)); n != 1 {
					t.Errorf("%d entries in the end", n)
				}
				checkSpoolEmpty(t, s)
			})
		}
	}
}

// TestKilledTwice kills a second gateway while it repairs what the first left.
func TestKilledTwice(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.stop()
	log := httptest.NewServer(s.log)
	defer log.Close()
	d := wheel("demo", "1.0")
	for _, point := range []string{"index-accepted", "repaired", "submitted", "logged"} {
		s.uploadToChild(log.URL, point, "alice", d)
	}
	s.start()
	s.eventually("listed", func() bool { return s.listed(d) })
	s.checkProven(d)
	s.eventually("nothing pending", func() bool { return len(s.pending()) == 0 })
	if n := len(s.log.entries(t)); n != 1 {
		t.Errorf("%d entries", n)
	}
}

// TestKilledUnderLoad kills a gateway with SIGKILL at random moments under six
// uploaders. The ledger of what was acknowledged is the uploaders' own.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.stop()
	log := httptest.NewServer(s.log)
	defer log.Close()
	type sent struct {
		d     dist
		state string // of the answer; "" if there was none
	}
	var mu sync.Mutex
	var ledger []sent
	for round := range 6 {
		childURL, cmd := s.startChild(log.URL, "")
		hc := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		var wg sync.WaitGroup
		for uploader := range 6 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for n := 0; ; n++ {
					d := wheel("demo", fmt.Sprintf("%d.%d.%d", round, uploader, n))
					resp, err := postTo(t, hc, childURL, "alice", d)
					mu.Lock()
					if err == nil {
						ledger = append(ledger, sent{d, resp.Header.Get("Portbook-State")})
						resp.Body.Close()
					} else {
						ledger = append(ledger, sent{d, ""})
					}
					mu.Unlock()
					if err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(time.Duration(50+rand.IntN(250)) * time.Millisecond)
		cmd.Process.Kill()
		wg.Wait()
		cmd.Wait()
	}
	s.start()
	s.eventually("nothing that the index has is pending", func() bool {
		for _, p := range s.pending() {
			if _, has := s.index.Has(p.File); has {
				return false
			}
		}
		return true
	})
	stored, acknowledged := 0, 0
	for _, l := range ledger {
		if _, has := s.index.Has(l.d.file); has {
			stored++
		} else if l.state != "" {
			t.Errorf("%s: the uploader heard %q, the index does not have it", l.d.file, l.state)
			continue
		} else {
			continue
		}
		v := s.checkProven(l.d)
		if l.state != "" {
			acknowledged++
			if l.state != fmt.Sprintf("proven; index=%d", v.Index) {
				t.Errorf("%s: acknowledged as %q, proven at %d", l.d.file, l.state, v.Index)
			}
		}
	}
	if n := len(s.log.entries(t)); n != stored {
		t.Errorf("%d entries for %d files that the index has", n, stored)
	}
	if acknowledged == 0 {
		t.Error("nothing was ever acknowledged: this proves nothing")
	}
	t.Logf("%d uploads, %d stored by the index, %d acknowledged", len(ledger), stored, acknowledged)
}

// startChild starts a gateway process that dies at the point.
func (s *stage) startChild(logURL, point string) (childURL string, cmd *exec.Cmd) {
	s.t.Helper()
	config, err := json.Marshal(childConfig{Index: s.indexURL, Log: logURL, Dir: s.cfg.Dir, Policy: string(s.log.policy.Bytes()), KillAt: point})
	if err != nil {
		s.t.Fatal(err)
	}
	cmd = exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "PORTBOOK_TEST_GATEWAY="+string(config))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cmd.Process.Kill() })
	if _, err := fmt.Fscanln(out, &childURL); err != nil {
		s.t.Fatalf("the gateway process did not start: %v", err)
	}
	return childURL, cmd
}

func postTo(t *testing.T, hc *http.Client, to, user string, d dist) (*http.Response, error) {
	contentType, body := d.form(t)
	req, err := http.NewRequest("POST", to+"/legacy/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	req.SetBasicAuth(user, accounts[user])
	return hc.Do(req)
}

// uploadToChild uploads d to a gateway process that dies at the point.
func (s *stage) uploadToChild(logURL, point, user string, d dist) error {
	s.t.Helper()
	childURL, cmd := s.startChild(logURL, point)
	if point == "repaired" { // nothing to upload: it dies of what it finds
		cmd.Wait()
		return errors.New("no answer")
	}
	resp, answered := postTo(s.t, &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}, childURL, user, d)
	if answered == nil {
		resp.Body.Close()
	}
	var died *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &died) || died.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		s.t.Fatalf("the gateway process did not die at %s: %v", point, err)
	}
	return answered
}
