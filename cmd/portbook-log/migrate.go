package main

// migrate: a log moves between a directory and Trillian, its entries keep their
// index.

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/migrate"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/spf13/cobra"
)

func migrateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate --from {posix|trillian} --to {trillian|posix} --dir DIRECTORY --trillian ADDRESS --tiles PLACE",
		Short: "Move a log from a directory to Trillian and tiles, or back",
		Long: `migrate copies a log to another storage engine. Entries keep their index, so old
proofs and checkpoints go on verifying. Every entry is read and hashed; the root
must be the engine's, at the size of the published checkpoint the signed one,
and in the end the target's own. Nothing is written to the source.

  portbook-log migrate --from posix --dir DIRECTORY --to trillian \
      --trillian 127.0.0.1:8090 --tiles s3://bucket/log --postgres DATABASE
  portbook-log migrate --from trillian --trillian 127.0.0.1:8090 --tree ID \
      --tiles s3://bucket/log --postgres DATABASE --to posix --dir NEW --anchor FILE

To trillian it makes a tree, fills it as a PREORDERED_LOG and turns it into a
LOG; Trillian's signer must run. The log's server must be stopped. With --postgres
it makes the database too that the log's servers share (serve --storage trillian);
credentials are made anew there.

From trillian the tree must be FROZEN and integrated to its end. The new
directory gets an identity and an anchor; put the key and the credentials
(tokens.json) there yourself. Never serve the log from both places.

Keys are moved with what each is good for, retired ones too: from log.json into
the database, and from the database (--postgres) into log.json. Where the servers'
database is lost, name them: --vkey for each that signs, and --retired.

An interrupted move goes on when it is started again with the same flags. A
target that holds something else than the beginning of the log is refused.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	from := f.String("from", "", "`ENGINE` of the source: posix or trillian")
	to := f.String("to", "", "`ENGINE` of the target: trillian or posix")
	dir := dirFlag(cmd)
	t := addTrillianFlags(cmd)
	vkeys := f.StringArray("vkey", nil, "verifier `KEY` of the log, with --from trillian and without --postgres; the Ed25519 one first, may be given again")
	retired := f.StringArray("retired", nil, "'KEY SIZE' of a retired key, as in a policy's retired line, beside --vkey; may be given again")
	postgres := f.String("postgres", "", "`DATABASE` of the log's servers, not Trillian's own: made with --to trillian, read with --from trillian: "+postgresHelp)
	anchor := f.String("anchor", "", "`FILE` of the new anchor, with --to posix: on another file system than the directory")
	asJSON := f.Bool("json", false, "print one JSON object instead of text")
	quiet := f.Bool("quiet", false, "no progress on standard error")
	cli.Require(cmd, "from", "to")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		var id logserver.Identity
		switch *from + " " + *to {
		case "posix trillian":
			if *anchor != "" || len(*vkeys)+len(*retired) > 0 {
				return cli.Usagef("--anchor, --vkey and --retired belong to --from trillian --to posix")
			}
		case "trillian posix":
			if t.tree == 0 || *anchor == "" || (*postgres == "") == (len(*vkeys) == 0) || *postgres != "" && len(*retired) > 0 {
				return cli.Usagef("--from trillian needs --tree, and --postgres or else --vkey; --to posix needs --anchor")
			}
			if *postgres != "" {
				id, err = logserver.ReadSharedIdentity(cmd.Context(), *postgres)
			} else {
				id, err = namedKeys(*vkeys, *retired)
			}
			if err != nil {
				return err
			}
		default:
			return cli.Usagef("--from %s --to %s: want posix and trillian, or trillian and posix", *from, *to)
		}
		defer func() {
			if errors.Is(err, migrate.ErrRefused) || errors.Is(err, trillian.ErrTampering) || errors.Is(err, trillian.ErrNoState) {
				err = cli.Exit(cli.Refused, err)
			}
		}()
		progress := progressTo(cmd.ErrOrStderr(), *quiet)
		cfg, conn, err := t.open(cmd.Context())
		if err != nil {
			return err
		}
		defer conn.Close()
		done := moved{Tree: t.tree}
		if *to == "trillian" {
			err = toTrillian(cmd.Context(), *dir, *postgres, cfg, progress, &done)
		} else {
			err = toPOSIX(cmd.Context(), *dir, *anchor, cfg, id, progress, &done)
		}
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			return json.NewEncoder(out).Encode(done)
		}
		fmt.Fprintf(out, "Moved %d entries of %s; the root is %s.\n", done.Size, done.Origin, done.Root)
		if *to == "trillian" {
			fmt.Fprintf(out, "They are in Trillian's tree %d, which takes entries now. Do not serve %s again.\n", done.Tree, *dir)
		} else {
			fmt.Fprintf(out, "They are in %s. Put the key and tokens.json there; do not serve Trillian's tree %d again.\n", *dir, done.Tree)
		}
		return nil
	}
	return cmd
}

// namedKeys is the identity of a log whose keys are given by hand.
func namedKeys(active, retired []string) (id logserver.Identity, err error) {
	for i, v := range active {
		k, err := c2sp.ParseVKey(v)
		if err != nil {
			return id, cli.Usagef("--vkey: %w", err)
		}
		if i == 0 {
			if k.Alg() != c2sp.AlgEd25519 {
				return id, cli.Usagef("--vkey: the first one must be the log's Ed25519 key")
			}
			id.Origin, id.VKey = k.Name(), v
		}
		id.Keys = append(id.Keys, logserver.LogKey{VKey: v, State: logserver.KeyActive})
	}
	for _, line := range retired {
		v, size, _ := strings.Cut(line, " ")
		n, err := strconv.ParseUint(size, 10, 63)
		if _, kerr := c2sp.ParseVKey(v); kerr != nil || err != nil || strconv.FormatUint(n, 10) != size {
			return id, cli.Usagef("--retired %.200q: want a verifier key and the size that it signed last, 'KEY SIZE'", line)
		}
		id.Keys = append(id.Keys, logserver.LogKey{VKey: v, State: logserver.KeyRetired, UpTo: n})
	}
	return id, nil
}

// moved is what a move tells.
type moved struct {
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`
	Root   string `json:"root"`
	Tree   int64  `json:"tree,string"`
}

