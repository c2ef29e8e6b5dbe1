package main

import (
	"strings"
	"testing"

	"github.com/portbook/portbook/internal/cli"
)

// TestOpenBucket: every command reads the name of a bucket in one way.
func TestOpenBucket(t *testing.T) {
	for place, want := range map[string]string{
		"s3://tiles":      "tiles ",
		"s3://tiles/a/b/": "tiles a/b/",
		"s3://tiles/a?region=eu-1&endpoint=https://s3.example:9000": "tiles a/",
		"s3://tiles?endpoint=http://127.0.0.1:9000":                 "tiles ",
	} {
		b, err := openBucket("tiles", place)
		if err != nil || b.Name+" "+b.Prefix != want {
			t.Errorf("%s: %s %s, %v", place, b.Name, b.Prefix, err)
		}
	}
	for place, want := range map[string]string{
		"http://tiles/a":                           "want a directory or s3://",
		"s3:///a":                                  "want a directory or s3://",
		"s3://user:pw@tiles/a":                     "want a directory or s3://",
		"s3://tiles?endpoint=http://s3.example":    "without TLS",
		"s3://tiles?endpoint=http://10.0.0.1:9":    "without TLS",
		"s3://tiles?endpoint=ftp://s3.example":     "want https://HOST",
		"s3://tiles?endpoint=https://u@s3.example": "want https://HOST",
		"s3://tiles?endpoint=https://s3.example/x": "want https://HOST",
		"s3://tiles?endpoint=s3.example":           "want https://HOST",
		"s3://tiles?endpiont=https://s3.example":   "endpiont",
		"s3://tiles?region=a&region=b":             "once at most",
	} {
		for _, flag := range []string{"tiles", "dir"} {
			_, err := openBucket(flag, place)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "--"+flag+": ") || cli.Code(err) != cli.BadUsage {
				t.Errorf("%s: %v, want %q", place, err, want)
			}
		}
	}
	// The flags lead there: of serve, read-only and not, of migrate, export and token.
	for _, args := range [][]string{
		{"serve", "--read-only", "--state", t.TempDir(), "--dir", "s3://tiles?endpoint=http://s3.example"},
		{"token", "entries", "--postgres", "postgres://nobody@127.0.0.1:1/x", "--unknown", "--tiles", "s3://tiles?endpoint=http://s3.example"},
		{"migrate", "--from", "posix", "--to", "trillian", "--dir", t.TempDir(), "--trillian", "127.0.0.1:1", "--tiles", "s3://tiles?endpoint=http://s3.example"},
		{"export", "--dir", "s3://tiles?endpoint=http://s3.example", "--to", t.TempDir()},
	} {
		cmd := rootCmd()
		cmd.SetArgs(args)
		var out strings.Builder
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		if code := cli.Run(t.Context(), cmd); code != cli.BadUsage || !strings.Contains(out.String(), "without TLS") {
			t.Errorf("%v: exit code %d: %s", args, code, out.String())
		}
	}
}
