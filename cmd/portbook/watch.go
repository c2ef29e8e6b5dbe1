package main

// watch: follow a log from the terminal. Every entry is hashed to a checkpoint
// that the policy's quorum cosigned before a word of it is printed.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/spf13/cobra"
)

func watchCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch [PROJECT...] --log-url URL --policy POLICY",
		Short: "Follow a log and print what happens to projects, verified",
		Long: `watch prints the entries of the projects you name as they are logged, one a line,
each verified before it is printed; of all projects if you name none. A project
is a package URL: pkg:pypi/django, or pkg:pypi/x?repository_url=https://pypi.example.

It begins now, or with --from at an entry you name. It keeps no subscriptions and
sends no mail: portbook-monitor does. If the log goes back or contradicts itself,
watch ends with exit code 1; with --state also across runs, and with evidence.

Exit codes: 0 ended by you, or --once reached the newest entry; 1 the log is
refused; 2 usage; 3 --once could not read the log.`,
		Example: `  portbook watch pkg:pypi/django --log-url https://log.example.org/pypi --policy policy
  portbook watch --from 0 --once --json --log-url https://log.example.org/pypi --policy policy`,
	}
	f := cmd.Flags()
	policy := f.String("policy", "", "policy `FILE`: which logs and witnesses to believe")
	logURL := f.String("log-url", "", "`URL` of the log")
	tokenFile := f.String("log-token-file", "", cli.LogTokenUsage)
	state := f.String("state", "", "`FILE` in which portbook remembers the newest it has seen of each log")
	from := f.String("from", "", "`INDEX` of the first entry to look at; default: the next one to be logged")
	once := f.Bool("once", false, "stop at the newest entry instead of waiting for more")
	poll := f.Duration("poll", 2*time.Second, "pause between two looks at the log")
	asJSON := f.Bool("json", false, "print one JSON object a line: index, entry (the leaf), unreadable")
	cli.Require(cmd, "policy", "log-url")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		w := watcher{out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), json: *asJSON}
		for _, a := range args {
			p, err := monitor.ParseWatch(a)
			if err != nil {
				return cli.Usage(err)
			}
			if w.projects == nil {
				w.projects = map[monitor.Watch]bool{}
			}
			w.projects[p] = true
		}
		if *from != "" {
			n, err := strconv.ParseUint(*from, 10, 62)
			if err != nil {
				return cli.Usagef("--from %q: not an index", *from)
			}
			w.from = &n
		}
		if *poll <= 0 {
			return cli.Usagef("--poll must be more than nothing")
		}
		var err error
		if w.policy, err = client.ReadPolicy(*policy); err != nil {
			return cli.Usage(err)
		}
		if w.reader, err = openLog(*logURL, *tokenFile); err != nil {
			return err
		}
		if *state != "" {
			if w.state, err = client.OpenState(*state); err != nil {
				return err
			}
		}
		return w.run(cmd.Context(), *once, *poll)
	}
	return cmd
}

type watcher struct {
	policy    *c2sp.Policy
	reader    *client.Reader
	state     *client.State // nil: remember nothing between runs
	projects  map[monitor.Watch]bool
	from      *uint64 // nil: begin now
	json      bool
	out, errs io.Writer

	position monitor.Position
	begun    bool
	origin   string
}

// run follows the log until ctx ends, which is the way to end it, or until the
// log is refused. What cannot be read is said once and tried again.
func (w *watcher) run(ctx context.Context, once bool, poll time.Duration) error {
	said := ""
	for {
		err := w.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && once:
			return nil
		case err == nil:
			said = ""
		case w.refused(err):
			return cli.Exit(cli.Refused, err)
		case once || cli.Code(err) == cli.BadUsage:
			return err
		case err.Error() != said:
			said = err.Error()
			fmt.Fprintf(w.errs, "portbook: %s; trying again\n", plain(said))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(poll):
		}
	}
}

// refused tells what the log did wrong from what merely failed.
func (w *watcher) refused(err error) bool {
	var r *client.Refusal
	var bad *monitor.InconsistentError
	return errors.As(err, &r) || errors.As(err, &bad)
}

