package main

// freeze, successor, recover-identity: how a log ends and another goes on.
// docs/rotation.md is the runbook.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

func freezeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "freeze {--dir OLD | --postgres DATABASE} --successor-origin ORIGIN --successor-vkey VKEY --successor-url URL",
		Short: "End a log for good: another one takes over",
		Long: `freeze ends a log. It cannot be undone.

The server of the log, if one runs, sees it within a second; else the next one
does, before it takes anything: start it once to finish. It refuses submissions
from then on and tells submitters where the log goes on, logs the successor leaf
as the last entry, publishes the checkpoint that ends with it, and signs nothing
after that. Killed on the way, it goes on at its next start. An ended log is
served for reading as long as you like.

Of a shared log all servers refuse submissions as soon as it is decided, and
whichever of them publishes then, or next, does the rest. All of them must be of
a version that has this command.

Make the successor first (portbook-log init --successor-of), bring it to your
witnesses, then freeze, then portbook-log successor. See docs/rotation.md.

Exit codes: 0 the log has ended and its last checkpoint is published, 1 refused,
2 usage, 3 it will end, but the last checkpoint is not published yet.`,
		Args: cobra.NoArgs,
	}
	place := placeIn(cmd)
	var next logserver.Successor
	f := cmd.Flags()
	f.StringVar(&next.Origin, "successor-origin", "", "`ORIGIN` of the log that takes over")
	f.StringArrayVar(&next.VKeys, "successor-vkey", nil, "`VKEY` of the log that takes over, once for each of its keys")
	f.StringVar(&next.URL, "successor-url", "", "`URL` where its tiles are read")
	wait := f.Duration("wait", time.Minute, "how long to wait for the last checkpoint")
	cli.Require(cmd, "successor-origin", "successor-vkey", "successor-url")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		shared, err := place.shared()
		switch {
		case err != nil:
			return err
		case shared:
			err = logserver.FreezeShared(cmd.Context(), *place.database, next, time.Now())
		default:
			err = logserver.Freeze(*place.dir, next, time.Now())
		}
		if err != nil && !errors.Is(err, logserver.ErrStorage) {
			return cli.Exit(cli.Refused, err)
		} else if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), *wait)
		defer cancel()
		alone := time.Now() // since when nobody is seen who could end it
		for {
			p, leaf, served, err := place.ended(cmd.Context())
			if err == nil && leaf != nil {
				if leaf.Origin != next.Origin {
					return cli.Exit(cli.Refused, fmt.Errorf("the log had ended before, and goes on as %s at %s", leaf.Origin, leaf.URL))
				}
				fmt.Fprintf(cmd.OutOrStdout(), "The log has ended with %d entries, root %x; it goes on as %s.\n\nNext, for the new log:\n  portbook-log successor --dir NEW --predecessor-url URL --predecessor-policy FILE\n",
					p.Size, p.Root, next.Origin)
				return nil
			}
			switch {
			case err != nil || served:
				alone = time.Now()
			case !shared:
				return fmt.Errorf("it is decided that the log ends, and no server runs that could do it: start portbook-log serve on %s once; it ends the log before it takes anything", *place.dir)
			case time.Since(alone) > electionLimit:
				return errors.New("it is decided that the log ends, and no server with its keys runs that could do it: start one; submissions are refused meanwhile")
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("the log ends, but its last checkpoint is not published after %s: see what its server says; it goes on by itself when the quorum answers", *wait)
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return cmd
}

// electionLimit is how long a shared log may be without a publisher before that
// is said: longer than any election.
const electionLimit = 10 * time.Second

// ended is the last checkpoint of the log, and the leaf it ends with, nil as long
// as it is not published. served says whether a server runs that could publish it.
func (p placeFlags) ended(ctx context.Context) (last logserver.Published, next *entry.Entry, served bool, err error) {
	if *p.database != "" {
		return logserver.SharedEnded(ctx, *p.database)
	}
	last, next, err = logserver.Ended(*p.dir)
	if err == nil && next == nil {
		served, err = logserver.Served(*p.dir)
	}
	return last, next, served, err
}

// serve is the command that serves the log.
func (p placeFlags) serve() string {
	if *p.database != "" {
		return "portbook-log serve --storage trillian --policy FILE ..."
	}
	return "portbook-log serve --dir " + *p.dir + " --policy FILE"
}

// begin writes the first entry of a log that takes over from another.
func (p placeFlags) begin(ctx context.Context, old c2sp.Checkpoint) error {
	if *p.database != "" {
		return logserver.BeginShared(ctx, *p.database, old, time.Now())
	}
	return logserver.Begin(ctx, *p.dir, old, time.Now())
}

// predecessor is what is said of the log that a new one takes over from.
type predecessor struct{ url, policy, origin string }

func (p *predecessor) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.url, "predecessor-url", "", "`URL` where the old log is read")
	f.StringVar(&p.policy, "predecessor-policy", "", "policy `FILE` with the old log's keys and the witnesses that must have cosigned it")
	f.StringVar(&p.origin, "predecessor-origin", "", "`ORIGIN` of the old log, if the policy names several")
	cli.Require(cmd, "predecessor-policy")
}

