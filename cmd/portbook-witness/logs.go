package main

// add-log and list-logs: whose checkpoints this witness cosigns.

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
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
		Use:   "add-log --dir DIRECTORY VKEY|INVITATION",
		Short: "Cosign for a log from now on",
		Long: `add-log makes the witness cosign for a log. It takes the line that the log's
operator made with portbook-log invite-witness, or the log's verifier key (one
word of the form name+12345678+base64); quote either.

It shows the log, the fingerprints of its keys and, from an invitation, its
newest checkpoint, and asks. Compare the fingerprint with what the log's operator
tells you by another way (it is the SHA-256 of the VKEY). Then it prints the lines
for that log's policy, to send back.

--file reads such lines from a file; --list takes a log list as
witness-network.org publishes them, from a file or an https URL.

A running witness needs no restart. Adding only ever adds: no key is replaced or
taken away, whatever a list says; where it says otherwise, that is reported.`,
		Args: cobra.MaximumNArgs(1),
	}
	dir := dirFlag(cmd)
	at := urlFlag(cmd)
	origin := cmd.Flags().String("origin", "", "the log's `ORIGIN` line, if it is not the name in its key")
	another := cmd.Flags().Bool("another-key", false, "the log is known already: trust this key as well (key rotation)")
	file := cmd.Flags().String("file", "", "`FILE` with one invitation or verifier key a line")
	list := cmd.Flags().String("list", "", "log list: a `FILE` or an https URL")
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		sources := len(args)
		for _, s := range []string{*file, *list} {
			if s != "" {
				sources++
			}
		}
		if sources != 1 {
			return cli.Usagef("want one verifier key or invitation, or --file, or --list")
		}
		if *another && len(args) == 0 {
			return cli.Usagef("--another-key goes with one log, on the command line: a list adds no key to a log that is known")
		}
		if err := checkURL(*at); err != nil {
			return cli.Usage(err)
		}
		candidates, notes, err := readCandidates(cmd.Context(), args, *file, *list)
		if err != nil {
			return err
		}
		if *origin != "" {
			if len(candidates) != 1 {
				return cli.Usagef("--origin goes with one log")
			}
			candidates[0].origin = *origin
		}
		d, err := witness.OpenDir(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		if r, err := d.Store.Retirement(cmd.Context()); err != nil {
			return err
		} else if r != nil {
			return cli.Exit(cli.Refused, fmt.Errorf("this witness has retired at %s: begin a new one, with a new name, in a new directory", r.Time.Format(time.RFC3339)))
		}
		a := adding{d: d, out: cmd.OutOrStdout(), another: *another, many: *file != "" || *list != ""}
		for _, n := range notes {
			fmt.Fprintln(a.out, "Left out, "+shown(n))
		}
		a.broken = len(notes)
		if err := a.consider(cmd.Context(), candidates); err != nil {
			return err
		}
		if len(a.fresh) == 0 {
			return a.end()
		}
		if !*yes {
			fmt.Fprint(a.out, "\nAre these the fingerprints that the logs' operators gave you, by another way? [y/N] ")
			answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 100)).ReadString('\n')
			if err != nil && err != io.EOF {
				return fmt.Errorf("reading the answer: %w", err)
			}
			if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
				return cli.Exit(cli.Refused, errors.New("not added: nobody said yes (--yes answers for you)"))
			}
		}
		for _, c := range a.fresh {
			if _, err := d.Store.AddLog(cmd.Context(), c.origin, c.keys); err != nil {
				return cli.Exit(cli.Refused, err)
			}
			fmt.Fprintf(a.out, "Added. This witness cosigns for %s from now on.\n", shown(c.origin))
		}
		fmt.Fprintf(a.out, "\nFor the policy of the log, and of those who read it:\n")
		for _, line := range policyLines(d.Keys(), *at) {
			fmt.Fprintf(a.out, "  %s\n", line)
		}
		return a.end()
	}
	return cmd
}

// candidate is a log that may be added.
type candidate struct {
	origin string
	keys   []*c2sp.Key
	invite *c2sp.Invite // nil: a key alone
}

// maxList is the most bytes of a file or list of logs.
const maxList = 16 << 20

// readCandidates reads logs from where they come; notes are about those left out.
func readCandidates(ctx context.Context, args []string, file, list string) (all []candidate, notes []string, err error) {
	switch {
	case list != "":
		raw, err := readList(ctx, list)
		if err != nil {
			return nil, nil, fmt.Errorf("log list %s: %w", list, err)
		}
		logs, skipped, err := c2sp.ParseLogList(raw)
		if err != nil {
			return nil, nil, cli.Exit(cli.Refused, fmt.Errorf("%s: %w", list, err))
		}
		for _, l := range logs {
			all = append(all, candidate{origin: l.Origin, keys: []*c2sp.Key{l.Key}})
		}
		return all, skipped, nil
	case file != "":
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		for n, line := range strings.Split(string(raw), "\n") {
			if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			c, err := readCandidate(line)
			if err != nil {
				return nil, nil, cli.Usagef("%s, line %d: %w", file, n+1, err)
			}
			all = append(all, c)
		}
		return all, nil, nil
	}
	c, err := readCandidate(args[0])
	if err != nil {
		return nil, nil, cli.Usage(err)
	}
	return []candidate{c}, nil, nil
}

