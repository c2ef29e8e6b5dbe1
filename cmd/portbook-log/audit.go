package main

// audit and rebuild-index: is everything in a log so, and the indexes anew.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/audit"
	"github.com/spf13/cobra"
)

func auditCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit {--dir DIRECTORY | --url URL --vkey KEY | --from-mirror DIRECTORY --vkey KEY}",
		Short: "Check a whole log: every byte, every entry, every checkpoint ever seen",
		Long: `audit reads a log from its first entry to its last and says whether everything
in it is so: each tile and bundle at its exact length, each entry hashed,
parsed and canonical, each hash above it, the root against the signed
checkpoint, and that no file name got other bytes against the registry's logged
policy. It shares no code with the server.

  --dir          a log's own directory, also while it is served; its anchor, its
                 engine's state, its journal, its uniqueness index and what
                 lies about are checked too
  --url          a log as everybody reads it
  --from-mirror  a copy of what a log serves

Tiles cannot say what a log was: give --history, a directory in which audit keeps
every checkpoint that it sees, where the log's operator cannot change it. The
witnesses of --policy or --witness are asked what they have cosigned.

Each finding has a class: tampering (what was signed contradicts itself or the
rules), damage (storage does not give what was signed), leftover (bytes that
nothing needs; no fault).

Exit codes: 0 all good, 1 tampering or damage, 2 usage, 3 something could not be
read or checked, and nothing was found in the rest.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	dir := f.String("dir", "", "the log's own `DIRECTORY`")
	url := f.String("url", "", "`URL` at which the log is read")
	mirror := f.String("from-mirror", "", "`DIRECTORY` with a checkpoint and tiles as the log serves them")
	vkeys := f.StringArray("vkey", nil, "verifier `KEY` of the log, Ed25519; 'KEY SIZE' for one that was retired at a size; may be given again; default with --dir: those in log.json")
	policyFile := f.String("policy", "", "policy `FILE` (c2sp.org/tlog-policy): its log keys and its witnesses' URLs, as if given by --vkey and --witness")
	history := f.String("history", "", "`DIRECTORY` of checkpoints ever seen, read and added to")
	files := f.StringArray("checkpoint", nil, "`FILE` with a checkpoint that the log has published; may be given again")
	witnesses := f.StringArray("witness", nil, "`URL` of a witness, to be asked what it has cosigned; may be given again")
	tokenFile := f.String("read-token", "", "`FILE` with the read token of a private log, for --url")
	memory := f.Int("max-memory", 64, "`MIB` of records kept in memory; what is more goes to temporary files")
	temp := f.String("temp", "", "`DIRECTORY` for temporary files; default: the system's")
	asJSON := f.Bool("json", false, "print one JSON object instead of text")
	quiet := f.Bool("quiet", false, "no progress on standard error")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := audit.Config{Dir: *dir, URL: *url, Mirror: *mirror, History: *history, Witnesses: *witnesses, MaxMemory: *memory << 20, TempDir: *temp}
		debug.SetGCPercent(50) // records have no pointers: collecting them is cheap, and what is dead counts as memory
		if *memory < 1 {
			return cli.Usagef("--max-memory: want 1 or more")
		}
		for _, k := range *vkeys {
			key, err := auditKey(k)
			if err != nil {
				return cli.Usage(err)
			}
			cfg.Keys = append(cfg.Keys, key)
		}
		if *policyFile != "" {
			if err := auditPolicy(*policyFile, &cfg); err != nil {
				return cli.Usage(err)
			}
		}
		if *tokenFile != "" {
			token, err := cli.ReadSecret(*tokenFile)
			if err != nil {
				return cli.Usagef("--read-token: %w", err)
			}
			cfg.Token = token
		}
		for _, name := range *files {
			raw, err := os.ReadFile(name)
			if err != nil {
				return cli.Usagef("--checkpoint: %w", err)
			}
			cfg.Seen = append(cfg.Seen, audit.Seen{From: name, Raw: raw, Published: true})
		}
		if !*quiet {
			cfg.Progress = every(cmd.ErrOrStderr(), "audit")
		}
		var notes []string
		if *dir != "" {
			d, err := logserver.DigestIndex(cmd.Context(), *dir)
			switch {
			case err == nil:
				cfg.Index = &audit.IndexDigest{Size: d.Size, Rows: d.Rows, Sum: d.Sum}
			case errors.Is(err, logserver.ErrNoIndex):
				notes = append(notes, "the uniqueness index was not checked: "+err.Error())
			default:
				cfg.IndexTrouble = err
			}
		}
		r, err := audit.Run(cmd.Context(), cfg)
		if errors.Is(err, audit.ErrConfig) {
			return cli.Usage(err)
		}
		if err != nil {
			return cli.Exit(cli.CannotCheck, err)
		}
		r.Notes = append(r.Notes, notes...)
		if *asJSON {
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(r); err != nil {
				return err
			}
		} else {
			printReport(cmd.OutOrStdout(), r)
		}
		if o := r.Outcome(); o != audit.AllGood {
			return cli.Exit(int(o), nil)
		}
		return nil
	}
	return cmd
}

// auditKey reads "VKEY" or "VKEY SIZE".
func auditKey(s string) (audit.Key, error) {
	vkey, size, retired := strings.Cut(s, " ")
	k := audit.Key{VKey: vkey, Retired: retired}
	if retired {
		var err error
		if k.UpTo, err = strconv.ParseInt(size, 10, 64); err != nil || k.UpTo < 0 {
			return k, fmt.Errorf("--vkey: %q is not the size at which a key was retired", size)
		}
	}
	return k, nil
}

// auditPolicy takes the keys and witnesses of a policy. The audit knows Ed25519
// keys alone.
func auditPolicy(name string, cfg *audit.Config) error {
	raw, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	p, err := c2sp.ParsePolicy(raw)
	if err != nil {
		return fmt.Errorf("policy %s: %w", name, err)
	}
	for _, l := range p.Logs {
		if l.Key.Alg() == c2sp.AlgEd25519 {
			cfg.Keys = append(cfg.Keys, audit.Key{VKey: l.Key.String(), Retired: l.Retired, UpTo: int64(l.UpTo)})
		}
	}
	for _, w := range p.Witnesses {
		if w.URL != "" && !slices.Contains(cfg.Witnesses, w.URL) {
			cfg.Witnesses = append(cfg.Witnesses, w.URL)
		}
	}
	return nil
}

// every prints how far something has come, every two seconds.
func every(w io.Writer, what string) func(done, size int64) {
	start := time.Now()
	last := start
	return func(done, size int64) {
		if now := time.Now(); now.Sub(last) > 2*time.Second {
			last = now
			fmt.Fprintf(w, "%s: %d of %d entries, %.0f a second\n", what, done, size, float64(done)/now.Sub(start).Seconds())
		}
	}
}

func printReport(w io.Writer, r *audit.Report) {
	for _, f := range r.Findings {
		if f.Class != audit.Leftover {
			fmt.Fprintf(w, "%s: %s: %s: %s\n", strings.ToUpper(string(f.Class)), f.Kind, cli.ASCII(f.Where), cli.ASCII(f.Detail))
		}
	}
	for _, u := range r.Unread {
		fmt.Fprintf(w, "NOT CHECKED: %s\n", cli.ASCII(u))
	}
	for _, f := range r.Findings {
		if f.Class == audit.Leftover {
			fmt.Fprintf(w, "leftover: %s: %s: %s\n", f.Kind, cli.ASCII(f.Where), cli.ASCII(f.Detail))
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", cli.ASCII(n))
	}
	fmt.Fprintf(w, "log %s, size %d, root %s\n", r.Origin, r.Size, r.RootHex)
	fmt.Fprintf(w, "%d entries, %d tiles and bundles, %d file names, %d ids, %d other checkpoints compared", r.Covered, r.Tiles, r.Slots, r.IDs, r.Seen)
	if r.IndexChecked {
		fmt.Fprintf(w, ", uniqueness index of %d rows", r.IndexRows)
	}
	fmt.Fprintln(w)
	switch r.Outcome() {
	case audit.AllGood:
		fmt.Fprintln(w, "all good")
	case audit.Found:
		fmt.Fprintf(w, "FOUND: %d of tampering, %d of damage\n", r.Counts[audit.Tampering], r.Counts[audit.Damage])
	default:
		fmt.Fprintln(w, "nothing found in what could be checked; not all could")
	}
}

func rebuildIndexCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rebuild-index --dir DIRECTORY",
		Short: "Make the uniqueness and lookup index anew from the tiles",
		Long: `rebuild-index makes the index directory anew from the tiles of a log that is
