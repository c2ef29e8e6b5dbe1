package pypi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"strings"
	"testing"
	"testing/iotest"
)

const boundary = "f00"
const formType = `multipart/form-data; boundary=` + boundary

type part struct{ name, file, value string }

func form(t testing.TB, parts ...part) []byte {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.SetBoundary(boundary); err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		var dst io.Writer
		var err error
		if p.file != "" {
			dst, err = w.CreateFormFile(p.name, p.file)
		} else {
			dst, err = w.CreateFormField(p.name)
		}
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(dst, p.value)
	}
	w.Close()
	return b.Bytes()
}

func good(content string) []part {
	sum := sha256.Sum256([]byte(content))
	return []part{{":action", "", "file_upload"}, {"protocol_version", "", "1"}, {"name", "", "Foo.Bar"}, {"version", "", "1.0"},
		{"classifiers", "", "A"}, {"classifiers", "", "B"}, {"sha256_digest", "", hex.EncodeToString(sum[:])},
		{"content", "foo_bar-1.0.tar.gz", content}}
}

func TestUpload(t *testing.T) {
	content := strings.Repeat("bytes\r\n--f0 not a boundary", 10000)
	body := form(t, append(good(content), part{"gpg_signature", "foo.asc", "sig"}, part{"comment", "", "after"})...)
	var got, teed bytes.Buffer
	u, err := ParseUpload(formType, io.TeeReader(iotest.HalfReader(bytes.NewReader(append(body, "epilogue"...))), &teed), UploadLimits{}, func(u *Upload) (io.Writer, error) {
		if u.Get("name") != "Foo.Bar" || len(u.Fields["classifiers"]) != 2 || u.File != "foo_bar-1.0.tar.gz" || u.Get("comment") != "" {
			t.Errorf("before the content: %+v", u)
		}
		if err := u.CheckFields(); err != nil {
			t.Error(err)
		}
		return &got, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Check(); err != nil {
		t.Fatal(err)
	}
	if got.String() != content || u.Size != uint64(len(content)) || u.SHA256 != sha256.Sum256([]byte(content)) || u.Get("comment") != "after" {
		t.Errorf("size %d, comment %q", u.Size, u.Get("comment"))
	}
	if !bytes.HasSuffix(teed.Bytes(), []byte("epilogue")) {
		t.Error("the body was not read to its end")
	}
}

func TestUploadRefused(t *testing.T) {
	replace := func(name, file, value string) []part {
		ps := good("x")
		for i := range ps {
			if ps[i].name == name {
				ps[i] = part{name, file, value}
			}
		}
		return ps
	}
	raw := func(header, value string) []byte {
		return []byte("--f00\r\n" + header + "\r\n\r\n" + value + "\r\n--f00--\r\n")
	}
	cut := form(t, good("x")...)
	limits := UploadLimits{Fields: 20, FieldBytes: 1000, FieldsBytes: 1500, Content: 100}
	for _, c := range []struct {
		name, ct string
		body     []byte
		field    string
		want     string
	}{
		{"not a form", "application/json", nil, "form", "not multipart/form-data"},
		{"no boundary", "multipart/form-data", nil, "form", "boundary"},
		{"empty", formType, nil, "form", ""},
		{"cut", formType, cut[:len(cut)-10], "content", "ends before the last boundary"},
		{"no content", formType, form(t, good("x")[:7]...), "content", "missing"},
		{"content is a field", formType, form(t, replace("content", "", "x")...), "content", "is no file"},
		{"two contents", formType, form(t, append(good("x"), part{"content", "foo_bar-1.0.zip", "y"})...), "content", "stands twice"},
		{"two names", formType, form(t, append(good("x"), part{"name", "", "other"})...), "name", "stands twice"},
		{"two digests", formType, form(t, append(good("x"), part{"sha256_digest", "", "00"})...), "sha256_digest", "stands twice"},
		{"path as file name", formType, raw(`Content-Disposition: form-data; name="content"; filename="../../etc/x-1.tar.gz"`, "x"), "content", "filename"},
		{"control character in file name", formType, raw("Content-Disposition: form-data; name=\"content\"; filename=\"x\x1b[2J-1.tar.gz\"", "x"), "form", "malformed MIME header"},
		{"other file", formType, form(t, append(good("x"), part{"readme", "a", "x"})...), "readme", "is a file"},
		{"long field", formType, form(t, replace("version", "", strings.Repeat("1", 1001))...), "version", "longer than a field may be"},
		{"long fields together", formType, form(t, append(good("x"), part{"a", "", strings.Repeat("1", 900)}, part{"b", "", strings.Repeat("1", 900)})...), "b", "longer"},
		{"many fields", formType, form(t, append(make21(), good("x")...)...), "form", "more than 20 fields"},
		{"large content", formType, form(t, replace("content", "foo_bar-1.0.tar.gz", strings.Repeat("x", 101))...), "content", "larger than 100 bytes"},
		{"quoted-printable", formType, raw("Content-Disposition: form-data; name=\"a\"\r\nContent-Transfer-Encoding: quoted-printable", "=41"), "form", "Content-Transfer-Encoding"},
		{"extended parameter", formType, raw(`Content-Disposition: form-data; name="content"; filename*=utf-8''x-1.tar.gz`, "x"), "form", "extended"},
		{"no disposition", formType, raw(`Content-Type: text/plain`, "x"), "form", "Content-Disposition"},
		{"two dispositions", formType, raw("Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"b\"", "x"), "form", "exactly one"},
		{"no name", formType, raw(`Content-Disposition: form-data`, "x"), "form", "no name"},
		{"odd name", formType, raw("Content-Disposition: form-data; name=\"a b\"", "x"), "form", "plain ASCII"},
		{"action", formType, form(t, replace(":action", "", "submit")...), ":action", "not file_upload"},
		{"protocol", formType, form(t, replace("protocol_version", "", "2")...), "protocol_version", "not 1"},
		{"project name", formType, form(t, replace("name", "", "-x-")...), "name", ""},
		{"version", formType, form(t, replace("version", "", "")...), "version", ""},
		{"version differs from file name", formType, form(t, replace("version", "", "1.1")...), "content", `says version "1.0"`},
		{"project differs from file name", formType, form(t, replace("name", "", "other")...), "content", "not a file of project other"},
		{"sha256", formType, form(t, replace("sha256_digest", "", sum64)...), "sha256_digest", "the content's is"},
		{"sha256 not hex", formType, form(t, replace("sha256_digest", "", "zz")...), "sha256_digest", "the content's is"},
		{"blake2", formType, form(t, append(good("x"), part{"blake2_256_digest", "", sum64})...), "blake2_256_digest", "the content's is"},
		{"md5", formType, form(t, append(good("x"), part{"md5_digest", "", "00"})...), "md5_digest", "the content's is"},
		{"long epilogue", formType, append(form(t, good("x")...), make([]byte, 70<<10)...), "form", "too much follows"},
	} {
		u, err := ParseUpload(c.ct, bytes.NewReader(c.body), limits, func(*Upload) (io.Writer, error) { return io.Discard, nil })
		if err == nil {
			err = u.Check()
		}
		var ue *UploadError
		if !errors.As(err, &ue) || ue.Field != c.field || !strings.Contains(ue.Reason, c.want) {
			t.Errorf("%s: %v, want %s: …%s…", c.name, err, c.field, c.want)
		}
	}
}

func make21() (ps []part) {
	for i := range 21 {
		ps = append(ps, part{fmt.Sprint("f", i), "", "x"})
	}
	return ps
}

// The errors of sink, of its Writer and of the connection are no fault of the
// form.
func TestUploadForeignErrors(t *testing.T) {
	mine := errors.New("mine")
	body := form(t, good("x")...)
	if _, err := ParseUpload(formType, bytes.NewReader(body), UploadLimits{}, func(*Upload) (io.Writer, error) { return nil, mine }); err != mine {
		t.Error(err)
	}
	if _, err := ParseUpload(formType, bytes.NewReader(body), UploadLimits{}, func(*Upload) (io.Writer, error) { return failing{mine}, nil }); err != mine {
		t.Error(err)
	}
	if _, err := ParseUpload(formType, io.MultiReader(bytes.NewReader(body[:200]), iotest.ErrReader(mine)), UploadLimits{}, nil); err != mine {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func FuzzUpload(f *testing.F) {
	f.Add(form(f, good("x")...))
	f.Add([]byte("--f00\r\nContent-Disposition: form-data; name=\"content\"; filename=\"x-1.zip\"\r\n\r\nabc\r\n--f00--\r\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		var got bytes.Buffer
		u, err := ParseUpload(formType, bytes.NewReader(body), UploadLimits{}, func(*Upload) (io.Writer, error) { return &got, nil })
		if err != nil {
			var ue *UploadError
			if !errors.As(err, &ue) || ue.Field == "" || ue.Reason == "" {
				t.Fatalf("error without field or reason: %#v", err)
			}
			return
		}
		if u.SHA256 != sha256.Sum256(got.Bytes()) || u.Size != uint64(got.Len()) {
			t.Fatal("hashed something else than was written")
		}
		u.Check()
	})
}
