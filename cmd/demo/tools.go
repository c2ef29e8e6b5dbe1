package main

// pip and twine where they are found, and stand-ins that speak the same
// protocols where they are not.

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/net/html"
)

// tools are the programs that were found.
type tools struct {
	pip   []string // command and first arguments; nil: none
	twine string   // empty: none
}

func findTools(ctx context.Context) tools {
	var t tools
	for _, cmd := range [][]string{{"python3", "-m", "pip"}, {"pip3"}, {"pip"}} {
		if exec.CommandContext(ctx, cmd[0], append(cmd[1:], "--version")...).Run() == nil {
			t.pip = cmd
			break
		}
	}
	if path, err := exec.LookPath("twine"); err == nil && exec.CommandContext(ctx, path, "--version").Run() == nil {
		t.twine = path
	}
	return t
}

func (t tools) say() string {
	pip, twine := "pip not found: stand-in used", "twine not found: stand-in used"
	if t.pip != nil {
		pip = "installing with " + strings.Join(t.pip, " ")
	}
	if t.twine != "" {
		twine = "uploading with twine"
	}
	return "(" + twine + "; " + pip + ")"
}

// cleanEnv is the environment without what would send pip or twine elsewhere.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		upper := strings.ToUpper(name)
		if strings.HasPrefix(upper, "PIP_") || strings.HasPrefix(upper, "TWINE_") || strings.HasSuffix(upper, "_PROXY") || name == "REQUESTS_CA_BUNDLE" || name == "SSL_CERT_FILE" {
			continue
		}
		env = append(env, kv)
	}
	return append(env, "PIP_CONFIG_FILE="+os.DevNull, "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_NO_INPUT=1", "NO_PROXY=*")
}

func (t tools) upload(ctx context.Context, repository, user, password, file string) error {
	if t.twine == "" {
		return standInUpload(ctx, repository, user, password, file)
	}
	cmd := exec.CommandContext(ctx, t.twine, "upload", "--non-interactive", "--disable-progress-bar", "--repository-url", repository, file)
	cmd.Env = append(cleanEnv(), "TWINE_USERNAME="+user, "TWINE_PASSWORD="+password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("twine: %w: %s", err, out)
	}
	return nil
}

func (t tools) install(ctx context.Context, index, requirement, target string) (output string, err error) {
	if t.pip == nil {
		return standInInstall(ctx, index, requirement, target)
	}
	args := append(t.pip[1:], "install", "--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--retries", "0", "--quiet", "--index-url", index, "--target", target, requirement)
	cmd := exec.CommandContext(ctx, t.pip[0], args...)
	cmd.Env = cleanEnv()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var httpClient = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}

const maxBody = 16 << 20

func get(ctx context.Context, u string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/html, */*")
	res, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("ERROR: %s for url: %s", res.Status, u)
	}
	return body, err
}

func post(ctx context.Context, u string, body []byte) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	res, err := httpClient.Do(req)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, res.Body.Close()
}

// findFile is the URL, with its hash fragment, under which a simple page lists a file.
func findFile(ctx context.Context, page, file string) (string, error) {
	raw, err := get(ctx, page)
	if err != nil {
		return "", err
	}
	base, err := url.Parse(page)
	if err != nil {
		return "", err
	}
	for z := html.NewTokenizer(bytes.NewReader(raw)); ; {
		switch z.Next() {
		case html.ErrorToken:
			return "", fmt.Errorf("%s does not list %s", page, file)
		case html.StartTagToken:
			for _, a := range z.Token().Attr {
				if a.Key != "href" {
					continue
				}
				if u, err := base.Parse(a.Val); err == nil && filepath.Base(u.Path) == file {
					return u.String(), nil
				}
			}
		}
	}
}

// standInUpload speaks the legacy upload API as twine does.
func standInUpload(ctx context.Context, repository, user, password, file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	name := filepath.Base(file)
	kind, version := "sdist", strings.TrimSuffix(strings.TrimPrefix(name, "lantern-"), ".tar.gz")
	if strings.HasSuffix(name, ".whl") {
		kind, version = "bdist_wheel", strings.Split(name, "-")[1]
	}
	sum := sha256.Sum256(content)
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for _, f := range [][2]string{
		{":action", "file_upload"}, {"protocol_version", "1"}, {"metadata_version", "2.1"}, {"name", "lantern"}, {"version", version},
		{"filetype", kind}, {"pyversion", map[string]string{"sdist": "source", "bdist_wheel": "py3"}[kind]}, {"sha256_digest", hex.EncodeToString(sum[:])},
	} {
		if err := form.WriteField(f[0], f[1]); err != nil {
			return err
		}
	}
	part, err := form.CreateFormFile("content", name)
	if err != nil {
		return err
	}
	if _, err := part.Write(content); err != nil {
		return err
	}
	if err := form.Close(); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, repository, &body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	req.SetBasicAuth(user, password)
	res, err := httpClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("upload of %s: %s", name, res.Status)
	}
	return nil
}

// standInInstall does what pip does with one wheel: page, file, digest, unpack.
func standInInstall(ctx context.Context, index, requirement, target string) (string, error) {
	_, version, _ := strings.Cut(requirement, "==")
	href, err := findFile(ctx, index+"lantern/", "lantern-"+version+"-py3-none-any.whl")
	if err != nil {
		return err.Error(), err
	}
	file, fragment, _ := strings.Cut(href, "#")
	raw, err := get(ctx, file)
	if err != nil {
		return err.Error(), err
	}
	sum := sha256.Sum256(raw)
	if want, ok := strings.CutPrefix(fragment, "sha256="); ok && want != hex.EncodeToString(sum[:]) {
		err := errors.New("ERROR: the file does not have the digest of the page")
		return err.Error(), err
	}
	archive, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return err.Error(), err
	}
	code, err := archive.Open("lantern.py")
	if err != nil {
		return err.Error(), err
	}
	defer code.Close()
	text, err := io.ReadAll(io.LimitReader(code, maxBody))
	if err != nil {
		return err.Error(), err
	}
	return "", os.WriteFile(filepath.Join(target, "lantern.py"), text, 0o644)
}
