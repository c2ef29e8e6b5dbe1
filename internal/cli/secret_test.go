package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", "hunter2\n", 0o600)
	if got, err := ReadSecret(good); err != nil || got != "hunter2" {
		t.Errorf("%q, %v", got, err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		write("group", "s\n", 0o640):  "can be read by others",
		write("world", "s\n", 0o604):  "can be read by others",
		link:                          "links are not followed",
		dir:                           "not a plain file",
		write("empty", "", 0o600):     "want one line",
		write("two", "a\nb\n", 0o600): "want one line",
		write("long", strings.Repeat("x", maxSecret+1), 0o600): "more than",
		filepath.Join(dir, "none"):                             "no such file",
	} {
		if got, err := ReadSecret(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
}

// What a service manager hands over is named without its path, and systemd
// makes it readable for the service by an access control list.
func TestReadCredential(t *testing.T) {
	if _, err := ReadSecret("credential:pin"); err == nil || !strings.Contains(err.Error(), "LoadCredential=pin:FILE") {
		t.Errorf("without any: %v", err)
	}
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for name, mode := range map[string]os.FileMode{"pin": 0o400, "acl": 0o440, "open": 0o444, "written": 0o460} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("1234\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"pin", "acl"} {
		if got, err := ReadSecret("credential:" + name); err != nil || got != "1234" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"open": "can be read by others", "written": "can be read by others", "none": "no such file",
		"": "not the name", "..": "not the name", "../pin": "not the name", "/etc/passwd": "not the name",
	} {
		if got, err := ReadSecret("credential:" + name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}
