package main

// explain: what a code means, why it matters, what to do.

import (
	"fmt"
	"io"
	"strings"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/registry/proxy"
	"github.com/spf13/cobra"
)

// codeFile is the one code that only this program gives.
const codeFile = "PB361"

var ownCodes = map[string]string{
	codeFile: "A file on this computer, or the proof beside it, could not be read or written. " +
		"This says nothing about what is in it. Check the name, the permissions and the disk.",
}

func explainCode(code string) (string, bool) {
	if s, ok := ownCodes[code]; ok {
		return s, true
	}
	return proxy.Explain(code)
}

func explainCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [CODE]",
		Short: "Say what a code such as PB115 means and what to do",
		Long: `explain says in plain words what a code means, why it matters and what to do.
Without a code it lists them all.

  PB1..   this file is refused
  PB2..   the log itself misbehaved
  PB3..   it could not be checked: trouble, not a verdict`,
		Example: `  portbook explain PB115`,
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out := cmd.OutOrStdout()
		if len(args) == 0 {
			for n := 100; n < 400; n++ {
				code := fmt.Sprintf("PB%d", n)
				if s, ok := explainCode(code); ok {
					first, _, _ := strings.Cut(s, ". ")
					fmt.Fprintf(out, "%s  %s.\n", code, strings.TrimSuffix(first, "."))
				}
			}
			return nil
		}
		code := strings.ToUpper(args[0])
		s, ok := explainCode(code)
		if !ok {
			return cli.Usagef("%s is not a code: portbook explain lists them", show(args[0]))
		}
		_, err := io.WriteString(out, wrap(code+": "+s, 80))
		return err
	}
	return cmd
}

// wrap breaks s into lines of at most width bytes where it has spaces.
func wrap(s string, width int) string {
	var b strings.Builder
	n := 0
	for _, w := range strings.Fields(s) {
		if n > 0 && n+1+len(w) > width {
			b.WriteByte('\n')
			n = 0
		} else if n > 0 {
			b.WriteByte(' ')
			n++
		}
		b.WriteString(w)
		n += len(w)
	}
	return b.String() + "\n"
}
