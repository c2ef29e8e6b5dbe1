package logserver

// The static export: served by a plain file server, verified by package client;
// interrupted, gone on with, refused.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
)

// shelf is a log of ready-made leaves, published under quorum none.
type shelf struct {
	*rig
	size   uint64
	policy *c2sp.Policy
}

func newShelf(t *testing.T) *shelf {
	r := newRig(t, 0, 0)
	p, err := c2sp.ParsePolicy([]byte("log " + r.signer.Key().String() + "\nquorum none\n"))
	if err != nil {
		t.Fatal(err)
	}
	return &shelf{rig: r, policy: p}
}

// put adds leaves and publishes.
func (s *shelf) put(entries ...*entry.Entry) {
	s.t.Helper()
	var leaves []string
	for _, e := range entries {
		leaf, err := e.Marshal()
		if err != nil {
			s.t.Fatal(err)
		}
		leaves = append(leaves, string(leaf))
	}
	s.addRaw(leaves...)
	s.size += uint64(len(entries))
	s.publishBeneath(s.size)
}

// file is an upload whose bytes are its own name, and n.
func file(registry, ecosystem, project, name string, n int) *entry.Entry {
	e := upload(project, name, fmt.Sprint(name, n))
	e.Registry, e.Ecosystem, e.Claim = registry, ecosystem, entry.ClaimIndex
	return e
}

// verify checks an upload with the proof of an export, as a client does.
func (s *shelf) verify(to string, e *entry.Entry, name string, n int) error {
	s.t.Helper()
	path, err := ProofPath(e)
	if err != nil {
		s.t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(to, path))
	if err != nil {
		return err
	}
	_, err = client.Verify(s.policy, client.File{
		Registry: e.Registry, Ecosystem: e.Ecosystem, Project: e.Project, Name: e.File, SHA256: sha256.Sum256([]byte(fmt.Sprint(name, n))),
		Observed: e.Claim == entry.ClaimObserved,
	}, raw)
	return err
}

func (s *shelf) export(to string, change ...func(*ExportConfig)) (ExportReport, error) {
	cfg := ExportConfig{Dir: s.dir, To: to}
	for _, c := range change {
		c(&cfg)
	}
	return Export(s.t.Context(), cfg)
}

func (s *shelf) mustExport(to string, change ...func(*ExportConfig)) ExportReport {
	s.t.Helper()
	report, err := s.export(to, change...)
	if err != nil {
		s.t.Fatal(err)
	}
	return report
}

// files lists the files of a directory with their bytes.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var raw []byte
			raw, err = os.ReadFile(path)
			out[strings.TrimPrefix(path, dir+"/")] = string(raw)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// awkward are names that would meet if a layout were careless.
func awkward() []*entry.Entry {
	long := strings.Repeat("x", 240)
	list := []*entry.Entry{
		file("pypi.example", "pypi", "demo", "demo-1.0.tar.gz", 0),
		file("pypi.example/simple", "pypi", "demo", "demo-1.0.tar.gz", 0),
		file("pypi.example:8080", "pypi", "demo", "demo-1.0.tar.gz", 0),
		file("pypi.example", "generic", "demo", "demo-1.0.tar.gz", 0),
		file("pypi.example", "generic", "a", "b/c", 0),
		file("pypi.example", "generic", "a/b", "c", 0),
		file("pypi.example/a", "generic", "b", "c", 0),
		file("pypi.example", "generic", "a", "b", 0),
		file("pypi.example", "generic", "a", "b.tlog-proof", 0),
		file("pypi.example", "generic", "a", "b.tlog-proof/c", 0),
		file("pypi.example", "generic", "a/b.tlog-proof", "c", 0),
		file("pypi.example", "generic", "a", ".b", 0),
		file("pypi.example", "generic", "a", long+"1", 0),
		file("pypi.example", "generic", "a", long+"2", 0),
		file("pypi.example", "npm", "@scope/name", "name-1.0.0.tgz", 0),
		file("pypi.example", "npm", "name", "name-1.0.0.tgz", 0),
		file("pypi.example", "conda", "demo", "linux-64/demo-1.0-0.conda", 0),
	}
	seen := *list[0]
	seen.Claim, seen.UploadTime = entry.ClaimObserved, "2026-11-21T05:00:00Z"
	return append(list, &seen)
}

