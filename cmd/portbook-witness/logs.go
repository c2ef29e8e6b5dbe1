package main

// add-log and list-logs: whose checkpoints this witness cosigns.

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/witness"
	"github.com/spf13/cobra"
)

// fingerprint is the SHA-256 of the vkey, in groups that two people can read
// to each other. `printf %s VKEY | sha256sum` gives the same digits.
func fingerprint(k *c2sp.Key) string {
	h := fmt.Sprintf("%x", sha256.Sum256([]byte(k.String())))
	var groups []string
	for g := range slices.Chunk([]byte(h), 8) {
		groups = append(groups, string(g))
	}
	return strings.Join(groups, " ")
}

// shown is a name from outside as a terminal may see it: a stranger chose it.
func shown(s string) string {
	for _, r := range s {
		if r < 0x20 || r > 0x7e {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

func addLogCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add-log --dir DIRECTORY VKEY",
		Short: "Cosign for a log from now on",
		Long: `add-log makes the witness cosign for a log. VKEY is the log's verifier key, in
quotes or not: one word of the form name+12345678+base64.

It shows the key's fingerprint and asks. Compare it with what the log's operator
tells you by another way (it is the SHA-256 of the VKEY). A running witness
needs no restart. Adding only ever adds: no key is replaced or taken away.`,
		Args: cobra.ExactArgs(1),
	}
	dir := dirFlag(cmd)
	origin := cmd.Flags().String("origin", "", "the log's `ORIGIN` line, if it is not the name in its key")
	another := cmd.Flags().Bool("another-key", false, "the log is known already: trust this key as well (key rotation)")
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		key, err := c2sp.ParseVKey(args[0])
		if err != nil {
			return cli.Usagef("%w: a log's verifier key looks like name+12345678+base64", err)
		}
		if *origin == "" {
			*origin = key.Name()
		}
		d, err := witness.OpenDir(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		out := cmd.OutOrStdout()

		known, err := d.Store.Log(cmd.Context(), *origin)
		var unknown *witness.UnknownLogError
		switch {
		case errors.As(err, &unknown):
			known = &witness.Log{}
		case err != nil:
			return err
		}
		isKey := func(k *c2sp.Key) bool { return k.String() == key.String() }
		if slices.ContainsFunc(known.Keys, isKey) {
			fmt.Fprintf(out, "%s is known already, with this key: nothing to do.\n", shown(*origin))
			return nil
		}
		if len(known.Keys) > 0 && !*another {
			return cli.Exit(cli.Refused, fmt.Errorf("log %s is known already, with another key (fingerprint %s): if its operator says that this one is good too, give --another-key",
				shown(*origin), fingerprint(known.Keys[0])))
		}

		fmt.Fprintf(out, "Log:          %s\nKey:          %s, ID %08x\nFingerprint:  %s\n", shown(*origin), key.Alg(), key.ID(), fingerprint(key))
		for _, k := range known.Keys {
			fmt.Fprintf(out, "Trusted too:  %s\n", fingerprint(k))
		}
		if !*yes {
			fmt.Fprint(out, "\nIs this the fingerprint that the log's operator gave you, by another way? [y/N] ")
			answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 100)).ReadString('\n')
			if err != nil && err != io.EOF {
				return fmt.Errorf("reading the answer: %w", err)
			}
			if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
				return cli.Exit(cli.Refused, errors.New("not added: nobody said yes (--yes answers for you)"))
			}
		}
		if _, err := d.Store.AddLog(cmd.Context(), *origin, []*c2sp.Key{key}); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		fmt.Fprintf(out, "Added. This witness cosigns for %s from now on.\n", shown(*origin))
		return nil
	}
	return cmd
}

func listLogsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list-logs --dir DIRECTORY",
		Short: "List the logs, and what was last cosigned for each",
		Args:  cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object a log")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := witness.OpenDir(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		logs, err := d.Store.Logs(cmd.Context())
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if len(logs) == 0 && !*asJSON {
			fmt.Fprintln(out, "No logs yet: add one with portbook-witness add-log.")
		}
		for _, l := range logs {
			forks, err := d.Store.Forks(cmd.Context(), l.Origin)
			if err != nil {
				return err
			}
			if *asJSON {
				if err := json.NewEncoder(out).Encode(jsonLog(l, len(forks))); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintln(out, shown(l.Origin))
			for _, k := range l.Keys {
				fmt.Fprintf(out, "  key   %s\n", shown(k.String()))
			}
			if l.Head == nil {
				fmt.Fprintln(out, "  last  nothing cosigned yet")
			} else {
				fmt.Fprintf(out, "  last  size %d, cosigned %s\n", l.Head.Size, l.Head.Time.UTC().Format(time.RFC3339))
			}
			if len(forks) > 0 {
				fmt.Fprintf(out, "  FORK  this log has signed two histories, first seen %s at size %d; both notes are kept\n",
					forks[0].Seen.UTC().Format(time.RFC3339), forks[0].Size)
			}
		}
		return nil
	}
	return cmd
}

type listedLog struct {
	Origin   string     `json:"origin"`
	VKeys    []string   `json:"vkeys"`
	Size     *uint64    `json:"size,omitempty"`
	Root     string     `json:"root,omitempty"` // hex
	Cosigned *time.Time `json:"cosigned,omitempty"`
	Forks    int        `json:"forks"` // pieces of evidence kept
}

func jsonLog(l *witness.Log, forks int) listedLog {
	out := listedLog{Origin: l.Origin, Forks: forks}
	for _, k := range l.Keys {
		out.VKeys = append(out.VKeys, k.String())
	}
	if l.Head != nil {
		at := l.Head.Time.UTC()
		out.Size, out.Root, out.Cosigned = &l.Head.Size, fmt.Sprintf("%x", l.Head.Root), &at
	}
	return out
}
