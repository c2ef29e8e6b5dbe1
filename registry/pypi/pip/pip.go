// Package pip knows what must be known of pip's command line, requirement
// files and environment to be sure that one pip command asks one index and
// nothing else. It reads as pip does (optparse: options may be abbreviated,
// short ones joined), and where pip's reading depends on its version it
// suspects the worse.
//
// Tried with pip 19.2 to 24.2; see docs/decisions/0003-refusals-in-pip.md.
package pip

import (
	"errors"
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

// An Error says which part of a command would go around the index.
type Error struct {
	What   string // the option or requirement, as given
	Where  string // "" is the command line, else "file:line"
	Reason string
}

func (e *Error) Error() string {
	where := ""
	if e.Where != "" {
		where = e.Where + ": "
	}
	return where + e.What + ": " + e.Reason
}

// Args returns the part of a command that pip reads: after "pip", "pip3.11" or
// "python -m pip". ok is false for any other command.
func Args(command []string) (args []string, ok bool) {
	if len(command) == 0 {
		return nil, false
	}
	name := strings.TrimSuffix(strings.ToLower(filepath.Base(command[0])), ".exe")
	if pipName.MatchString(name) {
		return command[1:], true
	}
	if !pythonName.MatchString(name) {
		return nil, false
	}
	for i := 1; i < len(command); i++ {
		a := command[i]
		switch {
		case a == "-m" && i+1 < len(command) && command[i+1] == "pip":
			return command[i+2:], true
		case a == "-mpip":
			return command[i+1:], true
		case a == "-W" || a == "-X": // with a value
			i++
		case len(a) > 1 && a[0] == '-' && !strings.HasPrefix(a, "--") && strings.Trim(a[1:], "bBdEhiIOqRsSuvx") == "":
		default:
			return nil, false
		}
	}
	return nil, false
}

var (
	pipName    = regexp.MustCompile(`^pip([0-9]+(\.[0-9]+)*)?$`)
	pythonName = regexp.MustCompile(`^(python|pypy)([0-9]+(\.[0-9]+)*)?$`)
)

// forbidden options and why. Prefixes count: pip takes them too.
var forbidden = map[string]string{
	"--index-url":                "the index is the one given to portbook (--index)",
	"--pypi-url":                 "the index is the one given to portbook (--index)",
	"--extra-index-url":          "a second index would go unverified, and pip mixes what indexes offer",
	"--find-links":               "what lies there would go unverified",
	"--no-index":                 "without an index there is nothing to verify",
	"--proxy":                    "it would lead past the verifying proxy; set HTTPS_PROXY for portbook itself",
	"--cache-dir":                "files from pip's cache would go unverified",
	"--isolated":                 "it makes pip ignore the verifying proxy",
	"--process-dependency-links": "it makes pip follow links to other places",
}

var shortForbidden = map[byte]string{'i': "--index-url", 'f': "--find-links"}

// valued are the long options that take a value which is no requirement.
var valued = []string{"--abi", "--build-option", "--cert", "--client-cert", "--config-settings", "--exists-action", "--global-option",
	"--implementation", "--install-option", "--keyring-provider", "--log", "--log-file", "--local-log", "--no-binary", "--only-binary", "--platform", "--prefix",
	"--progress-bar", "--python", "--python-version", "--report", "--retries", "--root", "--root-user-action", "--src", "--source", "--source-dir", "--source-directory",
	"--timeout", "--default-timeout", "--trusted-host", "--upgrade-strategy", "--use-deprecated", "--use-feature", "--target", "--dest", "--download", "--wheel-dir", "--output",
	"--build", "--build-dir", "--build-directory", "--skip-requirements-regex", "--group", "--uploaded-prior-to", "--path", "--exclude", "--all-releases", "--only-final"}

const shortValued = "dtwCbo"

// Check reads pip's arguments and the requirement files they name. Local paths
// are returned; whatever else does not come from the index is an [*Error].
func Check(args []string) (local []string, err error) {
	c := checker{seen: map[string]bool{}}
	if err := c.args(args); err != nil {
		return nil, err
	}
	return c.local, nil
}

type checker struct {
	local []string
	seen  map[string]bool // requirement files
	where string
	lines bool // reading a requirement file
}

func (c *checker) bad(what, reason string) error { return &Error{what, c.where, reason} }

func (c *checker) args(args []string) error {
	command := "" // the subcommand is the first that is no option
	for i := 0; i < len(args); i++ {
		a := args[i]
		value := func(joined string, has bool) string { // of an option
			if has {
				return joined
			}
			if i++; i < len(args) {
				return args[i]
			}
			return ""
		}
		switch {
		case a == "--":
			for _, r := range args[i+1:] {
				if err := c.requirement(r); err != nil {
					return err
				}
			}
			return nil
		case strings.HasPrefix(a, "--"):
			name, joined, has := strings.Cut(a, "=")
			for long, why := range forbidden {
				if strings.HasPrefix(long, name) && len(name) > 2 {
					return c.bad(a, why)
				}
			}
			switch {
			case abbreviates(name, "--requirement"), abbreviates(name, "--constraint"), abbreviates(name, "--requirements-from-script"):
				if err := c.file(value(joined, has)); err != nil {
					return err
				}
			case abbreviates(name, "--editable"):
				if err := c.requirement(value(joined, has)); err != nil {
					return err
				}
			case slices.ContainsFunc(valued, func(v string) bool { return v == name }),
				!slices.Contains(flags, name) && slices.ContainsFunc(valued, func(v string) bool { return abbreviates(name, v) }):
				value(joined, has)
			}
		case len(a) > 1 && a[0] == '-':
			if err := c.short(a, value); err != nil {
				return err
			}
		case command == "" && !c.lines:
			command = a
		case c.lines || takesRequirements(command):
			if err := c.requirement(a); err != nil {
				return err
			}
		}
	}
	return nil
}

// short reads joined short options: -qU, -rfile, -Uf dir.
func (c *checker) short(a string, value func(string, bool) string) error {
	for j := 1; j < len(a); j++ {
		o, rest := a[j], a[j+1:]
		if long, ok := shortForbidden[o]; ok {
			return c.bad(a, forbidden[long])
		}
		switch {
		case o == 'r' || o == 'c':
			return c.file(value(rest, rest != ""))
		case o == 'e':
			return c.requirement(value(rest, rest != ""))
		case strings.IndexByte(shortValued, o) >= 0:
			value(rest, rest != "")
			return nil
		}
	}
	return nil
}

// flags are long options without a value whose names begin a valued one's.
var flags = []string{"--pre", "--upgrade"}

// abbreviates tells whether optparse takes name for the option long.
func abbreviates(name, long string) bool { return len(name) > 3 && strings.HasPrefix(long, name) }

func takesRequirements(command string) bool {
	switch command {
	case "install", "download", "wheel", "lock":
		return true
	}
	return false
}

var (
	scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)
	// PEP 508: name [extras] @ URL
	direct = regexp.MustCompile(`^\s*[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?\s*@\s*(.*)$`)
)

