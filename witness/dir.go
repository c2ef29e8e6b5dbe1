package witness

// A witness on disk: one directory with its private key and its state. They are
// made together, once, by [CreateDir]; [OpenDir] refuses whatever is missing,
// readable by others, or does not belong together. A witness that makes up new
// state under an old key signs backwards, so nothing here is ever repaired
// silently.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// The names of the files in a witness directory.
const (
	KeyFile      = "witness.key"       // one line, PRIVATE+KEY+...: Ed25519; mode 0600
	MLDSAKeyFile = "witness-mldsa.key" // the same: ML-DSA-44
	MarkFile     = "witness.mark"      // see CreateMark; here only where no other file system is to be had
	DatabaseFile = "witness.db"        // SQLite, with -wal and -shm beside it; mode 0600
	StoreFile    = "witness.store"     // instead of it: one line, the URI of a PostgreSQL database; mode 0600
)

// A Dir is an open witness directory.
type Dir struct {
	Path   string
	Signer *c2sp.Signer // nil, as is the second, once the witness has retired
	MLDSA  *c2sp.Signer // nil in a witness that was made without
	Store  *Store
}

// Keys returns the public keys, Ed25519 first.
func (d *Dir) Keys() []*c2sp.Key {
	if d.Signer == nil {
		return d.Store.publicKeys()
	}
	keys := []*c2sp.Key{d.Signer.Key()}
	if d.MLDSA != nil {
		keys = append(keys, d.MLDSA.Key())
	}
	return keys
}

// CreateDir makes a new witness: two cosigner keys of this name, Ed25519 and
// ML-DSA-44, and an empty database that belongs to them. It refuses a directory
// that already holds any of it, whoever made it.
func CreateDir(ctx context.Context, path, name string, now time.Time) (*Dir, error) {
	return CreateDirOn(ctx, path, name, "", now)
}

// CreateDirOn is [CreateDir] with the state in the empty PostgreSQL database at
// uri, for a witness of several instances: each has a copy of the directory, and a
// mark of its own. With an empty uri it is CreateDir.
func CreateDirOn(ctx context.Context, path, name, uri string, now time.Time) (_ *Dir, err error) {
	d := &Dir{Path: path}
	if d.Signer, err = c2sp.GenerateSigner(name, c2sp.AlgEd25519Cosig); err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	if d.MLDSA, err = c2sp.GenerateSigner(name, c2sp.AlgMLDSA44); err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the witness directory: %w", err)
	}
	for _, file := range []string{KeyFile, MLDSAKeyFile, DatabaseFile, StoreFile} {
		if _, err := os.Lstat(filepath.Join(path, file)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s already holds %s: a witness is made once, choose another directory", path, file)
		}
	}
	var written []string // and has signed nothing
	defer func() {
		if err != nil {
			for _, file := range written {
				os.Remove(file)
			}
		}
	}()
	for file, signer := range map[string]*c2sp.Signer{KeyFile: d.Signer, MLDSAKeyFile: d.MLDSA} {
		file = filepath.Join(path, file)
		if err := writeSecret(file, signer.SKey()); err != nil {
			return nil, err
		}
		written = append(written, file)
	}
	if uri != "" {
		file := filepath.Join(path, StoreFile)
		if err := writeSecret(file, uri); err != nil {
			return nil, err
		}
		written = append(written, file)
		d.Store, err = CreatePostgres(ctx, uri, d.Keys(), now)
		return d, err
	}
	if d.Store, err = CreateStore(ctx, filepath.Join(path, DatabaseFile), d.Keys(), now); err != nil {
		return nil, err
	}
	return d, nil
}

// OpenDir opens an existing witness. One that has retired needs no keys.
func OpenDir(path string) (*Dir, error) {
	d := &Dir{Path: path}
	keyErr := d.readKeys()
	var err error
	if d.Store, err = OpenStoreOf(path); err != nil {
		return nil, cmp.Or(keyErr, err)
	}
	retired, err := d.Store.Retirement(context.Background())
	switch {
	case err != nil:
	case retired != nil:
		d.Signer, d.MLDSA = nil, nil
	case keyErr != nil:
		err = keyErr
	default:
		err = d.Store.belongsTo(d.Keys())
	}
	if err != nil {
		return nil, errors.Join(err, d.Store.Close())
	}
	return d, nil
}

func (d *Dir) readKeys() (err error) {
	if d.Signer, err = ReadKey(filepath.Join(d.Path, KeyFile)); err != nil {
		return err
	}
	second := filepath.Join(d.Path, MLDSAKeyFile)
	if _, err := os.Lstat(second); !errors.Is(err, fs.ErrNotExist) {
		if d.MLDSA, err = ReadKey(second); err != nil {
			return err
		}
	}
	return nil
}

// OpenStoreOf opens the state of the witness in the directory at path.
func OpenStoreOf(path string) (*Store, error) {
	file := filepath.Join(path, StoreFile)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return OpenStore(filepath.Join(path, DatabaseFile))
	}
	if _, err := os.Lstat(filepath.Join(path, DatabaseFile)); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s holds both %s and %s: a witness has one state; find out which it is, and take the other away", path, DatabaseFile, StoreFile)
	}
	uri, err := readSecret(file)
	if err != nil {
		return nil, err
	}
	return OpenPostgres(context.Background(), uri)
}

// Close closes the database.
func (d *Dir) Close() error { return d.Store.Close() }

// writeSecret makes a file of one line that nobody but its owner can read.
func writeSecret(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = io.WriteString(f, line+"\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// ReadKey reads a private key that nobody but its owner can read. Links are
// refused: what they point to is not in the owner's hand.
func ReadKey(path string) (*c2sp.Signer, error) {
	line, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no key at %s: a new witness is made with init; a lost key ends the witness", path)
	}
	if err != nil {
		return nil, err
	}
	signer, err := c2sp.ParseSKey(line)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return signer, nil
}

// readSecret reads what writeSecret wrote.
func readSecret(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, syscall.ELOOP):
		return "", fmt.Errorf("%s is a symbolic link: put the file itself there", path)
	case err != nil:
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat() // of what was opened, not of what the name is by now
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a plain file", path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read or written by others (mode %04o): chmod 600 %s, and if others were on this machine, begin a new witness",
			path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 16<<10))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}
