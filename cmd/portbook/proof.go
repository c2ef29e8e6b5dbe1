package main

// The proof files beside a package file, and what is in one.
//
//	FILE.tlog-proof             the first proof: its cosignatures bound when the file was logged
//	FILE.refreshed.tlog-proof   a later one, for a policy under which the first does not stand
//
// The first is never overwritten.

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/spf13/cobra"
)

const (
	proofSuffix     = ".tlog-proof"
	refreshedSuffix = ".refreshed.tlog-proof"
)

// writeFirst creates path with b in it, whole or not at all. It fails with
// fs.ErrExist if something is there.
func writeFirst(path string, b []byte) error {
	return writeThrough(path, b, func(tmp string) error {
		defer os.Remove(tmp)
		return os.Link(tmp, path) // unlike a rename, never over something
	})
}

// writeOver puts b in path, whole or not at all, whatever was there.
func writeOver(path string, b []byte) error {
	return writeThrough(path, b, func(tmp string) error {
		err := os.Rename(tmp, path)
		if err != nil {
			os.Remove(tmp)
		}
		return err
	})
}

func writeThrough(path string, b []byte, place func(tmp string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".portbook-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(0o644) // a proof is public
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := place(f.Name()); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // the file is there; its directory cannot be synced here
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, fs.ErrInvalid) {
		return err
	}
	return nil
}

func proofCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proof",
		Short: "Show what is in a proof file",
	}
	cmd.AddCommand(proofShowCmd())
	return cmd
}

func proofShowCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show PROOF",
		Short: "Print what a proof claims, without checking any of it",
		Long: `show prints a proof file (c2sp.org/tlog-proof) readably. It checks nothing but the
form: anyone can write a file that claims anything. "portbook verify" checks.

Exit codes: 0 shown, 1 not a proof, 2 usage, 3 the file cannot be read.`,
		Example: `  portbook proof show six-1.17.0.tar.gz.tlog-proof`,
		Args:    cobra.ExactArgs(1),
	}
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object with verified (always false), log, size, root, index, hashes, entry, entry_error, signatures")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		b, err := readFile(args[0], c2sp.MaxProof)
		if err != nil {
			return err
		}
		s, err := readProof(b)
		if err != nil {
			return cli.Exit(cli.Refused, fmt.Errorf("%s: %w", show(args[0]), err))
		}
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), s)
		}
		s.print(cmd.OutOrStdout())
		return nil
	}
	return cmd
}

// proofShown is a proof as it says itself; nothing in it is verified.
type proofShown struct {
	Verified   bool             `json:"verified"`
	Log        string           `json:"log"`
	Size       uint64           `json:"size"`
	Root       string           `json:"root"`
	Index      uint64           `json:"index"`
	Hashes     int              `json:"hashes"`
	Entry      string           `json:"entry,omitempty"` // the leaf, a line of JSON
	EntryError string           `json:"entry_error,omitempty"`
	Signatures []signatureShown `json:"signatures"`

	entry *entry.Entry
}

type signatureShown struct {
	Name  string `json:"name"`
	KeyID string `json:"key_id"`
	Bytes int    `json:"bytes"`
}

func readProof(b []byte) (*proofShown, error) {
	p, err := c2sp.ParseProof(b)
	if err != nil {
		return nil, err
	}
	n, err := c2sp.ParseNote(p.Checkpoint)
	if err != nil {
		return nil, err
	}
	c, err := c2sp.ParseCheckpoint(n.Text)
	if err != nil {
		return nil, err
	}
	s := &proofShown{Log: c.Origin, Size: c.Size, Root: hex.EncodeToString(c.Root[:]), Index: p.Index, Hashes: len(p.Hashes), Entry: string(p.Extra)}
	if s.entry, err = entry.Parse(p.Extra); err != nil {
		s.EntryError = err.Error()
	}
	for _, sig := range n.Sigs {
		s.Signatures = append(s.Signatures, signatureShown{sig.Name, fmt.Sprintf("%08x", sig.KeyID), len(sig.Sig)})
	}
	return s, nil
}

func (s *proofShown) print(out io.Writer) {
	fmt.Fprintf(out, "NOT VERIFIED: this is only what the file claims.\n\n")
	if e := s.entry; e != nil {
		fmt.Fprintf(out, "entry       %s, claim %s, of %s\n", e.Kind, e.Claim, show(e.Time))
		for _, f := range []struct{ name, value string }{
			{"registry", e.Registry}, {"ecosystem", e.Ecosystem}, {"project", e.Project}, {"version", e.Version}, {"file", e.File}, {"sha256", e.SHA256},
		} {
			if f.value != "" {
				fmt.Fprintf(out, "%-11s %s\n", f.name, show(f.value))
			}
		}
		if e.Publisher != nil {
			fmt.Fprintf(out, "publisher   %s\n", publisherWords(e.Publisher))
		}
	} else {
		fmt.Fprintf(out, "entry       unreadable: %s\n", ascii(s.EntryError))
	}
	fmt.Fprintf(out, "place       entry %d of %s, in a tree of %d\n", s.Index, show(s.Log), s.Size)
	fmt.Fprintf(out, "root        %s, by %d hashes\n", s.Root, s.Hashes)
	for _, sig := range s.Signatures {
		fmt.Fprintf(out, "signature   by %s, key ID %s, %d bytes\n", show(sig.Name), sig.KeyID, sig.Bytes)
	}
}
