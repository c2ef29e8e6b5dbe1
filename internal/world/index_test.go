package world_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/internal/world"
)

// startIndex serves an index with the accounts alice and mallory.
func startIndex(t *testing.T) (*world.Index, string) {
	t.Helper()
	x, err := world.NewIndex(t.TempDir(), world.IndexOptions{Accounts: map[string]string{"alice": "a-secret", "mallory": "m-secret"}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(x)
	t.Cleanup(srv.Close)
	return x, srv.URL
}

// cleanEnv is our environment without settings that would change what pip and
// twine do.
func cleanEnv(home string, more ...string) []string {
	env := []string{"HOME=" + home, "NO_COLOR=1", "COLUMNS=400", "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_NO_INPUT=1", "PYTHON_KEYRING_BACKEND=keyring.backends.null.Keyring"}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "PATH=") || strings.HasPrefix(v, "LANG=") {
			env = append(env, v)
		}
	}
	return append(env, more...)
}

func need(t *testing.T, tool string) string {
	t.Helper()
	p, err := exec.LookPath(tool)
	if err != nil {
		t.Skipf("needs %s", tool)
	}
	return p
}

// twine uploads files as user; it returns what twine printed.
func twine(t *testing.T, url, user, pass string, files ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(need(t, "twine"), append([]string{"upload", "--verbose", "--non-interactive", "--disable-progress-bar", "--repository-url", url + "/legacy/", "-u", user, "-p", pass}, files...)...)
	cmd.Env = cleanEnv(t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func get(t *testing.T, url, accept string) (int, string) {
	t.Helper()
	req, _ := http.NewRequest("GET", url, nil)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// TestTwineToPip uploads both kinds of distribution with twine and installs the
// wheel with pip.
func TestTwineToPip(t *testing.T) {
	_, url := startIndex(t)
	wheel := write(t, world.WheelName("Port.Demo", "1.0"), world.BuildWheel("Port.Demo", "1.0", nil))
	sdist := write(t, world.SdistName("Port.Demo", "1.0"), world.BuildSdist("Port.Demo", "1.0", nil))
	if out, err := twine(t, url, "alice", "a-secret", wheel, sdist); err != nil {
		t.Fatalf("twine: %v\n%s", err, out)
	}
	target := t.TempDir()
	cmd := exec.Command(need(t, "pip"), "install", "--no-cache-dir", "--target", target, "--index-url", url+"/simple/", "port-demo==1.0")
	cmd.Env = cleanEnv(t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pip: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(target, "port_demo.py")); err != nil || !strings.Contains(string(b), "1.0") {
		t.Fatalf("installed module: %q, %v", b, err)
	}
}

// TestUploadRefusals: what the index turns away, and that twine shows why.
func TestUploadRefusals(t *testing.T) {
	x, url := startIndex(t)
	name := world.WheelName("demo", "1.0")
	good := write(t, name, world.BuildWheel("demo", "1.0", nil))
	other := write(t, name, world.BuildWheel("demo", "1.0", map[string]string{"demo.py": "evil\n"}))
	for _, step := range []struct {
		name, user, pass, file string
		before                 func()
		want                   string // in twine's output; "" means success
	}{
		{name: "wrong password", user: "alice", pass: "x", file: good, want: "403 Invalid or non-existent authentication"},
		{name: "first upload", user: "alice", pass: "a-secret", file: good},
		{name: "identical duplicate", user: "alice", pass: "a-secret", file: good},
		{name: "by token", user: "__token__", pass: x.Token("alice"), file: good},
		{name: "different duplicate", user: "alice", pass: "a-secret", file: other, want: "400 File already exists"},
		{name: "someone else's project", user: "mallory", pass: "m-secret", file: other, want: "403 The user 'mallory' isn't allowed"},
		{name: "told to reject", user: "alice", pass: "a-secret", file: good, before: func() { x.RejectUploads("Maintenance") }, want: "403 Maintenance"},
		{name: "told no more", user: "alice", pass: "a-secret", file: good, before: func() { x.RejectUploads("") }},
		{name: "accept then 500", user: "alice", pass: "a-secret", before: func() { x.AcceptThen500(true) }, want: "500: Internal Server Error",
			file: write(t, world.WheelName("demo", "2.0"), world.BuildWheel("demo", "2.0", nil))},
		{name: "html only", user: "alice", pass: "a-secret", file: good, before: func() { x.AcceptThen500(false); x.HTMLOnly(true) }, want: "409 File already exists"},
	} {
		if step.before != nil {
			step.before()
		}
		out, err := twine(t, url, step.user, step.pass, step.file)
		// 500 and then a retry that finds the identical file is twine's own doing.
		if step.name == "accept then 500" {
			if _, ok := x.Has(world.WheelName("demo", "2.0")); !ok || !strings.Contains(out, step.want) {
				t.Errorf("%s: stored %v\n%s", step.name, ok, out)
			}
			continue
		}
		if (err == nil) != (step.want == "") || !strings.Contains(out, step.want) {
			t.Errorf("%s: %v\n%s", step.name, err, out)
		}
	}
}

// TestMisbehaviour: each named fault does what its name says, and the index
// remembers its files over a restart.
func TestMisbehaviour(t *testing.T) {
	dir := t.TempDir()
	x, err := world.NewIndex(dir, world.IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(x)
	defer srv.Close()
	name := world.WheelName("demo", "1.0")
	wheel := world.BuildWheel("demo", "1.0", nil)
	if out, err := twine(t, srv.URL, "x", "y", write(t, name, wheel)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const accept = "application/vnd.pypi.simple.v1+json"
	shown := func() (url, digest string) {
		_, page := get(t, srv.URL+"/simple/demo/", accept)
		var p struct {
			Files []struct {
				URL    string
				Hashes map[string]string
			}
		}
		if json.Unmarshal([]byte(page), &p) != nil || len(p.Files) != 1 {
			t.Fatalf("page: %s", page)
		}
		return p.Files[0].URL, p.Files[0].Hashes["sha256"]
	}
	_, before := shown()
	x.LieAboutDigest(true)
	if _, d := shown(); d == before {
		t.Error("LieAboutDigest: the digest is the true one")
	}
	x.LieAboutDigest(false)
	if err := x.SwapFile("demo", name, []byte("swapped"), false); err != nil {
		t.Fatal(err)
	}
	if _, d := shown(); d != before {
		t.Error("SwapFile without updateHash changed the page")
	}
	if _, b := get(t, srv.URL+"/files/demo/"+name, ""); b != "swapped" {
		t.Errorf("SwapFile: served %q", b)
	}
	if err := x.SwapFile("demo", name, []byte("swapped"), true); err != nil {
		t.Fatal(err)
	}
	if _, d := shown(); d == before {
		t.Error("SwapFile with updateHash left the page")
	}
	x.HTMLOnly(true)
	if _, page := get(t, srv.URL+"/simple/demo/", accept); !strings.Contains(page, "<a href=\"../../files/demo/"+name+"\">") {
		t.Errorf("HTMLOnly page: %s", page)
	}
	x.HTMLOnly(false)

	again, err := world.NewIndex(dir, world.IndexOptions{FileBase: "http://files.example/f"})
	if err != nil {
		t.Fatal(err)
	}
	srv2 := httptest.NewServer(again)
	defer srv2.Close()
	if _, page := get(t, srv2.URL+"/simple/demo/", ""); !strings.Contains(page, "http://files.example/f/demo/"+name+"#sha256=") {
		t.Errorf("after a restart: %s", page)
	}
	if err := x.Hide(name); err != nil {
		t.Fatal(err)
	}
	if code, _ := get(t, srv.URL+"/simple/demo/", ""); code != 404 {
		t.Errorf("hidden file: page answers %d", code)
	}
	if code, _ := get(t, srv.URL+"/files/demo/"+name, ""); code != 200 {
		t.Errorf("hidden file answers %d", code)
	}
	if err := x.Delete(name); err != nil {
		t.Fatal(err)
	}
	if code, _ := get(t, srv.URL+"/files/demo/"+name, ""); code != 404 {
		t.Errorf("deleted file answers %d", code)
	}
	x.Down(true)
	if _, err := http.Get(srv.URL + "/simple/"); err == nil {
		t.Error("Down: the index answered")
	}
}

func ExampleBuildWheel() {
	fmt.Println(world.WheelName("Port.Demo", "1.0"), len(world.BuildWheel("Port.Demo", "1.0", nil)) > 0)
	// Output: port_demo-1.0-py3-none-any.whl true
}
