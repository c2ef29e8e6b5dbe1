package pypi

// PEP 691 pages: JSON. Members that are not understood are kept as they were,
// in their order. A key that stands twice in one object is refused: readers
// differ in which one they take.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

type member struct {
	key string
	raw json.RawMessage
}

func parseJSON(body []byte, pageURL *url.URL) (*Page, error) {
	if !utf8.Valid(body) {
		return nil, &Error{What: "JSON", Reason: "not UTF-8"}
	}
	members, err := object("page", body)
	if err != nil {
		return nil, err
	}
	p := &Page{from: MediaJSON, members: members}
	if pageURL != nil {
		p.URL = pageURL.String()
	}
	var sawMeta, sawFiles bool
	for _, m := range members {
		switch m.key {
		case "meta":
			sawMeta = true
			if err := checkMeta(m.raw); err != nil {
				return nil, err
			}
		case "name":
			if err := decode(m, &p.Name); err != nil {
				return nil, err
			}
		case "versions":
			if err := decode(m, &p.Versions); err != nil {
				return nil, err
			}
		case "project-status":
			st, err := object(m.key, m.raw)
			if err != nil {
				return nil, err
			}
			for _, s := range st {
				switch s.key {
				case "status":
					err = decode(s, &p.Status)
				case "reason":
					err = decode(s, &p.StatusReason)
				}
				if err != nil {
					return nil, err
				}
			}
		case "files":
			sawFiles = true
			var raws []json.RawMessage
			if err := decode(m, &raws); err != nil {
				return nil, err
			}
			if len(raws) > maxFiles {
				return nil, tooMany()
			}
			for i, raw := range raws {
				f, err := parseFile(raw, pageURL)
				if err != nil {
					return nil, fmt.Errorf("simple page: files[%d]: %w", i, err)
				}
				if f == nil {
					p.Skipped = append(p.Skipped, fmt.Sprintf("files[%d].url", i))
					continue
				}
				p.Files = append(p.Files, f)
			}
		}
	}
	if !sawMeta {
		return nil, &Error{What: "meta", Reason: "missing"}
	}
	if !sawFiles {
		return nil, &Error{What: "files", Reason: "missing"}
	}
	return p, nil
}

func checkMeta(raw json.RawMessage) error {
	ms, err := object("meta", raw)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if m.key == "api-version" {
			var v string
			if err := decode(m, &v); err != nil {
				return err
			}
			return checkAPIVersion(v)
		}
	}
	return &Error{What: "meta.api-version", Reason: "missing"}
}

