package pip

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestArgs(t *testing.T) {
	for cmd, want := range map[string]string{
		"pip install x": "install x", "/usr/bin/pip3.11 install x": "install x", "python3 -m pip install x": "install x",
		"python -I -m pip download x": "download x", "python3.12 -W ignore -mpip install x": "install x", "PIP.EXE install": "install",
	} {
		got, ok := Args(strings.Fields(cmd))
		if !ok || strings.Join(got, " ") != want {
			t.Errorf("%s: %q %v", cmd, got, ok)
		}
	}
	for _, cmd := range []string{"", "npm install", "uv pip install x", "python setup.py install", "python -m build", "python -c pip", "pipx install x", "python script.py -m pip", "python -m"} {
		if got, ok := Args(strings.Fields(cmd)); ok {
			t.Errorf("%s taken for pip: %q", cmd, got)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, ok := range []string{
		"install x", "install x==1.0 y[z]>=2 'w;python_version<\"3\"'", "install -U --pre x", "install --upgrade x", "install --target ./dir x", "install -t ./dir x", "install -t./dir x",
		"install --target=./dir x", "--log ./log install x", "install --no-binary :all: x", "download -d ./out x", "wheel -w./out x", "--python ./venv install x", "install --upgrade-strategy eager x",
		"install -qqU x", "install --only-binary=:all: --require-hashes x", "list", "show ./x", "install --no-input x", "install --use-feature fast-deps x", "install --trusted-host h x", "index versions x",
	} {
		if local, err := Check(strings.Fields(ok)); err != nil || len(local) != 0 {
			t.Errorf("%s: %q %v", ok, local, err)
		}
	}
	for _, bad := range []string{
		"install -i http://e x", "install -ihttp://e x", "install --index-url http://e x", "install --index-url=http://e x", "install --index http://e x", "install --pypi-url http://e x",
		"install --extra-index-url http://e x", "install --extra http://e x", "install --find-links . x", "install -f . x", "install -f. x", "install -Uf . x", "install -qi http://e x",
		"install --no-index x", "install --no-ind x", "--isolated install x", "--isol install x", "--proxy http://e install x", "--cache-dir /c install x",
		"install http://e/x.whl", "install https://e/x.whl#egg=x", "install git+https://e/x", "install git+ssh://git@e/x", "install HG+https://e/x",
		"install -e git+https://e/x", "install -egit+https://e/x", "install --editable=svn+https://e/x", "install --edit git+https://e/x",
		"install x@https://e/x.whl", "install -- x[y]@git+https://e", "install -r http://e/r.txt", "install -rhttps://e/r.txt", "install -c file:///c.txt", "install -r /dev/stdin",
		"lock http://e/x.whl",
	} {
		_, err := Check(strings.Fields(bad))
		var e *Error
		if !errors.As(err, &e) || e.What == "" || e.Reason == "" {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := Check([]string{"install", "x @ https://e/x.whl"}); err == nil {
		t.Error("a direct URL after @ is taken")
	}
	for _, loc := range []string{"install .", "install ./x", "install -e .", "install /abs/x", "install x-1.0-py3-none-any.whl", "install dir/x-1.0.tar.gz", "install --editable=../x[y]", "install file:///x.whl", "install ./x.whl[extra]"} {
		if local, err := Check(strings.Fields(loc)); err != nil || len(local) != 1 {
			t.Errorf("%s: %q %v", loc, local, err)
		}
	}
}

func TestCheckRequirementFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ok := write("ok.txt", "\ufeff# comment with --index-url http://e\nx==1.0 \\\n   --hash=sha256:00\n--pre\ny ; python_version < \"3\"  # http://e/\n-r sub/more.txt\r\n--only-binary :all:\n-r ok.txt\n")
	write("sub/more.txt", "z\n-c constraints.txt\n./local\n")
	write("sub/constraints.txt", "z<2\n")
	if local, err := Check([]string{"install", "-r", ok}); err != nil || !slices.Equal(local, []string{"./local"}) {
		t.Errorf("%q %v", local, err)
	}
	for name, text := range map[string]string{
		"index": "x\n--index-url http://e\n", "short": "-i http://e", "joined": "-ihttp://e", "extra": "--extra-index-url=http://e\n",
		"quoted inside": "--\"extra\"-index-url http://e\n", "escaped": "-\\-find-links .\n", "links": "--find-links ./wheels\n", "abbreviated": "--find ./wheels\n", "no index": "--no-index\n",
		"continued": "--extra-\\\nindex-url http://e\n-i \\\nhttp://e\n", "url": "https://e/x.whl\n", "named url": "x @ https://e/x.whl ; python_version > '3'\n", "vcs": "-e git+https://e/x#egg=x\n",
		"open quote": "-e \"x\n", "nul": "x\x00\n", "recursive": "-r other\n", "carriage return": "x\r--index-url http://e\r",
	} {
		write("other", "-i http://e\n")
		p := write("bad-"+name, text)
		_, err := Check([]string{"install", "-r" + p})
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v", name, err)
		} else if name != "nul" && !strings.Contains(e.Where, ":") {
			t.Errorf("%s: no line: %v", name, err)
		}
	}
	if _, err := Check([]string{"install", "-r", filepath.Join(dir, "absent")}); err != nil {
		t.Errorf("an absent file is pip's to complain about: %v", err)
	}
	big := filepath.Join(dir, "big")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	f.Truncate(maxRequirements + 1)
	f.Close()
	if _, err := Check([]string{"install", "-r", big}); err == nil {
		t.Error("an endless file is read")
	}
}

func TestEnv(t *testing.T) {
	env := Env([]string{"HOME=/h", "PIP_index_url=http://e", "PIP_FIND-LINKS=/l", "Pip_Extra_Index_Url=http://e", "PIP_CACHE_DIR=/c", "HTTPS_PROXY=http://p", "no_proxy=*", "PIP_USER=1", "PIP_PYPI_URL=http://e"}, "http://127.0.0.1:9")
	for _, want := range []string{"HOME=/h", "PIP_USER=1", "PIP_INDEX_URL=http://127.0.0.1:9/simple/", "PIP_EXTRA_INDEX_URL= ", "PIP_FIND_LINKS= ", "PIP_NO_CACHE_DIR=1", "PIP_PROXY=http://127.0.0.1:9", "PIP_TIMEOUT=60"} {
		if !slices.Contains(env, want) {
			t.Errorf("lacks %s", want)
		}
	}
	for _, kv := range env {
		if strings.Contains(kv, "http://e") || strings.Contains(kv, "/l") || strings.Contains(kv, "http://p") || strings.HasPrefix(kv, "no_proxy") {
			t.Errorf("has %s", kv)
		}
	}
	if env := Env([]string{"PIP_DEFAULT_TIMEOUT=5"}, "http://h"); slices.Contains(env, "PIP_TIMEOUT=60") {
		t.Error("the person's timeout was changed")
	}
}

func FuzzRequirementFile(f *testing.F) {
	f.Add("x==1.0\n--index-url http://e\n")
	f.Add("-r \\\nother # c\n\"a\\")
	f.Fuzz(func(t *testing.T, text string) {
		p := filepath.Join(t.TempDir(), "r")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Check([]string{"install", "-r", p})
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatal(err)
		}
	})
}

// disguised requirement files look harmless and are not, to pip: most of them
// made it install what lay in a directory, unverified.
var disguised = map[string]string{
	"a comment is not continued":            "# c \\\n--find-links /d/evil\nlantern\n",
	"line separator":                        "# c\u2028--find-links /d/evil\nlantern\n",
	"next line":                             "# c\u0085--find-links /d/evil\nlantern\n",
	"form feed":                             "# c\f--find-links /d/evil\nlantern\n",
	"vertical tab":                          "# c\v--find-links /d/evil\nlantern\n",
	"unit separator":                        "\x1f--find-links evil\nlantern\n",
	"file separator":                        "# c\x1c--find-links evil\nlantern\n",
	"another encoding":                      "# coding: utf-7\n+AC0ALQ-find-links evil\nlantern\n",
	"an encoding on the second line":        "#\n# -*- coding: latin-1 -*-\nlantern\n",
	"not UTF-8":                             "# \xff\nlantern\n",
	"a variable":                            "-${GIT_ALLOW_PROTOCOL}\nlantern\n",
	"an option in two lines":                "-\\\nf evil\nlantern\n",
	"an option behind a backslash":          "\\--find-links evil\\\n\nlantern\n",
	"a comment at the end, continued":       "lantern # c \\\n--find-links evil\n",
	"a comment within a continued line":     "lantern \\\n# c\n--find-links evil\n",
	"a variable in two lines":               "-${GIT_ALLOW_\\\nPROTOCOL}\nlantern\n",
	"an encoding after carriage returns":    "#\r#\n# coding: utf-7\n+AC0ALQ-find-links evil\nlantern\n",
	"an encoding after a carriage return":   "#\r coding: utf-7\n+AC0ALQ-find-links evil\nlantern\n",
	"two encodings":                         "# coding: utf-7 coding: utf-8\n+AC0ALQ-find-links evil\nlantern\n",
	"a part of a character":                 "# \u0385--find-links evil\nlantern\n",
	"an abbreviation in one of the parsers": "--c links.txt\nlantern\n",
	"a backslash at the end of the file":    "\\--find-links evil\\",
}

// TestWhatPipSeesOtherwise: none of them passes.
func TestWhatPipSeesOtherwise(t *testing.T) {
	for name, content := range disguised {
		file := filepath.Join(t.TempDir(), "r.txt")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if local, err := Check([]string{"install", "-r", file}); err == nil {
			t.Errorf("%s: passes (local %v)", name, local)
		}
	}
	plain := filepath.Join(t.TempDir(), "r.txt")
	if err := os.WriteFile(plain, []byte("# coding: utf-8\n# héllo\nlantern==1.0 \\\n    --hash=sha256:00\nother>=2 ; python_version > \"3\"  # why\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if local, err := Check([]string{"install", "-r", plain}); err != nil || len(local) != 0 {
		t.Errorf("an ordinary file: %v, %v", local, err)
	}
}

func TestLocalFilesInDisguise(t *testing.T) {
	for _, r := range []string{
		`lantern-9.9-py3-none-any.whl;python_version>"3"`, "lantern-9.9-py3-none-any.whl[foo]", "lantern-9.9-py3-none-any.whl [foo] ; x", "lantern.zip[a,b]",
	} {
		if local, err := Check([]string{"install", r}); err != nil || len(local) != 1 {
			t.Errorf("%s on the command line: local %v, %v", r, local, err)
		}
		file := filepath.Join(t.TempDir(), "r.txt")
		if err := os.WriteFile(file, []byte(r+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if local, err := Check([]string{"install", "-r", file}); err != nil || len(local) != 1 {
			t.Errorf("%s in a file: local %v, %v", r, local, err)
		}
	}
}

func TestCheckEnv(t *testing.T) {
	dir := t.TempDir()
	evil, good := filepath.Join(dir, "c.txt"), filepath.Join(dir, "good.txt")
	if err := errors.Join(os.WriteFile(evil, []byte("--find-links /d/evil\n"), 0o600), os.WriteFile(good, []byte("lantern==1.0\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, kv := range []string{"PIP_CONSTRAINT=" + evil, "pip_requirement=" + evil, "PIP_BUILD_CONSTRAINT=" + good + " " + evil, "PIP_EDITABLE=./x", "PIP_GROUP=dev", "PIP_REQUIREMENTS_FROM_SCRIPT=x.py"} {
		if _, err := CheckEnv([]string{"HOME=/", kv}); err == nil {
			t.Errorf("%s passes", kv)
		}
	}
	if local, err := CheckEnv([]string{"PIP_CONSTRAINT=" + good, "PIP_USER=1"}); err != nil || len(local) != 0 {
		t.Errorf("%v, %v", local, err)
	}
	// What a configuration file says of these is blanked, unless the environment
	// says it, which has been checked.
	out := Env([]string{"PIP_CONSTRAINT=" + good}, "http://127.0.0.1:1")
	if !slices.Contains(out, "PIP_CONSTRAINT="+good) || slices.Contains(out, "PIP_CONSTRAINT= ") || !slices.Contains(out, "PIP_REQUIREMENT= ") || !slices.Contains(out, "PIP_EDITABLE= ") {
		t.Errorf("%q", out)
	}
}

// TestLocalInOtherWords: what pip takes from the disk although it has no slash.
func TestLocalInOtherWords(t *testing.T) {
	for _, text := range []string{"-e evil", "-eevil", "--editable=evil", "lantern-9.9-py3-none-any.whl -C a=b", "lantern-9.9-py3-none-any.whl -i x", "lantern@file:evil.whl"} {
		file := filepath.Join(t.TempDir(), "r.txt")
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if local, err := Check([]string{"install", "-r", file}); err != nil || len(local) != 1 {
			t.Errorf("%s in a file: local %v, %v", text, local, err)
		}
	}
	if local, err := Check([]string{"install", "-e", "evil"}); err != nil || len(local) != 1 {
		t.Errorf("local %v, %v", local, err)
	}
	for _, bad := range [][]string{{"install", "--group", "dev"}, {"install", "--gro=dev"}, {"install", "--requirements-from-script", "x.py"}, {"install", "lantern.whl\x1f"},
		{"install", "-e", "git:x#egg=x"}, {"--newer-option", "x", "install", "https://e/x.whl"}} {
		if _, err := Check(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestReadCommand(t *testing.T) {
	c, err := Read([]string{"-q", "--log", "l", "install", "--report=x", "lantern"})
	if err != nil || c.Name != "install" || c.At != 3 || c.Report != "x" {
		t.Errorf("%+v, %v", c, err)
	}
	if v := Version("WARNING: x\npip 23.2.1 from /x (python 3.11)\n"); v != [2]int{23, 2} {
		t.Error(v)
	}
	if v := Version("?"); v != [2]int{} {
		t.Error(v)
	}
	for list, ok := range map[string]bool{"": true, "global.timeout='5'\n": true, "install.group='dev'\n": false, "global.group='x'\n": false, ":env:.group=' '\n": true, "install.group=' '\n": true} {
		if err := CheckConfig(list); (err == nil) != ok {
			t.Errorf("%q: %v", list, err)
		}
	}
	for _, kv := range Env(nil, "http://h") {
		if strings.HasPrefix(kv, "PIP_GROUP=") {
			t.Error("a blank group is an error to pip 25.1 and later")
		}
	}
}