func readCandidate(line string) (candidate, error) {
	if c2sp.IsInvite(line) {
		i, err := c2sp.ParseInvite(strings.TrimSpace(line))
		if err != nil {
			return candidate{}, err
		}
		return candidate{i.Keys[0].Name(), i.Keys, i}, nil
	}
	k, err := c2sp.ParseVKey(line)
	if err != nil {
		return candidate{}, fmt.Errorf("%w: a log's verifier key looks like name+12345678+base64", err)
	}
	return candidate{origin: k.Name(), keys: []*c2sp.Key{k}}, nil
}

// readList reads a log list from a file, or over https, in 30 s. A redirect is not
// followed: the list is what the URL that was given says.
func readList(ctx context.Context, from string) ([]byte, error) {
	if !strings.Contains(from, "://") {
		return os.ReadFile(from)
	}
	u, err := url.Parse(from)
	if err != nil || u.Scheme != "https" {
		return nil, errors.New("want a file or an https URL")
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	web := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := web.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answered %s", res.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxList+1))
	if err == nil && len(raw) > maxList {
		err = fmt.Errorf("more than %d bytes", maxList)
	}
	return raw, err
}

// adding sorts candidates into new ones, which are shown, known ones, and those
// that contradict what is known, which are reported and never taken.
type adding struct {
	d             *witness.Dir
	out           io.Writer
	another, many bool
	fresh         []candidate
	known         int
	contradicts   int
	broken        int // lines of a list that were left out
}

func (a *adding) consider(ctx context.Context, candidates []candidate) error {
	for _, c := range candidates {
		known, err := a.d.Store.Log(ctx, c.origin)
		var unknown *witness.UnknownLogError
		switch {
		case errors.As(err, &unknown):
			known = &witness.Log{}
			// A list speaks for nobody: what it says twice it must say alike.
			if i := slices.IndexFunc(a.fresh, func(f candidate) bool { return f.origin == c.origin }); i >= 0 {
				known.Keys = a.fresh[i].keys
			}
		case err != nil:
			return err
		}
		c.keys = slices.DeleteFunc(slices.Clone(c.keys), func(k *c2sp.Key) bool {
			return slices.ContainsFunc(known.Keys, func(have *c2sp.Key) bool { return have.String() == k.String() })
		})
		switch {
		case len(c.keys) == 0:
			a.known++
			if !a.many {
				fmt.Fprintf(a.out, "%s is known already, with this key: nothing to do.\n", shown(c.origin))
			}
			continue
		case len(known.Keys) > 0 && !a.another && !a.many:
			return cli.Exit(cli.Refused, fmt.Errorf("log %s is known already, with another key (fingerprint %s): if its operator says that this one is good too, give --another-key",
				shown(c.origin), fingerprint(known.Keys[0])))
		case len(known.Keys) > 0 && !a.another:
			a.contradicts++
			fmt.Fprintf(a.out, "NOT added: %s is known with another key.\n  known:   %s\n  offered: %s\n", shown(c.origin), fingerprint(known.Keys[0]), fingerprint(c.keys[0]))
			continue
		}
		fmt.Fprintf(a.out, "Log:          %s\n", shown(c.origin))
		for _, k := range c.keys {
			fmt.Fprintf(a.out, "Key:          %s, ID %08x\nFingerprint:  %s\n", k.Alg(), k.ID(), fingerprint(k))
		}
		for _, k := range known.Keys {
			fmt.Fprintf(a.out, "Trusted too:  %s\n", fingerprint(k))
		}
		if c.invite != nil {
			a.showInvite(c.invite)
		}
		a.fresh = append(a.fresh, c)
	}
	return nil
}

// showInvite shows what an invitation says beside the keys. ParseInvite has
// verified the checkpoint.
func (a *adding) showInvite(i *c2sp.Invite) {
	if i.URL != "" {
		fmt.Fprintf(a.out, "Read at:      %s\n", shown(i.URL))
	}
	if i.Checkpoint == nil {
		fmt.Fprintln(a.out, "Checkpoint:   none yet")
		return
	}
	note, err := c2sp.ParseNote(i.Checkpoint)
	if err != nil {
		return
	}
	if cp, err := c2sp.ParseCheckpoint(note.Text); err == nil {
		fmt.Fprintf(a.out, "Checkpoint:   %d entries, root %x, signed by the key above\n", cp.Size, cp.Root)
	}
}

// end sums up; a list that contradicts what is known is no success.
func (a *adding) end() error {
	if a.many {
		fmt.Fprintf(a.out, "%d added, %d known already, %d not added since they are known with another key.\n", len(a.fresh), a.known, a.contradicts)
	}
	if a.many && a.broken > 0 && len(a.fresh)+a.known+a.contradicts == 0 {
		return cli.Exit(cli.Refused, fmt.Errorf("no line of the list could be read (%d were left out): nothing was added", a.broken))
	}
	if a.contradicts > 0 {
		return cli.Exit(cli.Refused, errors.New("keys of logs that are known were not changed: ask those logs' operators, then add each with --another-key"))
	}
	return nil
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
				fmt.Fprintf(out, "  FORK  this log has signed two histories, first seen %s at size %d; the evidence is published at /evidence/\n",
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