// parseFile returns nil, nil for a file whose url is no URL.
func parseFile(raw json.RawMessage, base *url.URL) (*File, error) {
	ms, err := object("file", raw)
	if err != nil {
		return nil, err
	}
	f := &File{members: ms, Hashes: map[string]string{}}
	var ref string
	var dist, core map[string]string
	var sawCore bool
	for i, m := range ms {
		var err error
		switch m.key {
		case "filename":
			err = decode(m, &f.Name)
		case "url":
			err = decode(m, &ref)
		case "hashes":
			f.Hashes, err = hashes(m)
		case "requires-python":
			err = decode(m, &f.RequiresPython) // null leaves ""
		case "core-metadata":
			core, err = jsonMetadata(m)
			sawCore = true
		case "dist-info-metadata", "data-dist-info-metadata":
			dist, err = jsonMetadata(m)
		case "gpg-sig":
			err = decode(m, &f.Signed)
		case "yanked":
			f.Yanked, err = yanked(m)
		case "size":
			err = decode(m, &f.Size)
		case "upload-time":
			err = decode(m, &f.UploadTime)
		case "provenance":
			if err = decode(m, &f.Provenance); err == nil && f.Provenance != "" && base != nil {
				if u, perr := parseLoose(f.Provenance); perr == nil {
					f.Provenance = base.ResolveReference(u).String()
					ms[i].raw = quote(f.Provenance)
				}
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if f.Name == "" {
		return nil, &Error{What: "filename", Reason: "missing or empty"}
	}
	if ref == "" {
		return nil, &Error{What: "url", Reason: "missing or empty"}
	}
	if f.Metadata = dist; sawCore {
		f.Metadata = core // PEP 714
	}
	u, _, inFragment, ok := resolveFile(base, ref)
	if !ok {
		return nil, nil
	}
	f.URL = u.String()
	for alg, v := range inFragment {
		if _, told := f.Hashes[alg]; !told {
			f.Hashes[alg] = v
		}
	}
	return f, nil
}

func yanked(m member) (*string, error) {
	var b bool
	if json.Unmarshal(m.raw, &b) == nil {
		if !b {
			return nil, nil // false, null
		}
		return new(string), nil
	}
	reason := ""
	if err := decode(m, &reason); err != nil {
		return nil, err
	}
	return &reason, nil
}

// jsonMetadata reads true, false or an object of hashes.
func jsonMetadata(m member) (map[string]string, error) {
	var b bool
	if json.Unmarshal(m.raw, &b) == nil {
		if b {
			return map[string]string{}, nil
		}
		return nil, nil
	}
	return hashes(m)
}

func hashes(m member) (map[string]string, error) {
	ms, err := object(m.key, m.raw)
	if err != nil {
		return nil, err
	}
	h := make(map[string]string, len(ms))
	for _, e := range ms {
		var v string
		if err := decode(e, &v); err != nil {
			return nil, err
		}
		if alg := strings.ToLower(e.key); isHashName(alg) {
			if !isHex(v) {
				return nil, &Error{What: m.key + "." + e.key, Reason: "not hex"}
			}
			h[alg] = strings.ToLower(v)
		}
	}
	return h, nil
}

func (p *Page) renderJSON() ([]byte, error) {
	files := make([][]byte, len(p.Files))
	for i, f := range p.Files {
		files[i] = f.renderJSON(p.from)
	}
	list := append(append([]byte("["), bytes.Join(files, []byte(","))...), ']')
	if p.from == MediaJSON {
		out := make([]member, 0, len(p.members))
		for _, m := range p.members {
			switch {
			case m.key == "files":
				m.raw = list
			case m.key == "versions" && p.Versions != nil:
				m.raw = quoteAll(p.Versions)
			}
			out = append(out, m)
		}
		return writeObject(out), nil
	}
	out := []member{{"meta", json.RawMessage(`{"api-version":"1.0"}`)}}
	out = append(out, member{"name", quote(p.projectName())})
	if p.Status != "" {
		st := []member{{"status", quote(p.Status)}}
		if p.StatusReason != "" {
			st = append(st, member{"reason", quote(p.StatusReason)})
		}
		out = append(out, member{"project-status", writeObject(st)})
	}
	return writeObject(append(out, member{"files", list})), nil
}

// projectName: PEP 691 requires a name, PEP 503 pages have it only in their
// URL.
func (p *Page) projectName() string {
	if p.Name != "" {
		return p.Name
	}
	if u, err := url.Parse(p.URL); err == nil {
		segs := strings.Split(strings.Trim(u.Path, "/"), "/")
		return segs[len(segs)-1]
	}
	return ""
}

func (f *File) renderJSON(from MediaType) []byte {
	if from == MediaJSON {
		out := make([]member, len(f.members))
		copy(out, f.members)
		for i := range out {
			if out[i].key == "url" {
				out[i].raw = quote(f.URL)
			}
		}
		return writeObject(out)
	}
	out := []member{{"filename", quote(f.Name)}, {"url", quote(f.URL)}, {"hashes", quoteMap(f.Hashes)}}
	if f.RequiresPython != "" {
		out = append(out, member{"requires-python", quote(f.RequiresPython)})
	}
	if f.Metadata != nil {
		v := json.RawMessage("true")
		if len(f.Metadata) > 0 {
			v = quoteMap(f.Metadata)
		}
		// Not "dist-info-metadata": pip 22.3 to 23.0 fail on an object there
		// (PEP 714).
		out = append(out, member{"core-metadata", v})
	}
	if f.Signed != nil {
		out = append(out, member{"gpg-sig", json.RawMessage(fmt.Sprint(*f.Signed))})
	}
	if f.Provenance != "" {
		out = append(out, member{"provenance", quote(f.Provenance)})
	}
	if f.Yanked != nil {
		v := json.RawMessage("true")
		if *f.Yanked != "" {
			v = quote(*f.Yanked)
		}
		out = append(out, member{"yanked", v})
	}
	return writeObject(out)
}

// object splits one JSON object into its members. Nothing may follow it.
func object(what string, raw []byte) ([]member, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	t, err := dec.Token()
	if err != nil {
		return nil, &Error{What: what, Reason: err.Error()}
	}
	if t != json.Delim('{') {
		return nil, &Error{What: what, Reason: "not a JSON object"}
	}
	var ms []member
	seen := make(map[string]bool)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, &Error{What: what, Reason: err.Error()}
		}
		key := t.(string) // the decoder allows nothing else here
		if seen[key] {
			return nil, &Error{What: what, Reason: fmt.Sprintf("key %q stands twice", key)}
		}
		seen[key] = true
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, &Error{What: what + "." + key, Reason: err.Error()}
		}
		ms = append(ms, member{key, v})
	}
	if _, err := dec.Token(); err != nil {
		return nil, &Error{What: what, Reason: err.Error()}
	}
	if dec.More() {
		return nil, &Error{What: what, Reason: "something follows the JSON object"}
	}
	return ms, nil
}

func decode(m member, v any) error {
	if err := json.Unmarshal(m.raw, v); err != nil {
		return &Error{What: m.key, Reason: err.Error()}
	}
	return nil
}

func writeObject(ms []member) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range ms {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quote(m.key))
		b.WriteByte(':')
		b.Write(m.raw)
	}
	b.WriteByte('}')
	return b.Bytes()
}

func quote(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		panic("pypi: a string that is no JSON: " + err.Error())
	}
	return b
}

func quoteAll(ss []string) json.RawMessage {
	out := make([][]byte, len(ss))
	for i, s := range ss {
		out[i] = quote(s)
	}
	return append(append([]byte("["), bytes.Join(out, []byte(","))...), ']')
}

func quoteMap(m map[string]string) json.RawMessage {
	b, err := json.Marshal(m) // sorted by key
	if err != nil {
		panic("pypi: a map of strings that is no JSON: " + err.Error())
	}
	return b
}
