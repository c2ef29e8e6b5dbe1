package pypi

// What a real twine sends.

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestTwineUpload(t *testing.T) {
	if _, err := exec.LookPath("twine"); err != nil {
		t.Skip("needs twine")
	}
	wheels, _ := filepath.Glob("/usr/share/python-wheels/wheel-*.whl")
	if len(wheels) == 0 {
		t.Skip("needs /usr/share/python-wheels/wheel-*.whl (python3-wheel-whl)")
	}
	want, err := os.ReadFile(wheels[0])
	if err != nil {
		t.Fatal(err)
	}
	var u *Upload
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var got bytes.Buffer
		var err error
		u, err = ParseUpload(r.Header.Get("Content-Type"), r.Body, UploadLimits{}, func(u *Upload) (io.Writer, error) {
			if err := u.CheckFields(); err != nil {
				t.Errorf("before the content: %v", err)
			}
			return &got, nil
		})
		if err == nil {
			err = u.Check()
		}
		if err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%v, %d bytes", err, got.Len())
			http.Error(w, "bad", http.StatusBadRequest)
		}
	}))
	defer srv.Close()
	cmd := exec.CommandContext(t.Context(), "twine", "upload", "--non-interactive", "--disable-progress-bar", "-u", "me", "-p", "pw", "--repository-url", srv.URL+"/legacy/", wheels[0])
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C.UTF-8"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if u == nil || u.Get("name") != "wheel" || u.File != filepath.Base(wheels[0]) || u.Get("sha256_digest") == "" || u.Get("blake2_256_digest") == "" {
		t.Errorf("%+v", u)
	}
}
