package main

// export: the log as static files, with a proof for each upload.

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

func exportCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export --dir DIRECTORY --to DIRECTORY",
		Short: "Copy the log to static files, with the proof of every upload, for mirrors",
		Long: `export writes the newest published checkpoint, its tiles and entry bundles, and
for every upload its proof as

  proofs/CLAIM/REGISTRY/ECOSYSTEM/PROJECT/FILE.tlog-proof

with "," for "/" inside a part. Any web server can serve the directory: clients,
monitors and portbook-log serve --read-only take it for the log.

Run it again to go on: from where the last one ended, or was interrupted. A proof
that is there and good is never replaced. It needs no key, and may run while the
log is served.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	f := cmd.Flags()
	to := f.String("to", "", "`DIRECTORY` to write to: empty, or made by export before")
	since := f.Uint64("since", 0, "`INDEX` of the entry from which to look again: what is missing or damaged is written anew (default: where the last export ended)")
	vkeys := f.StringArray("vkey", nil, "`KEY` of the log (may be repeated); default: those in the directory's log.json")
	asJSON := f.Bool("json", false, "print one JSON object instead of text: size, tiles, proofs, kept, unreadable")
	cli.Require(cmd, "to")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := logserver.ExportConfig{Dir: *dir, To: *to}
		for _, v := range *vkeys {
			k, err := c2sp.ParseVKey(v)
			if err != nil {
				return cli.Usagef("--vkey: %w", err)
			}
			cfg.VKeys = append(cfg.VKeys, k)
		}
		if strings.Contains(*dir, "://") {
			b, err := openBucket("dir", *dir)
			if err != nil {
				return err
			}
			cfg.Dir, cfg.Files = "", b
		}
		if cmd.Flags().Changed("since") {
			cfg.Since = since
		}
		last := time.Now()
		cfg.Progress = func(done, of uint64) {
			if time.Since(last) > 2*time.Second {
				last = time.Now()
				fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d entries\n", done, of)
			}
		}
		report, err := logserver.Export(cmd.Context(), cfg)
		switch {
		case errors.Is(err, logserver.ErrExport) || errors.Is(err, logserver.ErrWentBack) || errors.Is(err, logserver.ErrNoLog):
			return cli.Exit(cli.Refused, err)
		case err != nil:
			return err
		case report.Private:
			fmt.Fprintln(cmd.ErrOrStderr(), "portbook-log: warning: this log is private: who can reach the files reads all of it; portbook-log serve --read-only asks for tokens (--tokens)")
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(report)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "Exported %d entries to %s: %d tiles and bundles and %d proofs are new, %d proofs were there.\n", report.Size, *to, report.Tiles, report.Proofs, report.Kept)
		if err == nil && report.Unreadable > 0 {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d entries are of a version that this program does not know: they are in the bundles, and have no proof file. Update it, and run it with --since.\n", report.Unreadable)
		}
		return err
	}
	return cmd
}
