package main

// audit: the auditing witness, a program of its own beside the witness. It has
// another directory, name, key and address, so that what reads a log's content
// and can fail at it never holds the witness's key.

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/witness"
	"github.com/portbook/portbook/witness/auditor"
	"github.com/spf13/cobra"
)

func auditCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Be an auditor: mirror logs, read every entry, and cosign what holds",
		Long: `audit runs an auditor, a witness that also reads (c2sp.org/tlog-mirror). It keeps
a full copy of each Portbook log, rehashes every leaf, checks every entry's
grammar and that no file name gets a second content, and cosigns only what it
has stored and checked. Clients can then ask for "two witnesses and an auditor".

It has a directory, a name and keys of its own, apart from any witness's.

  portbook-witness audit init --name auditor.example/a1 --dir /var/lib/portbook-auditor \
      --mark /other/disk/a1.mark --url https://auditor.example/
  portbook-witness audit add-log --dir /var/lib/portbook-auditor --log https://log.example/ LOG-VKEY
  portbook-witness audit serve --dir /var/lib/portbook-auditor --mark /other/disk/a1.mark

What breaks a rule is published with its evidence, and nothing beyond it is
cosigned. See docs/witness.md, "Auditing".`,
	}
	cmd.AddCommand(auditInitCmd(), auditShowCmd(), auditAddLogCmd(), auditListCmd(), auditServeCmd())
	return cmd
}

func auditMarkPath(mark, dir string) string {
	if mark == "" {
		return filepath.Join(dir, auditor.MarkFile)
	}
	return mark
}

func auditMarkFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("mark", "", "`FILE` of the high-water mark, on another file system than the directory; default: "+auditor.MarkFile+" in the directory, which serve takes only with --mark-beside")
}

func auditInitCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init --name NAME --dir DIRECTORY",
		Short: "Make a new auditor: its keys and its empty state, once and for ever",
		Long: `init makes the keys and the databases of a new auditor, and prints its verifier
key and the line that policies need. The name is a URL without the scheme, under
a domain of yours, and not that of a witness.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	name := cmd.Flags().String("name", "", "`NAME` of the auditor, a URL without the scheme: auditor.example/a1")
	mark := auditMarkFlag(cmd)
	at := urlFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object instead of text")
	cli.Require(cmd, "name")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if strings.Contains(*name, "://") || *name == c2sp.QuorumNone {
			return cli.Usagef("--name %s: want a name under a domain of yours, without a scheme", *name)
		}
		if _, err := c2sp.GenerateSigner(*name, c2sp.AlgMLDSA44); err != nil {
			return cli.Usagef("--name: %w", err)
		}
		if err := checkURL(*at); err != nil {
			return cli.Usage(err)
		}
		file := auditMarkPath(*mark, *dir)
		_, madeErr := os.Lstat(filepath.Join(*dir, auditor.KeyFile))
		if _, err := os.Lstat(file); err == nil && madeErr != nil {
			return cli.Exit(cli.Refused, fmt.Errorf("a file is at %s already: a mark is never replaced; choose another path", file))
		}
		d, err := auditor.CreateDir(cmd.Context(), *dir, *name, time.Now())
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		if err := d.Store.CreateMark(cmd.Context(), file); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		return describeAuditor(cmd.OutOrStdout(), d.Keys(), *at, *asJSON)
	}
	return cmd
}

func auditShowCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "show --dir DIRECTORY", Short: "Print the verifier key and the policy line again", Args: cobra.NoArgs}
	dir := dirFlag(cmd)
	at := urlFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object instead of text")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkURL(*at); err != nil {
			return cli.Usage(err)
		}
		d, err := auditor.OpenDir(cmd.Context(), *dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		return describeAuditor(cmd.OutOrStdout(), d.Keys(), *at, *asJSON)
	}
	return cmd
}

// describeAuditor prints what others have to be told about the auditor.
func describeAuditor(out io.Writer, keys []*c2sp.Key, at string, asJSON bool) error {
	lines := policyLines(keys, at)
	for i := range lines {
		lines[i] = "auditor" + strings.TrimPrefix(lines[i], "witness")
	}
	if asJSON {
		return json.NewEncoder(out).Encode(struct {
			Name        string   `json:"name"`
			VKey        string   `json:"vkey"`
			Fingerprint string   `json:"fingerprint"`
			PolicyLine  string   `json:"policy_line"`
			PolicyLines []string `json:"policy_lines"` // of all keys
		}{keys[0].Name(), keys[0].String(), fingerprint(keys[0]), lines[0], lines})
	}
	fmt.Fprintf(out, `Verifier key (public):
  %s

