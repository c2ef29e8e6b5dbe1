package pip

// Requirement and constraint files: a strict part of what pip reads
// (pip/_internal/req/req_file.py), in which every version of pip, in every
// locale, sees the same lines, and these the same as a person. All else is
// refused with its line.

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxRequirements = 16 << 20

// read reads a requirement or constraint file. One that cannot be read is left
// for pip to complain about.
func (c *checker) read(name string) error {
	switch {
	case name == "":
		return nil
	case strings.HasPrefix(strings.ToLower(name), "file:"), scheme.MatchString(name):
		return c.bad("-r "+name, "a requirement file is read from disk only")
	case strings.HasPrefix(name, "/dev/"), name == "-":
		return c.bad("-r "+name, "a requirement file must be one that can be read twice")
	}
	if c.file != "" && !filepath.IsAbs(name) { // relative to the file that names it
		name = filepath.Join(filepath.Dir(c.file), name)
	}
	if c.seen[name] {
		return nil
	}
	c.seen[name] = true
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return c.bad("-r "+name, "a requirement file must be one that can be read twice")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRequirements+1))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(b) > maxRequirements {
		return c.bad("-r "+name, "the file is too large")
	}
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 { // UTF-16, which pip reads
		return c.bad("-r "+name, "the file is not UTF-8")
	}
	sub := checker{seen: c.seen, file: name}
	if err := sub.text(strings.TrimPrefix(string(b), "\ufeff")); err != nil {
		return err
	}
	c.local = append(c.local, sub.local...)
	return nil
}

var (
	coding = regexp.MustCompile(`coding[:=]\s*([-\w.]+)`) // pip's, after PEP 263
	// comment is what pip drops from a line.
	comment     = regexp.MustCompile(`(^|\s+)#.*$`)
	commentLine = regexp.MustCompile(`^\s*#`)
)

const unusualReason = "it has an invisible character, which pip may take for the end of a line or leave out"

// unusual characters end a line, or are space, to Python but not to everybody.
func unusual(r rune) bool {
	return r != '\t' && (unicode.IsControl(r) || unicode.IsSpace(r) && r != ' ' || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Cf, r))
}

// text reads the lines of a file.
func (c *checker) text(s string) error {
	joined, start := "", 0
	lines := strings.Split(s, "\n")
	for i, text := range lines {
		text = strings.TrimSuffix(text, "\r")
		c.where = fmt.Sprintf("%s:%d", c.file, i+1)
		if reason := strange(text, i < 2); reason != "" {
			return c.bad(strconv.QuoteToASCII(text), reason)
		}
		if joined == "" {
			start = i + 1
		}
		// pip joins lines before it drops comments, but a line that is a comment
		// is not continued.
		more := strings.HasSuffix(text, `\`) && !commentLine.MatchString(text)
		switch {
		case joined != "" && commentLine.MatchString(text):
			return c.bad(text, "a comment amid a continued line reads as something else to pip")
		case more && comment.MatchString(text):
			return c.bad(text, "a comment that is continued reads as something else to pip")
		case more && i == len(lines)-1:
			return c.bad(text, "the file ends in the middle of a line")
		case more:
			joined += strings.TrimSuffix(text, `\`)
			continue
		}
		c.where = fmt.Sprintf("%s:%d", c.file, start)
		if err := c.line(joined + text); err != nil {
			return err
		}
		joined = ""
	}
	if joined != "" {
		return c.bad(joined, "the file ends in the middle of a line")
	}
	return nil
}

// strange tells why pip may see something else in a line than it looks.
func strange(text string, first bool) string {
	if strings.ContainsFunc(text, unusual) {
		return unusualReason
	}
	if strings.IndexByte(text, 0x85) >= 0 { // one byte of a longer character in UTF-8
		return "in some locales pip takes a part of a character in it for the end of the line"
	}
	if m := coding.FindStringSubmatch(text); first && strings.HasPrefix(text, "#") && m != nil && !strings.EqualFold(m[1], "utf-8") && !strings.EqualFold(m[1], "utf8") {
		return "pip reads the file in that encoding; only UTF-8 is read here"
	}
	if commentLine.MatchString(text) {
		return ""
	}
	if i := strings.IndexByte(text, '\\'); i >= 0 && i < len(text)-1 {
		return "a backslash is taken at the end of a line only, to continue it"
	}
	if strings.HasSuffix(text, `\`) && strings.ContainsFunc(text, func(r rune) bool { return r > '~' }) {
		return "in some locales pip takes the backslash for a part of another character"
	}
	return ""
}

// line judges one line of a file, continuations joined: a requirement, or
// options.
func (c *checker) line(s string) error {
	s = strings.Trim(comment.ReplaceAllString(s, ""), " \t")
	if strings.Contains(s, "${") {
		return c.bad(s, "pip puts the value of a variable of the environment in it")
	}
	if strings.HasPrefix(s, "-") {
		return c.options(s)
	}
	// The requirement ends where a word begins with a dash. Of the options after
	// it pip obeys only those of that requirement, --hash and the like.
	words := strings.Split(s, " ")
	if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "-") }); i > 0 {
		words = words[:i]
	}
	return c.requirement(strings.Join(words, " "))
}

// lineOptions are those of a line without a requirement, the whole of their
// names, besides -r, -c and -e; true: with a value.
var lineOptions = map[string]bool{"--pre": false, "--prefer-binary": false, "--require-hashes": false, "--no-binary": true, "--only-binary": true,
	"--trusted-host": true, "--use-feature": true, "--all-releases": true, "--only-final": true}

const lineGrammar = "is not read here; a line of options may have --pre, --prefer-binary, --require-hashes, --no-binary, --only-binary, --trusted-host, --use-feature, or be one -r FILE, -c FILE or -e PATH"

func (c *checker) options(s string) error {
	if strings.ContainsAny(s, "\"'") {
		return c.bad(s, "quotation marks are not read here")
	}
	words := strings.Fields(s)
	for i := 0; i < len(words); i++ {
		w := words[i]
		name, value, joined := strings.Cut(w, "=")
		for long, why := range forbidden {
			if len(name) > 2 && strings.HasPrefix(long, name) {
				return c.bad(w, why)
			}
		}
		if len(w) > 1 && w[1] != '-' && shortForbidden[w[1]] != "" {
			return c.bad(w, forbidden[shortForbidden[w[1]]])
		}
		if valued, ok := lineOptions[name]; ok {
			if valued && !joined {
				i++
			}
			continue
		}
		short := len(w) > 1 && w[1] != '-'
		switch {
		case len(words) == 1 && short && len(w) > 2: // -rFILE
			name, value = w[:2], w[2:]
		case len(words) == 1 && joined:
		case len(words) == 2 && i == 0 && !joined:
			value = words[1]
		default:
			return c.bad(w, lineGrammar)
		}
		switch name {
		case "-r", "--requirement", "-c", "--constraint":
			return c.read(value)
		case "-e", "--editable":
			return c.editable(value)
		}
		return c.bad(w, lineGrammar)
	}
	return nil
}
