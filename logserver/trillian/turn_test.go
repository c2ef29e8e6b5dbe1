package trillian

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestStoppedSwap: a process that is stopped while it has the directory's lock
// holds up the others for a moment only.
func TestStoppedSwap(t *testing.T) {
	d := Dir(t.TempDir())
	if err := d.Swap(t.Context(), "x", nil, []byte("one")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(string(d), lockName)) // another open file: as good as another process
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := d.Swap(t.Context(), "x", []byte("one"), []byte("two")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < swapTurn || took > 3*swapTurn {
		t.Errorf("it took %v", took)
	}
	if raw, err := d.Get(t.Context(), "x"); err != nil || string(raw) != "two" {
		t.Errorf("%q, %v", raw, err)
	}
}