func (p *predecessor) open() (*c2sp.Policy, error) {
	policy, err := client.ReadPolicy(p.policy)
	if err != nil {
		return nil, cli.Usage(err)
	}
	for _, l := range policy.Logs {
		switch name := l.Key.Name(); {
		case p.origin == "":
			p.origin = name
		case p.origin != name && !slices.ContainsFunc(policy.Logs, func(l c2sp.PolicyLog) bool { return l.Key.Name() == p.origin }):
			return nil, cli.Usagef("--predecessor-origin %s: the policy does not name it", p.origin)
		}
	}
	return policy, nil
}

func successorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "successor {--dir NEW | --postgres DATABASE} --predecessor-url URL --predecessor-policy FILE",
		Short: "Let a new log take over from one that has ended",
		Long: `successor writes the first entry of a new log: that it takes over from one that
has ended, at its last size and root. The log is one that portbook-log init has
just made (with --successor-of, so that nothing else can come first), and it is
not being served yet. A shared log may be served: its publisher logs the entry.

Before it writes, it reads the old log: its last checkpoint must stand under the
policy, with its quorum, and end with the entry that names this log and its key.`,
		Args: cobra.NoArgs,
	}
	place := placeIn(cmd)
	var old predecessor
	old.flags(cmd)
	cli.Require(cmd, "predecessor-url")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		id, err := place.identity(cmd.Context())
		if err != nil {
			return err
		}
		policy, err := old.open()
		if err != nil {
			return err
		}
		r, err := client.NewReader(old.url, nil)
		if err != nil {
			return cli.Usage(err)
		}
		c, err := endedFor(cmd.Context(), policy, r, id)
		var cannot *client.CannotCheck
		if errors.As(err, &cannot) {
			return err
		}
		if err == nil {
			err = place.begin(cmd.Context(), c)
		}
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s takes over from %s at %d entries, root %x: its first entry says so.\n\nNext:\n  %s\n", id.Origin, c.Origin, c.Size, c.Root, place.serve())
		return nil
	}
	return cmd
}

// endedFor is the last checkpoint of the log that r reads, if it has ended and
// names the log id as its successor.
func endedFor(ctx context.Context, policy *c2sp.Policy, r *client.Reader, id logserver.Identity) (c2sp.Checkpoint, error) {
	note, err := r.Checkpoint(ctx)
	if err != nil {
		return c2sp.Checkpoint{}, err
	}
	v, err := policy.Verify(note)
	if err != nil {
		return c2sp.Checkpoint{}, fmt.Errorf("the old log's checkpoint does not stand under the policy: %w", err)
	}
	_, last, err := client.LastEntry(ctx, r, v.Checkpoint, note)
	switch {
	case err != nil:
		return c2sp.Checkpoint{}, err
	case last == nil:
		return c2sp.Checkpoint{}, fmt.Errorf("the log %s has not ended: its last entry (of %d) names no successor; freeze it first", v.Origin, v.Size)
	case last.Origin != id.Origin:
		return c2sp.Checkpoint{}, fmt.Errorf("the log %s names %s as its successor, not %s", v.Origin, last.Origin, id.Origin)
	case !slices.Contains(last.VKeys, id.VKey):
		return c2sp.Checkpoint{}, fmt.Errorf("the log %s names other keys of its successor %s than this log has (%s): this is not the log that was meant", v.Origin, last.Origin, id.VKey)
	}
	return v.Checkpoint, nil
}

func recoverCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recover-identity {--dir NEW | --postgres DATABASE} --predecessor-policy FILE",
		Short: "Let a new log go on where the key of an old one was lost or stolen",
		Long: `recover-identity writes the first entry of a new log for an old one whose key is
lost or stolen, and which can therefore name no successor itself. The entry names
the last state of the old log that a quorum of its witnesses has cosigned. The
log is one that portbook-log init has just made, and it is not being served yet.

It asks the witnesses of the policy that have a URL there, and takes checkpoints
from files and from the old log's address. What the key alone has signed does not
count, whatever its size. If the thief went on logging, honest witnesses have
cosigned that too: then say with --at-most up to which size the log was yours.

Nobody follows such a log by themselves, and nobody should: it prints the lines
that the owner of each policy puts into it, after having asked you.`,
		Args: cobra.NoArgs,
	}
	place := placeIn(cmd)
	var old predecessor
	old.flags(cmd)
	f := cmd.Flags()
	files := f.StringArray("checkpoint", nil, "`FILE` with a published checkpoint of the old log; may be repeated")
	atMost := f.Uint64("at-most", 0, "the log was yours up to this `SIZE`; what is larger does not count")
	url := f.String("url", "", "`URL` where the new log is read, for the lines that are printed")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		id, err := place.identity(cmd.Context())
		if err != nil {
			return err
		}
		policy, err := old.open()
		if err != nil {
			return err
		}
		var notes [][]byte
		for _, path := range *files {
			raw, err := os.ReadFile(path)
			if err != nil {
				return cli.Usagef("--checkpoint: %w", err)
			}
			notes = append(notes, raw)
		}
		ask := func(who, url string) {
			r, err := client.NewReader(url, nil)
			var note []byte
			if err == nil {
				note, err = r.Checkpoint(cmd.Context())
			}
			if err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "portbook-log: %s shows nothing: %v\n", who, err)
				return
			}
			notes = append(notes, note)
		}
		if old.url != "" {
			ask("the old log", old.url)
		}
		for _, w := range policy.Witnesses {
			if w.URL != "" {
				ask("witness "+w.Name, strings.TrimSuffix(w.URL, "/")+"/"+c2sp.OriginHash(old.origin))
			}
		}
		c, err := logserver.LastCosigned(policy, old.origin, notes, *atMost)
		var fork *logserver.ForkError
		if errors.As(err, &fork) {
			path, werr := client.WriteEvidence(filepath.Join(*place.dir, "evidence"), &client.Evidence{First: fork.First, Second: fork.Second})
			return cli.Exit(cli.Refused, errors.Join(fmt.Errorf("%w (evidence: %s)", err, path), werr))
		}
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		if err := place.begin(cmd.Context(), c.Checkpoint); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		out := cmd.OutOrStdout()
		fmt.Fprintf(out, "%s goes on from %s at %d entries, root %x, which a quorum has cosigned.\n", id.Origin, c.Origin, c.Size, c.Root)
		if n := len(c.Larger); n > 0 {
			fmt.Fprintf(out, "WARNING: the old key has also signed %d larger trees, up to %d entries, which do not count here. If that was not you, say so to everybody.\n", n, c.Larger[n-1])
		}
		fmt.Fprintf(out, `
Send this to the owner of every policy that names the old log, signed by people
they know, and let them compare the new key's fingerprint over another channel:
  %s

Their policies get these lines in place of the old log's, and nothing else
changes. What was proven up to %d entries stays proven; what the old key signs
beyond that is refused, whoever cosigns it.

`, fingerprint(id.VKey), c.Size)
		for _, l := range policy.Logs {
			if l.Key.Name() == old.origin {
				size := c.Size
				if l.Retired {
					size = min(size, l.UpTo)
				}
				fmt.Fprintf(out, "retired %s %d\n", l.Key, size)
			}
		}
		for _, line := range id.PolicyLines(*url) {
			fmt.Fprintln(out, line)
		}
		fmt.Fprintf(out, `
Bring the new key to the witnesses (portbook-witness add-log) and tell them what
became of the old one. Tell monitors to begin with the new log (portbook-monitor
init, into the database they have, with that policy).

Next:
  %s
`, place.serve())
		return nil
	}
	return cmd
}
