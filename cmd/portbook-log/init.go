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
		Use:   "init --origin ORIGIN --dir DIRECTORY --anchor FILE | --storage trillian ...",
		Short: "Make a new log: its key, its anchor and its empty storage, once",
		Long: `init makes a new log and prints its verifier key, which witnesses, clients and
monitors need.

The origin names the log in every checkpoint: the URL under which its tiles will
be read, without the scheme. It can never change.

The anchor is a small file in which the log remembers the last tree it signed.
Put it on another file system than the directory, and keep it out of the
directory's backups: it is what keeps a restored log from signing a second
history.

init makes an Ed25519 key in log.key in the directory. With --key it makes none,
and the log begins with keys that are kept elsewhere: one of type Ed25519, and one
of type ML-DSA-44 beside it if you like.

` + sharedHelp + `
With --storage trillian init also makes the tree, unless --tree names an empty
one; the anchor is in the database, and --anchor is not given.

` + keyHelp + `
`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	origin := cmd.Flags().String("origin", "", "`ORIGIN` of the log, a URL without the scheme: log.example.org/pypi")
	anchor := cmd.Flags().String("anchor", "", "`FILE` on another file system, in which the log remembers what it signed")
	refs := cmd.Flags().StringArray("key", nil, "existing `KEY` for the log (portbook-log key generate), once for each that is to sign; default: a new one in log.key")
	successorOf := cmd.Flags().String("successor-of", "", "`ORIGIN` of the log that this one takes over from: it takes nothing before portbook-log successor or recover-identity has written its first entry")
	private := cmd.Flags().Bool("private", false, "the log is private from its beginning: serve asks readers for a token of token create --read, also without --private")
	secrets := secretFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object instead of text")
	shared := sharedFlagsOf(cmd)
	shared.adopt = cmd.Flags().Bool("adopt", false, "with --storage trillian, --tree and --key: make the database alone, anew, for a log that was moved to Trillian, or whose database was lost or went back; every server must be stopped")
	cli.Require(cmd, "origin")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if strings.Contains(*origin, "://") {
			return cli.Usagef("--origin %s: leave the scheme away", *origin)
		}
		isShared, err := shared.asked(false)
		if err != nil {
			return err
		}
		if !isShared && *anchor == "" {
			return cli.Usagef("missing flag: --anchor")
		}
		if isShared && *anchor != "" {
			return cli.Usagef("--anchor: the anchor of a shared log is in its database")
		}
		if *successorOf == *origin {
			return cli.Usagef("--successor-of %s: a log cannot take over from itself", *origin)
		}
		if isShared && *private {
			return cli.Usagef("--private: give it to each server of a shared log (serve --private)")
		}
		if *shared.adopt && *successorOf != "" {
			return cli.Usagef("--successor-of: --adopt makes the database of a log that has begun")
		}
		var key *c2sp.Key
		if *shared.adopt && (!isShared || len(*refs) == 0) {
			return cli.Usagef("--adopt: goes with --storage trillian, and with the log's own --key")
		}
		if isShared && len(*refs) == 0 {
			ref, err := newKeyFile(*dir, *origin)
			if err != nil {
				return err
			}
			*refs = []string{ref}
		}
		if len(*refs) == 0 {
			signer, err := c2sp.GenerateSigner(*origin, c2sp.AlgEd25519)
			if err != nil {
				return cli.Usagef("--origin: %w", err)
			}
			key = signer.Key()
			if err := logserver.InitWithKey(cmd.Context(), *dir, *anchor, signer); err != nil {
				return cli.Exit(cli.Refused, err)
			}
		} else {
			keys, closeKeys, err := secrets.openKeys(cmd, *dir, *origin, *refs)
			if err != nil {
				return err
			}
			defer closeKeys()
			var also []*c2sp.Key
			for _, k := range keys {
				switch {
				case k.Key().Name() != *origin:
					return cli.Usagef("--key: key %08x is named %q, not %q: the origin is in every signature", k.Key().ID(), k.Key().Name(), *origin)
				case k.Key().Alg() == c2sp.AlgEd25519 && key == nil:
					key = k.Key()
				default:
					also = append(also, k.Key())
				}
			}
			if key == nil {
				return cli.Usagef("--key: none of type Ed25519 is given, and every log has one: ML-DSA-44 signs beside it")
			}
			if isShared {
				if err := shared.init(cmd, key, also); err != nil {
					return err
				}
			} else if err := logserver.Init(cmd.Context(), *dir, *anchor, key, also...); err != nil {
				return cli.Exit(cli.Refused, err)
			}
		}
		if isShared && *successorOf != "" {
			if err := logserver.AwaitSharedPredecessor(cmd.Context(), *shared.postgres, *successorOf); err != nil {
				return err
			}
		}
		if isShared {
			return shared.made(cmd, key, *asJSON)
		}
		if *successorOf != "" {
			if err := logserver.AwaitPredecessor(*dir, *successorOf); err != nil {
				return err
			}
		}
		if *private {
			if err := logserver.MakePrivate(*dir); err != nil {
				return err
			}
		}
		if beside, err := logserver.AnchorIsBeside(*dir, *anchor); err == nil && beside {
			fmt.Fprintf(cmd.ErrOrStderr(), "portbook-log: warning: the anchor is on the log's own file system, where a restored backup brings both back: serve will ask for --anchor-beside\n")
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			return json.NewEncoder(out).Encode(struct {
				Origin string `json:"origin"`
				VKey   string `json:"vkey"`
			}{*origin, key.String()})
		}
		fmt.Fprintf(out, `Made a new log in %[1]s.

Its verifier key, for witnesses (portbook-witness add-log), clients and monitors:
  %[2]s
Its fingerprint, to compare over another channel:
  %[3]s

Next:
  portbook-log token create --dir %[1]s --registry REGISTRY
  portbook-log serve --dir %[1]s --policy FILE%[4]s
`, *dir, key, fingerprint(key.String()), strings.Repeat(" --key KEY", len(*refs)))
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
