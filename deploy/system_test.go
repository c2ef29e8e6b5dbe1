package deploy_test

// This file: the services of compose.yaml as plain processes on loopback.

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/internal/world"
	"gopkg.in/yaml.v3"
)

// compose is what is used here of a compose file.
type compose struct {
	Services map[string]service
	Volumes  map[string]any
}

type service struct {
	Image       string
	Command     []string
	Entrypoint  []string
	Environment map[string]string
	Network     string   `yaml:"network_mode"`
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	Ports       []string
	Volumes     []string
	Profiles    []string
}

// ours reports whether the service runs one of our programs for good.
func (s service) ours() bool { return s.Image == "portbook" }

// mount returns where in the container a path lies, and whether it may be written.
func (s service) mount(path string) (writable, ok bool) {
	longest := -1
	for _, v := range s.Volumes {
		f := strings.Split(v, ":")
		if target := f[1]; (path == target || strings.HasPrefix(path, target+"/")) && len(target) > longest {
			longest, writable, ok = len(target), len(f) < 3 || f[2] != "ro", true
		}
	}
	return writable, ok
}

func readCompose(t *testing.T) compose {
	t.Helper()
	var c compose
	if err := yaml.Unmarshal([]byte(read(t, "compose.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestComposeServices: what compose would only find out when it starts.
func TestComposeServices(t *testing.T) {
	c := readCompose(t)
	lines, err := dockerfile()
	if err != nil {
		t.Fatal(err)
	}
	image := strings.Join(lines, "\n")
	setup := c.Services["setup"]
	if !slices.Equal(setup.Profiles, []string{"setup"}) {
		t.Error("setup would run at every start")
	}
	served := map[string]bool{}
	n := 0
	for name, s := range c.Services {
		if name != "net" && name != "setup" && s.Network != "service:net" {
			t.Errorf("%s: network_mode %q: it cannot reach the others", name, s.Network)
		}
		for _, v := range s.Volumes {
			f := strings.Split(v, ":")
			if strings.HasPrefix(f[0], "./") {
				if _, err := os.Stat(f[0]); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if _, ok := c.Volumes[f[0]]; !ok {
				t.Errorf("%s: volume %s is not declared", name, f[0])
			}
			// Made by setup, at the same place, with the image's owner.
			if s.ours() && !slices.Contains(setup.Volumes, f[0]+":"+f[1]) {
				t.Errorf("%s: setup does not mount %s:%s", name, f[0], f[1])
			}
			if s.ours() && !regexp.MustCompile(`mkdir -p .*`+regexp.QuoteMeta(f[1])+`( |\n)`).MatchString(image) {
				t.Errorf("%s: the image has no %s, so the volume would be root's", name, f[1])
			}
		}
		if !s.ours() {
			continue
		}
		n++
		checkCommand(t, "compose.yaml: "+name, s.Command)
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			t.Errorf("%s: not confined", name)
		}
		for _, w := range s.Command {
			if port, ok := strings.CutPrefix(w, "0.0.0.0:"); ok {
				served[port] = true
			}
		}
	}
	if n != 6 {
		t.Errorf("%d services of ours, want log, w1, w2, w3, monitor, gateway", n)
	}
	for _, p := range c.Services["net"].Ports {
		f := strings.Split(p, ":")
		if len(f) != 3 || f[0] != "127.0.0.1" || !served[f[2]] {
			t.Errorf("port %s is published: to others than this machine, or nobody listens for it", p)
		}
		delete(served, f[2])
	}
	if len(served) != 0 {
		t.Errorf("reachable in the namespace and not published: %v", served)
	}
}

var address = regexp.MustCompile(`(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)`)

// A remap gives each port of the examples a free one on loopback.
type remap struct {
	free map[string]string
	used []net.Listener // held until all are chosen
}

func (r *remap) text(t *testing.T, s string) string {
	return address.ReplaceAllStringFunc(s, func(a string) string {
		port := address.FindStringSubmatch(a)[1]
		for r.free[port] == "" {
			// Below the range from which outgoing connections are given theirs.
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 15000+rand.IntN(15000)))
			if err != nil {
				continue
			}
			r.used = append(r.used, l)
			_, r.free[port], _ = net.SplitHostPort(l.Addr().String())
		}
		return "127.0.0.1:" + r.free[port]
	})
}

// url is a URL on the port that stands for the examples' one.
func (r *remap) url(port, path string) string { return "http://127.0.0.1:" + r.free[port] + path }

// A journal collects what a process says.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// A process is a service that runs.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *journal
	done chan error
}

func start(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, log: &journal{}, done: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	go func() { p.done <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		if t.Failed() {
			t.Logf("--- %s\n%s", name, p.log)
		}
	})
	return p
}

// run runs a command to its end and returns its exit code and output.
func run(cmd *exec.Cmd) (int, string) {
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		return -1, err.Error()
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

var web = &http.Client{Timeout: 10 * time.Second}

func get(url string) (int, []byte, error) {
	res, err := web.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, body, err
}

// await asks until ok, and fails the test after a while.
func await(t *testing.T, what string, ok func() (bool, string)) {
	t.Helper()
	why := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var good bool
		if good, why = ok(); good {
			return
		}
	}
	t.Fatalf("%s: not after 20 s: %s", what, why)
}

