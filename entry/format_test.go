package entry

import (
	"encoding/hex"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// FORMAT.md and the code say the same: each table of the page is compared with
// the table in Go that it documents.

func formatMD(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// mdTable returns the cells of the first table after heading, header first,
// without its ruler.
func mdTable(t *testing.T, heading string, skip int) [][]string {
	t.Helper()
	_, rest, ok := strings.Cut(formatMD(t), "\n"+heading)
	if !ok {
		t.Fatalf("no heading %q", heading)
	}
	var rows [][]string
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			if len(rows) > 0 {
				if skip == 0 {
					break
				}
				skip--
				rows = nil
			}
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if !strings.HasPrefix(cells[0], "--") {
			rows = append(rows, cells)
		}
	}
	if len(rows) < 2 {
		t.Fatalf("no table after %q", heading)
	}
	return rows
}

var backquoted = regexp.MustCompile("`([^`]+)`")

func names(cell string) (out []string) {
	for _, m := range backquoted.FindAllStringSubmatch(cell, -1) {
		out = append(out, m[1])
	}
	return out
}

func TestFormatKindTable(t *testing.T) {
	rows := mdTable(t, "## 4. The kinds", 0)
	if len(rows)-1 != len(rules) {
		t.Fatalf("%d kinds in FORMAT.md, %d in code", len(rows)-1, len(rules))
	}
	for i, row := range rows[1:] {
		r := rules[i]
		cells := map[string]byte{} // field → R, C or O
		for c, cell := range row {
			switch head := rows[0][c]; {
			case head == "kind":
				if names(cell)[0] != string(r.kind) {
					t.Fatalf("row %d is %s, want %s", i, cell, r.kind)
				}
			case head == "claim":
				if got := strings.ReplaceAll(cell, ",", ""); got != r.claims {
					t.Errorf("%s: claims %q, want %q", r.kind, got, r.claims)
				}
			case head == "others":
				for part := range strings.SplitSeq(cell, ";") {
					for _, f := range names(part) {
						cells[f] = strings.TrimSpace(part)[0]
					}
				}
			case cell != "–":
				cells[names(head)[0]] = cell[0]
			}
		}
		want := map[string]byte{}
		for _, f := range strings.Fields(r.required) {
			want[f] = 'R'
		}
		for _, f := range strings.Fields(r.conditional) {
			want[f] = 'C'
		}
		for _, f := range strings.Fields(r.optional) {
			want[f] = 'O'
		}
		for f := range fields {
			name := fields[f].name
			if cells[name] != want[name] {
				t.Errorf("%s × %s: FORMAT.md %q, code %q", r.kind, name, cells[name], want[name])
			}
			delete(cells, name)
		}
		for name := range cells {
			t.Errorf("%s: FORMAT.md names a field %q that is none", r.kind, name)
		}
	}
	var meanings []string
	for _, row := range mdTable(t, "## 4. The kinds", 1)[1:] {
		meanings = append(meanings, names(row[0])...)
	}
	for _, k := range Kinds() {
		if !slices.Contains(meanings, string(k)) {
			t.Errorf("FORMAT.md does not say what %s means", k)
		}
	}
}

func TestFormatFieldTable(t *testing.T) {
	rows := mdTable(t, "## 3. The fields", 0)[1:]
	if len(rows) != len(fields) {
		t.Fatalf("%d fields in FORMAT.md, %d in code", len(rows), len(fields))
	}
	for i, row := range rows {
		f := fields[i]
		typ := "integer"
		switch {
		case f.str != nil:
			typ = "string"
		case f.list != nil:
			typ = "array"
		case f.pub:
			typ = "object"
		}
		if names(row[0])[0] != f.name || row[1] != typ {
			t.Errorf("row %d: FORMAT.md %s %s, code %s %s", i, row[0], row[1], f.name, typ)
		}
	}
}

func TestFormatPublisherTable(t *testing.T) {
	rows := mdTable(t, "## 5. `publisher`", 0)
	if len(rows)-1 != len(publisherRules) {
		t.Fatalf("%d publisher kinds in FORMAT.md, %d in code", len(rows)-1, len(publisherRules))
	}
	for i, row := range rows[1:] {
		r := publisherRules[i]
		if names(row[0])[0] != r.kind {
			t.Fatalf("row %d is %s, want %s", i, row[0], r.kind)
		}
		for c, cell := range row[1:] {
			name := names(rows[0][c+1])[0]
			want := "–"
			if slices.Contains(strings.Fields(r.required), name) {
				want = "R"
			} else if slices.Contains(strings.Fields(r.optional), name) {
				want = "O"
			}
			if cell != want {
				t.Errorf("%s × %s: FORMAT.md %s, code %s", r.kind, name, cell, want)
			}
		}
		if len(row) != len(pubFields) {
			t.Errorf("%s: %d columns for %d fields", r.kind, len(row), len(pubFields))
		}
	}
}

func TestFormatReasons(t *testing.T) {
	var got []string
	for _, row := range mdTable(t, "## 6. Reasons", 0)[1:] {
		got = append(got, names(row[0])[0])
	}
	if !slices.Equal(got, Reasons()) {
		t.Errorf("FORMAT.md %v\ncode %v", got, Reasons())
	}
	if !slices.IsSorted(got) {
		t.Error("reasons are not sorted")
	}
}

func TestFormatExample(t *testing.T) {
	_, rest, _ := strings.Cut(formatMD(t), "## 10. A worked example")
	var block []string
	for line := range strings.Lines(rest) {
		if s, ok := strings.CutPrefix(line, "    "); ok {
			block = append(block, strings.TrimSuffix(s, "\n"))
		}
	}
	if len(block) != 3 {
		t.Fatalf("%d indented lines, want leaf, hash and slot", len(block))
	}
	e, err := Parse([]byte(block[0]))
	if err != nil {
		t.Fatal(err)
	}
	if h := LeafHash([]byte(block[0])); hex.EncodeToString(h[:]) != block[1] {
		t.Errorf("leaf hash is %x", h)
	}
	s, _ := e.Slot()
	if k := s.Key(); hex.EncodeToString(k[:]) != block[2] {
		t.Errorf("slot key is %x", k)
	}
}

// The parser and the encoder walk these tables in order.
func TestFieldsAreSorted(t *testing.T) {
	for i := 1; i < len(fields); i++ {
		if fields[i-1].name >= fields[i].name {
			t.Errorf("%s before %s", fields[i-1].name, fields[i].name)
		}
	}
	for i := 1; i < len(pubFields); i++ {
		if pubFields[i-1].name >= pubFields[i].name {
			t.Errorf("%s before %s", pubFields[i-1].name, pubFields[i].name)
		}
	}
	if len(fields) > 64 {
		t.Error("a fieldSet has 64 bits")
	}
	ints := 0
	for _, f := range fields {
		if f.num != nil {
			ints++
		}
	}
	if ints != len(room{}.n) {
		t.Errorf("%d integer fields, room for %d", ints, len(room{}.n))
	}
}
