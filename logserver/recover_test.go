package logserver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// TestLastCosigned: what the thief of a key signs counts only with the quorum;
// the cosignatures of one tree are put together from several witnesses.
func TestLastCosigned(t *testing.T) {
	key, err := c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	text := "log " + key.Key().String() + "\n"
	var ws []*c2sp.Signer
	for i := range 3 {
		w, err := c2sp.GenerateSigner(fmt.Sprintf("w%d.example", i), c2sp.AlgEd25519Cosig)
		if err != nil {
			t.Fatal(err)
		}
		ws = append(ws, w)
		text += fmt.Sprintf("witness w%d %s\n", i, w.Key())
	}
	p, err := c2sp.ParsePolicy([]byte(text + "group g 2 w0 w1 w2\nquorum g\n"))
	if err != nil {
		t.Fatal(err)
	}
	note := func(size uint64, root byte, witnesses ...int) []byte {
		c := c2sp.Checkpoint{Origin: "log.example/test", Size: size, Root: [32]byte{root}}
		sig, err := key.Sign(c.Text())
		if err != nil {
			t.Fatal(err)
		}
		n := &c2sp.Note{Text: c.Text(), Sigs: []c2sp.Signature{sig}}
		for _, w := range witnesses {
			sig, err := ws[w].Cosign(c, time.Unix(1000, 0))
			if err != nil {
				t.Fatal(err)
			}
			n.Sigs = append(n.Sigs, sig)
		}
		return n.Bytes()
	}
	// crowded is a note to which somebody has added as many lines as one may have.
	crowded := func(raw []byte) []byte {
		n, err := c2sp.ParseNote(raw)
		if err != nil {
			t.Fatal(err)
		}
		for i := len(n.Sigs); i < 100; i++ {
			n.Sigs = append(n.Sigs, c2sp.Signature{Name: "stranger.example", KeyID: uint32(i), Sig: make([]byte, 64)})
		}
		return n.Bytes()
	}
	for _, tc := range []struct {
		name   string
		notes  [][]byte
		atMost uint64
		size   uint64 // 0: refused
		root   byte
		larger []uint64
		err    string
	}{
		{"one published", [][]byte{note(10, 1, 0, 1)}, 0, 10, 1, nil, ""},
		{"put together from two witnesses", [][]byte{note(10, 1, 0), note(12, 2, 1), note(12, 2, 2)}, 0, 12, 2, nil, ""},
		{"a witness crowds out the others", [][]byte{note(10, 1, 0, 1), crowded(note(12, 2, 0)), note(12, 2, 1)}, 0, 12, 2, nil, ""},
		{"the same witness twice is one", [][]byte{note(12, 2, 1), note(12, 2, 1), note(10, 1, 0, 1)}, 0, 10, 1, []uint64{12}, ""},
		{"a thief signs more, nobody cosigns", [][]byte{note(10, 1, 0, 1), note(99, 9)}, 0, 10, 1, []uint64{99}, ""},
		{"a thief signs more, one cosigns", [][]byte{note(99, 9, 2), note(10, 1, 0, 1)}, 0, 10, 1, []uint64{99}, ""},
		{"a thief signs less", [][]byte{note(3, 9), note(10, 1, 0, 1)}, 0, 10, 1, nil, ""},
		{"a thief signs a fork of the size", [][]byte{note(10, 9, 2), note(10, 1, 0, 1)}, 0, 10, 1, nil, ""},
		{"different trees are not put together", [][]byte{note(10, 1, 0), note(10, 9, 1)}, 0, 0, 0, nil, "no checkpoint"},
		{"a thief extended the log, with its witnesses", [][]byte{note(10, 1, 0, 1), note(11, 2, 0, 1)}, 10, 10, 1, []uint64{11}, ""},
		{"a quorum cosigned a fork", [][]byte{note(10, 1, 0, 1), note(10, 9, 1, 2)}, 0, 0, 0, nil, "two different trees"},
		{"a quorum cosigned a fork, before it", [][]byte{note(10, 1, 0, 1), note(10, 9, 1, 2), note(8, 3, 0, 1)}, 9, 8, 3, []uint64{10, 10}, ""},
		{"nothing", nil, 0, 0, 0, nil, "no checkpoint"},
		{"garbage", [][]byte{[]byte("x"), nil}, 0, 0, 0, nil, "no checkpoint"},
	} {
		got, err := LastCosigned(p, "log.example/test", tc.notes, tc.atMost)
		if tc.size == 0 {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil || got.Size != tc.size || got.Root[0] != tc.root || !slices.Equal(got.Larger, tc.larger) {
			t.Errorf("%s: %+v, %v", tc.name, got, err)
		} else if _, err := p.Verify(got.Note); err != nil {
			t.Errorf("%s: what was put together: %v", tc.name, err)
		}
	}
	var fork *ForkError
	if _, err := LastCosigned(p, "log.example/test", [][]byte{note(10, 1, 0, 1), note(10, 9, 1, 2)}, 0); !errors.As(err, &fork) {
		t.Errorf("%v", err)
	}
	none, err := c2sp.ParsePolicy([]byte("log " + key.Key().String() + "\nquorum none\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LastCosigned(none, "log.example/test", [][]byte{note(10, 1)}, 0); err == nil {
		t.Error("without witnesses")
	}
}
