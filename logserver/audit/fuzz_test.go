package audit

// Whatever is read, nothing panics, and where another implementation reads the
// same it says the same.

import (
	"bytes"
	"testing"

	"github.com/portbook/portbook/c2sp"
	"golang.org/x/mod/sumdb/note"
)

// FuzzNote is held against x/mod, which is laxer: what this accepts it accepts.
func FuzzNote(f *testing.F) {
	log := newFake(f, files(0, 3)...)
	good := log.note(3, log.root(3))
	f.Add(good)
	f.Add(append(bytes.Clone(good), newFake(f).note(3, log.root(3))[len(fakeOrigin)+50:]...))
	f.Add(bytes.Replace(good, []byte("\n3\n"), []byte("\n03\n"), 1))
	f.Add(bytes.Replace(good, []byte("\n\n"), []byte("\nextension\n\n"), 1))
	v, err := note.NewVerifier(log.vkey)
	if err != nil {
		f.Fatal(err)
	}
	keys := []signer{{v, Key{VKey: log.vkey}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := parseCheckpoint(raw, keys)
		if err == nil {
			if _, err := note.Open(raw, note.VerifierList(v)); err != nil {
				t.Fatalf("%q is accepted here, x/mod says %v", raw, err)
			}
		}
		text, sigs, err := splitNote(raw)
		theirs, terr := c2sp.ParseNote(raw)
		if (err == nil) != (terr == nil) {
			t.Fatalf("%q: audit says %v, c2sp says %v", raw, err, terr)
		}
		if err != nil {
			return
		}
		if text != theirs.Text || len(sigs) != len(theirs.Sigs) {
			t.Fatalf("%q: read as %q and %q", raw, text, theirs.Text)
		}
		c, err := parseBody(text)
		tc, terr := c2sp.ParseCheckpoint(text)
		if (err == nil) != (terr == nil) || err == nil && (c.Origin != tc.Origin || uint64(c.Size) != tc.Size || c.Root != tc.Root) {
			t.Fatalf("%q: audit says %+v, %v; c2sp says %+v, %v", text, c, err, tc, terr)
		}
	})
}

func FuzzTilePath(f *testing.F) {
	for _, p := range []string{"tile/0/000", "tile/entries/x001/x234/067.p/8", "tile/8/000", "tile/0/000.p/0", "tile/0/000.p/256", "tile/00/000", "tile/0/x000/000", "tile/0/1", "tile/7/x001/000.p/255"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		a, ok := parsePath(path)
		b, err := c2sp.ParseTilePath(path)
		if ok && a.path() != path {
			t.Fatalf("%q is read as %q", path, a.path())
		}
		// c2sp knows levels up to 63, of which a tree below 2^63 has eight.
		if ok != (err == nil) && !(err == nil && b.Level >= tileLevels) {
			t.Fatalf("%q: audit says %v, c2sp says %v", path, ok, err)
		}
		if ok && (a.level != b.Level || uint64(a.index) != b.Index || a.width != b.Width) {
			t.Fatalf("%q: %+v, c2sp says %+v", path, a, b)
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add([]byte{0, 1, 'x', 0, 0}, 2)
	f.Add([]byte{0, 1, 'x', 0}, 2)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, raw []byte, width int) {
		if width < 1 || width > perTile {
			return
		}
		ends, err := splitBundle(raw, width, nil)
		all, terr := c2sp.ParseBundle(raw, width)
		if (err == nil) != (terr == nil) {
			t.Fatalf("%x, %d entries: audit says %v, c2sp says %v", raw, width, err, terr)
		}
		at := 0
		for i, end := range ends {
			if err == nil && !bytes.Equal(raw[at+2:end], all[i]) {
				t.Fatalf("entry %d differs", i)
			}
			at = end
		}
	})
}

// FuzzFiles cuts and patches each file of a log: nothing but the true bytes is
// good.
func FuzzFiles(f *testing.F) {
	log := newFake(f, files(0, 300)...).publish()
	paths := []string{checkpoint, "tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/44"}
	good := map[string][]byte{}
	for i, p := range paths {
		good[p] = log.read(p)
		f.Add(uint8(i), uint16(40), uint16(0), []byte{})
		f.Add(uint8(i), uint16(0), uint16(1), []byte("x"))
	}
	f.Fuzz(func(t *testing.T, which uint8, at, cut uint16, patch []byte) {
		if len(patch) > 64 {
			return
		}
		log.t = t
		path := paths[int(which)%len(paths)]
		was := good[path]
		from := int(at) % (len(was) + 1)
		to := min(from+int(cut), len(was))
		raw := append(append(bytes.Clone(was[:from]), patch...), was[to:]...)
		log.write(path, raw)
		defer log.write(path, was)
		cfg := log.config()
		cfg.Workers = 1
		r, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		// A note may have signatures of unknown keys put to it.
		if same := bytes.Equal(raw, was); same != (r.Outcome() == AllGood) && path != checkpoint {
			t.Fatalf("%s, the true bytes: %v, outcome %d: %s", path, same, r.Outcome(), kinds(r))
		}
	})
}
