// Command portbook-log runs a Portbook log: it makes one, serves it, and hands
// out the tokens with which package indexes submit.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
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
// placeFlags say where a log is: in a directory, or shared, in a database.
type placeFlags struct{ dir, database *string }

func placeIn(cmd *cobra.Command) placeFlags {
	return placeFlags{
		cmd.Flags().String("dir", "", "`DIRECTORY` of the log"),
		cmd.Flags().String("postgres", "", "`DATABASE` of a shared log, instead of --dir: "+postgresHelp),
	}
}

// shared reports whether it is a shared log, and refuses both flags or neither.
func (p placeFlags) shared() (bool, error) {
	if (*p.dir == "") == (*p.database == "") {
		return false, cli.Usagef("missing flag: --dir, or --postgres for a shared log")
	}
	return *p.database != "", nil
}

// identity is the log's.
func (p placeFlags) identity(ctx context.Context) (id logserver.Identity, err error) {
	shared, err := p.shared()
	if err != nil {
		return id, err
	}
	if shared {
		return logserver.ReadSharedIdentity(ctx, *p.database)
	}
	if id, err = logserver.ReadIdentity(*p.dir); err != nil {
		err = cli.Exit(cli.Refused, err)
	}
	return id, err
}

func dirFlag(cmd *cobra.Command) *string {
	dir := cmd.Flags().String("dir", "", "`DIRECTORY` of the log")
	cli.Require(cmd, "dir")
	return dir
}
