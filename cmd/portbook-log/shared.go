package main

// A shared log: what serve, init and token are told of the database, of Trillian
// and of the place for the tiles.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

const (
	sharedHelp = `With --storage trillian the log is shared by many servers: Trillian orders its
entries; PostgreSQL, in a database other than Trillian's, decides on submissions,
elects the publisher and holds the anchor and the credentials; the tiles are in a
directory that all servers see, or a bucket. See docs/running.md, Scale-out.
`
	postgresHelp = "postgres://USER@HOST/DATABASE; the password from a file that the environment's PGPASSFILE names, not from here"
)

// sharedFlags are those of a shared log.
type sharedFlags struct {
	storage, postgres *string
	adopt             *bool // of init
	*trillianFlags
}

func sharedFlagsOf(cmd *cobra.Command) *sharedFlags {
	f := cmd.Flags()
	return &sharedFlags{
		storage:       f.String("storage", "posix", "`STORAGE`: posix (in the directory, one server) or trillian (shared by many servers)"),
		postgres:      f.String("postgres", "", "`DATABASE` of a shared log, not Trillian's own, and better on another server: "+postgresHelp),
		trillianFlags: addTrillianFlags(cmd),
	}
}

// asked reports whether the flags are those of a shared log, and refuses half of
// them.
func (f *sharedFlags) asked(withTree bool) (bool, error) {
	switch *f.storage {
	case "posix":
		if *f.postgres != "" || f.address != "" || f.tiles != "" || f.tree != 0 || f.ca != "" || f.database != "" {
			return false, cli.Usagef("--postgres, --trillian, --trillian-ca, --trillian-database, --tree and --tiles go with --storage trillian")
		}
		return false, nil
	case "trillian":
	default:
		return false, cli.Usagef("--storage %.40q: want posix or trillian", *f.storage)
	}
	for _, need := range []struct {
		flag  string
		given bool
	}{{"postgres", *f.postgres != ""}, {"trillian", f.address != ""}, {"tiles", f.tiles != ""}, {"tree", f.tree != 0 || !withTree}} {
		if !need.given {
			return false, cli.Usagef("--storage trillian: missing flag: --%s", need.flag)
		}
	}
	return true, nil
}

// driver is the driver that the flags name, and its connection.
func (f *sharedFlags) driver(ctx context.Context, logger *slog.Logger) (*trillian.Driver, trillian.Config, *grpc.ClientConn, error) {
	cfg, conn, err := f.trillianFlags.open(ctx)
	if err != nil {
		return nil, cfg, nil, err
	}
	if f.tree == 0 {
		if f.tree, err = trillian.CreateTree(ctx, conn); err != nil {
			return nil, cfg, nil, errors.Join(err, conn.Close())
		}
		cfg.TreeID = f.tree
	}
	cfg.Logger = logger
	d, err := trillian.New(cfg)
	if err != nil {
		return nil, cfg, nil, errors.Join(err, conn.Close())
	}
	return d, cfg, conn, nil
}

// open is what serve needs.
func (f *sharedFlags) open(ctx context.Context, logger *slog.Logger) (*logserver.SharedConfig, error) {
	d, _, conn, err := f.driver(ctx, logger)
	if err != nil {
		return nil, err
	}
	return &logserver.SharedConfig{Database: *f.postgres, Engine: trillian.NewEngine(d, conn.Close)}, nil
}

// init makes the log in Trillian, the store and the database. What an interrupted
// one has made of an empty log is taken over.
func (f *sharedFlags) init(cmd *cobra.Command, key *c2sp.Key, also []*c2sp.Key) error {
	ctx := cmd.Context()
	made := f.tree == 0
	if made && *f.adopt {
		return cli.Usagef("--adopt: name the tree: --tree")
	}
	d, cfg, conn, err := f.driver(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if made {
		fmt.Fprintf(cmd.ErrOrStderr(), "Made the Trillian tree %d.\n", f.tree)
	}
	engine := trillian.NewEngine(d, conn.Close)
	if *f.adopt {
		logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		if err := errors.Join(logserver.RebuildShared(ctx, *f.postgres, engine, logger, key, also...), engine.Close()); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		return nil
	}
	if err := trillian.Init(ctx, cfg); err != nil {
		if size, serr := d.Reader().IntegratedSize(ctx); serr != nil || size != 0 {
			return cli.Exit(cli.Refused, errors.Join(err, engine.Close()))
		}
	}
	if err := errors.Join(logserver.InitShared(ctx, *f.postgres, engine, key, also...), engine.Close()); err != nil {
		return cli.Exit(cli.Refused, err)
	}
	return nil
}

// made says what init has made.
func (f *sharedFlags) made(cmd *cobra.Command, key *c2sp.Key, asJSON bool) error {
	out := cmd.OutOrStdout()
	if asJSON {
		return json.NewEncoder(out).Encode(struct {
			Origin string `json:"origin"`
			VKey   string `json:"vkey"`
			Tree   int64  `json:"tree"`
		}{key.Name(), key.String(), f.tree})
	}
	fmt.Fprintf(out, `Made the database of a shared log on Trillian tree %[1]d.

Its verifier key, for witnesses (portbook-witness add-log), clients and monitors:
  %[2]s
Its fingerprint, to compare over another channel:
  %[3]s

Next, with the same --postgres, --trillian and --tiles:
  portbook-log token create --postgres DATABASE --registry REGISTRY
  portbook-log serve --storage trillian --tree %[1]d --dir DIRECTORY --policy FILE ...
`, f.tree, key, fingerprint(key.String()))
	return nil
}

// newKeyFile makes the key of a new log in a directory.
func newKeyFile(dir, origin string) (string, error) {
	signer, err := c2sp.GenerateSigner(origin, c2sp.AlgEd25519)
	if err != nil {
		return "", cli.Usagef("--origin: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, logserver.KeyFile)
	if _, err := os.Lstat(path); err == nil {
		return "", cli.Exit(cli.Refused, fmt.Errorf("%s is there already: a key is never overwritten; to make the log with it give --key", path))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return path, writeNew(path, []byte(signer.SKey()+"\n"))
}
