package client

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImports: an installer links this package, so it stays light. What it may
// link beyond the standard library is listed here.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Skipf("needs the go command: %v", err)
	}
	allowed := []string{
		"github.com/portbook/portbook/entry",
		"github.com/portbook/portbook/c2sp",
		"github.com/portbook/portbook/client",
		"github.com/transparency-dev/merkle",
		"github.com/cloudflare/circl/sign", // ML-DSA-44, and the Keccak of this module
		"github.com/cloudflare/circl/internal/sha3",
		"github.com/cloudflare/circl/simd/keccakf1600",
		"golang.org/x/sys/cpu",
		"golang.org/x/sys/unix",
		"golang.org/x/sys/windows",
	}
	for path := range strings.FieldsSeq(string(out)) {
		ok := false
		for _, a := range allowed {
			ok = ok || path == a || strings.HasPrefix(path, a+"/") && !strings.HasPrefix(a, "github.com/portbook/")
		}
		if !ok {
			t.Errorf("links %s", path)
		}
	}
	std, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, never := range []string{"database/sql", "os/exec", "plugin"} {
		if strings.Contains("\n"+string(std), "\n"+never+"\n") {
			t.Errorf("links %s", never)
		}
	}
}

// TestBuildsElsewhere: the locks and the file system differ; it must build.
func TestBuildsElsewhere(t *testing.T) {
	if testing.Short() {
		t.Skip("needs more time than -short allows")
	}
	for _, target := range []string{"windows/amd64", "darwin/arm64", "js/wasm"} {
		os, arch, _ := strings.Cut(target, "/")
		cmd := exec.Command("go", "vet", ".")
		cmd.Env = append(cmd.Environ(), "GOOS="+os, "GOARCH="+arch, "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", target, err, out)
		}
	}
}
