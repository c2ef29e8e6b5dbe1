package main

// The flags of a log on Trillian, and what they open.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/portbook/portbook/logserver/trillian/bucket"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	gcredentials "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// trillianFlags are the flags that say where a log on Trillian is.
type trillianFlags struct {
	address, ca, tiles, database string
	tree                         int64
	plaintext                    bool
}

// addTrillianFlags adds them to a command.
func addTrillianFlags(cmd *cobra.Command) *trillianFlags {
	t := new(trillianFlags)
	f := cmd.Flags()
	f.StringVar(&t.address, "trillian", "", "`ADDRESS` of Trillian's log server: host:port, or a gRPC target that names several")
	f.Int64Var(&t.tree, "tree", 0, "`ID` of Trillian's tree")
	f.StringVar(&t.ca, "trillian-ca", "", "certificates `FILE` that Trillian's own is checked with; without it there is no TLS")
	f.BoolVar(&t.plaintext, "trillian-plaintext", false, "allow a Trillian that is not on loopback without TLS: only on a network of its own, since whoever reaches it can log")
	f.StringVar(&t.database, "trillian-database", "", "connection `URI` of Trillian's database, exactly as Trillian has it (postgresql://..., or user@tcp(host)/name of MySQL): it is refused if it may lose what it has confirmed")
	f.StringVar(&t.tiles, "tiles", "", "`PLACE` of the tiles: a directory, or s3://BUCKET/PREFIX?endpoint=https://HOST&region=REGION with the credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws or the machine's role")
	return t
}

// open connects to Trillian and to the tiles, and checks the database if it is
// named. The caller closes the connection.
func (t *trillianFlags) open(ctx context.Context) (trillian.Config, *grpc.ClientConn, error) {
	fail := func(err error) (trillian.Config, *grpc.ClientConn, error) { return trillian.Config{}, nil, err }
	if t.address == "" || t.tiles == "" {
		return fail(cli.Usagef("--trillian and --tiles are needed for a log on Trillian"))
	}
	creds := insecure.NewCredentials()
	if t.ca != "" {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return fail(cli.Usagef("--trillian-ca: %w", err))
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fail(cli.Usagef("--trillian-ca: %s holds no certificate", t.ca))
		}
		creds = gcredentials.NewTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
	} else if !t.plaintext && !isLoopback(t.address) {
		return fail(cli.Usagef("--trillian %s is not a loopback address: give --trillian-ca, or --trillian-plaintext on a network of its own", t.address))
	}
	store, err := t.store(ctx)
	if err != nil {
		return fail(err)
	}
	if err := t.durable(ctx); err != nil {
		return fail(err)
	}
	conn, err := trillian.Dial(t.address, grpc.WithTransportCredentials(creds))
	if err != nil {
		return fail(cli.Usagef("--trillian: %w", err))
	}
	return trillian.Config{Conn: conn, TreeID: t.tree, Store: store}, conn, nil
}

// store opens the place of the tiles.
func (t *trillianFlags) store(ctx context.Context) (trillian.Store, error) {
	if !strings.Contains(t.tiles, "://") {
		dir, err := filepath.Abs(t.tiles)
		return trillian.Dir(dir), err
	}
	b, err := openBucket("tiles", t.tiles)
	if err != nil {
		return nil, err
	}
	return b, b.Check(ctx)
}

// readPlace is a place of tiles that is only read.
func readPlace(flag, place string) (logserver.Files, error) {
	if strings.Contains(place, "://") {
		return openBucket(flag, place)
	}
	dir, err := filepath.Abs(place)
	return trillian.Dir(dir), err
}

// openBucket opens the bucket that a flag names. Without TLS it takes none but on
// this machine: anyone on the way could change tiles.
func openBucket(flag, place string) (bucket.Bucket, error) {
	refuse := func(format string, args ...any) (bucket.Bucket, error) {
		return bucket.Bucket{}, cli.Usagef("--%s: %w", flag, fmt.Errorf(format, args...))
	}
	u, err := url.Parse(place)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return refuse("want a directory or s3://BUCKET/PREFIX?endpoint=https://HOST&region=REGION")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return refuse("its parameters cannot be read: want endpoint=https://HOST and region=REGION")
	}
	for name, values := range query {
		if name != "endpoint" && name != "region" || len(values) != 1 {
			return refuse("parameter %.40q: want endpoint and region, each once at most", name)
		}
	}
	endpoint := &url.URL{Scheme: "https", Host: "s3.amazonaws.com"}
	if e := query.Get("endpoint"); e != "" {
		endpoint, err = url.Parse(e)
		if err != nil || endpoint.Host == "" || endpoint.User != nil || strings.Trim(endpoint.Path, "/") != "" || endpoint.RawQuery != "" {
			return refuse("endpoint %s: want https://HOST[:PORT]", e)
		}
	}
	switch {
	case endpoint.Scheme != "https" && endpoint.Scheme != "http":
		return refuse("endpoint %s: want https://HOST[:PORT]", endpoint)
	case endpoint.Scheme == "http" && !isLoopback(endpoint.Host):
		return refuse("endpoint %s: without TLS anyone on the way can change tiles", endpoint)
	}
	client, err := minio.New(endpoint.Host, &minio.Options{Secure: endpoint.Scheme == "https", Region: query.Get("region"),
		Creds: credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{}})})
	if err != nil {
		return refuse("%w", err)
	}
	b := bucket.Bucket{Client: client, Name: u.Host}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		b.Prefix = prefix + "/"
	}
	return b, nil
}

// durable refuses a database that may lose what it has confirmed. Errors of the
// connection name no password.
func (t *trillianFlags) durable(ctx context.Context) error {
	refuse := func(err error) error {
		if errors.Is(err, trillian.ErrNotDurable) {
			return cli.Exit(cli.Refused, err)
		}
		return err
	}
	switch {
	case t.database == "":
		return nil
	case strings.HasPrefix(t.database, "postgres://"), strings.HasPrefix(t.database, "postgresql://"):
		conn, err := pgx.Connect(ctx, t.database)
		if err != nil {
			return fmt.Errorf("--trillian-database: cannot connect: %w", err)
		}
		defer conn.Close(ctx)
		return refuse(trillian.CheckPostgreSQL(ctx, conn))
	default:
		cfg, err := mysql.ParseDSN(t.database)
		if err != nil {
			return cli.Usagef("--trillian-database: want postgresql://USER@HOST/NAME, or USER@tcp(HOST:PORT)/NAME")
		}
		connector, err := mysql.NewConnector(cfg)
		if err != nil {
			return cli.Usagef("--trillian-database: %w", err)
		}
		db := sql.OpenDB(connector)
		defer db.Close()
		return refuse(trillian.CheckMySQL(ctx, db))
	}
}
