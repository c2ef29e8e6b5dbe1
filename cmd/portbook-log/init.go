package main

// init: a log comes into being once, by this command alone.

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

func initCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init --origin ORIGIN --dir DIRECTORY --anchor FILE",
		Short: "Make a new log: its key, its anchor and its empty storage, once",
		Long: `init makes a new log and prints its verifier key, which witnesses, clients and
monitors need.

The origin names the log in every checkpoint: the URL under which its tiles will
be read, without the scheme. It can never change.

The anchor is a small file in which the log remembers the last tree it signed.
Put it on another file system than the directory, and keep it out of the
directory's backups: it is what keeps a restored log from signing a second
history.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	origin := cmd.Flags().String("origin", "", "`ORIGIN` of the log, a URL without the scheme: log.example.org/pypi")
	anchor := cmd.Flags().String("anchor", "", "`FILE` on another file system, in which the log remembers what it signed")
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object instead of text")
	cli.Require(cmd, "origin", "anchor")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if strings.Contains(*origin, "://") {
			return cli.Usagef("--origin %s: leave the scheme away", *origin)
		}
		signer, err := c2sp.GenerateSigner(*origin, c2sp.AlgEd25519)
		if err != nil {
			return cli.Usagef("--origin: %w", err)
		}
		if err := logserver.InitWithKey(cmd.Context(), *dir, *anchor, signer); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		if beside, err := logserver.AnchorIsBeside(*dir, *anchor); err == nil && beside {
			fmt.Fprintf(cmd.ErrOrStderr(), "portbook-log: warning: the anchor is on the log's own file system, where a restored backup brings both back: serve will ask for --anchor-beside\n")
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			return json.NewEncoder(out).Encode(struct {
				Origin string `json:"origin"`
				VKey   string `json:"vkey"`
			}{*origin, signer.Key().String()})
		}
		fmt.Fprintf(out, `Made a new log in %[1]s.

Its verifier key, for witnesses (portbook-witness add-log), clients and monitors:
  %[2]s
Its fingerprint, to compare over another channel:
  %[3]s

Next:
  portbook-log token create --dir %[1]s --registry REGISTRY
  portbook-log serve --dir %[1]s --policy FILE
`, *dir, signer.Key(), fingerprint(signer.Key().String()))
		return nil
	}
	return cmd
}

// fingerprint is what portbook-witness add-log shows of a key: the SHA-256 of
// the vkey in groups of 8 hex digits.
func fingerprint(vkey string) string {
	sum := sha256.Sum256([]byte(vkey))
	groups := make([]string, 0, 8)
	for i := 0; i < len(sum); i += 4 {
		groups = append(groups, hex.EncodeToString(sum[i:i+4]))
	}
	return strings.Join(groups, " ")
}