func (m *moved) of(s *migrate.Source) {
	m.Origin, m.Size, m.Root = s.Identity.Origin, s.Size, hex.EncodeToString(s.Root[:])
}

func toTrillian(ctx context.Context, dir, postgres string, cfg trillian.Config, progress migrate.Progress, done *moved) error {
	s, err := migrate.FromDir(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	done.of(s)
	if done.Tree, err = migrate.ToTrillian(ctx, s, cfg, progress); err != nil || postgres == "" {
		return err
	}
	cfg.TreeID = done.Tree
	d, err := trillian.New(cfg)
	if err != nil {
		return err
	}
	return migrate.ToDatabase(ctx, s, postgres, trillian.NewEngine(d, nil), progress)
}

func toPOSIX(ctx context.Context, dir, anchor string, cfg trillian.Config, id logserver.Identity, progress migrate.Progress, done *moved) error {
	s, err := migrate.FromTrillian(ctx, cfg, id)
	if err != nil {
		return err
	}
	defer s.Close()
	done.of(s)
	return migrate.ToDir(ctx, s, dir, anchor, progress)
}

// progressTo prints a line every two seconds, and one as each stage begins.
func progressTo(w io.Writer, quiet bool) migrate.Progress {
	var stage string
	var last time.Time
	return func(at string, done, of uint64) {
		if quiet || at == stage && time.Since(last) < 2*time.Second {
			return
		}
		stage, last = at, time.Now()
		fmt.Fprintf(w, "%s: %d of %d\n", at, done, of)
	}
}
