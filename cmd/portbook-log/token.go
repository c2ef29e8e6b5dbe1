package main

// token: who may submit what.

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

func tokenCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke the tokens with which indexes submit, and readers of a private log read",
		Long: `A token lets its holder log entries for one registry, with one claim, of some
kinds. The log stores a hash of it. A running server takes a change within a second.`,
	}
	cmd.AddCommand(tokenCreateCmd(), tokenListCmd(), tokenRevokeCmd())
	return cmd
}

func openTokens(dir string) (*logserver.Credentials, error) {
	if _, err := logserver.ReadIdentity(dir); err != nil {
		return nil, cli.Exit(cli.Refused, err)
	}
	return logserver.OpenTokens(filepath.Join(dir, logserver.TokensFile), time.Now)
}

func tokenCreateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create --dir DIRECTORY --registry REGISTRY | --read",
		Short: "Make a token and print it, once",
		Args:  cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	f := cmd.Flags()
	registry := f.String("registry", "", "the only `REGISTRY` it may name: host[:port][/path]")
	claim := f.String("claim", string(entry.ClaimIndex), "`CLAIM`: index (the registry itself) or observed (a follower)")
	kinds := f.StringSlice("kinds", nil, "`KINDS` it may log, or all; default: upload and what undoes it (reject)")
	rate := f.Int("rate", 0, "entries a second; 0: no limit of its own")
	days := f.Int("days", 0, "ends after so many days; 0: never")
	note := f.String("note", "", "a `NOTE` for people")
	read := f.Bool("read", false, "it reads a private log (serve --private) and logs nothing; without --registry, --claim, --kinds and --rate")
	asJSON := f.Bool("json", false, "print one JSON object instead of text")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t := logserver.Token{Registry: *registry, Claim: entry.Claim(*claim), Rate: *rate, Note: *note}
		switch {
		case *days < 0:
			return cli.Usagef("--days cannot be negative")
		case *read:
			for _, name := range []string{"registry", "claim", "kinds", "rate"} {
				if cmd.Flags().Changed(name) {
					return cli.Usagef("--read: such a token logs nothing, so it has no --%s", name)
				}
			}
			t = logserver.Credential{Read: true, Note: *note}
		case *registry == "":
			return cli.Usagef("--registry is required, or --read (see portbook-log token create --help)")
		case *rate < 0:
			return cli.Usagef("--rate cannot be negative")
		case len(*kinds) == 0 && t.Claim == entry.ClaimIndex:
			t.Kinds = []entry.Kind{entry.KindUpload, entry.KindReject}
		case len(*kinds) == 0:
			t.Kinds = []entry.Kind{entry.KindUpload}
		case len(*kinds) == 1 && (*kinds)[0] == "all":
			for _, k := range entry.Kinds() {
				for _, c := range k.Claims() {
					if c == t.Claim {
						t.Kinds = append(t.Kinds, k)
					}
				}
			}
		default:
			for _, k := range *kinds {
				t.Kinds = append(t.Kinds, entry.Kind(k))
			}
		}
		if *days > 0 {
			t.Ends = time.Now().UTC().AddDate(0, 0, *days).Format(entry.TimeFormat)
		}
		file, err := openTokens(*dir)
		if err != nil {
			return err
		}
		t, secret, err := file.Create(t)
		if err != nil {
			return cli.Usagef("token: %w", err)
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
				ID    string `json:"id"`
				Token string `json:"token"`
			}{t.ID, secret})
		}
		if t.Read {
			fmt.Fprintf(cmd.ErrOrStderr(), "Token %s reads this log, which must be served with --private. It is shown only now:\n", t.ID)
			fmt.Fprintln(cmd.OutOrStdout(), secret)
			return nil
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "Token %s logs %s for %s, claim %s. It is shown only now:\n", t.ID, joinKinds(t.Kinds), t.Registry, t.Claim)
		fmt.Fprintln(cmd.OutOrStdout(), secret)
		return nil
	}
	return cmd
}

func joinKinds(kinds []entry.Kind) string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}

func tokenListCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "list --dir DIRECTORY", Short: "List the tokens, without their secrets", Args: cobra.NoArgs}
	dir := dirFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print a JSON array instead of a table")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		file, err := openTokens(*dir)
		if err != nil {
			return err
		}
		list := file.List()
		for i := range list {
			list[i].Hash = "" // of no use to a reader
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tREGISTRY\tCLAIM\tKINDS\tCREATED\tSTATE\tNOTE")
		for _, t := range list {
			state := "valid"
			switch {
			case t.Revoked != "":
				state = "revoked " + t.Revoked
			case t.Ends != "":
				state = "ends " + t.Ends
			}
			kinds := joinKinds(t.Kinds)
			if t.Read {
				kinds = "(reads)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%q\n", t.ID, t.Registry, t.Claim, kinds, t.Created, state, t.Note)
		}
		return w.Flush()
	}
	return cmd
}

func tokenRevokeCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "revoke --dir DIRECTORY ID", Short: "End a token now", Args: cobra.ExactArgs(1)}
	dir := dirFlag(cmd)
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file, err := openTokens(*dir)
		if err != nil {
			return err
		}
		if err := file.Revoke(args[0]); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "Token %s is revoked; running servers take it within a second.\n", args[0])
		return nil
	}
	return cmd
}
