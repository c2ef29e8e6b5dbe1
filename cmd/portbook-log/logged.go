package main

// token entries, token dispute: what a credential logged, and saying in the log
// that it was not its owner.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"time"

	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

// loggedFlags say what of which credential.
type loggedFlags struct {
	credentialFlags
	since *string
}

func loggedIn(cmd *cobra.Command) loggedFlags {
	return loggedFlags{credentialsIn(cmd), cmd.Flags().String("since", "", "only what was recorded at this `TIME` or later: YYYY-MM-DDTHH:MM:SSZ")}
}

// find is the credential with an ID.
func (f loggedFlags) find(ctx context.Context, id string) (logserver.Credential, error) {
	creds, done, err := f.open(ctx)
	if err != nil {
		return logserver.Credential{}, err
	}
	defer done()
	for _, t := range creds.List() {
		if t.ID == id {
			return t, nil
		}
	}
	return logserver.Credential{}, cli.Exit(cli.Refused, fmt.Errorf("no token has the ID %q: list them to see which there are", id))
}

// read reads the record of who logged what, and the size of the log.
func (f loggedFlags) read(ctx context.Context) (*logserver.Attribution, uint64, error) {
	if *f.database != "" {
		return logserver.ReadSharedAttribution(ctx, *f.database)
	}
	record, err := logserver.ReadAttribution(*f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, cli.Exit(cli.Refused, fmt.Errorf("%s has no record of who logged what: it begins when the log takes its first submissions", *f.dir))
	}
	if err != nil {
		return nil, 0, err
	}
	p, _, err := logserver.Ended(*f.dir)
	return record, p.Size, err
}

// runs are a credential's entries, and the size of the log; unknown, if id is
// empty, those of nobody. It warns of what it cannot know.
func (f loggedFlags) runs(cmd *cobra.Command, id string) ([]logserver.Attributed, uint64, error) {
	var since time.Time
	if *f.since != "" {
		var err error
		if since, err = time.Parse(entry.TimeFormat, *f.since); err != nil {
			return nil, 0, cli.Usagef("--since %s: want YYYY-MM-DDTHH:MM:SSZ, in UTC", *f.since)
		}
	}
	if _, err := f.identity(cmd.Context()); err != nil {
		return nil, 0, err
	}
	record, size, err := f.read(cmd.Context())
	if err != nil {
		return nil, 0, err
	}
	unknown, begins := record.Unknown(size)
	warn := func(format string, args ...any) {
		fmt.Fprintf(cmd.ErrOrStderr(), "portbook-log: warning: "+format+"\n", args...)
	}
	if begins > 0 {
		warn("the record begins at entry %d: nothing says who logged the entries before it", begins)
	}
	if id == "" {
		return unknown, size, nil
	}
	why := "a server was killed in between"
	if *f.database != "" {
		why = "a server of an older version took them, or the database was made anew"
	}
	for _, r := range unknown {
		warn("nothing says who logged the entries %d to %d: %s; see token entries --unknown", r.First, r.First+r.Count-1, why)
	}
	return slices.DeleteFunc(record.By(id), func(r logserver.Attributed) bool { return r.Time.Before(since) }), size, nil
}

func count(runs []logserver.Attributed) (n uint64) {
	for _, r := range runs {
		n += r.Count
	}
	return n
}

func tokenEntriesCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "entries --dir DIRECTORY ID",
		Short: "List what a credential logged",
		Long: `entries lists what a credential logged, from the log's private record of it and
its tiles. TIME is when the server recorded it. "late" says that a server was
killed between logging and recording an entry, and that this credential asked for
it again.

Of a shared log give --postgres and --tiles, as to serve: the record is in the
database.`,
		Args: cobra.MaximumNArgs(1),
	}
	f := loggedIn(cmd)
	place := cmd.Flags().String("tiles", "", "with --postgres: `PLACE` of the tiles, a directory or s3://BUCKET/PREFIX?endpoint=https://HOST&region=REGION")
	nobody := cmd.Flags().Bool("unknown", false, "instead: entries of which nothing says who logged them")
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object a line instead of text")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if (len(args) == 1) == *nobody {
			return cli.Usagef("give the ID of a credential, or --unknown")
		}
		if (*place != "") != (*f.database != "") {
			return cli.Usagef("--postgres and --tiles go together, for a shared log; else --dir")
		}
		var tiles logserver.Files
		if *place != "" {
			var err error
			if tiles, err = readPlace("tiles", *place); err != nil {
				return err
			}
		}
		id := ""
		if len(args) == 1 {
			id = args[0]
			if _, err := f.find(cmd.Context(), id); err != nil {
				return err
			}
		}
		runs, size, err := f.runs(cmd, id)
		if err != nil {
			return err
		}
		entries := logserver.Entries(cmd.Context(), *f.dir, runs)
		if tiles != nil {
			entries = logserver.EntriesIn(cmd.Context(), tiles, size, runs)
		}
		out := cmd.OutOrStdout()
		enc := json.NewEncoder(out)
		for e, err := range entries {
			if err != nil {
				return err
			}
			if *asJSON {
				err = enc.Encode(loggedJSON(e))
			} else {
				_, err = fmt.Fprintln(out, cli.ASCII(loggedLine(e)))
			}
			if err != nil {
				return err
			}
		}
		if !*asJSON {
			fmt.Fprintf(out, "%d entries\n", count(runs))
		}
		return nil
	}
	return cmd
}

