package gateway_test

import (
	"bytes"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/registry/gateway"
	"golang.org/x/sys/unix"
)

// TestBadUploads: what can never be logged is refused before the index hears of
// it, with an error that names the field, and leaves nothing behind.
func TestBadUploads(t *testing.T) {
	t.Parallel()
	s := newStage(t, func(c *gateway.Config) { c.MaxSize = 1 << 20 })
	d := wheel("demo", "1.0")
	big := d
	big.content = make([]byte, 1<<20+1)
	named := func(file string) dist { e := d; e.file = file; return e }
	for _, c := range []struct {
		name   string
		d      dist
		fields []string
		status int
		want   string
	}{
		{"too large", big, nil, 413, "content: larger than 1048576 bytes"},
		{"no action", d, []string{":action", ""}, 400, ":action"},
		{"another action", d, []string{":action", "doc_upload"}, 400, ":action"},
		{"no name", d, []string{"name", ""}, 400, "name"},
		{"bad name", d, []string{"name", "../demo"}, 400, "name"},
		{"no version", d, []string{"version", ""}, 400, "version"},
		{"version that is no label", d, []string{"version", "1.0\n"}, 400, "version"},
		{"false digest", d, []string{"sha256_digest", strings.Repeat("0", 64)}, 400, "sha256_digest"},
		{"another project's file name", d, []string{"name", "other"}, 400, "content"},
		{"another version's file name", d, []string{"version", "2.0"}, 400, "content"},
		{"no distribution", named("demo-1.0.exe.sh"), nil, 400, "content"},
		{"control characters", named("demo-1.0\x1b[2J.tar.gz"), nil, 400, "content"},
		{"endless fields", d, []string{"description", strings.Repeat("x", 17<<20)}, 413, "description"},
	} {
		code, reason, _ := s.upload("alice", c.d, c.fields...)
		if code != c.status || !strings.Contains(reason, c.want) {
			t.Errorf("%s: %s", c.name, reason)
		}
	}
	contentType, body := d.form(t)
	for name, c := range map[string]struct {
		contentType string
		body        []byte
		want        string
	}{
		"not a form":     {"application/json", []byte("{}"), "Content-Type"},
		"cut short":      {contentType, body[:len(body)-200], "last boundary"},
		"empty":          {contentType, nil, "form"},
		"two files":      {contentType, twoFiles(t, contentType, d), "content"},
		"path traversal": {contentType, bytes.ReplaceAll(body, []byte(d.file), []byte("../../"+d.file)), "content"},
	} {
		if code, reason, _ := s.post("alice", c.contentType, c.body); code != 400 || !strings.Contains(reason, c.want) {
			t.Errorf("%s: %s", name, reason)
		}
	}
	if code, _, h := s.get("/legacy/", ""); code != 405 || h == nil {
		t.Errorf("GET /legacy/: %d", code)
	}
	if _, has := s.index.Has(d.file); has || s.log.submits != 0 || len(s.pending()) != 0 {
		t.Errorf("the index has it: %v, %d submissions, pending %v", has, s.log.submits, s.pending())
	}
	checkSpoolEmpty(t, s)
	s.mustUpload("alice", d)
}

func twoFiles(t *testing.T, contentType string, d dist) []byte {
	_, boundary, _ := strings.Cut(contentType, "boundary=")
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	w.SetBoundary(boundary)
	for _, f := range [][2]string{{":action", "file_upload"}, {"name", d.project}, {"version", d.version}} {
		w.WriteField(f[0], f[1])
	}
	for _, text := range []string{"one", "two"} {
		c, err := w.CreateFormFile("content", d.file)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(text))
	}
	w.Close()
	return b.Bytes()
}

func checkSpoolEmpty(t *testing.T, s *stage) {
	t.Helper()
	if left, err := os.ReadDir(filepath.Join(s.cfg.Dir, "spool")); err != nil || len(left) != 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}

// TestTooManyUploads: one more than the bound is told to come again.
func TestTooManyUploads(t *testing.T) {
	t.Parallel()
	s := newStage(t, func(c *gateway.Config) { c.MaxUploads = 1 })
	in, out := make(chan bool), make(chan bool)
	s.g.CrashForTest(func(point string) {
		if point == "forwarding" {
			in <- true
			<-out
		}
	})
	first := make(chan string)
	go func() {
		_, _, state := s.upload("alice", wheel("demo", "1.0"))
		first <- state
	}()
	<-in
	contentType, body := wheel("demo", "2.0").form(t)
	resp, err := http.Post(s.url+"/legacy/", contentType, bytes.NewReader(body))
	if err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the second upload: %v %v", resp, err)
	}
	out <- true
	if state := <-first; !strings.HasPrefix(state, "proven") {
		t.Errorf("the first upload: %s", state)
	}
}

// TestDiskFull: without space an upload is refused with 507, nothing is half done,
// pages go on, and uploads work again when there is space.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs leave to mount a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := newStage(t, func(c *gateway.Config) { c.Dir = filepath.Join(dir, "gateway") })
	old := wheel("demo", "1.0")
	s.mustUpload("alice", old)
	large := dist{"demo", "2.0", "demo-2.0.tar.gz", make([]byte, 8<<20)}
	if code, reason, _ := s.upload("alice", large); code != 507 || !strings.Contains(reason, "no space left") {
		t.Errorf("spool full: %s", reason)
	}
	checkSpoolEmpty(t, s)

	// Removed bytes are free a moment after their name is gone.
	free := func() uint64 {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			t.Fatal(err)
		}
		return fs.Bfree
	}

	// Space runs out after the index has accepted: its answer cannot be recorded.
	fill := func() string {
		filler, err := os.Create(filepath.Join(dir, "filler"))
		if err != nil {
			t.Error(err)
			return ""
		}
		defer filler.Close()
		for free() > 0 {
			filler.Write(make([]byte, 4096))
		}
		return filler.Name()
	}
	s.eventually("the spooled bytes are free again", func() bool { return free() > 256 })
	s.g.CrashForTest(func(point string) {
		if point == "index-accepted" {
			fill()
		}
	})
	accepted := wheel("demo", "2.1")
	if code, reason, _ := s.upload("alice", accepted); code != 503 || !strings.Contains(reason, "the index took the file") {
		t.Errorf("disk full after the index accepted: %s", reason)
	}
	s.checkWithheld(accepted)
	s.g.CrashForTest(func(string) {})
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	s.eventually("the accepted file is listed", func() bool { return s.listed(accepted) })
	s.checkProven(accepted)

	// Now not even the outbox can grow.
	filler := fill()
	small := wheel("demo", "3.0")
	code, reason, _ := s.upload("alice", small)
	if code != 507 {
		t.Errorf("disk full: %s", reason)
	}
	if _, has := s.index.Has(small.file); has {
		t.Error("the index heard of an upload that could not be recorded")
	}
	s.checkProven(old)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.mustUpload("alice", small)
	s.checkProven(small)
	checkSpoolEmpty(t, s)
}
