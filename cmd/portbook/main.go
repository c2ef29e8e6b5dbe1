// Command portbook is what people use: it submits, verifies, installs through
// a verifying proxy, stands in front of an index, and watches a log.
package main

import (
	"github.com/portbook/portbook/internal/cli"
	"github.com/spf13/cobra"
)

func main() {
	cli.Main(rootCmd())
}

func rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "portbook",
		Short: "A transparency log for package uploads: submit, verify, install, watch",
		Long: `portbook proves that a package file was logged before anyone could install it.

A logged package is not a safe package: a thief of a maintainer's account can
log malware. But they cannot do it in secret, and nobody who verifies can be
given a different file than everybody else.

Exit codes, for every command: 0 everything asked was done and checked,
1 refused, 2 usage, 3 cannot check (network, log away; not a verdict). Only run
has another: 4, the command it ran failed for a reason of its own.`,
		Example: `  portbook run --index https://pypi.example.org/simple/ -- pip install six
  portbook verify six-1.17.0.tar.gz --registry pypi.example.org
  portbook policy check policy`,
	}
	for _, g := range []struct {
		id, title string
		cmds      []*cobra.Command
	}{
		{"install", "For people who install packages:", []*cobra.Command{runCmd(), proxyCmd(), verifyCmd()}},
		{"index", "For package indexes:", []*cobra.Command{gatewayCmd(), submitCmd()}},
		{"everybody", "For everybody:", []*cobra.Command{watchCmd(), policyCmd(), proofCmd(), evidenceCmd(), explainCmd(), keygenCmd(), versionCmd()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.cmds {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.SetHelpCommand(helpCmd(root))
	return root
}

// helpCmd is cobra's, but for its exit code when there is no such command.
func helpCmd(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Print the help of a command", GroupID: "everybody",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, _, err := root.Find(args)
			if err != nil {
				return cli.Usage(err)
			}
			return cmd.Help()
		},
	}
}
