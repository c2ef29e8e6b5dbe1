package entry

import (
	"encoding/json"
	"testing"
)

// benchLeaves are a small and a full upload. The yardstick beside Parse is
// encoding/json into the same number of fields, without any check.
func benchLeaves(b *testing.B) map[string][]byte {
	m := map[string][]byte{}
	for _, v := range readVectors(b, "valid") {
		switch v.name {
		case "upload-minimal", "upload-full":
			m[v.name] = v.leaf
		}
	}
	return m
}

func BenchmarkParse(b *testing.B) {
	for name, leaf := range benchLeaves(b) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(leaf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(leaf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/encoding-json", func(b *testing.B) {
			b.SetBytes(int64(len(leaf)))
			b.ReportAllocs()
			for b.Loop() {
				var e Entry
				if err := json.Unmarshal(leaf, &e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMarshal(b *testing.B) {
	for name, leaf := range benchLeaves(b) {
		e, err := Parse(leaf)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(leaf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Marshal(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLeafHash(b *testing.B) {
	for name, leaf := range benchLeaves(b) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(leaf)))
			for b.Loop() {
				LeafHash(leaf)
			}
		})
	}
}

func BenchmarkSlotKey(b *testing.B) {
	s := Slot{"pypi.org", PyPI, ClaimIndex, "django", "Django-5.1.tar.gz"}
	b.ReportAllocs()
	for b.Loop() {
		s.Key()
	}
}

// TestAllocations keeps the monitor's scan cheap: an entry is two allocations,
// its text and its struct, and one for each array.
func TestAllocations(t *testing.T) {
	for _, v := range readVectors(t, "valid") {
		want := map[string]float64{"upload-minimal": 2, "upload-full": 4}[v.name]
		if want == 0 {
			continue
		}
		if n := testing.AllocsPerRun(100, func() { Parse(v.leaf) }); n > want {
			t.Errorf("%s: %v allocations, want %v", v.name, n, want)
		}
	}
}
