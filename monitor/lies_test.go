// The log lies, in every way the fake log knows. The monitor tells it in the
// right severity, keeps its cursor, and goes on when the truth is back.

package monitor

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/monitor/internal/fakelog"
)

// fill adds n uploads of projects that nobody watches.
func fill(w *world, n int) {
	var es []*entry.Entry
	for i := range n {
		es = append(es, fakelog.Upload("filler", "1.0", "filler-1.0-"+string(rune('a'+i%26))+strings.Repeat("x", i/26)+"-py3-none-any.whl", "", string(rune(i))))
	}
	w.log.AddEntry(es...)
}

func leafOf(t *testing.T, e *entry.Entry) []byte {
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestForkIsToldWithEvidence(t *testing.T) {
	evil := leafOf(t, fakelog.Upload("alice-lib", "6.6", "alice_lib-6.6.tar.gz", "", "evil"))
	for _, tt := range []struct {
		name  string
		at    int
		n     int
		blind int
	}{
		{"same size", 299, 1, 0},
		{"larger", 290, 40, 0},
		{"larger, no witness cosigns it", 290, 40, 3},
		{"smaller", 250, 20, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, subsAlice)
			fill(w, 300)
			w.round()
			honest := w.log.Note()
			w.log.Blind(tt.blind)
			var leaves [][]byte
			for range tt.n {
				leaves = append(leaves, evil)
			}
			w.log.Fork(tt.at, leaves...)
			w.round()
			a := w.want(w.hook, alert.Tampering, "fork")
			b := w.want(w.ops, alert.Tampering, "fork")
			if a.ID != b.ID || a.Evidence == "" {
				t.Fatalf("IDs %s %s, evidence %q", a.ID, b.ID, a.Evidence)
			}
			if err := client.VerifyEvidence([]byte(a.Evidence), w.log.Policy); err != nil {
				t.Errorf("the evidence convinces nobody: %v", err)
			}
			files, err := filepath.Glob(filepath.Join(w.dir, "evidence", "*.txt"))
			if err != nil || len(files) != 1 {
				t.Fatalf("evidence files: %q %v", files, err)
			}
			if b, err := os.ReadFile(files[0]); err != nil || string(b) != a.Evidence {
				t.Error("the evidence file is not the evidence")
			}
			mails := w.mail.all()
			if len(mails) != 1 || mails[0].attachments["evidence.txt"] != a.Evidence || mails[0].header.Get("Portbook-Severity") != "tampering" {
				t.Errorf("mail: %+v", mails)
			}
			if w.verified() != 300 {
				t.Errorf("the cursor moved to %d", w.verified())
			}
			h, err := w.store.Health(t.Context(), testOrigin)
			if err != nil || h.Tampering == "" || !bytes.Equal(h.Checkpoint, honest) {
				t.Errorf("health %+v %v", h, err)
			}

			w.round()
			w.none(w.hook)
			// Not again: not the next time, not after a restart, and not as an outage.
			w.clock.Add(time.Hour)
			w.log.Publish()
			w.reopen()
			if w.m.Standing() == "" {
				t.Error("a restart forgot why the monitor stands still")
			}
			w.round()
			w.none(w.hook)
			w.none(w.ops)
			if w.verified() != 300 {
				t.Errorf("the cursor moved to %d", w.verified())
			}
		})
	}
}

func TestAcceptNewBaselineAfterAForkTellsOnlyWhatIsNew(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"))
	fill(w, 10)
	w.round()
	w.want(w.hook, alert.Unexpected, "upload")
	w.log.Fork(5, leafOf(t, fakelog.Upload("alice-lib", "6.6", "alice_lib-6.6.tar.gz", "", "evil")))
	w.round()
	w.want(w.hook, alert.Tampering, "fork")
	w.reopen()
	if err := w.m.AcceptNewBaseline(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.round()
	if a := w.want(w.hook, alert.Unexpected, "upload"); a.Version != "6.6" {
		t.Errorf("told %s again", a.Version)
	}
	if w.verified() != 6 || w.m.Standing() != "" {
		t.Errorf("verified %d, standing %q", w.verified(), w.m.Standing())
	}
}

func TestRollbackIsToldAndUndone(t *testing.T) {
	for _, how := range []string{"an old checkpoint replayed", "a log restored from a backup"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, subsAlice)
			fill(w, 100)
			old := w.log.Note()
			fill(w, 200)
			w.round()
			now := w.log.Note()
			if how == "an old checkpoint replayed" {
				w.log.Replay(old)
			} else {
				w.log.Rollback(100)
			}
			w.round()
			a := w.want(w.hook, alert.Tampering, "rollback")
			if !strings.Contains(a.Title, "300 to 100") {
				t.Error(a.Title)
			}
			w.want(w.ops, alert.Tampering, "rollback")
			if w.verified() != 300 {
				t.Errorf("the cursor moved to %d", w.verified())
			}
			if how != "an old checkpoint replayed" {
				return
			}
			w.log.Replay(now)
			w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"))
			w.round()
			w.want(w.hook, alert.Unexpected, "upload")
			if h, _ := w.store.Health(t.Context(), testOrigin); h.Tampering != "" || h.Verified != 301 {
				t.Errorf("still standing: %+v", h)
			}
		})
	}
}

