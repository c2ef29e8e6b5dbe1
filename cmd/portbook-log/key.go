package main

// key: make, show, encrypt and rotate the keys of a log. docs/keys.md is the
// runbook.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/pkcs11"
	"github.com/spf13/cobra"
)

func keyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, show, encrypt and rotate a log's keys",
		Long: `key manages the keys with which a log signs. Which key belongs where, how it is
rotated, and what to do when one is lost or stolen: docs/keys.md.

` + keyHelp,
	}
	cmd.AddCommand(keyGenerateCmd(), keyShowCmd(), keyEncryptCmd(), keyAddCmd(), keyRotateCmd(), keyRetireCmd())
	return cmd
}

var keyTypes = map[string]c2sp.Alg{"ed25519": c2sp.AlgEd25519, "ml-dsa-44": c2sp.AlgMLDSA44}

// shownKey is a key as it is printed.
type shownKey struct {
	KeyID       string `json:"key_id"`
	Type        string `json:"type"`
	State       string `json:"state,omitempty"`
	UpTo        uint64 `json:"up_to,omitempty"`
	Kind        string `json:"kind,omitempty"`
	VKey        string `json:"vkey"`
	Fingerprint string `json:"fingerprint"`
}

func show(k *c2sp.Key) shownKey {
	return shownKey{KeyID: fmt.Sprintf("%08x", k.ID()), Type: k.Alg().String(), VKey: k.String(), Fingerprint: fingerprint(k.String())}
}

func (k shownKey) print(out io.Writer) {
	state := k.State
	if state == string(logserver.KeyRetired) {
		state += fmt.Sprintf(" at size %d", k.UpTo)
	}
	fmt.Fprintf(out, "Key %s, %s", k.KeyID, k.Type)
	for _, s := range []string{state, k.Kind} {
		if s != "" {
			fmt.Fprintf(out, ", %s", s)
		}
	}
	fmt.Fprintf(out, "\n  vkey         %s\n  fingerprint  %s\n", k.VKey, k.Fingerprint)
}

func keyGenerateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "generate --origin ORIGIN --out FILE|PKCS11-URI",
		Short: "Make a key: in a file, in an encrypted file, or inside a token",
		Long: `generate makes a new key and prints its verifier key. FILE must not exist; only
you will be able to read it. With --encrypt or --recipient it is an age file, and
the key is never on the disk in the clear. In a token the key is made inside and
cannot be taken out: there is no backup of it but what the token itself offers.

ORIGIN is the log's name. It is in every signature and can never change.`,
		Example: `  portbook-log key generate --origin log.example.org/pypi --out log.key
  portbook-log key generate --origin log.example.org/pypi --out log.key.age --encrypt
  portbook-log key generate --origin log.example.org/pypi --type ml-dsa-44 --out pq.key
  portbook-log key generate --origin log.example.org/pypi \
      --out 'pkcs11:token=portbook;object=log?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/portbook/pin'`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	origin := f.String("origin", "", "`ORIGIN` of the log, a URL without the scheme: log.example.org/pypi")
	kind := f.String("type", "ed25519", "`TYPE`: ed25519, or ml-dsa-44 for one that signs beside it")
	out := f.String("out", "", "`FILE` that does not exist, or PKCS #11 URI")
	encrypt := f.Bool("encrypt", false, "encrypt the file with a passphrase")
	recipients := f.StringArray("recipient", nil, "encrypt the file to this age `RECIPIENT` (age1...); may be given several times")
	asJSON := f.Bool("json", false, "print one JSON object instead of text")
	s := secretFlags(cmd)
	cli.Require(cmd, "origin", "out")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		alg, ok := keyTypes[*kind]
		if !ok {
			return cli.Usagef("--type %.40q: want ed25519 or ml-dsa-44", *kind)
		}
		signer, err := c2sp.GenerateSigner(*origin, alg)
		if err != nil {
			return cli.Usagef("--origin: %w", err)
		}
		key := signer.Key()
		switch {
		case strings.Contains(*origin, "://"):
			return cli.Usagef("--origin %s: leave the scheme away", *origin)
		case strings.HasPrefix(*out, "pkcs11:"):
			if alg != c2sp.AlgEd25519 || *encrypt || len(*recipients) > 0 {
				return cli.Usagef("a token makes Ed25519 keys, and keeps them in its own way: leave --type, --encrypt and --recipient away")
			}
			u, err := pkcs11.ParseURI(*out)
			if err != nil {
				return cli.Usagef("--out: %w", err)
			}
			if key, err = pkcs11.Generate(cmd.Context(), u, *origin, s.pin(u)); err != nil {
				return tokenError(err)
			}
		default:
			if _, err := os.Lstat(*out); err == nil { // before anyone types a passphrase
				return cli.Exit(cli.Refused, fmt.Errorf("%s is there already: a key is never overwritten", *out))
			}
			content := []byte(signer.SKey() + "\n")
			if *encrypt || len(*recipients) > 0 {
				if content, err = s.encrypt(signer, *out, *recipients); err != nil {
					return err
				}
			}
			if err := writeNew(*out, content); err != nil {
				return err
			}
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(show(key))
		}
		show(key).print(cmd.OutOrStdout())
		return nil
	}
	return cmd
}

func keyShowCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show --dir DIRECTORY | --postgres DATABASE | --key KEY",
		Short: "Print a log's verifier keys and the policy lines for readers; or whose key a file or token holds",
		Long: `show prints what others need to know of the keys of the log in DIRECTORY: the
verifier keys, their fingerprints, what each is good for, and the lines for
policies. With --key it opens one key and says what it is. It never prints a
secret.

` + keyHelp,
		Args: cobra.NoArgs,
	}
	place := placeIn(cmd)
	f := cmd.Flags()
	ref := f.String("key", "", "`KEY` to open")
	origin := f.String("origin", "", "`ORIGIN` of the log, for a key in a token; default: that of the log in --dir or --postgres")
	at := f.String("url", "", "`URL` under which the log is read, for the policy lines: https://log.example.org/pypi")
	asJSON := f.Bool("json", false, "print one JSON object instead of text")
	s := secretFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ofLog := *place.dir != "" || *place.database != ""
		if !ofLog && *ref == "" {
			return cli.Usagef("--dir, --postgres or --key is required")
		}
		var id logserver.Identity
		if ofLog {
			var err error
			if id, err = place.identity(cmd.Context()); err != nil {
				return err
			}
			if *origin == "" {
				*origin = id.Origin
			}
		}
		out := cmd.OutOrStdout()
		if *ref != "" {
			key, err := s.open(cmd.Context(), *ref, *origin)
			if err != nil {
				return err
			}
			defer key.close()
			shown := show(key.Key())
			shown.Kind = string(key.kind)
			state := fmt.Sprintf("not a key of %s", id.Origin)
			for _, k := range id.Keys {
				if k.VKey == shown.VKey {
					state, shown.UpTo = string(k.State), k.UpTo
				}
			}
			if ofLog {
				shown.State = state
			}
			if *asJSON {
				return json.NewEncoder(out).Encode(shown)
			}
			shown.print(out)
			return nil
		}
		return printIdentity(out, id, *at, *asJSON)
	}
	return cmd
}

// printIdentity prints all keys of a log, and the lines that readers need.
func printIdentity(out io.Writer, id logserver.Identity, at string, asJSON bool) error {
	all := struct {
		Origin string     `json:"origin"`
		Keys   []shownKey `json:"keys"`
		Policy []string   `json:"policy_lines"`
	}{Origin: id.Origin, Policy: id.PolicyLines(at)}
	for _, k := range id.Keys {
		s := show(k.Key())
		s.State, s.UpTo = string(k.State), k.UpTo
		all.Keys = append(all.Keys, s)
	}
	if asJSON {
		return json.NewEncoder(out).Encode(all)
	}
	fmt.Fprintf(out, "Log %s\n\n", id.Origin)
	for _, k := range all.Keys {
		k.print(out)
	}
	_, err := fmt.Fprintf(out, "\nLines for the policies of readers:\n%s\n", strings.Join(all.Policy, "\n"))
	return err
}

func keyEncryptCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "encrypt --key FILE --out FILE",
		Short: "Make an age file of a plain key file",
		Long: `encrypt writes the key of a plain file into a new age file, with a passphrase or
to age recipients, and opens it again to see that it is the same key.

The plain file stays: nothing that this program could do makes it unreadable for
certain. "shred -u FILE" overwrites it in place, which helps on a hard disk with a
plain file system, and does not on an SSD, on a file system that copies on write
or keeps snapshots, nor in backups. If the plain file was ever on such a disk or in
a backup that others can read, the key is as good as public to them: rotate to a
key that was born encrypted (key generate --encrypt) instead.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	from := f.String("key", "", "plain `FILE`")
	out := f.String("out", "", "`FILE` that does not exist")
	recipients := f.StringArray("recipient", nil, "encrypt to this age `RECIPIENT` (age1...) instead of with a passphrase; may be given several times")
	s := secretFlags(cmd)
	cli.Require(cmd, "key", "out")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		signer, kind, err := s.readKey(*from)
		if err != nil {
			return cli.Usagef("key: %w", err)
		}
		if kind != plainFile {
			return cli.Exit(cli.Refused, fmt.Errorf("%s is encrypted already", *from))
		}
		if _, err := os.Lstat(*out); err == nil {
			return cli.Exit(cli.Refused, fmt.Errorf("%s is there already: a key is never overwritten", *out))
		}
		content, err := s.encrypt(signer, *out, *recipients)
		if err != nil {
			return err
		}
		if err := writeNew(*out, content); err != nil {
			return err
		}
		again, err := os.ReadFile(*out)
		if err != nil || !bytes.Equal(again, content) {
			return fmt.Errorf("%s does not hold what was written: do not remove %s", *out, *from)
		}
		fmt.Fprintf(cmd.OutOrStdout(), `%[1]s holds key %08[3]x, encrypted. Before you do away with %[2]s, see that it opens:
  portbook-log key show --key %[1]s
%[2]s is still there, in the clear. "shred -u %[2]s" helps on a hard disk
alone: see portbook-log key encrypt --help.
`, *out, *from, signer.Key().ID())
		return nil
	}
	return cmd
}

// newKeyFlags are those of a command that gives a log another key.
func newKeyFlags(cmd *cobra.Command) (place placeFlags, ref *string, s *secrets) {
	place = placeIn(cmd)
	ref = cmd.Flags().String("new-key", "", "the new `KEY`: it is opened, to see that it can be")
	s = secretFlags(cmd)
	cli.Require(cmd, "new-key")
	return place, ref, s
}

// changed is what a command says that changed the keys of a log.
func (p placeFlags) changed(cmd *cobra.Command, id logserver.Identity, err error, next string) error {
	if errors.Is(err, logserver.ErrStorage) {
		return err
	}
	if err != nil {
		return cli.Exit(cli.Refused, err)
	}
	out := cmd.OutOrStdout()
	if err := printIdentity(out, id, "", false); err != nil {
		return err
	}
	_, err = fmt.Fprint(out, next)
	return err
}

// giveKey opens a key, gives it to the log, and says what to do next.
func giveKey(cmd *cobra.Command, place placeFlags, ref string, s *secrets, inDir func(string, *c2sp.Key) (logserver.Identity, error),
	inDatabase func(context.Context, string, *c2sp.Key) (logserver.Identity, error), next string) error {
	id, err := place.identity(cmd.Context())
	if err != nil {
		return err
	}
	key, err := s.open(cmd.Context(), ref, id.Origin)
	if err != nil {
		return err
	}
	defer key.close()
	if *place.database != "" {
		id, err = inDatabase(cmd.Context(), *place.database, key.Key())
		next = sharedNext
	} else {
		id, err = inDir(*place.dir, key.Key())
	}
	return place.changed(cmd, id, err, next)
}

const sharedNext = `
It signs from now on. Servers that have it publish, others do not, and say so.
`

// sharedKeys is what the commands say of a shared log.
const sharedKeys = `
The servers of a shared log (--postgres) go on meanwhile. Give the new key to each
that may publish, with --key, before: one that lacks a key does not publish.
`

func keyAddCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add {--dir DIRECTORY | --postgres DATABASE} --new-key KEY",
		Short: "Have an ML-DSA-44 key sign beside the Ed25519 key",
		Long: `add gives the log a key of a type that it does not have: ML-DSA-44, beside
Ed25519. Both sign every checkpoint from the next start of the server on, and a
reader needs to know one of them. The server must be stopped meanwhile.
` + sharedKeys + "\n" + keyHelp,
		Args: cobra.NoArgs,
	}
	place, ref, s := newKeyFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return giveKey(cmd, place, *ref, s, logserver.AddKey, logserver.AddSharedKey, "\nNow start the server with --key for each of the keys.\n")
	}
	return cmd
}

func keyRotateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace a key by another, without a reader noticing",
		Long: `rotate replaces a key in two steps. From begin to finish both keys sign every
checkpoint; meanwhile witnesses, monitors and clients learn the new one. finish
retires the old key: what it signed stays valid, and it signs nothing more. The
whole procedure, with all who have to do something: docs/keys.md.`,
	}
	begin := &cobra.Command{
		Use:   "begin {--dir DIRECTORY | --postgres DATABASE} --new-key KEY",
		Short: "Have the new key sign beside the old one",
		Long: `begin makes KEY sign beside the log's key of the same type from the next start of
