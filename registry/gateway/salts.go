// The pseudonyms of uploaders, and the salts behind them. No account is written
// down: some indexes take a token as the user name, and nobody can tell one from
// the other for sure.

package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"

	"github.com/pressly/goose/v3"
)

// hideAccounts is migration 2: the salts are found by an HMAC of the account under
// one random key of the database, no longer by its name. Pseudonyms stay the same.
var hideAccounts = goose.NewGoMigration(2, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
	key := make([]byte, 32)
	rand.Read(key)
	for _, q := range []string{
		`CREATE TABLE account_key (key BLOB NOT NULL)`,
		`CREATE TABLE hidden_salts (
			registry TEXT NOT NULL,
			project  TEXT NOT NULL,
			account  BLOB NOT NULL, -- HMAC-SHA256(account_key, account)
			salt     BLOB NOT NULL,
			PRIMARY KEY (registry, project, account)
		) WITHOUT ROWID`,
	} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO account_key (key) VALUES (?)`, key); err != nil {
		return err
	}
	type row struct {
		registry, project, account string
		salt                       []byte
	}
	var all []row
	rows, err := tx.QueryContext(ctx, `SELECT registry, project, account, salt FROM salts`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.registry, &r.project, &r.account, &r.salt); err != nil {
			return err
		}
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, r := range all {
		if _, err := tx.ExecContext(ctx, `INSERT INTO hidden_salts (registry, project, account, salt) VALUES (?, ?, ?, ?)`, r.registry, r.project, mac(key, r.account), r.salt); err != nil {
			return err
		}
	}
	for _, q := range []string{`DROP TABLE salts`, `ALTER TABLE hidden_salts RENAME TO salts`} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	return nil
}}, nil)

// pseudonym names an account within one project, so that a change of uploader
// shows and nothing links it to other projects: HMAC-SHA256 under a random salt
// that only this database holds.
func (o *outbox) pseudonym(ctx context.Context, project, account string) (string, error) {
	id := mac(o.accountKey, account)
	salt := make([]byte, 32)
	rand.Read(salt)
	if err := o.exec(ctx, `INSERT INTO salts (registry, project, account, salt) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`, o.registry, project, id, salt); err != nil {
		return "", err
	}
	if err := o.db.QueryRowContext(ctx, `SELECT salt FROM salts WHERE registry = ? AND project = ? AND account = ?`, o.registry, project, id).Scan(&salt); err != nil {
		return "", err
	}
	return hex.EncodeToString(mac(salt, account)), nil
}

func mac(key []byte, s string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(s))
	return m.Sum(nil)
}
