// Command portbook-witness runs a witness: it cosigns the checkpoints of the
// logs it was told about, as c2sp.org/tlog-witness says.
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
		Use:   "portbook-witness",
		Short: "A witness for transparency logs: it sees to it that a log shows everyone the same history",
		Long: `portbook-witness cosigns the checkpoints of transparency logs (c2sp.org/tlog-witness).

A log sends it each new checkpoint with a proof that nothing was taken out or
changed since the last one; only then does it sign. It sees sizes and hashes,
never what is in the log.

  portbook-witness init --name witness.example/w1 --dir /var/lib/portbook-witness \
      --mark /other/disk/w1.mark
  portbook-witness add-log --dir /var/lib/portbook-witness LOG-VKEY
  portbook-witness serve --dir /var/lib/portbook-witness --mark /other/disk/w1.mark

Never copy the directory back from a backup: a witness that has forgotten what
it signed can be made to sign a second history. If its state is lost, begin a
new witness under a new name.

Exit codes, for every command: 0 done, 1 refused, 2 usage, 3 infrastructure
(network, disk).`,
	}
	root.AddCommand(initCmd(), showCmd(), addLogCmd(), listLogsCmd(), markCmd(), instancesCmd(), bastionKeyCmd(), serveCmd(), auditCmd(), retireCmd())
	return root
}

// dirFlag adds --dir, the one flag that every command has.
func dirFlag(cmd *cobra.Command) *string {
	dir := cmd.Flags().String("dir", "", "`DIRECTORY` of the witness: its key and its state")
	cli.Require(cmd, "dir")
	return dir
}
