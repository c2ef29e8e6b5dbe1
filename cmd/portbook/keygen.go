package main

// keygen: a private key in a file of its own, the public one on the screen.

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/spf13/cobra"
)

var algorithms = map[string]c2sp.Alg{
	"ed25519": c2sp.AlgEd25519, "ed25519-cosig": c2sp.AlgEd25519Cosig, "ml-dsa-44": c2sp.AlgMLDSA44,
}

func keygenCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keygen --name NAME --out FILE",
		Short: "Make a signing key for a log or a witness",
		Long: `keygen writes a new private key to FILE, which must not exist and which only you
can read, and prints the verifier key (vkey) that others put in their policies.

The name stands in every signature. For a log it is the origin. Take one under a
domain of yours, without a scheme: log.example.org/pypi

A log made by "portbook-log init" and a witness made by "portbook-witness init"
already have keys; keygen is for a log or a witness whose key is kept elsewhere.

  ed25519         signs checkpoints as a log
  ed25519-cosig   cosigns checkpoints as a witness
  ml-dsa-44       cosigns, post-quantum`,
		Example: `  portbook keygen --name log.example.org/pypi --out log.key`,
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	name := f.String("name", "", "`NAME` of the key, a URL without the scheme: log.example.org/pypi")
	alg := f.String("alg", "ed25519", "`ALGORITHM`: ed25519, ed25519-cosig or ml-dsa-44")
	out := f.String("out", "", "`FILE` to write the private key to; it must not exist")
	asJSON := f.Bool("json", false, "print a JSON object with name, alg, vkey, file")
	cli.Require(cmd, "name", "out")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a, ok := algorithms[*alg]
		if !ok {
			return cli.Usagef("--alg %s: want ed25519, ed25519-cosig or ml-dsa-44", show(*alg))
		}
		signer, err := c2sp.GenerateSigner(*name, a)
		if err != nil {
			return cli.Usagef("--name: %w", err)
		}
		if err := writeKey(*out, signer); errors.Is(err, fs.ErrExist) {
			return cli.Exit(cli.Refused, fmt.Errorf("%s is there already: a key is never overwritten", show(*out)))
		} else if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), struct {
				Name string `json:"name"`
				Alg  string `json:"alg"`
				VKey string `json:"vkey"`
				File string `json:"file"`
			}{*name, *alg, signer.Key().String(), *out})
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), signer.Key())
		return err
	}
	return cmd
}

// writeKey creates a file that only its owner can read; it follows no link.
func writeKey(path string, signer *c2sp.Signer) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, signer.SKey())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path)) // half a key is of no use
	}
	return nil
}