func awaitOK(t *testing.T, url string) {
	t.Helper()
	await(t, url, func() (bool, string) {
		status, body, err := get(url)
		return err == nil && status == http.StatusOK, fmt.Sprint(status, " ", string(body), err)
	})
}

func TestWholeSystem(t *testing.T) {
	bin := binaries(t)
	c := readCompose(t)
	const registry = "pkg.example.org"
	// A name that a careless substitution would trip over.
	dir := filepath.Join(t.TempDir(), "var/lib/portbook-w1-7381")
	environment := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+t.TempDir(), "XDG_STATE_HOME="+t.TempDir())

	// Setup, with what compose gives it but another registry.
	setup := func() *exec.Cmd {
		cmd := exec.Command("./setup.sh", dir)
		cmd.Env = environment
		for name, value := range c.Services["setup"].Environment {
			m := regexp.MustCompile(`^\$\{` + name + `:-(.*)\}$`).FindStringSubmatch(value)
			if m == nil {
				t.Fatalf("setup: environment %s: %s", name, value)
			}
			cmd.Env = append(cmd.Env, name+"="+m[1])
		}
		cmd.Env = append(cmd.Env, "REGISTRY="+registry)
		return cmd
	}
	if code, out := run(setup()); code != 0 {
		t.Fatalf("setup.sh: exit %d\n%s", code, out)
	}
	if code, out := run(setup()); code != 1 || !strings.Contains(out, "is not empty") {
		t.Errorf("setup.sh on what it made: exit %d, want 1\n%s", code, out)
	}
	for _, secret := range []string{"gateway/token", "log/log.key", "witness/w1/witness.key"} {
		if info, err := os.Stat(filepath.Join(dir, secret)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, mode %v, want 0600", secret, err, info.Mode())
		}
	}
	policy := filepath.Join(dir, "etc/client.policy")
	for _, p := range []string{policy, filepath.Join(dir, "etc/publish.policy")} {
		if code, out := run(exec.Command(filepath.Join(bin, "portbook"), "policy", "check", p)); code != 0 {
			t.Errorf("policy check: exit %d\n%s", code, out)
		}
	}
	checkMounts(t, c, dir)

	// Other ports, in the files and in the commands.
	ports := &remap{free: map[string]string{}}
	files, err := filepath.Glob(filepath.Join(dir, "etc/*"))
	if err != nil || len(files) != 10 {
		t.Fatalf("%d files in etc, want 10: %v", len(files), err)
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte(ports.text(t, read(t, f))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	commands := map[string][]string{"proxy": {"portbook", "proxy", "--config", filepath.Join(dir, "etc/proxy.yaml")}}
	for name, s := range c.Services {
		if !s.ours() {
			continue
		}
		for _, w := range s.Command {
			if rest, ok := strings.CutPrefix(w, "/data/"); ok {
				w = filepath.Join(dir, rest)
			}
			commands[name] = append(commands[name], ports.text(t, w))
		}
	}
	for _, l := range ports.used {
		l.Close()
	}

	startIndex(t, ports.free["8079"])
	var running []*process
	for name, words := range commands { // in any order: nobody needs another to start
		cmd := exec.Command(filepath.Join(bin, words[0]), words[1:]...)
		cmd.Env, cmd.Dir = environment, t.TempDir()
		running = append(running, start(t, name, cmd))
	}
	for _, url := range []string{
		ports.url("7381", "/healthz"), ports.url("7382", "/healthz"), ports.url("7383", "/healthz"),
		ports.url("8080", "/readyz"), ports.url("7480", "/healthz"), ports.url("8088", "/healthz"), ports.url("8090", "/readyz"),
	} {
		awaitOK(t, url)
	}

	// A file, submitted and verified; and another in its place.
	wheel := filepath.Join(t.TempDir(), world.WheelName("demo", "1.0"))
	if err := os.WriteFile(wheel, world.BuildWheel("demo", "1.0", map[string]string{"demo.py": "x = 1\n"}), 0o644); err != nil {
		t.Fatal(err)
	}
	portbook := func(args ...string) (int, string) {
		checkCommand(t, "this test", append([]string{"portbook"}, args...))
		cmd := exec.Command(filepath.Join(bin, "portbook"), args...)
		cmd.Env = environment
		return run(cmd)
	}
	if code, out := portbook("submit", wheel, "--log", ports.url("8081", ""), "--token-file", filepath.Join(dir, "gateway/token"),
		"--registry", registry, "--policy", policy); code != 0 {
		t.Fatalf("submit: exit %d\n%s", code, out)
	}
	if code, out := portbook("verify", wheel, "--registry", registry, "--policy", policy); code != 0 || !strings.Contains(out, "1 verified") {
		t.Errorf("verify: exit %d\n%s", code, out)
	}
	if err := os.WriteFile(wheel, world.BuildWheel("demo", "1.0", map[string]string{"demo.py": "x = 2\n"}), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out := portbook("verify", wheel, "--registry", registry, "--policy", policy); code != 1 {
		t.Errorf("verify of other bytes: exit %d, want 1\n%s", code, out)
	}

	// A file through the gateway, back through the proxy.
	second := world.BuildWheel("demo", "2.0", map[string]string{"demo.py": "x = 3\n"})
	upload(t, ports.url("7480", "/legacy/"), "demo", "2.0", second)
	install(t, ports.url("8088", ""), world.WheelName("demo", "2.0"), second)

	// The monitor has seen both.
	await(t, "the monitor", func() (bool, string) {
		status, body, err := get(ports.url("8090", "/readyz"))
		var r struct {
			Ready          bool
			Size, Verified uint64
		}
		if err == nil {
			err = json.Unmarshal(body, &r)
		}
		return err == nil && status == http.StatusOK && r.Ready && r.Size == 2 && r.Verified == 2, fmt.Sprint(status, " ", string(body), err)
	})

	for _, p := range running {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	late := time.After(20 * time.Second)
	for _, p := range running {
		select {
		case err := <-p.done:
			if err != nil {
				t.Errorf("%s: after SIGTERM: %v, want exit code 0", p.name, err)
			}
		case <-late:
			t.Fatalf("%s did not stop within 20 s of SIGTERM", p.name)
		}
	}
}

// checkMounts holds the configurations that setup.sh made in dir against the
// volumes: each service sees the files it reads and may write its own, and no
// service but the gateway sees the token.
func checkMounts(t *testing.T, c compose, dir string) {
	t.Helper()
	for name, s := range c.Services {
		if !s.ours() {
			continue
		}
		i := slices.Index(s.Command, "--config")
		if i < 0 {
			t.Fatalf("%s: no --config", name)
		}
		paths := map[string]bool{s.Command[i+1]: false} // path → is written
		var keys map[string]any
		if err := yaml.Unmarshal([]byte(read(t, filepath.Join(dir, strings.TrimPrefix(s.Command[i+1], "/data/")))), &keys); err != nil {
			t.Fatal(err)
		}
		for key, value := range keys {
			if rest, ok := strings.CutPrefix(fmt.Sprint(value), dir+"/"); ok {
				paths["/data/"+rest] = key == "dir" || key == "db"
			}
		}
		if name == "log" {
			paths["/data/anchor/anchor"] = true
		}
		for path, written := range paths {
			if writable, ok := s.mount(path); !ok || written && !writable {
				t.Errorf("%s: %s is not mounted as it needs to be (written: %v)", name, path, written)
			}
		}
		if _, ok := s.mount("/data/gateway/token"); ok != (name == "gateway") {
			t.Errorf("%s: mounts the token: %v", name, ok)
		}
	}
}

// startIndex stands in for the index service: like pypiserver, it takes uploads at /.
func startIndex(t *testing.T, port string) {
	t.Helper()
	index, err := world.NewIndex(t.TempDir(), world.IndexOptions{HTMLOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.URL.Path == "/" {
			r.URL.Path = "/legacy/"
		}
		index.ServeHTTP(w, r)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
}

// upload sends a wheel as twine does.
func upload(t *testing.T, to, name, version string, content []byte) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	sum := sha256.Sum256(content)
	for _, f := range [][2]string{
		{":action", "file_upload"}, {"protocol_version", "1"}, {"metadata_version", "2.1"}, {"name", name}, {"version", version},
		{"filetype", "bdist_wheel"}, {"pyversion", "py3"}, {"sha256_digest", hex.EncodeToString(sum[:])},
	} {
		if err := form.WriteField(f[0], f[1]); err != nil {
			t.Fatal(err)
		}
	}
	part, err := form.CreateFormFile("content", world.WheelName(name, version))
	if err == nil {
		_, err = part.Write(content)
	}
	if err == nil {
		err = form.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, to, &body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	req.SetBasicAuth("alice", "secret")
	res, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
	if state := res.Header.Get("Portbook-State"); res.StatusCode/100 != 2 || !strings.HasPrefix(state, "proven") {
		t.Fatalf("upload: %s, state %q, want proven: %s", res.Status, state, answer)
	}
}

// install fetches a file as an installer does: from its project's page.
func install(t *testing.T, proxy, file string, want []byte) {
	t.Helper()
	status, page, err := get(proxy + "/simple/demo/")
	if err != nil || status != http.StatusOK {
		t.Fatalf("page: %d %v\n%s", status, err, page)
	}
	m := regexp.MustCompile(`href="([^"]*` + regexp.QuoteMeta(file) + `[^"]*)"`).FindSubmatch(page)
	if m == nil {
		t.Fatalf("page: no %s:\n%s", file, page)
	}
	base, err := url.Parse(proxy + "/simple/demo/")
	if err != nil {
		t.Fatal(err)
	}
	ref, err := base.Parse(html.UnescapeString(string(m[1])))
	if err != nil {
		t.Fatal(err)
	}
	ref.Fragment = ""
	link := ref.String()
	status, got, err := get(link)
	if err != nil || status != http.StatusOK || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d %v: %.300s", link, status, err, got)
	}
}
