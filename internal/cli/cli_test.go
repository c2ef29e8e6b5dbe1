package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// program is a small program with one command, as the real ones are built.
func program(out *bytes.Buffer, run func(name string, n int) error) *cobra.Command {
	root := &cobra.Command{Use: "prog"}
	cmd := &cobra.Command{Use: "do", Args: cobra.NoArgs}
	name := cmd.Flags().String("name", "", "")
	n := cmd.Flags().Int("n", 1, "")
	cmd.RunE = func(*cobra.Command, []string) error { return run(*name, *n) }
	Require(cmd, "name")
	Config(cmd)
	root.AddCommand(cmd)
	root.SetOut(out)
	root.SetErr(out)
	return root
}

func TestExitCodes(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name string
		args []string
		err  error
		want int
		says string
	}{
		{"done", []string{"do", "--name", "x"}, nil, OK, ""},
		{"refused", []string{"do", "--name", "x"}, Exit(Refused, boom), Refused, "prog: boom"},
		{"already said", []string{"do", "--name", "x"}, Exit(Refused, nil), Refused, ""},
		{"an error nobody classified is no verdict", []string{"do", "--name", "x"}, boom, CannotCheck, "prog: boom"},
		{"a name from a stranger", []string{"do", "--name", "x"}, errors.New("bad file \x1b[2J\u202e\xff"), CannotCheck, `prog: bad file \x1b[2J\u202e\xff`},
		{"required flag", []string{"do"}, nil, BadUsage, "--name is required"},
		{"unknown flag", []string{"do", "--nope"}, nil, BadUsage, "unknown flag: --nope"},
		{"bad value", []string{"do", "--n", "x"}, nil, BadUsage, "invalid argument"},
		{"stray argument", []string{"do", "stray"}, nil, BadUsage, "unknown command"},
		{"unknown command", []string{"sing"}, nil, BadUsage, "unknown command"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			root := program(&out, func(string, int) error { return tc.err })
			root.SetArgs(tc.args)
			if got := Run(context.Background(), root); got != tc.want {
				t.Errorf("exit code %d, want %d (%s)", got, tc.want, out.String())
			}
			if tc.says == "" && out.Len() > 0 || !strings.Contains(out.String(), tc.says) {
				t.Errorf("said %q, want %q", out.String(), tc.says)
			}
		})
	}
}

func TestConfigFile(t *testing.T) {
	for _, tc := range []struct {
		name, yaml string
		args       []string
		want       int
		wantName   string
		wantN      int
		says       string
	}{
		{"keys are flags", "name: a\nn: 7\n", nil, OK, "a", 7, ""},
		{"the command line wins", "name: a\nn: 7\n", []string{"--n", "9"}, OK, "a", 9, ""},
		{"unknown key", "name: a\nnmae: b\n", nil, BadUsage, "", 0, `line 2: unknown key "nmae"`},
		{"bad value", "name: a\nn: x\n", nil, BadUsage, "", 0, "line 2: n:"},
		{"nested", "name:\n  a: b\n", nil, BadUsage, "", 0, "plain value"},
		{"not YAML", "name: [", nil, BadUsage, "", 0, "configuration"},
		{"a file cannot name a file", "name: a\nconfig: x\n", nil, BadUsage, "", 0, "unknown key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(file, []byte(tc.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			var name string
			var n int
			root := program(&out, func(a string, b int) error { name, n = a, b; return nil })
			root.SetArgs(append([]string{"do", "--config", file}, tc.args...))
			if got := Run(context.Background(), root); got != tc.want {
				t.Fatalf("exit code %d, want %d (%s)", got, tc.want, out.String())
			}
			if name != tc.wantName || n != tc.wantN || !strings.Contains(out.String(), tc.says) {
				t.Errorf("name %q, n %d, said %q", name, n, out.String())
			}
		})
	}
}
