// Real distributions, made with the standard library alone: wheels (the binary
// distribution format, PEP 427) and source distributions (PEP 517/625) that pip
// installs and twine uploads.

package world

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"
)

// distTime stands in every archive, so that the same input gives the same bytes.
var distTime = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// WheelName is the file name of the wheel that BuildWheel makes.
func WheelName(name, version string) string {
	return distName(name) + "-" + version + "-py3-none-any.whl"
}

// SdistName is the file name of the source distribution that BuildSdist makes.
func SdistName(name, version string) string { return distName(name) + "-" + version + ".tar.gz" }

// distName is a project name as it stands in file names.
func distName(name string) string { return strings.ReplaceAll(normalize(name), "-", "_") }

func distMetadata(name, version string) string {
	return fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\nSummary: A package for tests\n", name, version)
}

// BuildWheel makes a pure Python wheel. Files maps paths in site-packages to
// their text; nil gives one module of the project's name whose VERSION is the
// version. The name, version and paths must be plain ones.
func BuildWheel(name, version string, files map[string]string) []byte {
	dist := distName(name)
	if files == nil {
		files = map[string]string{dist + ".py": fmt.Sprintf("VERSION = %q\n", version)}
	}
	info := dist + "-" + version + ".dist-info/"
	all := map[string]string{
		info + "METADATA": distMetadata(name, version),
		info + "WHEEL":    "Wheel-Version: 1.0\nGenerator: portbook-world\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
	}
	for path, text := range files {
		all[path] = text
	}
	var record strings.Builder
	for _, path := range sortedKeys(all) {
		sum := sha256.Sum256([]byte(all[path]))
		fmt.Fprintf(&record, "%s,sha256=%s,%d\n", path, base64.RawURLEncoding.EncodeToString(sum[:]), len(all[path]))
	}
	fmt.Fprintf(&record, "%sRECORD,,\n", info)
	all[info+"RECORD"] = record.String()

	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, path := range sortedKeys(all) {
		h := &zip.FileHeader{Name: path, Method: zip.Deflate, Modified: distTime}
		h.SetMode(0o644)
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(w, all[path])
		}
		must(err)
	}
	must(z.Close())
	return b.Bytes()
}

// BuildSdist makes a source distribution whose build needs setuptools. Files are
// as for BuildWheel; every top-level .py file is a module of the package.
func BuildSdist(name, version string, files map[string]string) []byte {
	dist := distName(name)
	if files == nil {
		files = map[string]string{dist + ".py": fmt.Sprintf("VERSION = %q\n", version)}
	}
	var modules []string
	for _, path := range sortedKeys(files) {
		if m, ok := strings.CutSuffix(path, ".py"); ok && !strings.Contains(m, "/") {
			modules = append(modules, fmt.Sprintf("%q", m))
		}
	}
	all := map[string]string{
		"PKG-INFO":       distMetadata(name, version),
		"pyproject.toml": "[build-system]\nrequires = [\"setuptools\"]\nbuild-backend = \"setuptools.build_meta\"\n",
		"setup.py":       fmt.Sprintf("from setuptools import setup\nsetup(name=%q, version=%q, py_modules=[%s])\n", name, version, strings.Join(modules, ", ")),
	}
	for path, text := range files {
		all[path] = text
	}
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	gz.ModTime = distTime
	tw := tar.NewWriter(gz)
	for _, path := range sortedKeys(all) {
		err := tw.WriteHeader(&tar.Header{Name: dist + "-" + version + "/" + path, Mode: 0o644, Size: int64(len(all[path])), ModTime: distTime})
		if err == nil {
			_, err = io.WriteString(tw, all[path])
		}
		must(err)
	}
	must(tw.Close())
	must(gz.Close())
	return b.Bytes()
}

// must ends the program on an error that writing to memory cannot give.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
