// Command portbook-log runs a Portbook log: it makes one, serves it, and hands
// out the tokens with which package indexes submit.
package main

import (
	"log/slog"
	"os"

	"github.com/portbook/portbook/internal/cli"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
)

func main() {
	// Tessera logs through klog; what it has to say belongs in our log.
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})).With("from", "tessera"))
	cli.Main(rootCmd())
}

func rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "portbook-log",
		Short: "Run a transparency log for package uploads",
		Long: `portbook-log makes and serves a Portbook log.

  portbook-log init --origin log.example.org/pypi --dir /var/lib/portbook-log \
      --anchor /other/disk/anchor
  portbook-log token create --dir /var/lib/portbook-log --registry index.example.org
  portbook-log serve --dir /var/lib/portbook-log --policy publish.policy

Exit codes: 0 done, 1 refused, 2 usage, 3 trouble with storage or network; serve
with --exit-on-guard ends with 3 when the log must sign nothing more.`,
	}
	root.AddCommand(initCmd(), serveCmd(), exportCmd(), tokenCmd(), keyCmd(), inviteCmd())
	root.AddCommand(auditCmd(), rebuildIndexCmd(), migrateCmd())
	root.AddCommand(backupCmd(), restoreCmd(), repairCmd())
	root.AddCommand(freezeCmd(), successorCmd(), recoverCmd())
	return root
}

// dirFlag is the one flag that every command has.
func dirFlag(cmd *cobra.Command) *string {
	dir := cmd.Flags().String("dir", "", "`DIRECTORY` of the log")
	cli.Require(cmd, "dir")
	return dir
}