// TestExportIsAMirror: exported, served by a plain file server, verified, gone on
// with.
func TestExportIsAMirror(t *testing.T) {
	s := newShelf(t)
	to := filepath.Join(t.TempDir(), "mirror")
	list := awkward()
	s.put(list...)
	report := s.mustExport(to)
	if report.Proofs != len(list) || report.Size != s.size || report.Kept != 0 || report.Unreadable != 0 {
		t.Errorf("%+v of %d uploads", report, len(list))
	}
	srv := httptest.NewServer(http.FileServer(http.Dir(to)))
	defer srv.Close()
	refetch(t, srv.URL, s.signer.Key())
	for _, e := range list {
		if err := s.verify(to, e, e.File, 0); err != nil {
			t.Errorf("%s %s %s %s %s: %v", e.Claim, e.Registry, e.Ecosystem, e.Project, e.File, err)
		}
		path, _ := ProofPath(e)
		res, err := http.Get(srv.URL + "/" + path)
		if err != nil || res.StatusCode != 200 {
			t.Errorf("%s: %v %v", path, res.Status, err)
		}
		res.Body.Close()
	}

	// Nothing new: nothing is written.
	before := files(t, to)
	if again := s.mustExport(to); again.Proofs != 0 || again.Tiles != 0 {
		t.Errorf("nothing is new: %+v", again)
	}

	// More, across a full tile: the earlier proofs stay as they are.
	var more []*entry.Entry
	for n := range 300 {
		more = append(more, file("pypi.example", "pypi", "more", fmt.Sprintf("more-%d.tar.gz", n), n))
	}
	s.put(more...)
	if next := s.mustExport(to); next.Proofs != 300 || next.Kept != 0 || next.Size != s.size {
		t.Errorf("300 more: %+v", next)
	}
	after := files(t, to)
	for name, raw := range before {
		if strings.HasPrefix(name, proofsDir) && after[name] != raw {
			t.Errorf("%s was written anew", name)
		}
	}
	refetch(t, srv.URL, s.signer.Key())
	for n, e := range more {
		if err := s.verify(to, e, e.File, n); err != nil {
			t.Fatal(err)
		}
	}
	for name := range after {
		if strings.HasPrefix(name, "tile/0/000.p/") || strings.HasPrefix(name, "tile/entries/000.p/") || strings.Contains(name, "=new") {
			t.Errorf("%s is left over", name)
		}
	}
	// A server that only reads takes it for the log.
	ro := s.mustReadOnly(to, t.TempDir(), func(c *ReadOnlyConfig) { c.VKeys = []*c2sp.Key{s.signer.Key()} })
	if err := ro.Ready(); err != nil || ro.Published().Size != s.size {
		t.Errorf("read-only on the mirror: %v", err)
	}
	// And so does the next export.
	second := filepath.Join(t.TempDir(), "second")
	if report := s.mustExport(second, func(c *ExportConfig) { c.Dir, c.VKeys = to, []*c2sp.Key{s.signer.Key()} }); report.Proofs != len(list)+300 {
		t.Errorf("export of an export: %+v", report)
	}

	// Damage is mended by looking again; what is good stays.
	path, _ := ProofPath(list[3])
	gone, _ := ProofPath(list[4])
	if err := errors.Join(os.WriteFile(filepath.Join(to, path), []byte("damaged"), 0o644), os.Remove(filepath.Join(to, gone)),
		os.WriteFile(filepath.Join(to, "tile/0/000"), make([]byte, 8192), 0o644)); err != nil {
		t.Fatal(err)
	}
	since := uint64(0)
	if mended := s.mustExport(to, func(c *ExportConfig) { c.Since = &since }); mended.Proofs != 2 || mended.Tiles != 1 || mended.Kept != len(list)+298 {
		t.Errorf("mending: %+v", mended)
	}
	for name, raw := range files(t, to) {
		if name != path && name != gone && after[name] != raw {
			t.Errorf("%s is not as before", name)
		}
	}
	for _, e := range []*entry.Entry{list[3], list[4]} {
		if err := s.verify(to, e, e.File, 0); err != nil {
			t.Error(err)
		}
	}
}

