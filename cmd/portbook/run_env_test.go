package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/internal/world"
	"github.com/portbook/portbook/registry/pypi/pip"
)

// TestRealPipTakesNothingFromConfiguration: with the environment that run gives
// it, a real pip does not take constraints, requirements or links from a
// configuration file, and installs nothing of what lies there.
func TestRealPipTakesNothingFromConfiguration(t *testing.T) {
	python := "/usr/bin/python3"
	if exec.Command(python, "-m", "pip", "--version").Run() != nil {
		t.Skip("needs pip (Debian: python3-pip)")
	}
	dir := t.TempDir()
	evil := filepath.Join(dir, "evil")
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	wheel := write("evil/"+world.WheelName("lantern", "9.9"), string(world.BuildWheel("lantern", "9.9", map[string]string{"lantern.py": "LIGHT = 0\n"})))
	links := write("links.txt", "--find-links "+evil+"\n")
	for what, conf := range map[string]string{
		"constraint":  "[install]\nconstraint = " + links + "\n",
		"requirement": "[install]\nrequirement = " + links + "\n",
		"find-links":  "[global]\nfind-links = " + evil + "\n",
		"editable":    "[install]\neditable = " + wheel + "\n",
	} {
		config := write("pip-"+what+".conf", conf)
		run := func(env []string, target string) string {
			cmd := exec.Command(python, "-m", "pip", "install", "--target", target, "--no-deps", "--disable-pip-version-check", "lantern")
			cmd.Env = append(env, "PIP_CONFIG_FILE="+config, "PIP_BREAK_SYSTEM_PACKAGES=1", "HOME="+dir, "PATH="+os.Getenv("PATH"))
			out, _ := cmd.CombinedOutput() // it fails: there is no index; what it says and leaves tells
			return string(out)
		}
		target := filepath.Join(dir, "target-"+what)
		out := run(pip.Env(nil, "http://127.0.0.1:9"), target)
		if _, err := os.Stat(filepath.Join(target, "lantern.py")); err == nil || strings.Contains(out, evil) {
			t.Errorf("%s in pip.conf: %s", what, out)
		}
	}
	// The same without our environment, so that the test cannot pass for nothing.
	target := filepath.Join(dir, "target-plain")
	cmd := exec.Command(python, "-m", "pip", "install", "--target", target, "--no-deps", "--no-index", "--disable-pip-version-check", "lantern")
	cmd.Env = []string{"PIP_CONFIG_FILE=" + filepath.Join(dir, "pip-constraint.conf"), "PIP_BREAK_SYSTEM_PACKAGES=1", "HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("without portbook's environment pip should install it: %v\n%s", err, out)
	}
}