func loggedLine(e logserver.AttributedEntry) string {
	at := "-"
	if !e.Time.IsZero() {
		at = e.Time.Format(entry.TimeFormat)
	}
	late := ""
	if e.Late {
		late = " late"
	}
	if e.Entry == nil {
		return fmt.Sprintf("%d %s%s (not published, or of another version)", e.Index, at, late)
	}
	what := e.Entry.Project
	if e.Entry.File != "" {
		what += " " + e.Entry.File
	} else if e.Entry.Version != "" {
		what += " " + e.Entry.Version
	}
	if e.Entry.Index != nil {
		what += fmt.Sprintf("entry %d", *e.Entry.Index)
	}
	return fmt.Sprintf("%d %s%s %s %s", e.Index, at, late, e.Entry.Kind, what)
}

func loggedJSON(e logserver.AttributedEntry) any {
	out := struct {
		Index     uint64     `json:"index"`
		Time      string     `json:"time,omitempty"`
		Late      bool       `json:"late,omitempty"`
		Kind      entry.Kind `json:"kind,omitempty"`
		Ecosystem string     `json:"ecosystem,omitempty"`
		Project   string     `json:"project,omitempty"`
		Version   string     `json:"version,omitempty"`
		File      string     `json:"file,omitempty"`
		SHA256    string     `json:"sha256,omitempty"`
		Disputes  *uint64    `json:"disputes,omitempty"`
	}{Index: e.Index, Late: e.Late}
	if !e.Time.IsZero() {
		out.Time = e.Time.Format(entry.TimeFormat)
	}
	if x := e.Entry; x != nil {
		out.Kind, out.Ecosystem, out.Project, out.Version, out.File, out.SHA256, out.Disputes = x.Kind, x.Ecosystem, x.Project, x.Version, x.File, x.SHA256, x.Index
	}
	return out
}

func tokenDisputeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dispute --dir DIRECTORY ID --log URL --token-file FILE",
		Short: "Log a dispute of each entry that a stolen credential logged",
		Long: `dispute says in the log that entries were logged with a credential that was
stolen, one entry of kind dispute for each. The credential must be revoked.
Without --yes it only counts.

It submits through a running server, with a token of yours for the same registry
that may log the kind (token create --kinds dispute). It can be run again: what is
disputed already is not disputed twice.`,
		Args: cobra.ExactArgs(1),
	}
	f := loggedIn(cmd)
	url := cmd.Flags().String("log", "", "`URL` of the running server's gRPC address: https://HOST[:PORT], or http://127.0.0.1:PORT")
	tokenFile := cmd.Flags().String("token-file", "", "`FILE` with a token that may log the kind dispute for the same registry")
	yes := cmd.Flags().Bool("yes", false, "log the disputes; without, say how many there would be")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		stolen, err := f.find(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if stolen.Revoked == "" {
			return cli.Exit(cli.Refused, fmt.Errorf("token %s is not revoked: revoke it first, or it logs more while this runs", stolen.ID))
		}
		runs, _, err := f.runs(cmd, stolen.ID)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if !*yes {
			fmt.Fprintf(out, "%d entries of token %s would be disputed. Nothing was logged: see them with token entries, then give --yes.\n", count(runs), stolen.ID)
			return nil
		}
		if *url == "" || *tokenFile == "" {
			return cli.Usagef("--yes needs --log and --token-file")
		}
		secret, err := cli.ReadSecret(*tokenFile)
		if err != nil {
			return cli.Usagef("--token-file: %w", err)
		}
		id, err := f.identity(cmd.Context())
		if err != nil {
			return err
		}
		client, err := submit.Dial(*url, secret)
		if err != nil {
			return cli.Usagef("--log: %w", err)
		}
		defer client.Close()
		return disputeAll(cmd.Context(), client, disputes(id.Origin, stolen, runs), count(runs), out)
	}
	return cmd
}

// disputes yields the entries that dispute runs. They are the same in each run
// of the command, so that the log takes each once.
func disputes(origin string, stolen logserver.Credential, runs []logserver.Attributed) iter.Seq[*entry.Entry] {
	return func(yield func(*entry.Entry) bool) {
		for _, r := range runs {
			for i := range r.Count {
				index := r.First + i
				sum := sha256.Sum256(fmt.Appendf(nil, "portbook dispute\n%s\n%s\n%d\n", origin, stolen.ID, index))
				if !yield(&entry.Entry{
					Kind: entry.KindDispute, Claim: entry.ClaimIndex, Registry: stolen.Registry, Index: entry.Uint(index),
					ID: hex.EncodeToString(sum[:16]), Time: stolen.Revoked, Reason: "stolen-credential",
				}) {
					return
				}
			}
		}
	}
}

// disputeAll logs disputes and says how far it is.
func disputeAll(ctx context.Context, client *submit.Client, all iter.Seq[*entry.Entry], n uint64, out io.Writer) error {
	next, stop := iter.Pull(all)
	defer stop()
	var refused uint64
	var why error
	said := time.Now()
	err := client.Stream(ctx, submit.StreamOptions{}, func() (*entry.Entry, error) {
		e, ok := next()
		if !ok {
			return nil, io.EOF
		}
		return e, nil
	}, func(position uint64, r submit.Result) error {
		if r.Err != nil {
			refused++
			why = r.Err
		}
		if time.Since(said) > 2*time.Second {
			said = time.Now()
			fmt.Fprintf(out, "%d of %d\n", position+1, n)
		}
		return nil
	})
	switch {
	case errors.Is(err, submit.ErrUnauthorized):
		return cli.Exit(cli.Refused, err)
	case err != nil:
		return fmt.Errorf("%w; what is disputed stays so: run the same again", err)
	case refused > 0:
		return cli.Exit(cli.Refused, fmt.Errorf("%d of %d disputes were refused, the last because: %w", refused, n, why))
	}
	fmt.Fprintf(out, "%d entries are disputed.\n", n)
	return nil
}
