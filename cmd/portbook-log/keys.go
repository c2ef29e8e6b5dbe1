package main

// Where a log's private keys are: plain files, files encrypted with age, tokens
// with a PKCS #11 library. Secrets come from files that only their owner can
// read, or from a terminal; never from the command line or the environment.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/pkcs11"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const (
	maxKeyFile = 64 << 10 // an age file of one line, with room for many recipients
	// passphraseEnv names the file of the passphrase where no flag does.
	passphraseEnv = "PORTBOOK_LOG_PASSPHRASE_FILE"
	tokenTimeout  = 30 * time.Second
)

// keyHelp is what every command says that takes a key.
const keyHelp = `A key is a FILE, plain or encrypted with age; credential:NAME, which systemd hands
over (LoadCredential=); or in a token with a PKCS #11 library:
  'pkcs11:token=LABEL;object=LABEL?module-path=LIBRARY&pin-source=file:PATH'
A passphrase comes from --passphrase-file (or the file that the environment's
` + passphraseEnv + ` names), else from a terminal; never from the
command line. So does the PIN of a token, from its pin-source.`

// secrets are where a command finds what opens its keys.
type secrets struct {
	passphraseFile *string
	identity       *string
	terminal       func(prompt string) (string, error)
}

func secretFlags(cmd *cobra.Command) *secrets {
	return &secrets{
		passphraseFile: cmd.Flags().String("passphrase-file", "", "`FILE`, or credential:NAME, with the passphrase of encrypted key files"),
		identity:       cmd.Flags().String("age-identity", "", "`FILE`, or credential:NAME, with the age identities that open encrypted key files"),
		terminal:       askTerminal,
	}
}

// passphrase is the passphrase of one or all key files. of says of which.
func (s *secrets) passphrase(of string) (string, error) {
	file := *s.passphraseFile
	if file == "" {
		file = os.Getenv(passphraseEnv)
	}
	if file != "" {
		return cli.ReadSecret(file)
	}
	p, err := s.terminal("Passphrase of " + of + ": ")
	if err != nil {
		return "", fmt.Errorf("%s has a passphrase: give --passphrase-file: %w", of, err)
	}
	return p, nil
}

// askTerminal asks on the terminal of the process, wherever its input is from.
func askTerminal(prompt string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errors.New("there is no terminal to ask on")
	}
	defer tty.Close()
	fmt.Fprint(tty, prompt)
	raw, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	if err != nil {
		return "", fmt.Errorf("reading from the terminal: %w", err)
	}
	if len(raw) == 0 {
		return "", errors.New("nothing was typed")
	}
	return string(raw), nil
}

// keyKind says how a key is kept, for people.
type keyKind string

const (
	plainFile  keyKind = "plain file"
	agePhrase  keyKind = "file encrypted with a passphrase"
	ageOthers  keyKind = "file encrypted to age recipients"
	pkcs11Kind keyKind = "PKCS #11 token"
)

// openedKey is a key that can sign.
type openedKey struct {
	logserver.Signer
	kind  keyKind
	file  *c2sp.Signer // of the two kinds of file
	close func()
}

// open opens the key that ref names. origin is the name of one in a token.
func (s *secrets) open(ctx context.Context, ref, origin string) (*openedKey, error) {
	if !strings.HasPrefix(ref, "pkcs11:") {
		signer, kind, err := s.readKey(ref)
		var missing *fs.PathError
		if errors.As(err, &missing) && missing.Path == ref && errors.Is(err, fs.ErrNotExist) {
			return nil, cli.Usagef("key: %s is not there: put it back, or say where it is with --key", ref)
		}
		if err != nil {
			return nil, cli.Usagef("key: %w", err)
		}
		return &openedKey{signer, kind, signer, func() {}}, nil
	}
	u, err := pkcs11.ParseURI(ref)
	if err != nil {
		return nil, cli.Usagef("key: %w", err)
	}
	if origin == "" {
		return nil, cli.Usagef("key: a token does not know the name of its key: give --origin")
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	signer, err := pkcs11.Open(ctx, u, origin, s.pin(u))
	if err != nil {
		return nil, tokenError(err)
	}
	return &openedKey{signer, pkcs11Kind, nil, signer.Close}, nil
}

// tokenError sorts what can be wrong with a token: a PIN must not be tried
// again, as a service manager would; a token that is away may come back.
func tokenError(err error) error {
	err = fmt.Errorf("key: %w", err)
	if errors.Is(err, pkcs11.ErrPIN) || errors.Is(err, pkcs11.ErrNoCgo) {
		return cli.Usage(err)
	}
	if errors.Is(err, pkcs11.ErrExists) {
		return cli.Exit(cli.Refused, err)
	}
	return err
}

// pin is where the PIN of a token is read, each time that it is needed.
func (s *secrets) pin(u *pkcs11.URI) func() (string, error) {
	source := u.PINSource
	if file, ok := strings.CutPrefix(source, "file:"); ok {
		source = file
		if f, err := url.Parse(u.PINSource); err == nil && f.Host == "" && f.Path != "" {
			source = f.Path // file:///etc/pin
		}
	}
	typed := ""
	return func() (string, error) {
		if source != "" {
			return cli.ReadSecret(source)
		}
		if typed == "" {
			p, err := s.terminal("PIN of token " + u.Token + ": ")
			if err != nil {
				return "", fmt.Errorf("give pin-source=file:PATH in the URI: %w", err)
			}
			typed = p
		}
		return typed, nil
	}
}

// readKey reads a key file of either kind.
func (s *secrets) readKey(path string) (*c2sp.Signer, keyKind, error) {
	raw, err := cli.ReadPrivate(path, maxKeyFile)
	if err != nil {
		return nil, "", err
	}
	kind := plainFile
	if isAge(raw) {
		if raw, kind, err = s.decrypt(path, raw); err != nil {
			return nil, "", err
		}
	}
	signer, err := c2sp.ParseSKey(strings.TrimSuffix(string(raw), "\n"))
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", path, err)
	}
	return signer, kind, nil
}

