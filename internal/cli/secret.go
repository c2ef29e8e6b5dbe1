package cli

// Files that hold a secret: keys, tokens, passwords.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

const maxSecret = 16 << 10

// foreignModes: where file modes do not say who can read a file.
const foreignModes = runtime.GOOS == "windows"

// ReadSecret returns the one line that a secret's file holds. The file must be
// a plain one that only its owner can read; links are not followed, so that
// what is checked is what is read.
func ReadSecret(path string) (string, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	if !before.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a plain file: links are not followed", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat() // of what was opened, not of what the name is by now
	if err != nil {
		return "", err
	}
	if !os.SameFile(before, info) {
		return "", fmt.Errorf("%s was replaced while it was read", path)
	}
	if info.Mode().Perm()&0o077 != 0 && !foreignModes {
		return "", fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it, and replace the secret if others use this machine", path, info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", err
	}
	line := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	if len(raw) > maxSecret || line == "" || strings.ContainsAny(line, "\r\n") {
		return "", errors.New(path + ": want one line, not empty")
	}
	return line, nil
}
