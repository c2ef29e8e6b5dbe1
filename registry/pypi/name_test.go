package pypi

import "testing"

func TestParseFileName(t *testing.T) {
	for _, c := range []struct{ file, project, version string }{
		{"pip-23.0.1-py3-none-any.whl", "pip", "23.0.1"},
		{"Foo_Bar.baz-1.0+local.1-2build-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "foo-bar-baz", "1.0+local.1"},
		{"Django-5.1.tar.gz", "django", "5.1"},
		{"zope.interface-4.1.0.zip", "zope-interface", "4.1.0"},
		{"my-old-pkg-1.0-beta.tar.gz", "my-old-pkg", "1.0-beta"},
		{"backports.ssl_match_hostname-3.5.0.1.tar.bz2", "backports-ssl-match-hostname", "3.5.0.1"},
		{"x-v1.tgz", "x", "v1"},
		{"setuptools-0.6c11-py2.7.egg", "setuptools", "0.6c11"},
		{"pywin-1.0.win32-py2.7.exe", "pywin", "1.0"},
		{"X-1.TAR.GZ", "x", "1"},
	} {
		p, v, err := ParseFileName(c.file)
		if err != nil || p != c.project || v != c.version {
			t.Errorf("%s: %q %q %v", c.file, p, v, err)
		}
	}
	for _, bad := range []string{"", ".whl", "x.whl", "x-1.whl", "x-1-py3-none.whl", "x-1-build-py3-none-any.whl", "-1-py3-none-any.whl",
		"x--py3-none-any.whl", "x.tar.gz", "x-.tar.gz", "-1.tar.gz", "x-1.txt", "a/x-1.tar.gz", "../x-1.tar.gz", "x-1\n.tar.gz", "x-1.tar.gz.tlog-proof", "x\u202e-1.tar.gz"} {
		if p, v, err := ParseFileName(bad); err == nil {
			t.Errorf("%q taken as %q %q", bad, p, v)
		}
	}
}

func TestVersionOf(t *testing.T) {
	for _, c := range []struct{ project, file, version string }{
		{"a-2-b", "a-2-b-1.0.tar.gz", "1.0"}, // ParseFileName must guess wrong here
		{"A.2_B", "a_2_b-1.0.tar.gz", "1.0"},
		{"x", "x-1.0-beta.tar.gz", "1.0-beta"},
		{"x", "x-dev.tar.gz", "dev"},
		{"pip", "pip-23.0.1-py3-none-any.whl", "23.0.1"},
	} {
		if v, err := VersionOf(c.project, c.file); err != nil || v != c.version {
			t.Errorf("%s %s: %q %v", c.project, c.file, v, err)
		}
	}
	for _, c := range [][2]string{{"y", "x-1.0.tar.gz"}, {"a", "a-b.whl"}, {"x", "xx-1-py3-none-any.whl"}, {"", "x-1.tar.gz"}, {"x", "x.tar.gz"}} {
		if v, err := VersionOf(c[0], c[1]); err == nil {
			t.Errorf("%q taken as version %q of %s", c[1], v, c[0])
		}
	}
}

func TestCanonicalVersion(t *testing.T) {
	for _, c := range [][2]string{
		{"1.0", "1"}, {"1.0.0", "1"}, {"01.02", "1.2"}, {"v1.0a1", "1a1"}, {"1.0-Alpha.1", "1a1"}, {"1.0rc", "1rc0"}, {"1.0c1", "1rc1"},
		{"1.0-1", "1.post1"}, {"1.0.rev2", "1.post2"}, {"1.0.DEV", "1.dev0"}, {"0!1", "1"}, {"2!1", "2!1"}, {"1.0+Ubuntu-01", "1+ubuntu.1"}, {"0.0", "0"},
	} {
		if got, ok := CanonicalVersion(c[0]); !ok || got != c[1] {
			t.Errorf("%s: %q %v, want %q", c[0], got, ok, c[1])
		}
	}
	for _, bad := range []string{"", "x", "1.0-", "1..0", "1.0+", "1.0 beta2 x"} {
		if got, ok := CanonicalVersion(bad); ok {
			t.Errorf("%q taken as %q", bad, got)
		}
	}
	if !SameVersion("1.0.0", "1") || SameVersion("1.0", "1.1") || !SameVersion("dev-x", "dev_x") || SameVersion("1.0", "dev") {
		t.Error("SameVersion")
	}
}

func FuzzFileName(f *testing.F) {
	for _, s := range []string{"pip-23.0.1-py3-none-any.whl", "a-b-1-c.tar.gz", "setuptools-0.6c11-py2.7.egg", "x-.zip", "x.whl"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, v, err := ParseFileName(s)
		if err != nil {
			return
		}
		if n, err := NormalProject(p); err != nil || n != p {
			t.Fatalf("%q: project %q is not normal", s, p)
		}
		if v == "" {
			t.Fatalf("%q: no version", s)
		}
		if again, err := VersionOf(p, s); err != nil || again != v {
			t.Fatalf("%q: VersionOf says %q %v, ParseFileName %q", s, again, err, v)
		}
		if c, ok := CanonicalVersion(v); ok {
			if d, ok := CanonicalVersion(c); !ok || d != c {
				t.Fatalf("%q: canonical %q becomes %q", v, c, d)
			}
		}
	})
}
