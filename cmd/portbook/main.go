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
log malware. But they cannot do it in secret, and nobody can be given a
different file than everybody else.

Exit codes, for every command: 0 everything asked was done and checked,
1 refused, 2 usage, 3 cannot check (network, log away; not a verdict).`,
	}
	root.AddCommand(runCmd(), proxyCmd(), gatewayCmd(), watchCmd())
	return root
}
