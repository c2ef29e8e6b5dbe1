package portbook

// The commands of README.md, run as they stand there.

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/internal/world"
)

// TestReadmeCommands runs the README's shell block in an empty directory with
// nothing but the built programs, its ports replaced by free ones, and then
// asks the servers it started.
func TestReadmeCommands(t *testing.T) {
	bin, dir := t.TempDir(), t.TempDir()
	build := exec.Command("go", "build", "-o", bin+string(filepath.Separator), "./cmd/portbook", "./cmd/portbook-log", "./cmd/portbook-witness", "./cmd/portbook-monitor")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(blocks) != 1 {
		t.Fatalf("README.md has %d sh blocks, want 1", len(blocks))
	}
	script := blocks[0][1]
	ports := map[string]string{}
	for _, p := range []string{"7381", "7382", "8080", "8081", "8090"} {
		ports[p] = freePort(t)
		if !strings.Contains(script, p) {
			t.Errorf("the README does not use port %s any more", p)
		}
		script = strings.ReplaceAll(script, "127.0.0.1:"+p, "127.0.0.1:"+ports[p])
	}
	wheel := world.BuildWheel("lantern", "1.0", map[string]string{"lantern.py": "LIGHT = 1\n"})
	if err := os.WriteFile(filepath.Join(dir, world.WheelName("lantern", "1.0")), wheel, 0o644); err != nil {
		t.Fatal(err)
	}
	// The script ends when its input does, and takes what it started with it.
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", "trap 'kill $(jobs -p)' EXIT\n"+script+"\necho README DONE >&3\nread -r _ || true")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	said, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	done, doneW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer done.Close()
	cmd.ExtraFiles = []*os.File{doneW}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	doneW.Close()
	buf := make([]byte, 64)
	n, _ := done.Read(buf) // nothing: the script failed, as the output tells
	output := func() string {
		raw, err := os.ReadFile(said.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	if !strings.Contains(string(buf[:n]), "README DONE") {
		cmd.Wait()
		t.Fatalf("the README's commands failed:\n%s", output())
	}
	for _, want := range []string{"logged as entry 0", "1 verified, 0 refused, 0 could not be checked", "policy can be used"} {
		if !strings.Contains(output(), want) {
			t.Errorf("the README's commands did not say %q:\n%s", want, output())
		}
	}
	for _, url := range []string{ports["8080"] + "/readyz", ports["8080"] + "/checkpoint", ports["8090"] + "/", ports["8090"] + "/readyz"} {
		if err := eventually200("http://127.0.0.1:" + url); err != nil {
			t.Errorf("%v\n%s", err, output())
		}
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the script ended with %v", err)
	}
}

func eventually200(url string) error {
	var last error
	for range 100 {
		res, err := http.Get(url)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("%s answers %s", url, res.Status)
		}
		last = err
		time.Sleep(100 * time.Millisecond)
	}
	return last
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestDocLinks finds links in the documentation that lead nowhere.
func TestDocLinks(t *testing.T) {
	var pages []string
	for _, pattern := range []string{"*.md", "*/*.md", "*/*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	if len(pages) < 8 {
		t.Fatalf("only %d pages found", len(pages))
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, page := range pages {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(raw), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
	}
}
