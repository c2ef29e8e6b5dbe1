package main

// backup, restore and repair: a log's bytes on another disk, and back.

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/audit"
	"github.com/spf13/cobra"
)

func backupCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup --dir DIRECTORY --to DIRECTORY",
		Short: "Copy what a log has published, also while it is served",
		Long: `backup makes a directory hold what the log has published: checkpoint, tiles,
log.json and the credentials (hashed, and suspended: see restore). The log may be served meanwhile. Every tile
is verified from the signed root down; those that the backup has already are
kept, damaged ones replaced. It may be interrupted and run again. It refuses to
touch a backup that holds another history than the log, or a newer one.

It never copies the anchor, which must not be put back with the log, nor the
key, which you keep apart, nor the indexes, which follow from the tiles. A backup
is a mirror: audit --from-mirror, restore --from and repair --from read it.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	to := cmd.Flags().String("to", "", "`DIRECTORY` of the backup, on another disk")
	asJSON, quiet := outputFlags(cmd)
	cli.Require(cmd, "to")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := logserver.Backup(cmd.Context(), *dir, *to, progress(cmd, *quiet, "backup"))
		return printOutcome(cmd, o, err, *asJSON, "backed up")
	}
	return cmd
}

func repairCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair --dir DIRECTORY --from {URL|DIRECTORY}",
		Short: "Bring back tiles, the tail and the state of a damaged or restored log",
		Long: `repair makes a log's directory hold, byte for byte, the tree that it signed last,
as its anchor remembers: single tiles and bundles that are missing or damaged, the
tail that an older backup lacks, the engine's state, the public checkpoint, the
indexes. What is there and right is kept; the rest comes from a mirror: a URL
that serves the log, a copy of it, or a backup. Nothing counts before it is
verified against the signed root, so anybody's mirror will do. The log must not
be served meanwhile.

If no mirror has all that was signed, nothing changes but what could be brought
back, and the log goes on refusing to write.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	from := cmd.Flags().String("from", "", "`URL` or directory of a mirror or backup")
	asJSON, quiet := outputFlags(cmd)
	cli.Require(cmd, "from")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := logserver.Repair(cmd.Context(), *dir, *from, progress(cmd, *quiet, "repair"))
		return printOutcome(cmd, o, err, *asJSON, "whole")
	}
	return cmd
}

func restoreCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore --from DIRECTORY {--to DIRECTORY | --drill}",
		Short: "Make a log's directory from a backup, or prove that it could be done",
		Long: `restore makes a log's directory from a backup, verified from its checkpoint's
root down. Put the key into it yourself. The log that is served from it refuses to
write if its anchor remembers more than the backup has: run repair --from with a
mirror that is newer. Reads work at once, of a private log once a token that reads
is confirmed.

Its credentials are suspended: one that was revoked after the backup must not come
back. Each is refused until token confirm (or --all) says that it is good.

With --drill it restores into a temporary directory, builds the indexes, audits
everything, says how old the backup is and what it lacks of what the anchor
remembers, and removes it all. Nothing is served and nothing is signed. Run it
every day.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	from := f.String("from", "", "`DIRECTORY` of the backup")
	to := f.String("to", "", "new `DIRECTORY` of the log")
	anchor := f.String("anchor", "", "`FILE` of the log's anchor, if it is elsewhere now than log.json says")
	drill := f.Bool("drill", false, "restore into a temporary directory, audit it, report, and remove it")
	policy := f.String("policy", "", "policy `FILE`: with --drill its witnesses are asked what they have cosigned")
	temp := f.String("temp", "", "`DIRECTORY` for --drill; default: the system's")
	asJSON, quiet := outputFlags(cmd)
	cli.Require(cmd, "from")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (*to == "") == !*drill {
			return cli.Usagef("give one of --to and --drill")
		}
		if *drill {
			return drillRestore(cmd, *from, *temp, *anchor, *policy, *asJSON, *quiet)
		}
		o, err := logserver.Restore(cmd.Context(), *from, *to, *anchor, progress(cmd, *quiet, "restore"))
		if err := printOutcome(cmd, o, err, *asJSON, "restored"); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(*to, logserver.TokensFile)); err == nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "portbook-log: its credentials are as old as the backup and suspended: look at each (portbook-log token list --dir %[1]s), then token revoke it if it was revoked since, token rotate --overlap 0 it if it was rotated since, or token confirm it; until then it is refused\n", *to)
		}
		id, err := logserver.ReadIdentity(*to)
		if err != nil {
			return err
		}
		switch m, err := logserver.BehindAnchor(id, o.Size); {
		case err != nil:
			fmt.Fprintf(cmd.ErrOrStderr(), "portbook-log: %v: until it is back the log serves reads and takes nothing\n", err)
		case m.Entries > 0:
			fmt.Fprintf(cmd.ErrOrStderr(), "portbook-log: the anchor remembers %d entries, %d are missing here: the log will serve reads and take nothing; bring them back with portbook-log repair --from MIRROR\n", m.Anchor, m.Entries)
		}
		return nil
	}
	return cmd
}

// drillReport is what a drill prints.
type drillReport struct {
	Origin  string        `json:"origin"`
	Size    uint64        `json:"size"`
	Root    string        `json:"root"`
	Taken   time.Time     `json:"taken"`
	AgeSec  int64         `json:"age_seconds"`
	Anchor  *uint64       `json:"anchor,omitempty"`  // what it remembers
	Missing *uint64       `json:"missing,omitempty"` // entries of those
	Seconds float64       `json:"seconds"`
	Audit   *audit.Report `json:"audit"`
}

func drillRestore(cmd *cobra.Command, from, temp, anchor, policy string, asJSON, quiet bool) (err error) {
	start := time.Now()
	dir, err := os.MkdirTemp(temp, "portbook-drill-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	to, pretend := filepath.Join(dir, "log"), filepath.Join(dir, "anchor")
	o, err := logserver.Restore(cmd.Context(), from, to, pretend, progress(cmd, quiet, "restore"))
	if err != nil {
		return refusedOrTrouble(err)
	}
	// An anchor for the copy, so that everything else about it can be audited. It
	// goes with the copy.
	id, err := logserver.ReadIdentity(to)
	if err != nil {
		return err
	}
	if err := logserver.DrillAnchor(id, o); err != nil {
		return err
	}
	d, err := logserver.RebuildIndex(cmd.Context(), to, nil)
	if err != nil {
		return refusedOrTrouble(err)
	}
	cfg := audit.Config{Dir: to, Index: &audit.IndexDigest{Size: d.Size, Rows: d.Rows, Sum: d.Sum}, TempDir: temp}
	var asked audit.Config
	if policy != "" {
		if err := auditPolicy(policy, &asked); err != nil {
			return cli.Usage(err)
		}
	}
	cfg.Witnesses = asked.Witnesses
	if !quiet {
		cfg.Progress = every(cmd.ErrOrStderr(), "audit")
	}
	r, err := audit.Run(cmd.Context(), cfg)
	if err != nil {
		return cli.Exit(cli.CannotCheck, err)
	}
	report := drillReport{Origin: id.Origin, Size: o.Size, Root: fmt.Sprintf("%x", o.Root), Audit: r}
	if info, err := logserver.ReadBackupInfo(from); err == nil {
		report.Taken, report.AgeSec = info.Taken, int64(time.Since(info.Taken).Seconds())
	} else {
		r.Notes = append(r.Notes, "how old the backup is cannot be told: "+err.Error())
	}
	live, err := logserver.ReadIdentity(from)
	if err != nil {
		return err
	}
	if anchor != "" {
		live.Anchor = anchor
	}
	if m, err := logserver.BehindAnchor(live, o.Size); err == nil {
		report.Anchor, report.Missing = &m.Anchor, &m.Entries
	} else {
		r.Notes = append(r.Notes, "what is missing cannot be told: "+err.Error())
	}
	report.Seconds = time.Since(start).Seconds()
	out := cmd.OutOrStdout()
	if asJSON {
		if err := json.NewEncoder(out).Encode(report); err != nil {
			return err
		}
	} else {
		printReport(out, r)
		if !report.Taken.IsZero() {
			fmt.Fprintf(out, "taken %s, %s ago\n", report.Taken.Format(time.RFC3339), time.Since(report.Taken).Round(time.Second))
		}
		if report.Missing != nil {
			fmt.Fprintf(out, "the anchor remembers %d entries: %d are missing in the backup\n", *report.Anchor, *report.Missing)
		}
		fmt.Fprintf(out, "restored and audited in %.1f s\n", report.Seconds)
	}
	switch r.Outcome() {
	case audit.AllGood:
		return nil
	case audit.CannotCheck:
		// A witness that knows of more than an older backup is no fault of the backup.
		return cli.Exit(cli.CannotCheck, nil)
	}
	return cli.Exit(cli.Refused, nil)
}

func outputFlags(cmd *cobra.Command) (asJSON, quiet *bool) {
	return cmd.Flags().Bool("json", false, "print one JSON object instead of text"), cmd.Flags().Bool("quiet", false, "no progress on standard error")
}

func progress(cmd *cobra.Command, quiet bool, what string) logserver.Progress {
	if quiet {
		return nil
	}
	return every(cmd.ErrOrStderr(), what)
}

// refusedOrTrouble gives an error of the server package its exit code.
func refusedOrTrouble(err error) error {
	if err == nil || errors.Is(err, logserver.ErrStorage) {
		return err
	}
	return cli.Exit(cli.Refused, err)
}

func printOutcome(cmd *cobra.Command, o logserver.Outcome, err error, asJSON bool, what string) error {
	if err != nil {
		return refusedOrTrouble(err)
	}
	out := cmd.OutOrStdout()
	if asJSON {
		return json.NewEncoder(out).Encode(struct {
			Size    uint64 `json:"size"`
			Root    string `json:"root"`
			Written int64  `json:"written"`
		}{o.Size, fmt.Sprintf("%x", o.Root), o.Written})
	}
	_, err = fmt.Fprintf(out, "%s: %d entries, root %x; %d tiles and bundles written\n", what, o.Size, o.Root, o.Written)
	return err
}