// look reads the log's checkpoint and prints the entries up to it.
func (w *watcher) look(ctx context.Context) error {
	note, err := w.reader.Checkpoint(ctx)
	if err != nil {
		return err
	}
	v, err := w.policy.Verify(note)
	if errors.Is(err, c2sp.ErrBadSignature) || errors.Is(err, c2sp.ErrNoLogSignature) {
		return &client.Refusal{Code: client.CodeHeadSignature, Check: "the log's checkpoint", Detail: err.Error(), Err: err}
	}
	if err != nil {
		return fmt.Errorf("the log's checkpoint: %w", err)
	}
	if w.begun && v.Origin != w.origin {
		return fmt.Errorf("the address serves the log %s now, not %s", show(v.Origin), show(w.origin))
	}
	was := w.position.Size
	if w.state != nil {
		if old, _, ok := w.state.Newest(v.Origin); ok {
			was = max(was, old.Checkpoint.Size)
		}
		err := w.state.Update(ctx, w.policy, note, w.reader)
		var refusal *client.Refusal
		if errors.As(err, &refusal) || err != nil && v.Size >= was {
			return err
		}
	}
	if v.Size < was { // certain, even where the tiles to compare with are gone
		return rolledBack(v.Origin, was, v.Size)
	}
	if !w.begun {
		start := v.Size
		if w.from != nil {
			start = *w.from
		}
		if start > v.Size {
			return cli.Usagef("--from %d: the log has %d entries", start, v.Size)
		}
		if w.position, err = monitor.PositionAt(ctx, w.reader, v.Checkpoint, start); err != nil {
			return err
		}
		w.begun, w.origin = true, v.Origin
		what := "all projects"
		if len(w.projects) > 0 {
			what = fmt.Sprintf("%d projects", len(w.projects))
		}
		fmt.Fprintf(w.errs, "portbook: watching %s for %s from entry %d (%d cosignatures)\n", show(v.Origin), what, start, len(v.Cosignatures))
	}
	w.position, err = monitor.Scan(ctx, w.reader, w.position, v.Checkpoint, monitor.ScanOptions{}, func(leaves []monitor.Leaf, p monitor.Position) error {
		for _, l := range leaves {
			if err := w.print(l); err != nil {
				return err
			}
		}
		w.position = p
		return nil
	})
	return err
}

func rolledBack(origin string, was, now uint64) error {
	return &client.Refusal{Code: client.CodeRollback, Check: "the log only grows",
		Detail: fmt.Sprintf("%s now shows size %d; size %d was seen before", show(origin), now, was)}
}

func (w *watcher) print(l monitor.Leaf) error {
	e := l.Entry
	if e != nil && w.projects != nil && !w.projects[monitor.Watch{Registry: e.Registry, Ecosystem: e.Ecosystem, Project: e.Project}] {
		return nil
	}
	if w.json {
		line := struct {
			Index      uint64          `json:"index"`
			Entry      json.RawMessage `json:"entry,omitempty"`
			Unreadable string          `json:"unreadable,omitempty"`
		}{Index: l.Index}
		if e != nil {
			line.Entry = l.Bytes
		} else {
			line.Unreadable = plain(l.Err.Error())
		}
		b, err := alert.Marshal(line)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.out, "%s\n", b)
		return err
	}
	if e == nil {
		_, err := fmt.Fprintf(w.out, "%d  UNREADABLE  %s\n", l.Index, plain(l.Err.Error()))
		return err
	}
	_, err := fmt.Fprintf(w.out, "%d  %s  %s  %s\n", l.Index, e.Time, e.Kind, watchLine(e))
	return err
}

// watchLine is an entry in a few words. Everything in a parsed entry is
// printable ASCII; show quotes what holds spaces.
func watchLine(e *entry.Entry) string {
	s := ""
	add := func(words ...string) {
		for _, w := range words {
			if w != "" {
				if s != "" {
					s += " "
				}
				s += show(w)
			}
		}
	}
	if e.Project != "" {
		add(e.Ecosystem + ":" + e.Project)
	}
	add(e.Version, e.File, e.Tag)
	if e.Registry != "" {
		add("at", e.Registry)
	}
	switch p := e.Publisher; {
	case p != nil && p.Repository != "":
		add("by", p.Kind, p.Repository, p.Workflow)
	case p != nil:
		add("by", p.Kind, p.Subject)
	case e.Auth != "":
		add("by", e.Auth)
	}
	if e.Claim == entry.ClaimObserved {
		add("observed")
	}
	if e.SHA256 != "" && e.Kind == entry.KindUpload {
		add("sha256:" + e.SHA256)
	}
	return s
}
