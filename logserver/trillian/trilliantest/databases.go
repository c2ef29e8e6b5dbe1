package trilliantest

// The databases: PostgreSQL 15 and MariaDB, each with an empty database that
// has Trillian's schema.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// ErrAbsent says that a program the harness needs is not installed here.
var ErrAbsent = errors.New("not installed")

// Database is a running database server with Trillian's schema in it.
type Database interface {
	// Server is the database's process.
	Server() *Process
	// Flags are what trillian_log_server and trillian_log_signer need to use it.
	Flags() []string
	// Close ends the server and removes its files.
	Close()
}

// PostgreSQL is a real PostgreSQL server.
type PostgreSQL struct {
	*Process
	home string
	port int
}

// databaseName is of Trillian's database; PostgreSQL has "frontend" beside it,
// empty, for the frontends' own tables.
const (
	databaseName = "trillian"
	frontendName = "frontend"
)

// postgresBin finds the server's programs: Debian keeps them off the PATH.
var postgresBin = sync.OnceValues(func() (string, error) {
	for _, version := range []string{"15", "16", "17", "18", "14"} {
		dir := filepath.Join("/usr/lib/postgresql", version, "bin")
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err == nil {
			return dir, nil
		}
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		return "", fmt.Errorf("PostgreSQL is %w (apt-get install postgresql)", ErrAbsent)
	}
	return filepath.Dir(path), nil
})