Fingerprint:
  %s

Line for policy files, the log's and its clients':
  %s

In a client's policy it can then stand beside the witnesses, for example:
  group witnesses 2 w1 w2 w3
  group all-of-them all witnesses %s
  quorum all-of-them
In a log's own policy it stands outside of the quorum: the log publishes first.
Programs other than Portbook's know the line under the word witness.
`, keys[0], fingerprint(keys[0]), lines[0], strings.Fields(lines[0])[1])
	return nil
}

func auditAddLogCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add-log --dir DIRECTORY --log URL VKEY|INVITATION",
		Short: "Mirror and audit a log from now on",
		Long: `add-log makes the auditor follow a log. It takes the line that the log's operator
made with portbook-log invite-witness, or the log's verifier key; quote either.
It shows the fingerprint and asks. A running auditor needs no restart.

--log is where the log's tiles are read; an invitation may say it. With --push-only
nothing is read: the log sends its entries itself (add-entries). A log that is
known already gets the URL, and keeps its keys.`,
		Args: cobra.ExactArgs(1),
	}
	dir := dirFlag(cmd)
	from := cmd.Flags().String("log", "", "`URL` under which the log is read: the prefix of /checkpoint and /tile/")
	pushOnly := cmd.Flags().Bool("push-only", false, "do not read the log: it pushes")
	another := cmd.Flags().Bool("another-key", false, "the log is known already: trust this key as well (key rotation)")
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := readCandidate(args[0])
		if err != nil {
			return cli.Usage(err)
		}
		if *from == "" && c.invite != nil {
			*from = c.invite.URL
		}
		switch {
		case *from == "" && !*pushOnly:
			return cli.Usagef("--log is missing, and the line does not say where the log is read (--push-only: it is not)")
		case *from != "" && *pushOnly:
			*from = ""
		}
		if err := checkURL(*from); err != nil {
			return cli.Usage(err)
		}
		d, err := auditor.OpenDir(cmd.Context(), *dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		known, err := d.Store.Log(cmd.Context(), c.origin)
		var unknown *witness.UnknownLogError
		if err != nil && !errors.As(err, &unknown) {
			return err
		}
		out := cmd.OutOrStdout()
		if known != nil {
			c.keys = slices.DeleteFunc(c.keys, func(k *c2sp.Key) bool {
				return slices.ContainsFunc(known.Keys, func(have *c2sp.Key) bool { return have.String() == k.String() })
			})
			if len(c.keys) > 0 && !*another {
				return cli.Exit(cli.Refused, fmt.Errorf("log %s is known already, with another key (fingerprint %s): if its operator says that this one is good too, give --another-key", shown(c.origin), fingerprint(known.Keys[0])))
			}
		}
		if len(c.keys) > 0 {
			fmt.Fprintf(out, "Log:          %s\n", shown(c.origin))
			for _, k := range c.keys {
				fmt.Fprintf(out, "Key:          %s, ID %08x\nFingerprint:  %s\n", k.Alg(), k.ID(), fingerprint(k))
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
			if _, err := d.Store.AddLog(cmd.Context(), c.origin, c.keys); err != nil {
				return cli.Exit(cli.Refused, err)
			}
		}
		if err := d.SetURL(cmd.Context(), c.origin, *from); err != nil {
			return err
		}
		if *from == "" {
			fmt.Fprintf(out, "Added. %s is audited from now on, as it pushes.\n", shown(c.origin))
		} else {
			fmt.Fprintf(out, "Added. %s is audited from now on, at %s\n", shown(c.origin), shown(*from))
		}
		return nil
	}
	return cmd
}

func auditListCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "list --dir DIRECTORY", Short: "List the logs: how far each is cosigned, and what was found", Args: cobra.NoArgs}
	dir := dirFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object a log")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := auditor.OpenDir(cmd.Context(), *dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		list, err := d.Standings(cmd.Context())
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		for _, s := range list {
			if *asJSON {
				one := struct {
					Origin   string     `json:"origin"`
					URL      string     `json:"url,omitempty"`
					Size     uint64     `json:"size"`
					Cosigned *time.Time `json:"cosigned,omitempty"`
					Pending  uint64     `json:"pending"`
					Stored   uint64     `json:"stored"`
					Findings int        `json:"findings"`
					Forks    int        `json:"forks"`
					Stopped  string     `json:"stopped,omitempty"`
				}{Origin: s.Origin, URL: s.URL, Size: s.Size, Pending: s.Pending, Stored: s.Next, Findings: s.Found, Forks: s.Forks}
				if !s.Time.IsZero() {
					at := s.Time.UTC()
					one.Cosigned = &at
				}
				if s.Blocked != nil {
					one.Stopped = fmt.Sprintf("%s at entry %d", s.Blocked.Kind, s.Blocked.Index)
				}
				if err := json.NewEncoder(out).Encode(one); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintln(out, shown(s.Origin))
			if s.Time.IsZero() {
				fmt.Fprintln(out, "  last      nothing cosigned yet")
			} else {
				fmt.Fprintf(out, "  last      size %d, cosigned %s, %d behind\n", s.Size, s.Time.UTC().Format(time.RFC3339), s.Lag())
			}
			if s.Blocked != nil {
				fmt.Fprintf(out, "  STOPPED   %s at entry %d: nothing beyond it is cosigned\n            %s\n", s.Blocked.Kind, s.Blocked.Index, shown(s.Blocked.Reason))
			}
			if s.Forks > 0 {
				fmt.Fprintln(out, "  FORK      this log has signed two histories; both notes are kept")
			}
		}
		if len(list) == 0 && !*asJSON {
			fmt.Fprintln(out, "No logs yet: add one with portbook-witness audit add-log.")
		}
		return nil
	}
	return cmd
}

func auditServeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve --dir DIRECTORY",
		Short: "Follow the logs, and serve their mirror, until SIGTERM",
		Long: `serve follows the logs, and answers over HTTP (c2sp.org/tlog-mirror): POST