func TestWrongLeafInABundle(t *testing.T) {
	w := newWorld(t, subsAlice)
	fill(w, 300)
	w.round()
	index := w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"))
	w.log.WrongLeaf(index, leafOf(t, fakelog.Upload("harmless", "1.1", "harmless-1.1.tar.gz", "", "1")))
	w.round()
	w.want(w.hook, alert.Tampering, "tiles")
	if w.verified() != 300 {
		t.Errorf("the cursor moved to %d", w.verified())
	}
	if p, _, _ := w.store.Search(t.Context(), testOrigin, "harmless", 5); len(p) != 0 {
		t.Error("an unproven leaf is in the index")
	}
	// The lie goes on, and the log grows: nobody is paged again.
	fill(w, 20)
	w.round()
	w.none(w.hook)
	w.log.WrongLeaf(0, nil)
	w.round()
	w.want(w.hook, alert.Unexpected, "upload")
}

func TestWrongLeafOnceIsACacheNotAnAttack(t *testing.T) {
	w := newWorld(t, subsAlice, func(w *world) { w.cfg.Confirm = 300 * time.Millisecond })
	fill(w, 10)
	w.log.WrongLeaf(3, []byte("bit rot"))
	time.AfterFunc(100*time.Millisecond, func() { w.log.WrongLeaf(0, nil) })
	w.round()
	w.none(w.hook)
	if w.verified() != 10 {
		t.Errorf("verified %d", w.verified())
	}
}

// What cannot be read is an outage, after the time that an outage takes, and
// its end is told.
func TestOutagesAreInfrastructure(t *testing.T) {
	for _, tt := range []struct {
		name  string
		begin func(w *world)
		end   func(w *world)
		kind  string
	}{
		{"log down", func(w *world) { w.log.Down(true) }, func(w *world) { w.log.Down(false) }, condSilent},
		{"frozen", func(w *world) {}, func(w *world) {}, condSilent},
		{"witnesses away", func(w *world) { w.log.Blind(2); w.log.Publish() }, func(w *world) { w.log.Blind(0) }, condSilent},
		{"a web page instead of a checkpoint", func(w *world) { w.log.Garbage([]byte("<html>captive portal</html>\n")) }, func(w *world) { w.log.Garbage(nil) }, condSilent},
		{"leftover in bundles", func(w *world) { w.log.ExtraLeaf(true); fill(w, 5) }, func(w *world) { w.log.ExtraLeaf(false) }, condBacklog},
		{"short tiles", func(w *world) { w.log.ShortTile(true); fill(w, 5) }, func(w *world) { w.log.ShortTile(false) }, condSilent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, subsAlice)
			fill(w, 300)
			w.round()
			tt.begin(w)
			w.clock.Add(14 * time.Minute)
			if tt.kind == condBacklog {
				w.log.Publish()
			}
			w.round()
			w.none(w.ops)
			w.clock.Add(2 * time.Minute)
			w.reopen() // a restart forgets no condition
			w.round()
			if tt.kind == condBacklog { // counted from when it was first met
				w.clock.Add(15 * time.Minute)
				w.log.Publish()
				w.round()
			}
			a := w.want(w.ops, alert.Infrastructure, tt.kind)
			if strings.Contains(a.What+a.Title, "tamper") || a.Severity != alert.Infrastructure {
				t.Errorf("an outage worded as an attack: %s", a.What)
			}
			w.hook.clear()
			for range 5 {
				w.clock.Add(10 * time.Minute)
				if tt.kind == condBacklog {
					w.log.Publish()
				}
				w.round()
			}
			w.none(w.ops)
			tt.end(w)
			w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"))
			w.round()
			w.want(w.ops, alert.Infrastructure, tt.kind+"-over")
			if w.verified() != w.log.Size() {
				t.Errorf("verified %d of %d", w.verified(), w.log.Size())
			}
			found := false
			for _, p := range w.hook.all(t) {
				found = found || p.Data.Alerts[0].Kind == "upload"
			}
			if !found {
				t.Error("what was logged during the outage was not told")
			}
		})
	}
}

