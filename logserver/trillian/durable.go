package trillian

// What the database under Trillian must be set to. Trillian acknowledges a leaf
// when its transaction commits; these settings say what a commit is worth.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// ErrNotDurable says that Trillian's database may lose what it has confirmed.
var ErrNotDurable = errors.New("Trillian's database may lose what it has confirmed")

// CheckPostgreSQL refuses a PostgreSQL whose settings let it lose confirmed
// transactions: fsync, full_page_writes or synchronous_commit off, or a standby.
// conn must be opened with the very URI, user and database that Trillian has: each
// may carry settings of its own. It cannot see an asynchronous standby that is
// promoted later; Integrate does, as a BackError or RootError.
func CheckPostgreSQL(ctx context.Context, conn *pgx.Conn) error {
	for _, name := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		var v string
		if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&v); err != nil {
			return err
		}
		if v == "off" {
			return fmt.Errorf("%w: PostgreSQL's %s is off for this user and database: turn it on and restart Trillian", ErrNotDurable, name)
		}
	}
	var standby bool
	if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		return err
	}
	if standby {
		return fmt.Errorf("%w: this PostgreSQL is a standby: Trillian needs the primary", ErrNotDurable)
	}
	return nil
}

// CheckMySQL refuses a MySQL or MariaDB whose settings let it lose confirmed
// transactions: innodb_flush_log_at_trx_commit other than 1, innodb_doublewrite
// off, or a read-only server.
func CheckMySQL(ctx context.Context, db *sql.DB) error {
	for _, c := range []struct{ name, want, why string }{
		{"innodb_flush_log_at_trx_commit", "1", "commits are not flushed to disk one by one"},
		{"innodb_doublewrite", "1", "a page torn by a power cut cannot be repaired"},
		{"read_only", "0", "Trillian needs the primary"},
	} {
		var v sql.NullString
		if err := db.QueryRowContext(ctx, "SELECT @@GLOBAL."+c.name).Scan(&v); err != nil {
			return err
		}
		if v.String != c.want && !(c.want == "1" && v.String == "ON") {
			return fmt.Errorf("%w: its %s is %s, not %s: %s", ErrNotDurable, c.name, v.String, c.want, c.why)
		}
	}
	return nil
}
