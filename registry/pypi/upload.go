package pypi

// The legacy upload form: multipart/form-data with ":action=file_upload",
// metadata fields, digests and one file in "content", as twine, flit and
// poetry send it (docs.pypi.org/api/upload; RFC 7578).

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"mime/multipart"
	"strings"

	"golang.org/x/crypto/blake2b"

	"github.com/portbook/portbook/entry"
)

// UploadLimits bound what is read from a form. A zero field means its default.
type UploadLimits struct {
	Fields      int   // number of parts: 1024 (a classifier or URL is a part each)
	FieldBytes  int64 // one field's value: 8 MiB (descriptions and attestations)
	FieldsBytes int64 // all fields together: 16 MiB
	Content     int64 // the file: 4 GiB
}

func (l UploadLimits) withDefaults() UploadLimits {
	if l.Fields == 0 {
		l.Fields = 1024
	}
	if l.FieldBytes == 0 {
		l.FieldBytes = 8 << 20
	}
	if l.FieldsBytes == 0 {
		l.FieldsBytes = 16 << 20
	}
	if l.Content == 0 {
		l.Content = 4 << 30
	}
	return l
}

// An Upload is a parsed form. While its content streams, Fields holds those
// that stood before it.
type Upload struct {
	// Fields by name, each with its values in order. "content" and
	// "gpg_signature" are files and not among them.
	Fields map[string][]string
	// File is the content's file name, as sent; it passes entry.CheckFile.
	File string
	// Size and digests of the content, as hashed here.
	Size    uint64
	SHA256  [32]byte
	Blake2b [32]byte // BLAKE2b-256
	MD5     [16]byte // compared with the form's, trusted for nothing
}

// An UploadError names the field of the form that is wrong, and why. Field is
// "form" when the multipart framing itself is.
type UploadError struct {
	Field, Reason string
	TooLarge      bool // a limit was passed: HTTP 413 rather than 400
	Err           error
}

func (e *UploadError) Error() string { return "upload form: " + e.Field + ": " + e.Reason }
func (e *UploadError) Unwrap() error { return e.Err }

// single are the fields that may stand only once: an index that reads the
// other one would see another upload than was logged.
var single = map[string]bool{
	":action": true, "protocol_version": true, "filetype": true, "pyversion": true, "metadata_version": true,
	"name": true, "version": true, "content": true, "gpg_signature": true, "attestations": true,
	"sha256_digest": true, "blake2_256_digest": true, "md5_digest": true,
}

// ParseUpload reads the form in body, whose request had the given content
// type, to its last byte.
//
// When the content begins, sink is called once with the upload as known so far
// (fields before the content, and the file's name) and returns where the
// content goes; it is hashed on the way. twine sends every field first. An
// error of sink, of its Writer or of body is returned as it is; all others are
// *[UploadError]. ParseUpload checks the form's grammar; [Upload.Check] what it
// says.
func ParseUpload(contentType string, body io.Reader, limits UploadLimits, sink func(*Upload) (io.Writer, error)) (*Upload, error) {
	limits = limits.withDefaults()
	typ, params, err := mime.ParseMediaType(contentType)
	if err != nil || typ != "multipart/form-data" {
		return nil, &UploadError{Field: "form", Reason: fmt.Sprintf("the Content-Type is %q, not multipart/form-data", contentType)}
	}
	if b := params["boundary"]; b == "" || len(b) > 200 {
		return nil, &UploadError{Field: "form", Reason: "the Content-Type has no boundary of 1 to 200 characters"}
	}
	src := &source{r: body}
	mr := multipart.NewReader(src, params["boundary"])
	u := &Upload{Fields: make(map[string][]string)}
	seen := make(map[string]bool)
	total := int64(0)
	for n := 0; ; n++ {
		part, err := mr.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, src.fault("form", err)
		}
		if n == limits.Fields {
			return nil, &UploadError{Field: "form", Reason: fmt.Sprintf("more than %d fields", limits.Fields), TooLarge: true}
		}
		name, file, isFile, err := disposition(part)
		if err != nil {
			return nil, err
		}
		if single[name] && seen[name] {
			return nil, &UploadError{Field: name, Reason: "stands twice"}
		}
		seen[name] = true
		if name == "content" {
			if !isFile {
				return nil, &UploadError{Field: name, Reason: "is no file: it has no filename"}
			}
			if err := entry.CheckFile(entry.PyPI, file); err != nil {
				return nil, &UploadError{Field: name, Reason: "filename: " + reasonOf(err), Err: err}
			}
			u.File = file
			w, err := sink(u)
			if err != nil {
				return nil, err
			}
			if err := u.readContent(part, src, w, limits.Content); err != nil {
				return nil, err
			}
			continue
		}
		if isFile && name != "gpg_signature" {
			return nil, &UploadError{Field: name, Reason: "is a file; only content and gpg_signature may be"}
		}
		max := min(limits.FieldBytes, limits.FieldsBytes-total)
		v, err := io.ReadAll(io.LimitReader(part, max+1))
		if err != nil {
			return nil, src.fault(name, err)
		}
		if int64(len(v)) > max {
			return nil, &UploadError{Field: name, TooLarge: true,
				Reason: fmt.Sprintf("longer than a field may be (%d bytes, %d for all together)", limits.FieldBytes, limits.FieldsBytes)}
		}
		total += int64(len(v))
		if !isFile {
			u.Fields[name] = append(u.Fields[name], string(v))
		}
	}
	if u.File == "" {
		return nil, &UploadError{Field: "content", Reason: "missing"}
	}
	// What follows the last boundary is to be ignored (RFC 2046); who tees the
	// body must still see it all.
	n, err := io.CopyN(io.Discard, src, 64<<10)
	if err != nil && err != io.EOF {
		return nil, src.fault("form", err)
	}
	if n == 64<<10 {
		return nil, &UploadError{Field: "form", Reason: "too much follows the last boundary"}
	}
	return u, nil
}