// TestExportOfAReplacedFile: the newest upload of a slot has the name, the earlier
// ones stand beside it, in whatever order they are exported.
func TestExportOfAReplacedFile(t *testing.T) {
	s := newShelf(t)
	to := t.TempDir()
	e := func(n int) *entry.Entry { return file("pypi.example", "pypi", "demo", "demo-1.0.tar.gz", n) }
	s.put(e(0))
	s.mustExport(to)
	s.put(e(1), e(2))
	s.mustExport(to)
	since := uint64(0)
	for range 2 {
		if err := s.verify(to, e(2), "demo-1.0.tar.gz", 2); err != nil {
			t.Errorf("the newest: %v", err)
		}
		for n := range 2 {
			aside, err := proofPath(e(n), fmt.Sprintf("=%d", n))
			if err != nil {
				t.Fatal(err)
			}
			p, err := c2sp.ParseProof([]byte(readFile(t, filepath.Join(to, aside))))
			if err != nil || p.Index != uint64(n) {
				t.Errorf("the earlier one %d: %v", n, err)
			}
		}
		if report := s.mustExport(to, func(c *ExportConfig) { c.Since = &since }); report.Proofs != 0 || report.Kept != 3 {
			t.Errorf("looking again: %+v", report)
		}
	}
}

// TestExportInterrupted: at each record of progress, and gone on with; the end is
// the same. There is no checkpoint before all is there.
func TestExportInterrupted(t *testing.T) {
	s := newShelf(t)
	var list []*entry.Entry
	for n := range 2*exportStep + 100 {
		list = append(list, file("pypi.example", "pypi", "demo", fmt.Sprintf("demo-%d.tar.gz", n), n))
	}
	s.put(list...)
	whole := t.TempDir()
	s.mustExport(whole)
	to := t.TempDir()
	for stops := 0; ; stops++ {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Export(ctx, ExportConfig{Dir: s.dir, To: to, Progress: func(uint64, uint64) { cancel() }})
		if err == nil || stops > 5 {
			if stops < 2 {
				t.Errorf("interrupted %d times", stops)
			}
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(to, checkpointFile)); err == nil && stops < 2 {
			t.Error("a checkpoint before the export is done")
		}
	}
	s.mustExport(to)
	want, got := files(t, whole), files(t, to)
	for name, raw := range want {
		if got[name] != raw {
			t.Errorf("%s differs", name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

// TestExportRefuses: targets that are not its own, and logs that went back.
func TestExportRefuses(t *testing.T) {
	s := newShelf(t)
	s.put(awkward()...)
	older := []byte(readFile(t, filepath.Join(s.dir, checkpointFile)))
	s.put(file("pypi.example", "pypi", "demo", "demo-2.0.tar.gz", 0))
	newer := []byte(readFile(t, filepath.Join(s.dir, checkpointFile)))
	made := func() string {
		to := t.TempDir()
		s.mustExport(to)
		return to
	}
	put := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fork := newShelf(t)
	fork.signer = s.signer
	fork.put(file("pypi.example", "pypi", "forked", "forked-1.0.tar.gz", 0))

	for name, row := range map[string]struct {
		want error
		do   func() (ExportReport, error)
	}{
		"a directory of something else": {ErrExport, func() (ExportReport, error) {
			to := t.TempDir()
			put(to, "thesis.txt", "years")
			return s.export(to)
		}},
		"another log's export": {ErrExport, func() (ExportReport, error) {
			to := made()
			put(to, exportState, `{"origin":"other.example","tiles":0,"proofs":0}`)
			return s.export(to)
		}},
		"another log's checkpoint": {ErrExport, func() (ExportReport, error) {
			to := made()
			put(to, checkpointFile, "other.example\n1\nAAAA\n\n")
			return s.export(to)
		}},
		"progress that cannot be read": {ErrExport, func() (ExportReport, error) {
			to := made()
			put(to, exportState, "{")
			return s.export(to)
		}},
		"progress beyond the log": {ErrExport, func() (ExportReport, error) {
			to := made()
			put(to, exportState, fmt.Sprintf(`{"origin":%q,"tiles":999,"proofs":999}`, s.signer.Key().Name()))
			return s.export(to)
		}},
		"a log that went back": {ErrExport, func() (ExportReport, error) {
			to := made()
			put(s.dir, checkpointFile, string(older))
			defer put(s.dir, checkpointFile, string(newer))
			return s.export(to)
		}},
		"a fork": {ErrExport, func() (ExportReport, error) {
			to := t.TempDir()
			fork.mustExport(to, func(c *ExportConfig) { c.VKeys = []*c2sp.Key{s.signer.Key()} })
			return s.export(to)
		}},
		"a checkpoint that nobody signed": {ErrWentBack, func() (ExportReport, error) {
			put(s.dir, checkpointFile, strings.Replace(string(newer), "\n19\n", "\n18\n", 1))
			defer put(s.dir, checkpointFile, string(newer))
			return s.export(t.TempDir())
		}},
		"a leaf that is not the tile's": {errUnreadable, func() (ExportReport, error) {
			path := filepath.Join(s.dir, engineDir, "tile/entries/000.p/19")
			good := readFile(t, path)
			defer put(filepath.Dir(path), "19", good)
			put(filepath.Dir(path), "19", strings.Replace(good, "demo", "evil", 1))
			to := t.TempDir()
			report, err := s.export(to)
			if _, there := os.Stat(filepath.Join(to, checkpointFile)); there == nil {
				t.Error("the checkpoint is exported over a leaf that is not the tile's")
			}
			return report, err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := row.do(); !errors.Is(err, row.want) {
				t.Errorf("%v, want %v", err, row.want)
			}
		})
	}

	// A link in the target leads nowhere outside.
	to, outside := t.TempDir(), t.TempDir()
	s.mustExport(to)
	since := uint64(0)
	if err := errors.Join(os.RemoveAll(filepath.Join(to, proofsDir)), os.Symlink(outside, filepath.Join(to, proofsDir))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.export(to, func(c *ExportConfig) { c.Since = &since }); err == nil {
		t.Error("exported over a link")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("written outside: %v %v", left, err)
	}
}

// TestExportUnknownVersions: counted, not lost, and no obstacle.
func TestExportUnknownVersions(t *testing.T) {
	s := newShelf(t)
	s.addRaw(`{"v":2}`)
	s.size = 1
	s.put(awkward()[0])
	to := t.TempDir()
	if report := s.mustExport(to); report.Unreadable != 1 || report.Proofs != 1 {
		t.Errorf("%+v", report)
	}
	if raw := readFile(t, filepath.Join(to, "tile/entries/000.p/2")); !bytes.Contains([]byte(raw), []byte(`{"v":2}`)) {
		t.Error("the entry is not in the bundle")
	}
}

// FuzzProofPath: whatever an entry says, its proof stays below proofs/, one
// element a part, and two slots have two paths.
func FuzzProofPath(f *testing.F) {
	for _, e := range awkward() {
		f.Add(e.Registry, e.Ecosystem, e.Project, e.File, e.Registry, e.Ecosystem, e.Project, e.File+"x")
	}
	f.Add("a", "b", "..", "../../etc/passwd", "", "", "", "\x00")
	f.Fuzz(func(t *testing.T, r1, e1, p1, f1, r2, e2, p2, f2 string) {
		one := &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: r1, Ecosystem: e1, Project: p1, File: f1}
		two := &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: r2, Ecosystem: e2, Project: p2, File: f2}
		a, err := ProofPath(one)
		if err != nil {
			return
		}
		parts := strings.Split(a, "/")
		if !filepath.IsLocal(a) || filepath.Clean(a) != a || len(parts) < 6 || len(parts) > 7 || parts[0] != proofsDir {
			t.Errorf("%q", a)
		}
		b, err := ProofPath(two)
		if err != nil || entry.CheckRegistry(r1) != nil || entry.CheckRegistry(r2) != nil || entry.CheckFile(e1, f1) != nil || entry.CheckFile(e2, f2) != nil ||
			entry.CheckProject(e1, p1) != nil || entry.CheckProject(e2, p2) != nil {
			return // not names of entries
		}
		s1, _ := one.Slot()
		s2, _ := two.Slot()
		if (a == b) != (s1 == s2) || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/") {
			t.Errorf("%v and %v: %q and %q", s1, s2, a, b)
		}
	})
}