const ageHeader = "age-encryption.org/v1\n"

func isAge(b []byte) bool {
	return bytes.HasPrefix(b, []byte(ageHeader)) || bytes.HasPrefix(bytes.TrimSpace(b), []byte(armor.Header))
}

// decrypt opens an age file, binary or armored.
func (s *secrets) decrypt(path string, raw []byte) ([]byte, keyKind, error) {
	if !bytes.HasPrefix(raw, []byte(ageHeader)) {
		var err error
		if raw, err = io.ReadAll(io.LimitReader(armor.NewReader(bytes.NewReader(raw)), maxKeyFile)); err != nil {
			return nil, "", fmt.Errorf("%s: the encrypted file is damaged: %w", path, err)
		}
	}
	header, err := age.ExtractHeader(bytes.NewReader(raw))
	if err != nil {
		return nil, "", fmt.Errorf("%s: the encrypted file is damaged: %w", path, err)
	}
	kind, identities := ageOthers, []age.Identity(nil)
	if bytes.HasPrefix(header, []byte(ageHeader+"-> scrypt ")) { // it stands alone, says age
		kind = agePhrase
		passphrase, err := s.passphrase(path)
		if err != nil {
			return nil, "", err
		}
		id, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return nil, "", err
		}
		identities = append(identities, id)
	} else {
		if *s.identity == "" {
			return nil, "", fmt.Errorf("%s is encrypted to age recipients: give --age-identity", path)
		}
		file, err := cli.ReadPrivate(*s.identity, maxKeyFile)
		if err != nil {
			return nil, "", err
		}
		if identities, err = age.ParseIdentities(bytes.NewReader(file)); err != nil {
			return nil, "", fmt.Errorf("%s: no age identities can be read from it", *s.identity) // not err: it may quote them
		}
	}
	r, err := age.Decrypt(bytes.NewReader(raw), identities...)
	var noMatch *age.NoIdentityMatchError
	switch {
	case errors.As(err, &noMatch) && kind == agePhrase:
		return nil, "", fmt.Errorf("%s: wrong passphrase", path)
	case errors.As(err, &noMatch):
		return nil, "", fmt.Errorf("%s: none of the identities in %s opens it", path, *s.identity)
	case err != nil:
		return nil, "", fmt.Errorf("%s: the encrypted file is damaged: %w", path, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxKeyFile))
	if err != nil {
		return nil, "", fmt.Errorf("%s: the encrypted file is damaged: %w", path, err)
	}
	return plain, kind, nil
}

// testWorkFactor makes passphrases cheap in tests, and is 0 otherwise.
var testWorkFactor int

// encrypt makes an age file of a key: to recipients, or if there are none with a
// passphrase. It is armored, so that it can be printed and kept on paper.
func (s *secrets) encrypt(signer *c2sp.Signer, path string, recipients []string) ([]byte, error) {
	var to []age.Recipient
	for _, text := range recipients {
		r, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, cli.Usagef("--recipient %.100q: %w", text, err)
		}
		to = append(to, r...)
	}
	if len(to) == 0 {
		passphrase, err := s.newPassphrase(path)
		if err != nil {
			return nil, cli.Usage(err)
		}
		r, err := age.NewScryptRecipient(passphrase)
		if err != nil {
			return nil, cli.Usage(err)
		}
		if testWorkFactor > 0 {
			r.SetWorkFactor(testWorkFactor)
		}
		to = append(to, r)
	}
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, to...)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, signer.SKey()+"\n"); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// newPassphrase asks for a passphrase twice, where it is asked for.
func (s *secrets) newPassphrase(path string) (string, error) {
	if *s.passphraseFile != "" || os.Getenv(passphraseEnv) != "" {
		return s.passphrase(path)
	}
	first, err := s.passphrase(path)
	if err != nil {
		return "", err
	}
	second, err := s.terminal("The same again: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", errors.New("the two passphrases differ: nothing was written")
	}
	return first, nil
}

// writeNew writes a file that only its owner can read. It replaces none, and
// follows no link.
func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return cli.Exit(cli.Refused, fmt.Errorf("%s is there already: a key is never overwritten", path))
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path)) // half a key is of no use
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
