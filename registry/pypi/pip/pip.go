// Package pip knows what must be known of pip's command line, requirement
// files and environment to be sure that one pip command asks one index and
// nothing else. It reads as pip does (optparse: options may be abbreviated,
// short ones joined), and where pip's reading depends on its version it
// suspects the worse.
//
// Tried with pip 19.2 to 24.2; see docs/decisions/0003-refusals-in-pip.md.
package pip

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
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
	"--progress-bar", "--python", "--python-version", "--retries", "--root", "--root-user-action", "--src", "--source", "--source-dir", "--source-directory",
	"--timeout", "--default-timeout", "--trusted-host", "--upgrade-strategy", "--use-deprecated", "--use-feature", "--target", "--dest", "--download", "--wheel-dir", "--output",
	"--build", "--build-dir", "--build-directory", "--skip-requirements-regex", "--uploaded-prior-to", "--path", "--exclude", "--all-releases", "--only-final"}

const shortValued = "dtwCbo"

// A Command is one pip command whose arguments lead to the index only.
type Command struct {
	Name   string   // "install"; "" if there is none
	At     int      // where Name stands in the arguments
	Local  []string // paths that come from no index, as given
	Report string   // what --report says, "" if not given
}

// Read reads pip's arguments and the requirement files they name. What comes
// neither from the index nor from a local path is an [*Error].
func Read(args []string) (*Command, error) {
	c := checker{seen: map[string]bool{}}
	if err := c.args(args); err != nil {
		return nil, err
	}
	c.command.Local = c.local
	return &c.command, nil
}

// Check is Read for who needs the local paths only.
func Check(args []string) (local []string, err error) {
	c, err := Read(args)
	if err != nil {
		return nil, err
	}
	return c.Local, nil
}

type checker struct {
	command Command
	local   []string
	seen    map[string]bool // requirement files
	where   string          // "file:line"
	file    string          // the requirement file being read
}

func (c *checker) bad(what, reason string) error { return &Error{what, c.where, reason} }

func (c *checker) args(args []string) error {
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
				if c.command.Name == "" { // the subcommand is the first that is no option
					c.command.Name = r
				} else if err := c.requirement(r); err != nil {
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
			case abbreviates(name, "--group"), abbreviates(name, "--requirements-from-script") && len(name) > len("--requirement"):
				return c.bad(a, notRead)
			case abbreviates(name, "--requirement"), abbreviates(name, "--constraint"), abbreviates(name, "--build-constraint"):
				if err := c.read(value(joined, has)); err != nil {
					return err
				}
			case abbreviates(name, "--editable"):
				if err := c.editable(value(joined, has)); err != nil {
					return err
				}
			case len(name) > 4 && abbreviates(name, "--report"):
				c.command.Report = value(joined, has)
			case slices.ContainsFunc(valued, func(v string) bool { return v == name }),
				!slices.Contains(flags, name) && slices.ContainsFunc(valued, func(v string) bool { return abbreviates(name, v) }):
				value(joined, has)
			}
		case len(a) > 1 && a[0] == '-':
			if err := c.short(a, value); err != nil {
				return err
			}
		case c.command.Name == "":
			c.command.Name, c.command.At = a, i
		case takesRequirements(c.command.Name):
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
			return c.read(value(rest, rest != ""))
		case o == 'e':
			return c.editable(value(rest, rest != ""))
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
func abbreviates(name, long string) bool { return len(name) > 2 && strings.HasPrefix(long, name) }

// takesRequirements is true for commands that are not known, too.
func takesRequirements(command string) bool {
	switch command {
	case "cache", "check", "completion", "config", "debug", "freeze", "hash", "help", "index", "inspect", "list", "search", "show", "uninstall":
		return false
	}
	return true
}

var (
	scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)
	// PEP 508: name [extras] @ URL
	direct = regexp.MustCompile(`^\s*[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?\s*@\s*(.*)$`)
)

const notRead = "portbook does not read what it names; write the requirements into a requirement file"

const notFromIndex = "is not from the index, so nothing shows that others get the same; install it by itself, without portbook run"

// requirement judges one requirement: from the index, local, or from
// elsewhere.
func (c *checker) requirement(r string) error {
	if strings.ContainsFunc(r, unusual) {
		return c.bad(strconv.QuoteToASCII(r), unusualReason)
	}
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

// vcs are the addresses of version control that pip takes without a slash, too.
var vcs = regexp.MustCompile(`^(?i)(git|hg|svn|bzr|ssh)[+:]`)

// editable judges a requirement after -e: whatever is no URL is a directory.
func (c *checker) editable(r string) error {
	if vcs.MatchString(strings.TrimSpace(r)) {
		return c.bad(r, notFromIndex)
	}
	n := len(c.local)
	if err := c.requirement(r); err != nil {
		return err
	}
	if len(c.local) == n && strings.TrimSpace(r) != "" {
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

// setting is the option that a variable of the environment sets, "" if none.
// pip takes any spelling after PIP_: case, _ and - and leading ones do not
// matter.
func setting(variable string) string {
	if len(variable) <= 4 || !strings.EqualFold(variable[:4], "PIP_") {
		return ""
	}
	return strings.TrimLeft(strings.ReplaceAll(strings.ToLower(variable[4:]), "_", "-"), "-")
}

// CheckEnv judges what pip takes from its environment as it does its arguments:
// variables that name requirement files and constraints are read as if they
// stood on the command line.
func CheckEnv(environ []string) (local []string, err error) {
	c := checker{seen: map[string]bool{}}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		name := setting(k)
		switch {
		case slices.Contains(named, name):
			for _, file := range strings.Fields(v) {
				if err := c.read(file); err != nil {
					return nil, fmt.Errorf("%s: %w", k, err)
				}
			}
		case slices.Contains(unread, name) && strings.TrimSpace(v) != "":
			return nil, c.bad(k, notRead+", and unset "+k)
		}
	}
	return c.local, nil
}

// CheckConfig judges what "pip config list" prints. Most of what leads
// elsewhere is overridden by [Env]; groups cannot be: pip adds them up.
func CheckConfig(list string) error {
	for line := range strings.Lines(list) {
		key, value, ok := strings.Cut(line, "=")
		section, name, _ := strings.Cut(key, ".")
		if ok && section != ":env:" && strings.TrimLeft(name, "-_") == "group" && strings.Trim(value, " \t\r\n'\"") != "" {
			return &Error{key, "pip's configuration", notRead}
		}
	}
	return nil
}

// named are settings whose value is a list of requirement files; unread are
// settings whose value brings in requirements in a way that is not read.
var (
	named  = []string{"requirement", "constraint", "build-constraint"}
	unread = []string{"editable", "group", "requirements-from-script"}
)

// Version returns the pip version that "pip --version" printed, {23, 2}; zeros
// if it cannot be told.
func Version(printed string) (v [2]int) {
	if m := versionLine.FindStringSubmatch(printed); m != nil {
		v[0], _ = strconv.Atoi(m[1])
		v[1], _ = strconv.Atoi(m[2])
	}
	return v
}

var versionLine = regexp.MustCompile(`(?m)^pip ([0-9]+)\.([0-9]+)`)

// dropped are the settings that portbook decides.
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
		if name := setting(k); name != "" {
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
	// it is blanked, where the environment does not say it itself. A blank group
	// is an error to pip; see CheckConfig.
	for _, name := range slices.Concat(named, unread) {
		if !given[name] && name != "group" {
			out = append(out, "PIP_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"= ")
		}
	}
	return out
}