func TestFutureTimestampsAreAClockAlert(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"))
	w.clock.Add(-time.Hour) // the witnesses cosigned an hour ahead of us
	w.round()
	w.want(w.hook, alert.Unexpected, "upload") // entries are told whatever the clock says
	a := w.want(w.ops, alert.Infrastructure, condClock)
	if !strings.Contains(a.Title, "clock") {
		t.Error(a.Title)
	}
	w.clock.Add(time.Hour)
	w.round()
	w.want(w.ops, alert.Infrastructure, condClock+"-over")
}

func TestCheckpointInTheLogsNameWithoutItsSignature(t *testing.T) {
	w := newWorld(t, subsAlice)
	fill(w, 3)
	w.round()
	note := bytes.Replace(w.log.Note(), []byte("\n3\n"), []byte("\n4\n"), 1)
	w.log.Garbage(note)
	w.round()
	w.want(w.ops, alert.Tampering, "head-signature")
	other := fakeOther(w)
	w.log.Garbage(other.Note())
	w.hook.clear()
	w.round()
	w.none(w.ops) // another log at the address: an outage if it lasts, not an attack
	if w.verified() != 3 {
		t.Error(w.verified())
	}
}

// TestGarbageHeadsAreOneAlert: whoever serves the log's address can vary what is
// wrong with a signature for ever; people are told once, and again the next day.
func TestGarbageHeadsAreOneAlert(t *testing.T) {
	w := newWorld(t, subsAlice)
	fill(w, 3)
	w.round()
	note, err := c2sp.ParseNote(w.log.Note())
	if err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		bad := *note
		bad.Sigs = append([]c2sp.Signature(nil), note.Sigs...)
		bad.Sigs[0].Sig = bytes.Repeat([]byte{1}, 60+n)
		w.log.Garbage(bad.Bytes())
		w.round()
	}
	if n := len(w.ops.all(t)); n != 1 {
		t.Errorf("the operator was told %d times", n)
	}
	w.hook.clear()
	w.ops.clear()
	w.clock.Add(25 * time.Hour)
	w.round()
	w.want(w.ops, alert.Tampering, "head-signature")
}

// TestSilenceAfterTamperingIsTold: one bad checkpoint must not be a way to cut
// the log off unnoticed.
func TestSilenceAfterTamperingIsTold(t *testing.T) {
	w := newWorld(t, subsAlice)
	fill(w, 3)
	w.round()
	w.log.Garbage(bytes.Replace(w.log.Note(), []byte("\n3\n"), []byte("\n4\n"), 1))
	w.round()
	w.want(w.ops, alert.Tampering, "head-signature")
	w.log.Garbage(nil)
	w.log.Down(true)
	w.clock.Add(16 * time.Minute)
	w.ops.clear()
	w.round()
	w.want(w.ops, alert.Infrastructure, condSilent)
}

func fakeOther(w *world) *fakelog.Log { return fakelog.New("log.test/other", 3, 2, w.clock.Now) }

func TestAlertIsSentWithoutProofRatherThanNotAtAll(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"), fakelog.Upload("x", "1", "x-1.tar.gz", "", "2"))
	w.log.NoTiles(true)
	w.round()
	w.none(w.hook) // it waits a little for the proof
	w.clock.Add(2 * time.Minute)
	w.round()
	a := w.want(w.hook, alert.Unexpected, "upload")
	if a.Proof != "" || !strings.Contains(a.ProofMissing, "did not yield") {
		t.Errorf("proof %q, missing %q", a.Proof, a.ProofMissing)
	}
	if m := w.mail.all(); len(m) != 1 || !strings.Contains(m[0].body, "No proof attached") {
		t.Errorf("%+v", m)
	}
}
