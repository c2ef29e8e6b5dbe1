package main

// init and show: who this witness is, and what others have to be told.

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/witness"
	"github.com/spf13/cobra"
)

func initCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init --name NAME --dir DIRECTORY",
		Short: "Make a new witness: its key and its empty state, once and for ever",
		Long: `init makes the key and the database of a new witness, and prints its verifier
key and the line that a log's policy file needs.

The name goes into every signature. It is a URL without the scheme, under a
domain that is yours: witness.example/w1. Nothing has to be reachable there.

It has two keys, one of Ed25519 and one of ML-DSA-44, which a quantum computer
does not break. Each checkpoint is cosigned with both.

Keys, database and mark are made together and belong together. init never
touches existing ones. The mark is a small file on another file system, by which
the witness knows an old copy of its database.

With --store the state is in PostgreSQL, and several instances on several machines
are one witness. For each further one copy the directory to its machine, and make
it a mark of its own there: portbook-witness mark.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	name := cmd.Flags().String("name", "", "`NAME` of the witness, a URL without the scheme: witness.example/w1")
	mark := markFlag(cmd)
	store := cmd.Flags().String("store", "", "`URI` of an empty PostgreSQL database for the state, postgres://USER@HOST/DATABASE?sslmode=verify-full; it is kept in the directory; default: SQLite in the directory")
	at := urlFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object instead of text")
	cli.Require(cmd, "name")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case strings.Contains(*name, "://"):
			return cli.Usagef("--name %s: leave the scheme away; the name says who signs, not where to connect", *name)
		case *name == c2sp.QuorumNone:
			return cli.Usagef("--name %s means something else in a policy: choose a name under a domain of yours", *name)
		}
		if _, err := c2sp.GenerateSigner(*name, c2sp.AlgEd25519Cosig); err != nil {
			return cli.Usagef("--name: %w", err)
		}
		if err := checkURL(*at); err != nil {
			return cli.Usage(err)
		}
		file := markPath(*mark, *dir)
		_, madeErr := os.Lstat(filepath.Join(*dir, witness.KeyFile))
		if _, err := os.Lstat(file); err == nil && madeErr != nil { // else CreateDir has the better reason
			return cli.Exit(cli.Refused, fmt.Errorf("a file is at %s already: a mark is never replaced; choose another path", file))
		}
		d, err := witness.CreateDirOn(cmd.Context(), *dir, *name, *store, time.Now())
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		if err := d.Store.CreateMark(cmd.Context(), file); err != nil {
			return cli.Exit(cli.Refused, fmt.Errorf("%w; the witness is made: make its mark with portbook-witness mark", err))
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			return describe(out, d.Keys(), *at, true)
		}
		fmt.Fprintf(out, "Made a new witness in %s.\n\n", *dir)
		if err := describe(out, d.Keys(), *at, false); err != nil {
			return err
		}
		serve := ""
		if same, err := d.Store.MarkIsBeside(file); err == nil && same {
			serve = " --mark-beside   # better: a mark on another file system (--mark)"
		}
		fmt.Fprintf(out, `
Next, with the verifier key that a log's operator gives you:
  portbook-witness add-log --dir %[1]s LOG-VKEY
  portbook-witness serve --dir %[1]s --mark %[2]s%[3]s

Never copy %[1]s back from a backup. If it is lost, begin a new witness.
`, *dir, file, serve)
		if d.Store.Shared() {
			fmt.Fprintf(out, `
For each further instance, on its machine, with a copy of %[1]s:
  portbook-witness mark --dir %[1]s --mark FILE
`, *dir)
		}
		return nil
	}
	return cmd
}

func showCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show --dir DIRECTORY",
		Short: "Print the verifier key and the policy line again",
		Args:  cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	at := urlFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object instead of text")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkURL(*at); err != nil {
			return cli.Usage(err)
		}
		d, err := witness.OpenDir(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		return describe(cmd.OutOrStdout(), d.Keys(), *at, *asJSON)
	}
	return cmd
}

func urlFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("url", "", "`URL` under which logs will reach the witness, for the policy line: https://witness.example/")
}

func checkURL(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" ||
		u.User != nil || strings.ContainsAny(s, " \t\n") {
		return fmt.Errorf("--url %q must look like https://witness.example/", s)
	}
	return nil
}

// describe prints what others have to be told about the witness.
func describe(out io.Writer, keys []*c2sp.Key, at string, asJSON bool) error {
	lines := policyLines(keys, at)
	if asJSON {
		said := struct {
			Name              string   `json:"name"`
			VKey              string   `json:"vkey"`
			Fingerprint       string   `json:"fingerprint"`
			PolicyLine        string   `json:"policy_line"`
			PolicyLines       []string `json:"policy_lines"` // of all keys
			SecondFingerprint string   `json:"second_fingerprint,omitempty"`
		}{Name: keys[0].Name(), VKey: keys[0].String(), Fingerprint: fingerprint(keys[0]), PolicyLine: lines[0], PolicyLines: lines}
		if len(keys) > 1 {
			said.SecondFingerprint = fingerprint(keys[1])
		}
		return json.NewEncoder(out).Encode(said)
	}
	fmt.Fprintf(out, `Verifier key (public):
  %s

Fingerprint:
  %s

Line for a policy file:
  %s
`, keys[0], fingerprint(keys[0]), lines[0])
	if len(keys) > 1 {
		fmt.Fprintf(out, `
It also cosigns with ML-DSA-44, fingerprint:
  %s
A log's policy lists that key in a line of its own, which is long:
  portbook-witness show --dir DIRECTORY --json
`, fingerprint(keys[1]))
	}
	return nil
}

// policyLines is one line of a policy for each key. The second has a name of
// its own in the policy; "group w any w-ed w-pq" makes the two one voice.
func policyLines(keys []*c2sp.Key, at string) []string {
	var lines []string
	for _, k := range keys {
		name := k.Name()
		if k.Alg() == c2sp.AlgMLDSA44 {
			name += "-mldsa"
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("witness %s %s %s", name, k, at)))
	}
	return lines
}
