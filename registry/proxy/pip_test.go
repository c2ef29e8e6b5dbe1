package proxy_test

// A real, unmodified pip in front of the proxy.

import (
	"archive/zip"
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/registry/proxy"
)

const debianWheels = "/usr/share/python-wheels"

// pips returns the Python interpreters that have pip, each pip version once,
// at most max.
func pips(t *testing.T, max int) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, py := range []string{"/usr/bin/python3", "python3"} {
		out, err := exec.Command(py, "-m", "pip", "--version").Output()
		if f := strings.Fields(string(out)); err == nil && len(f) > 1 && found[f[1]] == "" && len(found) < max {
			found[f[1]] = py
		}
	}
	if len(found) == 0 {
		t.Skip("needs pip (python3-pip)")
	}
	return found
}

// runPip runs pip with no settings but those given, and returns its output.
func runPip(t *testing.T, python string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), python, append([]string{"-m", "pip"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "PIP_CONFIG_FILE=" + os.DevNull, "PIP_DISABLE_PIP_VERSION_CHECK=1",
		"PIP_NO_CACHE_DIR=1", "LC_ALL=C.UTF-8", "TMPDIR=" + t.TempDir(), "COLUMNS=1000"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func realWheel(t *testing.T, name string) (file string, content []byte) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(debianWheels, name+"-*.whl"))
	if len(found) == 0 {
		t.Skip("needs " + debianWheels + "/" + name + "-*.whl (python3-" + name + "-whl)")
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(found[0]), b
}

// install runs pip install --target and tells whether anything arrived there.
func (s *stand) install(t *testing.T, python, project string) (out string, err error, installed bool) {
	t.Helper()
	target := t.TempDir()
	out, err = runPip(t, python, "install", "--no-deps", "--target", target, "--index-url", s.srv.URL+"/simple/", project)
	left, rerr := os.ReadDir(target)
	if rerr != nil {
		t.Fatal(rerr)
	}
	return out, err, len(left) > 0
}

func TestPipInstallsVerified(t *testing.T) {
	for version, py := range pips(t, 2) {
		names := []string{"wheel", "setuptools", "pip"}
		if py != "/usr/bin/python3" {
			names = names[:1]
		}
		for _, name := range names {
			t.Run(version+"/"+name, func(t *testing.T) {
				file, content := realWheel(t, name)
				s := newStand(t, nil)
				s.good(file, content)
				if out, err, installed := s.install(t, py, name); err != nil || !installed {
					t.Errorf("%v\n%s", err, out)
				}
				s.counted(1, 0, 0)
			})
		}
	}
}

// What a person sees: pip's own error names what failed, and nothing is
// installed.
func TestPipShowsRefusal(t *testing.T) {
	file, content := realWheel(t, "wheel")
	swapped := bytes.Clone(content)
	swapped[len(swapped)/2] ^= 1
	for version, py := range pips(t, 1) {
		for _, c := range []struct {
			name, want string
			arrange    func(*stand)
		}{
			{"swapped, the page still tells the old digest", "PORTBOOK REFUSED (" + client.CodeDigest + "): the index hands out other contents", func(s *stand) {
				s.good(file, content)
				s.index.files.set("/f/"+file, swapped)
			}},
			{"swapped, the page tells the new digest", "PORTBOOK REFUSED (" + client.CodeDigest + "): the index hands out other contents", func(s *stand) {
				s.index.put(file, swapped, s.log.prove(s.log.add(upload("wheel", file, content)), 2))
			}},
			{"never logged", "PORTBOOK REFUSED (" + client.CodeNoProof + "): this file has no proof", func(s *stand) { s.index.put(file, content, nil) }},
			{"too few witnesses", "PORTBOOK REFUSED (" + client.CodeQuorum + ")", func(s *stand) {
				s.index.put(file, content, s.log.prove(s.log.add(upload("wheel", file, content)), 1))
			}},
			{"index fails", "PORTBOOK CANNOT CHECK (" + proxy.CodeIndexAnswer + "): the index answered with an error, not evidence of tampering; retry", func(s *stand) {
				s.good(file, content)
				s.index.routes.set("/f/"+file, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
			}},
			{"metadata swapped", "PORTBOOK REFUSED (" + proxy.CodeMetadata + "): the metadata", func(s *stand) {
				e := upload("wheel", file, content)
				e.MetadataSHA256 = strings.Repeat("ab", 32)
				s.index.put(file, content, s.log.prove(s.log.add(e), 2))
				s.index.files.set("/f/"+file+".metadata", []byte("Metadata-Version: 2.1\nName: wheel\nVersion: 0.38.4\n"))
				s.index.pages.set("wheel", strings.Replace(s.index.pages.get("wheel"), "<a ", `<a data-dist-info-metadata="true" `, 1))
			}},
		} {
			t.Run(version+"/"+c.name, func(t *testing.T) {
				s := newStand(t, nil)
				c.arrange(s)
				out, err, installed := s.install(t, py, "wheel")
				if err == nil || installed || !strings.Contains(out, c.want) {
					t.Errorf("installed %v, %v, want %q in\n%s", installed, err, c.want, out)
				}
			})
		}
	}
}

// buildWheel makes version 1.0 of a project of one module.
func buildWheel(t *testing.T, project, module string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	info := project + "-1.0.dist-info/"
	for _, f := range [][2]string{
		{project + ".py", module},
		{info + "METADATA", "Metadata-Version: 2.1\nName: " + project + "\nVersion: 1.0\n"},
		{info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{info + "RECORD", project + ".py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n"},
	} {
		w, err := z.CreateHeader(&zip.FileHeader{Name: f[0], Method: zip.Store})
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(f[1]))
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A wheel that is a whole ZIP file before its last 64 KiB: what has passed
// before the swap shows would install. pip takes a body shorter than its
// Content-Length for complete, so the proxy must not rely on that.
func TestSwappedPaddedWheel(t *testing.T) {
	const file = "padded-1.0-py3-none-any.whl"
	module := func(n int, fill string) string { return "N = '" + strings.Repeat(fill, n) + "'\n" }
	empty := len(buildWheel(t, "padded", module(0, "e")))
	// Shortly before the end of a chunk the ZIP file is complete.
	evil := buildWheel(t, "padded", module(5*64<<10-30_000-empty, "e"))
	evil = append(evil, make([]byte, 50_000)...)
	real := buildWheel(t, "padded", module(len(evil)-empty, "r"))
	if len(evil) != len(real) {
		t.Fatal("the length gives the swap away")
	}
	for version, py := range pips(t, 2) {
		t.Run(version, func(t *testing.T) {
			s := newStand(t, func(_ *stand, c *proxy.Config) { c.Hold = 1 })
			s.index.put(file, evil, s.log.prove(s.log.add(upload("padded", file, real)), 2))
			s.index.pages.set("padded", `<a href="/f/`+file+`">`+file+`</a>`) // no digest for pip to compare
			if out, err, installed := s.install(t, py, "padded"); err == nil || installed {
				t.Errorf("installed %v\n%s", installed, out)
			}
			s.counted(0, 1, 0)
		})
	}
}

// An index like Gitea or pypiserver, and one that keeps its files elsewhere.
func TestPipWithOtherIndexes(t *testing.T) {
	file, content := realWheel(t, "wheel")
	for version, py := range pips(t, 1) {
		t.Run(version+"/no digests, proof in the log", func(t *testing.T) {
			s := newStand(t, func(s *stand, c *proxy.Config) { c.Log = s.log.srv.URL })
			s.log.add(upload("wheel", file, content))
			s.index.put(file, content, nil)
			s.index.pages.set("wheel", `<a href="/f/`+file+`">`+file+`</a>`)
			if out, err, installed := s.install(t, py, "wheel"); err != nil || !installed {
				t.Errorf("%v\n%s", err, out)
			}
			s.counted(1, 0, 0)
		})
		t.Run(version+"/files on another host", func(t *testing.T) {
			other := newIndex(t)
			s := newStand(t, func(_ *stand, c *proxy.Config) { c.FileHosts = []string{hostOf(t, other.srv.URL)} })
			other.put(file, content, s.log.prove(s.log.add(upload("wheel", file, content)), 2))
			s.index.pages.set("wheel", `{"meta":{"api-version":"1.1"},"name":"wheel","files":[{"filename":"`+file+`","url":"`+other.srv.URL+"/f/"+file+`","hashes":{},"yanked":false}]}`)
			if out, err, installed := s.install(t, py, "wheel"); err != nil || !installed {
				t.Errorf("%v\n%s", err, out)
			}
			s.counted(1, 0, 0)
		})
	}
}
