// Killed anywhere, the monitor loses no alert, and repeats one only under its
// ID. The monitor is this test binary, started again and killed for real.

package monitor

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/monitor/internal/fakelog"
)

var crashRounds = flag.Int("crash.rounds", 12, "how often the monitor is killed at a random moment")

func TestMain(m *testing.M) {
	if os.Getenv("MONITOR_CHILD") != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child is a monitor process. MONITOR_DIE names a hook and how often it is
// passed before the process kills itself there.
func child() error {
	dir, ctx := os.Getenv("MONITOR_CHILD"), context.Background()
	if at, n, ok := strings.Cut(os.Getenv("MONITOR_DIE"), ":"); ok {
		left, err := strconv.Atoi(n)
		if err != nil {
			return err
		}
		die := func() {
			if left--; left < 0 {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		switch at {
		case "before-cursor":
			hookBeforeCursor = die
		case "after-commit":
			hookAfterCommit = die
		case "after-send":
			hookAfterSend = die
		}
	}
	policy, err := client.ReadPolicy(filepath.Join(dir, "policy"))
	if err != nil {
		return err
	}
	subs, err := LoadSubscriptions(filepath.Join(dir, "subs.yaml"))
	if err != nil {
		return err
	}
	r, err := client.NewReader(os.Getenv("MONITOR_LOG"), nil)
	if err != nil {
		return err
	}
	store, err := OpenStore(ctx, filepath.Join(dir, "monitor.db"), nil)
	if err != nil {
		return err
	}
	emails, err := alert.NewEmails(alert.EmailConfig{Server: os.Getenv("MONITOR_SMTP"), TLS: alert.TLSNone, From: "m@example.org"})
	if err != nil {
		return err
	}
	m, err := New(ctx, Config{Store: store, Source: r, Policy: policy, Subscriptions: subs, Poll: time.Millisecond, RetryBase: 10 * time.Millisecond,
		Scan: ScanOptions{Chunk: 1},
		Channels: map[string]alert.Channel{
			alert.Webhook: dying{alert.NewWebhooks(alert.WebhookConfig{AllowPrivate: true})},
			alert.Email:   dying{emails},
		}})
	if err != nil {
		return err
	}
	return m.Run(ctx)
}

// dying is a channel with a hook between the receiver's yes and our note of it.
type dying struct{ alert.Channel }

var hookAfterSend = func() {}

func (d dying) Notify(ctx context.Context, to alert.Receiver, n alert.Notice) (bool, error) {
	retry, err := d.Channel.Notify(ctx, to, n)
	if err == nil {
		hookAfterSend()
	}
	return retry, err
}

func TestKilledAnywhereLosesNoAlert(t *testing.T) {
	w := newWorld(t, "", func(w *world) { w.clock.t = time.Now() })
	w.store.Close()
	if err := os.Remove(w.path()); err != nil {
		t.Fatal(err)
	}
	if err := Begin(t.Context(), w.path(), testOrigin, 0); err != nil {
		t.Fatal(err)
	}
	yaml := strings.NewReplacer("HOOK", w.hook.URL, "OPS", w.ops.URL, "SECRET", testSecret).Replace(subsAlice)
	for name, text := range map[string]string{"subs.yaml": yaml, "policy": string(w.log.Policy.Bytes())} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func(die string) *exec.Cmd {
		t.Helper()
		c := exec.Command(exe)
		c.Env = append(os.Environ(), "MONITOR_CHILD="+w.dir, "MONITOR_LOG="+w.srv.URL, "MONITOR_SMTP="+w.mail.addr, "MONITOR_DIE="+die)
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}

	want := map[string]bool{} // alert IDs, computed here and not by the monitor
	n := 0
	feed := func() {
		for range 3 {
			n++
			fill(w, 120) // so that every start has more than one bundle to commit
			e := fakelog.Upload("alice-lib", "6."+strconv.Itoa(n), fmt.Sprintf("alice_lib-6.%d.tar.gz", n), "", strconv.Itoa(n))
			index := w.log.AddEntry(e)
			h := entry.LeafHash(w.log.Leaf(index))
			want[alert.ID(testOrigin, "entry", strconv.FormatUint(index, 10), hex.EncodeToString(h[:]), "upload", "alice")] = true
		}
	}
	waited := func(c *exec.Cmd, within time.Duration) error {
		done := make(chan error, 1)
		go func() { done <- c.Wait() }()
		select {
		case err := <-done:
			return err
		case <-time.After(within):
			_ = c.Process.Kill()
			<-done
			return fmt.Errorf("still running")
		}
	}
	// At each of the worst moments, certainly.
	for _, die := range []string{"before-cursor:0", "before-cursor:1", "after-commit:0", "after-commit:1", "after-send:0", "after-send:1"} {
		feed()
		if err := waited(start(die), 20*time.Second); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: %v", die, err)
		}
	}
	// At moments nobody chose.
	for range *crashRounds {
		feed()
		c := start("")
		time.Sleep(time.Duration(rand.Int64N(int64(400 * time.Millisecond))))
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
	}
	c := start("")
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	deadline := time.Now().Add(30 * time.Second)
	for {
		hooked, mailed := map[string]int{}, map[string]int{}
		for _, p := range w.hook.all(t) {
			hooked[p.Data.ID]++
			for _, a := range p.Data.Alerts {
				if _, err := c2sp.ParseProof([]byte(a.Proof)); err != nil {
					t.Fatalf("alert %s has no proof: %v", a.ID, err)
				}
			}
		}
		for _, m := range w.mail.all() {
			mailed[m.header.Get("Portbook-Alert-Id")]++
		}
		for _, got := range []map[string]int{hooked, mailed} {
			for id := range got {
				if !want[id] {
					t.Fatalf("an alert %s that nothing in the log gives", id)
				}
			}
		}
		if len(hooked) == len(want) && len(mailed) == len(want) {
			again := 0
			for _, k := range hooked {
				again += k - 1
			}
			// And each is marked in the index, nothing else is.
			s, err := OpenStore(t.Context(), w.path(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var marked, alerted int
			if err := s.r.QueryRowContext(t.Context(), `SELECT count(*), count(*) FILTER (WHERE idx IN (SELECT idx FROM alert WHERE notice <> '')) FROM entry WHERE verdict = 'unexpected'`).Scan(&marked, &alerted); err != nil {
				t.Fatal(err)
			}
			if marked != len(want) || alerted != len(want) {
				t.Errorf("%d entries are marked, %d of them alerted; want %d", marked, alerted, len(want))
			}
			t.Logf("%d alerts, each at least once on both channels; %d webhooks repeated under their ID", len(want), again)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d alerts: %d came by webhook, %d by mail", len(want), len(hooked), len(mailed))
		}
		time.Sleep(20 * time.Millisecond)
	}
}
