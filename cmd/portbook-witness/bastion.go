package main

// bastion-key: by what a bastion knows this witness.

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/witness"
	"github.com/spf13/cobra"
)

// bastionKeyFile is in the witness's directory, PEM, PKCS #8.
const bastionKeyFile = "bastion.key"

func bastionKeyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bastion-key --dir DIRECTORY",
		Short: "Print by what a bastion knows this witness, to be reached from behind NAT",
		Long: `bastion-key makes a key for the connection to a bastion (c2sp.org/https-bastion),
if there is none yet, and prints its hash. The bastion's operator puts the hash on
a list; logs then reach the witness at https://BASTION/HASH/.

It is no witness key and signs nothing but that connection. If it is lost, a new
one changes the URL and nothing else.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := witness.OpenDir(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		path := filepath.Join(*dir, bastionKeyFile)
		key, err := readBastionKey(path)
		if errors.Is(err, fs.ErrNotExist) {
			key, err = makeBastionKey(path)
		}
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		fmt.Fprintln(cmd.OutOrStdout(), witness.BastionPath(key.Public().(ed25519.PublicKey)))
		return nil
	}
	return cmd
}

func makeBastionKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = errors.Join(pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der}), f.Sync(), f.Close())
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return key, nil
}

func readBastionKey(path string) (ed25519.PrivateKey, error) {
	text, err := cli.ReadPrivate(path, 4<<10)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("%s is not one PEM block PRIVATE KEY: make another with portbook-witness bastion-key, after moving it away", path)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is no Ed25519 key, which a bastion wants", path)
	}
	return key, nil
}

// bastionOf is the bastion that the flags name; nil if they name none.
func bastionOf(dir, address, ca string) (*witness.Bastion, error) {
	if address == "" {
		if ca != "" {
			return nil, errors.New("--bastion-ca goes with --bastion")
		}
		return nil, nil
	}
	key, err := readBastionKey(filepath.Join(dir, bastionKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no bastion key in %s: make one with portbook-witness bastion-key", dir)
	}
	if err != nil {
		return nil, err
	}
	b := &witness.Bastion{Address: address, Key: key}
	if ca != "" {
		raw, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("--bastion-ca: %w", err)
		}
		if b.Roots = x509.NewCertPool(); !b.Roots.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("--bastion-ca %s holds no certificate", ca)
		}
	}
	return b, nil
}
