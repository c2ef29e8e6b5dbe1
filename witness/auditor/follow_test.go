package auditor

import (
	"testing"
)

// TestFollow: at every size at which a tile begins or ends, the mirror is whole,
// and cosigned.
func TestFollow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.round(); err != nil { // the empty tree is a checkpoint too
		t.Fatal(err)
	}
	for _, size := range []int{1, 2, 255, 256, 257, 300, 511, 512, 513, 700} {
		r.grow(size - int(r.log.Size()))
		if err := r.round(); err != nil {
			t.Fatal(err)
		}
		if got := r.size(); got != int64(size) {
			t.Fatalf("cosigned size %d, want %d", got, size)
		}
		if size%3 == 0 {
			r.restart()
			r.verify()
		}
	}
}