// StartPostgreSQL makes a database cluster and serves it. settings go into
// postgresql.conf beside or instead of ours: fsync and synchronous_commit are on
// unless it says otherwise.
func StartPostgreSQL(ctx context.Context, settings map[string]string) (*PostgreSQL, error) {
	p, bin, err := newPostgreSQL()
	if err != nil {
		return nil, err
	}
	err = run(ctx, p.home, p.cred, nil, filepath.Join(bin, "initdb"), "--pgdata="+p.data(), "--username=postgres",
		"--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
	if err == nil {
		err = p.configure(settings)
	}
	if err == nil {
		err = p.Start(ctx)
	}
	if err == nil {
		err = p.createDatabases(ctx)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func newPostgreSQL() (*PostgreSQL, string, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, "", err
	}
	dir, cred, err := home("pg", "postgres", "nobody")
	if err != nil {
		return nil, "", err
	}
	p := &PostgreSQL{home: dir}
	if p.port, err = freePort(); err != nil {
		return nil, "", err
	}
	p.Process = &Process{Name: "postgres", dir: dir, cred: cred, ready: p.ping,
		args: []string{filepath.Join(bin, "postgres"), "-D", p.data()}}
	return p, bin, nil
}

func (p *PostgreSQL) data() string { return filepath.Join(p.home, "data") }

// configure appends to postgresql.conf, where the last line counts.
func (p *PostgreSQL) configure(settings map[string]string) error {
	all := map[string]string{
		"listen_addresses": "127.0.0.1", "port": fmt.Sprint(p.port), "unix_socket_directories": p.home,
		"max_connections": "200", "shared_buffers": "64MB", "wal_level": "replica", "fsync": "on", "synchronous_commit": "on",
	}
	for k, v := range settings {
		all[k] = v
	}
	var b strings.Builder
	for k, v := range all {
		fmt.Fprintf(&b, "%s = '%s'\n", k, v)
	}
	f, err := os.OpenFile(filepath.Join(p.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	return errors.Join(err, f.Close())
}

// Configure changes settings; the server has to be restarted to have them.
func (p *PostgreSQL) Configure(settings map[string]string) error { return p.configure(settings) }

func (p *PostgreSQL) ping(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.uri("postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (p *PostgreSQL) uri(database string) string {
	return fmt.Sprintf("postgresql://postgres@127.0.0.1:%d/%s?sslmode=disable", p.port, database)
}

// URI is the connection URI of Trillian's database.
func (p *PostgreSQL) URI() string { return p.uri(databaseName) }

// FrontendURI is the connection URI of the empty database beside it.
func (p *PostgreSQL) FrontendURI() string { return p.uri(frontendName) }

func (p *PostgreSQL) createDatabases(ctx context.Context) error {
	for _, name := range []string{databaseName, frontendName} {
		if err := p.CreateDatabase(ctx, name); err != nil {
			return err
		}
	}
	schema, err := schema("postgresql")
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(schema)
	if err != nil {
		return err
	}
	return p.exec(ctx, p.URI(), string(raw))
}

// CreateDatabase makes one more empty database.
func (p *PostgreSQL) CreateDatabase(ctx context.Context, name string) error {
	return p.exec(ctx, p.uri("postgres"), "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
}

// Exec runs SQL statements in Trillian's database: how a test breaks it.
func (p *PostgreSQL) Exec(ctx context.Context, sql string) error { return p.exec(ctx, p.URI(), sql) }

func (p *PostgreSQL) exec(ctx context.Context, uri, sql string) error {
	conn, err := pgx.Connect(ctx, uri)
	if err != nil {
		return err
	}
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return errors.Join(err, conn.Close(ctx))
}

// Standby makes an asynchronous streaming standby of p and starts it. It is
// read-only until Promote.
func (p *PostgreSQL) Standby(ctx context.Context) (*PostgreSQL, error) {
	s, bin, err := newPostgreSQL()
	if err != nil {
		return nil, err
	}
	err = run(ctx, s.home, s.cred, nil, filepath.Join(bin, "pg_basebackup"), "--pgdata="+s.data(), "--dbname="+p.uri("postgres"),
		"--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync")
	if err == nil {
		err = s.configure(nil)
	}
	if err == nil {
		err = s.Start(ctx)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Promote makes a standby a primary of its own.
func (p *PostgreSQL) Promote(ctx context.Context) error {
	return p.exec(ctx, p.uri("postgres"), "SELECT pg_promote(true, 60)")
}

// Server implements Database.
func (p *PostgreSQL) Server() *Process { return p.Process }

// Flags implements Database.
func (p *PostgreSQL) Flags() []string {
	return []string{"--storage_system=postgresql", "--postgresql_uri=" + p.URI()}
}

// Close implements Database.
func (p *PostgreSQL) Close() {
	p.Kill()
	os.RemoveAll(p.home)
}

// MariaDB is a real MariaDB server.
type MariaDB struct {
	*Process
	home string
	port int
}

// StartMariaDB makes a MariaDB data directory and serves it. settings are
// options of mariadbd without their dashes.
func StartMariaDB(ctx context.Context, settings map[string]string) (*MariaDB, error) {
	for _, bin := range []string{"mariadbd", "mariadb-install-db", "mariadb"} {
		if _, err := lookSbin(bin); err != nil {
			return nil, fmt.Errorf("MariaDB (%s) is %w (apt-get install mariadb-server)", bin, ErrAbsent)
		}
	}
	dir, cred, err := home("my", "mysql", "nobody")
	if err != nil {
		return nil, err
	}
	m := &MariaDB{home: dir}
	if m.port, err = freePort(); err != nil {
		return nil, err
	}
	install, _ := lookSbin("mariadb-install-db")
	server, _ := lookSbin("mariadbd")
	data := filepath.Join(dir, "data")
	options := map[string]string{
		"datadir": data, "socket": m.socket(), "port": fmt.Sprint(m.port), "bind-address": "127.0.0.1",
		"pid-file": filepath.Join(dir, "pid"), "innodb-flush-log-at-trx-commit": "1", "max-connections": "200",
		"innodb-buffer-pool-size": "64M", "max-allowed-packet": "64M",
	}
	for k, v := range settings {
		options[k] = v
	}
	args := []string{server, "--no-defaults"}
	for k, v := range options {
		args = append(args, "--"+k+"="+v)
	}
	sort.Strings(args[2:])
	m.Process = &Process{Name: "mariadbd", dir: dir, cred: cred, ready: m.ping, args: args}
	err = run(ctx, dir, cred, nil, install, "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db")
	if err == nil {
		err = m.Start(ctx)
	}
	if err == nil {
		err = m.Exec(ctx, "CREATE DATABASE "+databaseName, "")
	}
	if err == nil {
		err = m.load(ctx)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func lookSbin(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", name))
}

func (m *MariaDB) socket() string { return filepath.Join(m.home, "s") }

func (m *MariaDB) client(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"--no-defaults", "--socket=" + m.socket(), "--user=root"}, args...)
	return exec.CommandContext(ctx, "mariadb", args...)
}

func (m *MariaDB) ping(ctx context.Context) error { return m.Exec(ctx, "SELECT 1", "") }

// Exec runs SQL statements in a database, in none if it is "".
func (m *MariaDB) Exec(ctx context.Context, sql, database string) error {
	if out, err := m.client(ctx, "--execute="+sql, database).CombinedOutput(); err != nil {
		return fmt.Errorf("mariadb: %w\n%s", err, out)
	}
	return nil
}

func (m *MariaDB) load(ctx context.Context) error {
	path, err := schema("mysql")
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := m.client(ctx, databaseName)
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mariadb: schema: %w\n%s", err, out)
	}
	return nil
}

// DSN is the data source name of Trillian's database, as go-sql-driver/mysql
// has it.
func (m *MariaDB) DSN() string { return fmt.Sprintf("root@tcp(127.0.0.1:%d)/%s", m.port, databaseName) }

// Server implements Database.
func (m *MariaDB) Server() *Process { return m.Process }

// Flags implements Database.
func (m *MariaDB) Flags() []string {
	return []string{"--storage_system=mysql", "--mysql_uri=" + m.DSN()}
}

// Close implements Database.
func (m *MariaDB) Close() {
	m.Kill()
	os.RemoveAll(m.home)
}

var _ = []Database{(*PostgreSQL)(nil), (*MariaDB)(nil)}
