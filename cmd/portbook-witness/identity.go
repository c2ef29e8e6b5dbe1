package main

// init and show: who this witness is, and what others have to be told.

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
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

Key and database are made together and belong together. init never touches
existing ones.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	name := cmd.Flags().String("name", "", "`NAME` of the witness, a URL without the scheme: witness.example/w1")
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
		d, err := witness.CreateDir(cmd.Context(), *dir, *name, time.Now())
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		out := cmd.OutOrStdout()
		if *asJSON {
			return describe(out, d.Signer.Key(), *at, true)
		}
		fmt.Fprintf(out, "Made a new witness in %s.\n\n", *dir)
		if err := describe(out, d.Signer.Key(), *at, false); err != nil {
			return err
		}
		fmt.Fprintf(out, `
Next, with the verifier key that a log's operator gives you:
  portbook-witness add-log --dir %[1]s LOG-VKEY
  portbook-witness serve --dir %[1]s

Never copy %[1]s back from a backup. If it is lost, begin a new witness.
`, *dir)
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
		return describe(cmd.OutOrStdout(), d.Signer.Key(), *at, *asJSON)
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
func describe(out io.Writer, key *c2sp.Key, at string, asJSON bool) error {
	line := strings.TrimSpace(fmt.Sprintf("witness %s %s %s", key.Name(), key, at))
	if asJSON {
		return json.NewEncoder(out).Encode(struct {
			Name        string `json:"name"`
			VKey        string `json:"vkey"`
			Fingerprint string `json:"fingerprint"`
			PolicyLine  string `json:"policy_line"`
		}{key.Name(), key.String(), fingerprint(key), line})
	}
	_, err := fmt.Fprintf(out, `Verifier key (public):
  %s

Fingerprint:
  %s

Line for a policy file:
  %s
`, key, fingerprint(key), line)
	return err
}