not served meanwhile. First it compares every entry and every tile with the
public checkpoint: nothing is built from a damaged tree. The old index stays
until the new one is whole, so it may be interrupted, and run again.

With --check it changes nothing and prints what the uniqueness index holds, in
one line: entries, rows, and SHA-256 over the rows in order of their keys (32
bytes of key and 8 of index, big-endian). portbook-log audit computes the same
from the entries.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	check := cmd.Flags().Bool("check", false, "change nothing, print what the uniqueness index holds")
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object instead of text")
	quiet := cmd.Flags().Bool("quiet", false, "no progress on standard error")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var d logserver.IndexDigest
		var err error
		if *check {
			if _, err := logserver.ReadIdentity(*dir); err != nil {
				return cli.Exit(cli.Refused, err)
			}
			d, err = logserver.DigestIndex(cmd.Context(), *dir)
		} else {
			d, err = rebuild(cmd.Context(), cmd.ErrOrStderr(), *dir, *quiet)
		}
		if err != nil {
			if errors.Is(err, logserver.ErrStorage) || errors.Is(err, context.Canceled) {
				return err
			}
			return cli.Exit(cli.Refused, err)
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			return json.NewEncoder(out).Encode(struct {
				Size int64  `json:"size"`
				Rows int64  `json:"rows"`
				Sum  string `json:"sha256"`
			}{d.Size, d.Rows, fmt.Sprintf("%x", d.Sum)})
		}
		fmt.Fprintf(out, "%d entries, %d rows, sha256 %x\n", d.Size, d.Rows, d.Sum)
		return nil
	}
	return cmd
}

func rebuild(ctx context.Context, w io.Writer, dir string, quiet bool) (logserver.IndexDigest, error) {
	phases := map[string]func(int64, int64){}
	return logserver.RebuildIndex(ctx, dir, func(what string, done, size int64) {
		if quiet {
			return
		}
		if phases[what] == nil {
			phases[what] = every(w, what)
		}
		phases[what](done, size)
	})
}