the server on. The server must be stopped meanwhile.
` + sharedKeys + "\n" + keyHelp,
		Args: cobra.NoArgs,
	}
	place, ref, s := newKeyFlags(begin)
	begin.RunE = func(cmd *cobra.Command, _ []string) error {
		return giveKey(cmd, place, *ref, s, logserver.BeginRotation, logserver.BeginSharedRotation, `
Now start the server with --key for each of the keys, and give the new line to
witnesses, monitors and clients. When they all have it: key rotate finish.
`)
	}

	finish := &cobra.Command{
		Use:   "finish {--dir DIRECTORY | --postgres DATABASE --tiles PLACE} --policy FILE",
		Short: "Retire the old key",
		Long: `finish retires the old key at the size that it signed last. The server must be
stopped meanwhile. It refuses as long as the new key has not signed the public
checkpoint, and as long as too few of the publish policy's witnesses accept the
new key: it asks them to cosign that checkpoint once more, under the new key alone.
It cannot see clients and monitors: whether they know the new key is yours to ask.

The servers of a shared log go on meanwhile, and sign without the old key at once.`,
		Args: cobra.NoArgs,
	}
	finishPlace := placeIn(finish)
	tiles := finish.Flags().String("tiles", "", "with --postgres: `PLACE` of the tiles, as for serve")
	file := finish.Flags().String("policy", "", "publish policy `FILE`, as for serve")
	cli.Require(finish, "policy")
	finish.RunE = func(cmd *cobra.Command, _ []string) error {
		raw, err := os.ReadFile(*file)
		if err != nil {
			return cli.Usagef("policy: %w", err)
		}
		p, err := c2sp.ParsePolicy(raw)
		if err != nil {
			return cli.Usagef("policy %s: %w", *file, err)
		}
		shared, err := finishPlace.shared()
		if err != nil {
			return err
		}
		if shared != (*tiles != "") {
			return cli.Usagef("--postgres and --tiles go together")
		}
		var id logserver.Identity
		next := `
Now start the server without the old key, and give the lines to readers: with the
retired line old proofs go on verifying. Keep the old key no longer than you must.
`
		if shared {
			files, terr := readPlace("tiles", *tiles)
			if terr != nil {
				return terr
			}
			next = strings.Replace(next, "Now start the server", "Start the servers, one after another,", 1)
			id, err = logserver.FinishSharedRotation(cmd.Context(), *finishPlace.database, files, p)
		} else {
			id, err = logserver.FinishRotation(cmd.Context(), *finishPlace.dir, p)
		}
		return finishPlace.changed(cmd, id, err, next)
	}
	cmd.AddCommand(begin, finish)
	return cmd
}

func keyRetireCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retire {--dir DIRECTORY | --postgres DATABASE} KEY-ID",
		Short: "Take a key out of use that needs no replacement",
		Long: `retire gives up a rotation that has begun, by retiring its new key, or takes the
ML-DSA-44 key out of use. The active Ed25519 key can only be replaced. KEY-ID is
the eight digits that key show prints. The server must be stopped meanwhile; those
of a shared log go on.`,
		Args: cobra.ExactArgs(1),
	}
	place := placeIn(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		keyID, err := strconv.ParseUint(args[0], 16, 32)
		if err != nil || len(args[0]) != 8 {
			return cli.Usagef("%.40q is not a key ID: want eight hex digits, as key show prints them", args[0])
		}
		shared, err := place.shared()
		if err != nil {
			return err
		}
		var id logserver.Identity
		if shared {
			id, err = logserver.RetireSharedKey(cmd.Context(), *place.database, uint32(keyID))
		} else {
			id, err = logserver.RetireKey(*place.dir, uint32(keyID))
		}
		return place.changed(cmd, id, err, "")
	}
	return cmd
}

// openKeys opens the keys of a log: those that are named, or KeyFile in its
// directory.
func (s *secrets) openKeys(cmd *cobra.Command, dir, origin string, refs []string) (keys []logserver.Signer, closeAll func(), err error) {
	if len(refs) == 0 {
		refs = []string{filepath.Join(dir, logserver.KeyFile)}
	}
	var opened []*openedKey
	closeAll = func() {
		for _, k := range opened {
			k.close()
		}
	}
	for _, ref := range refs {
		k, err := s.open(cmd.Context(), ref, origin)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		opened = append(opened, k)
		keys = append(keys, k)
	}
	return keys, closeAll, nil
}