/add-checkpoint and /add-entries, and each log's mirror at /<origin hash>/. Put a
web server with TLS in front of it. GET /findings lists what was found, and
/healthz is for your own monitoring.

It needs room for a copy of each log, and memory for a few bundles. It refuses to
start with an older copy of its database than the mark remembers.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	mark := auditMarkFlag(cmd)
	beside := cmd.Flags().Bool("mark-beside", false, "allow the mark on the directory's own file system, where a restored snapshot brings both back")
	listen := cmd.Flags().String("listen", "127.0.0.1:7381", "`ADDRESS` to listen on")
	poll := cmd.Flags().Duration("poll", 2*time.Second, "how often each log is asked for its checkpoint")
	refresh := cmd.Flags().Duration("refresh", 5*time.Minute, "how old the cosignature of an unchanged log may become")
	perClient := cmd.Flags().Int("per-client", 4, "most uploads of one address that are read at once; behind a web server everybody has its address, which should have limits of its own")
	admin := cmd.Flags().String("admin", "", "private `ADDRESS` for Prometheus metrics (/metrics); default: none")
	policyFile := cmd.Flags().String("policy", "", "`FILE` of a policy, such as the log's own: a checkpoint without its quorum is neither followed nor taken; default: the log's signature is enough")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var policy *c2sp.Policy
		if *policyFile != "" {
			raw, err := os.ReadFile(*policyFile)
			if err != nil {
				return err
			}
			if policy, err = c2sp.ParsePolicy(raw); err != nil {
				return cli.Usagef("--policy %s: %w", *policyFile, err)
			}
		}
		if *perClient < 1 {
			return cli.Usagef("--per-client: want at least 1")
		}
		if *poll < 100*time.Millisecond || *refresh <= 0 {
			return cli.Usagef("--poll: at least 100ms; --refresh: more than 0")
		}
		d, err := auditor.OpenDir(cmd.Context(), *dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		if err := useMark(cmd.Context(), d.Store, auditMarkPath(*mark, *dir), *beside); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		journal := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		a, err := auditor.New(cmd.Context(), auditor.Config{Dir: d, Logger: journal, Poll: *poll, Refresh: *refresh, PerClient: *perClient, Policy: policy})
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		logs, err := d.Store.Logs(cmd.Context())
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", *listen)
		if err != nil {
			return err
		}
		if *admin != "" {
			private, err := net.Listen("tcp", *admin)
			if err != nil {
				return errors.Join(err, l.Close())
			}
			mux := http.NewServeMux()
			mux.Handle("GET /metrics", a.Metrics())
			srv := witness.NewServer(mux)
			defer srv.Close()
			go srv.Serve(private)
			journal.Info("metrics", "url", "http://"+private.Addr().String()+"/metrics")
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s on http://%s/, logs: %d\n", a.Keys()[0].Name(), l.Addr(), len(logs))
		return a.Serve(cmd.Context(), l, auditHandler(a))
	}
	return cmd
}

// auditHandler is the auditor with /healthz beside it.
func auditHandler(a *auditor.Auditor) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", a.Handler())
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
		defer cancel()
		if err := a.Ping(ctx); err != nil {
			http.Error(rw, cmp.Or(markTrouble(err), "the databases do not answer"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(rw, "ok")
	})
	return mux
}
