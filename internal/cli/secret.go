package cli

// Files that hold a secret: keys, tokens, passwords.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const maxSecret = 16 << 10

// foreignModes: where file modes do not say who can read a file.
const foreignModes = runtime.GOOS == "windows"

// credentialPrefix begins the name of a secret that the service manager hands
// over, as systemd does with LoadCredential= (systemd.exec).
const credentialPrefix = "credential:"

// ReadSecret returns the one line that a secret's file holds. The file must be
// a plain one that only its owner can read; links are not followed, so that
// what is checked is what is read. "credential:NAME" is the file NAME in
// $CREDENTIALS_DIRECTORY.
func ReadSecret(path string) (string, error) {
	raw, err := ReadPrivate(path, maxSecret)
	if err != nil {
		return "", err
	}
	line := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	if line == "" || strings.ContainsAny(line, "\r\n") {
		return "", errors.New(path + ": want one line, not empty")
	}
	return line, nil
}

// ReadPrivate is [ReadSecret] for a file of any content, of at most max bytes.
func ReadPrivate(path string, max int64) ([]byte, error) {
	forbidden := os.FileMode(0o077)
	if name, ok := strings.CutPrefix(path, credentialPrefix); ok {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, fmt.Errorf("%s: the service manager handed over no credentials ($CREDENTIALS_DIRECTORY is not set): with systemd, LoadCredential=%s:FILE", path, name)
		}
		if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
			return nil, fmt.Errorf("%s: %q is not the name of a credential", path, name)
		}
		path = filepath.Join(dir, name)
		forbidden = 0o037 // systemd lets its user read it by an access control list, which shows as the group's bit
	}
	before, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a plain file: links are not followed", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat() // of what was opened, not of what the name is by now
	if err != nil {
		return nil, err
	}
	if !os.SameFile(before, info) {
		return nil, fmt.Errorf("%s was replaced while it was read", path)
	}
	if info.Mode().Perm()&forbidden != 0 && !foreignModes {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it, and replace the secret if others use this machine", path, info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > max {
		return nil, fmt.Errorf("%s has more than %d bytes", path, max)
	}
	return raw, nil
}

// LogTokenVariable is the environment variable with the read token of a private log.
const LogTokenVariable = "PORTBOOK_LOG_TOKEN"

// LogTokenUsage is what a flag for its file says.
const LogTokenUsage = "`FILE` with the read token, if the log is private (or set " + LogTokenVariable + ")"

// LogToken reads a private log's read token from a file, else from the
// environment. It is empty where neither is given. Its errors are about usage.
func LogToken(file string) (string, error) {
	if file != "" {
		token, err := ReadSecret(file)
		if err != nil {
			return "", Usagef("read token: %w", err)
		}
		return token, nil
	}
	return strings.TrimSpace(os.Getenv(LogTokenVariable)), nil
}
