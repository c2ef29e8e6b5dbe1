package entry

import (
	"reflect"
	"testing"
)

func TestUploadRoundTrip(t *testing.T) {
	e := &Entry{
		Kind: KindUpload, Claim: ClaimIndex, Time: "2026-11-21T05:10:08Z",
		Registry: "pypi.org", Ecosystem: PyPI, Project: "django", Version: "5.1", File: "Django-5.1.tar.gz",
		Size: Uint(0), SHA256: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		Publisher: &Publisher{Kind: "github", Repository: "django/django", Workflow: "release.yml"},
	}
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b)
	got, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, e) {
		t.Fatalf("got %+v", got)
	}
}