const notFromIndex = "is not from the index, so nothing shows that others get the same; install it by itself, without portbook run"

// requirement judges one requirement: from the index, local, or from
// elsewhere.
func (c *checker) requirement(r string) error {
	r = strings.TrimSpace(r)
	target := r
	if m := direct.FindStringSubmatch(r); m != nil {
		target = m[2]
	}
	switch {
	case r == "":
	case strings.HasPrefix(strings.ToLower(target), "file:"):
		c.local = append(c.local, r)
	case scheme.MatchString(target), target != r:
		return c.bad(r, notFromIndex)
	case strings.ContainsAny(target, `/\`), strings.HasPrefix(target, "."), isArchive(bare(target)):
		c.local = append(c.local, r)
	}
	return nil
}

// bare is a path without the marker and the extras that pip takes off it.
func bare(s string) string {
	s, _, _ = strings.Cut(s, ";")
	s = strings.TrimSpace(s)
	if i := strings.LastIndexByte(s, '['); i > 0 && strings.HasSuffix(s, "]") {
		s = s[:i]
	}
	return strings.TrimSpace(s)
}

func isArchive(s string) bool {
	s = strings.ToLower(s)
	for _, x := range []string{".whl", ".zip", ".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tlz", ".tar.lz", ".tar.lzma"} {
		if strings.HasSuffix(s, x) {
			return true
		}
	}
	return false
}

const maxRequirements = 16 << 20

// file reads a requirement or constraint file. One that cannot be read is left
// for pip to complain about.
func (c *checker) file(name string) error {
	switch {
	case name == "":
		return nil
	case strings.HasPrefix(strings.ToLower(name), "file:"), scheme.MatchString(name):
		return c.bad("-r "+name, "a requirement file is read from disk only")
	case strings.HasPrefix(name, "/dev/"), name == "-":
		return c.bad("-r "+name, "a requirement file must be one that can be read twice")
	}
	if c.lines && !filepath.IsAbs(name) { // relative to the file that names it
		file, _, _ := cutLast(c.where, ":")
		name = filepath.Join(filepath.Dir(file), name)
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
	if strings.ContainsRune(string(b), 0) { // UTF-16, which pip reads
		return c.bad("-r "+name, "the file is not UTF-8")
	}
	if !utf8.Valid(b) {
		return c.bad("-r "+name, "the file is not UTF-8")
	}
	sub := checker{seen: c.seen, lines: true}
	line, start := "", 0
	all := strings.Split(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.TrimPrefix(string(b), "\ufeff")), "\n")
	for n, text := range all {
		if line == "" {
			start = n + 1
		}
		// What pip would read in another way than it looks is refused, rather than
		// read as pip does in one version or another.
		c.where = fmt.Sprintf("%s:%d", name, n+1)
		switch {
		case strings.ContainsFunc(text, unusual):
			return c.bad(strconv.QuoteToASCII(text), "pip may see another line in it: it has characters other than letters, signs, spaces and tabs")
		case variable.MatchString(text):
			return c.bad(text, "pip puts the value of a variable of the environment in it")
		case n < 2 && coding.MatchString(text) && !utf8Coding.MatchString(text):
			return c.bad(text, "pip reads the file in that encoding; only UTF-8 is read here")
		}
		// pip continues lines first and drops comments then, except that a line
		// which is a comment is not continued.
		if strings.HasSuffix(text, `\`) && n+1 < len(all) && !commentLine.MatchString(text) {
			if comment.MatchString(text) {
				return c.bad(text, "a comment that is continued on the next line reads as something else to pip")
			}
			line += strings.Trim(text, `\`) // as pip does, at both ends
			continue
		}
		if line != "" && commentLine.MatchString(text) {
			return c.bad(text, "a comment in the middle of a continued line reads as something else to pip")
		}
		line += text
		sub.where = fmt.Sprintf("%s:%d", name, start)
		if err := sub.line(line); err != nil {
			return err
		}
		line = ""
	}
	c.local = append(c.local, sub.local...)
	return nil
}

var (
	variable    = regexp.MustCompile(`\$\{[A-Za-z0-9_]+\}`)
	coding      = regexp.MustCompile(`^[ \t\f]*#.*coding[:=]`) // PEP 263
	utf8Coding  = regexp.MustCompile(`(?i)coding[:=][ \t]*utf-?8([^-a-z0-9_.]|$)`)
	commentLine = regexp.MustCompile(`^\s*#`)
)

// unusual characters end a line, or are space, to Python but not to everybody.
func unusual(r rune) bool {
	return r != '\t' && (unicode.IsControl(r) || unicode.IsSpace(r) && r != ' ' || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Cf, r))
}

// comment is what pip drops from a line.
var comment = regexp.MustCompile(`(^|\s+)#.*$`)

func (c *checker) line(s string) error {
	s = strings.TrimSpace(comment.ReplaceAllString(s, ""))
	if s == "" {
		return nil
	}
	if strings.HasPrefix(s, "-") {
		args, err := splitQuoted(s)
		if err != nil {
			return c.bad(s, err.Error())
		}
		return c.args(args)
	}
	// A requirement may end in options of its own: --hash, --config-settings.
	if i := strings.Index(s, " --"); i >= 0 {
		s = s[:i]
	}
	s, _, _ = strings.Cut(s, ";")
	return c.requirement(strings.Trim(s, `"' `))
}

// splitQuoted splits as a shell does, without expansions.
func splitQuoted(s string) (out []string, err error) {
	var word strings.Builder
	in, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case ch == '\\' && quote != '\'' && i+1 < len(s):
			i++
			word.WriteByte(s[i])
			in = true
		case quote != 0 && ch == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(ch)
		case ch == '"' || ch == '\'':
			quote, in = ch, true
		case ch == ' ' || ch == '\t':
			if in {
				out = append(out, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteByte(ch)
			in = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quotation mark is not closed")
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// CheckEnv judges what pip takes from its environment as it does its arguments:
// settings of the environment that name requirement files, constraints or
// requirements are read as if they stood on the command line.
func CheckEnv(environ []string) (local []string, err error) {
	c := checker{seen: map[string]bool{}}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if len(k) <= 4 || !strings.EqualFold(k[:4], "PIP_") {
			continue
		}
		c.where = k
		switch name := strings.ReplaceAll(strings.ToLower(k[4:]), "_", "-"); {
		case slices.Contains(named, name):
			for _, file := range strings.Fields(v) {
				if err := c.file(file); err != nil {
					return nil, err
				}
			}
		case slices.Contains(unread, name) && strings.TrimSpace(v) != "":
			return nil, c.bad(k, "what it names is not read by portbook; unset it")
		}
	}
	return c.local, nil
}

// named are settings whose value is a list of requirement files; unread are
// settings whose value brings in requirements in a way that is not read.
var (
	named  = []string{"requirement", "requirements", "constraint", "build-constraint"}
	unread = []string{"editable", "group", "requirements-from-script"}
)

// dropped are the settings that portbook decides. pip takes any spelling of a
// variable after PIP_: case, _ and - do not matter.
var dropped = []string{"index-url", "pypi-url", "extra-index-url", "find-links", "no-index", "proxy", "cache-dir", "no-cache-dir", "isolated", "retries", "process-dependency-links"}

// Env returns environ changed so that pip asks server ("http://127.0.0.1:1234")
// for everything.
//
// pip's configuration files stay in force (they may say user, require-hashes,
// only-binary…), but the environment beats them: a blank value empties a list.
// Every request pip makes itself, to the index or elsewhere, goes through
// server as an HTTP proxy, and git may not use the network, so that a direct
// URL hidden in a package's metadata is met too. Both caches are off: what lies
// there was not verified now.
func Env(environ []string, server string) []string {
	var out []string
	timeout := false
	given := map[string]bool{}
	for _, kv := range environ {
		k, _, _ := strings.Cut(kv, "=")
		switch strings.ToUpper(k) {
		case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "GIT_ALLOW_PROTOCOL":
			continue // pip before 23.0 obeys these over its own setting
		}
		if len(k) > 4 && strings.EqualFold(k[:4], "PIP_") {
			name := strings.ReplaceAll(strings.ToLower(k[4:]), "_", "-")
			if slices.Contains(dropped, name) {
				continue
			}
			given[name] = true
			timeout = timeout || name == "timeout" || name == "default-timeout"
		}
		out = append(out, kv)
	}
	out = append(out,
		"PIP_INDEX_URL="+server+"/simple/",
		"PIP_EXTRA_INDEX_URL= ",
		"PIP_FIND_LINKS= ",
		"PIP_NO_INDEX=0",
		"PIP_NO_CACHE_DIR=1",
		"PIP_PROXY="+server,
		"PIP_RETRIES=0", // the proxy has tried again already
		"GIT_ALLOW_PROTOCOL=file",
	)
	if !timeout {
		out = append(out, "PIP_TIMEOUT=60")
	}
	// What configuration files add to what is installed was not read by CheckEnv:
	// it is blanked, where the environment does not say it itself.
	for _, name := range slices.Concat(named, unread) {
		if !given[name] {
			out = append(out, "PIP_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"= ")
		}
	}
	return out
}