// disposition reads a part's header: RFC 7578 allows no other encoding than
// the bytes themselves.
func disposition(part *multipart.Part) (name, file string, isFile bool, err error) {
	switch e := strings.ToLower(part.Header.Get("Content-Transfer-Encoding")); e {
	case "", "binary", "8bit", "7bit":
	default:
		return "", "", false, &UploadError{Field: "form", Reason: fmt.Sprintf("a part has Content-Transfer-Encoding %q (RFC 7578, 4.7)", clip(e))}
	}
	if len(part.Header["Content-Disposition"]) != 1 {
		return "", "", false, &UploadError{Field: "form", Reason: "a part has not exactly one Content-Disposition"}
	}
	value := part.Header.Get("Content-Disposition")
	if strings.Contains(value, "*") { // filename*=, name*0=: readers differ (RFC 7578, 4.2)
		return "", "", false, &UploadError{Field: "form", Reason: "a part's Content-Disposition has an extended parameter"}
	}
	typ, params, err := mime.ParseMediaType(value)
	if err != nil || typ != "form-data" {
		return "", "", false, &UploadError{Field: "form", Reason: "a part's Content-Disposition is not form-data"}
	}
	name, ok := params["name"]
	if !ok || name == "" || len(name) > 100 {
		return "", "", false, &UploadError{Field: "form", Reason: "a part has no name of 1 to 100 characters"}
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return "", "", false, &UploadError{Field: "form", Reason: fmt.Sprintf("a part's name %q is not plain ASCII", clip(name))}
		}
	}
	file, isFile = params["filename"]
	return name, file, isFile, nil
}

func (u *Upload) readContent(part io.Reader, src *source, w io.Writer, limit int64) error {
	b2, err := blake2b.New256(nil)
	if err != nil {
		return err
	}
	hashes := [...]hash.Hash{sha256.New(), b2, md5.New()}
	buf := make([]byte, 64<<10)
	for {
		n, err := part.Read(buf)
		if u.Size += uint64(n); u.Size > uint64(limit) {
			return &UploadError{Field: "content", Reason: fmt.Sprintf("larger than %d bytes", limit), TooLarge: true}
		}
		for _, h := range hashes {
			h.Write(buf[:n])
		}
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return src.fault("content", err)
		}
	}
	hashes[0].Sum(u.SHA256[:0])
	hashes[1].Sum(u.Blake2b[:0])
	hashes[2].Sum(u.MD5[:0])
	return nil
}

// Get returns the first value of a field, "" when it is absent.
func (u *Upload) Get(field string) string {
	if v := u.Fields[field]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Check reports whether the form asks for an upload (":action" and protocol
// version), whether name and version agree with the file's name, and whether
// the digests it tells are those of the content. Before the content was read
// it can be asked with CheckFields. The error is an *[UploadError].
func (u *Upload) Check() error {
	if err := u.CheckFields(); err != nil {
		return err
	}
	for _, d := range []struct {
		field string
		sum   []byte
	}{{"sha256_digest", u.SHA256[:]}, {"blake2_256_digest", u.Blake2b[:]}, {"md5_digest", u.MD5[:]}} {
		if v := u.Get(d.field); v != "" {
			if got, err := hex.DecodeString(v); err != nil || !bytes.Equal(got, d.sum) {
				return &UploadError{Field: d.field, Reason: fmt.Sprintf("is %s, the content's is %x", clip(v), d.sum)}
			}
		}
	}
	return nil
}

// CheckFields is the part of [Upload.Check] that needs no content.
func (u *Upload) CheckFields() error {
	if v := u.Get(":action"); v != "file_upload" {
		return &UploadError{Field: ":action", Reason: fmt.Sprintf("is %q, not file_upload", clip(v))}
	}
	if v := u.Get("protocol_version"); v != "" && v != "1" {
		return &UploadError{Field: "protocol_version", Reason: fmt.Sprintf("is %q, not 1", clip(v))}
	}
	project, err := NormalProject(u.Get("name"))
	if err != nil {
		return &UploadError{Field: "name", Reason: reasonOf(err), Err: err}
	}
	version := u.Get("version")
	if err := entry.CheckVersion(entry.PyPI, version); err != nil {
		return &UploadError{Field: "version", Reason: reasonOf(err), Err: err}
	}
	inName, err := VersionOf(project, u.File)
	if err != nil {
		return &UploadError{Field: "content", Reason: err.Error(), Err: err}
	}
	if !SameVersion(inName, version) {
		return &UploadError{Field: "content", Reason: fmt.Sprintf("file name %q says version %q, the form says %q", u.File, inName, clip(version))}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// source remembers the body's own error, so that a broken connection is not
// taken for a bad form.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func (s *source) fault(field string, err error) error {
	if s.err != nil {
		return s.err
	}
	reason := err.Error()
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		reason = "the body ends before the last boundary"
	}
	return &UploadError{Field: field, Reason: clip(reason), Err: err}
}
