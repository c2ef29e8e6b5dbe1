package main

// policy: what a policy file says, in words.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/internal/cli"
	"github.com/spf13/cobra"
	"golang.org/x/net/publicsuffix"
)

// defaultPolicy is portbook/policy in the user's configuration directory.
func defaultPolicy() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("--policy FILE is needed: %w", err)
	}
	file := filepath.Join(dir, "portbook", "policy")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("--policy FILE is needed: it says which logs and witnesses to believe (there is none at %s)", show(file))
	}
	return file, nil
}

func policyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check a policy, or show what is in it",
		Long: `A policy says which logs you believe, and which witnesses must have confirmed
what a log shows (c2sp.org/tlog-policy). docs/policy.md tells how to write one.`,
	}
	cmd.AddCommand(policyCheckCmd(), policyShowCmd())
	return cmd
}

func policyCheckCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say in words what a policy trusts, and warn about what was hardly meant",
		Long: `check reads a policy strictly and says what follows from it: how many witnesses
may fail before nothing verifies, how many must collude before you can be lied
to, and which of them seem to be run by the same people. Operators are told
apart by the domain in their keys' names; that is a guess to be checked.

Exit codes: 0 the policy can be used, 1 it cannot (or --strict, and there is a
warning), 2 usage, 3 the file cannot be read.`,
		Example: `  portbook policy check policy`,
		Args:    cobra.ExactArgs(1),
	}
	strict := cmd.Flags().Bool("strict", false, "let a warning count as a refusal (exit code 1)")
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object with file, usable, line, error, says, warnings, operators")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := client.ReadPolicy(args[0])
		r := policyResult{File: args[0], Usable: err == nil, Says: []string{}, Warnings: []string{}}
		var bad *c2sp.PolicyError
		switch {
		case errors.As(err, &bad):
			r.Line, r.Error = bad.Line, bad.Reason
		case err != nil:
			return err
		default:
			r.Operators = operators(p)
			for _, s := range append(p.Explain(), explainOperators(p, r.Operators)...) {
				if w, ok := strings.CutPrefix(s, "Warning: "); ok {
					r.Warnings = append(r.Warnings, w)
				} else {
					r.Says = append(r.Says, s)
				}
			}
		}
		if *asJSON {
			if err := writeJSON(cmd.OutOrStdout(), r); err != nil {
				return err
			}
		} else {
			r.print(cmd.OutOrStdout())
		}
		if !r.Usable || *strict && len(r.Warnings) > 0 {
			return cli.Exit(cli.Refused, nil)
		}
		return nil
	}
	return cmd
}

type policyResult struct {
	File      string     `json:"file"`
	Usable    bool       `json:"usable"`
	Line      int        `json:"line,omitempty"` // where it cannot be used; counted from 1
	Error     string     `json:"error,omitempty"`
	Says      []string   `json:"says"`
	Warnings  []string   `json:"warnings"`
	Operators []operator `json:"operators,omitempty"`
}

func (r *policyResult) print(out io.Writer) {
	switch {
	case r.Line > 0:
		fmt.Fprintf(out, "%s, line %d: %s\n", show(r.File), r.Line, ascii(r.Error))
		return
	case !r.Usable:
		fmt.Fprintf(out, "%s: %s\n", show(r.File), ascii(r.Error))
		return
	}
	fmt.Fprintf(out, "%s can be used.\n\n", show(r.File))
	for _, s := range r.Says {
		fmt.Fprintln(out, hang("- ", ascii(s)))
	}
	if len(r.Warnings) > 0 {
		fmt.Fprintln(out)
	}
	for _, s := range r.Warnings {
		fmt.Fprintln(out, hang("WARNING ", ascii(s)))
	}
}

// hang wraps s with a first prefix and indents what follows.
func hang(prefix, s string) string {
	lines := strings.TrimSuffix(wrap(s, 80-len(prefix)), "\n")
	return prefix + strings.ReplaceAll(lines, "\n", "\n"+strings.Repeat(" ", len(prefix)))
}

// An operator is who seems to run some of a policy's keys, by the domain in
// their names.
type operator struct {
	Domain    string   `json:"domain"`
	Witnesses []string `json:"witnesses,omitempty"` // names in the policy
	Logs      []string `json:"logs,omitempty"`      // origins
}

// operators groups the keys of p by the registrable domain of their names.
func operators(p *c2sp.Policy) []operator {
	var list []operator
	of := func(name string) *operator {
		d := domain(name)
		i := slices.IndexFunc(list, func(o operator) bool { return o.Domain == d })
		if i < 0 {
			list = append(list, operator{Domain: d})
			i = len(list) - 1
		}
		return &list[i]
	}
	for _, l := range p.Logs {
		if o := of(l.Key.Name()); !slices.Contains(o.Logs, l.Key.Name()) {
			o.Logs = append(o.Logs, l.Key.Name())
		}
	}
	for _, w := range p.Witnesses {
		o := of(w.Key.Name())
		o.Witnesses = append(o.Witnesses, w.Name)
	}
	return list
}

// domain is the part of a key's name that somebody had to register; the first
// part of the name where there is none.
func domain(name string) string {
	host, _, _ := strings.Cut(name, "/")
	host, _, _ = strings.Cut(strings.ToLower(host), ":")
	if d, err := publicsuffix.EffectiveTLDPlusOne(host); err == nil {
		return d
	}
	return host
}

// maxOperators bounds the search through sets of operators.
const maxOperators = 12

// explainOperators says what c2sp.Policy.Explain, which counts keys, cannot.
func explainOperators(p *c2sp.Policy, list []operator) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	var witnessing []operator
	for _, o := range list {
		if len(o.Witnesses) > 1 {
			say("The witnesses %s seem to be run by one operator, %s.", showAll(o.Witnesses), show(o.Domain))
		}
		if len(o.Witnesses) > 0 && len(o.Logs) > 0 {
			say("Warning: %s seems to be run by the operator of the log %s, %s. It protects against an accident there, not against that operator.",
				showAll(o.Witnesses), showAll(o.Logs), show(o.Domain))
		}
		if len(o.Witnesses) > 0 {
			witnessing = append(witnessing, o)
		}
	}
	if p.Quorum == c2sp.QuorumNone || len(witnessing) == len(p.Witnesses) || len(witnessing) > maxOperators {
		return out // nothing that counting keys did not say
	}
	act, lie := countOperators(p, witnessing)
	switch {
	case act == 1:
		say("Warning: one operator alone can satisfy the quorum. Put each operator's keys in a group of its own and count groups: docs/policy.md.")
	case act > 1:
		say("Counted in operators rather than keys: %d must act together to satisfy the quorum, and %d must lie for two histories if all keys of an operator share one memory of what they cosigned.", act, lie)
	}
	return out
}

// countOperators returns how many operators it takes to satisfy the quorum, and
// how many any two ways of doing so share; 0, 0 if nothing satisfies it.
func countOperators(p *c2sp.Policy, list []operator) (act, lie int) {
	satisfied := func(set int) bool {
		names := map[string]bool{}
		for i, o := range list {
			if set>>i&1 == 1 {
				for _, w := range o.Witnesses {
					names[w] = true
				}
			}
		}
		return p.Satisfied(names)
	}
	var least []int // sets from which nobody can be left out
sets:
	for set := range 1 << len(list) {
		if !satisfied(set) {
			continue
		}
		for i := range list {
			if set>>i&1 == 1 && satisfied(set&^(1<<i)) {
				continue sets
			}
		}
		least = append(least, set)
	}
	if len(least) == 0 {
		return 0, 0
	}
	act, lie = len(list), len(list)
	for _, a := range least {
		act = min(act, bits.OnesCount(uint(a)))
		for _, b := range least {
			lie = min(lie, bits.OnesCount(uint(a&b)))
		}
	}
	return act, lie
}

func policyShowCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show FILE",
		Short:   "List the logs, witnesses and groups of a policy",
		Example: `  portbook policy show policy`,
		Args:    cobra.ExactArgs(1),
	}
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object with logs, witnesses, groups, quorum")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := client.ReadPolicy(args[0])
		var bad *c2sp.PolicyError
		if errors.As(err, &bad) {
			return cli.Exit(cli.Refused, err)
		} else if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), policyContents(p))
		}
		return printPolicy(cmd.OutOrStdout(), p)
	}
	return cmd
}

type policyKey struct {
	Name string `json:"name"` // in the policy: a log's origin, a witness's local name
	Key  string `json:"key"`  // vkey
	Alg  string `json:"alg"`
	URL  string `json:"url,omitempty"`
}

type policyGroup struct {
	Name    string   `json:"name"`
	Need    int      `json:"need"`
	Members []string `json:"members"`
}

type policyShown struct {
	Logs      []policyKey   `json:"logs"`
	Witnesses []policyKey   `json:"witnesses"`
	Groups    []policyGroup `json:"groups"`
	Quorum    string        `json:"quorum"`
}

func policyContents(p *c2sp.Policy) policyShown {
	s := policyShown{Logs: []policyKey{}, Witnesses: []policyKey{}, Groups: []policyGroup{}, Quorum: p.Quorum}
	for _, l := range p.Logs {
		s.Logs = append(s.Logs, policyKey{l.Key.Name(), l.Key.String(), l.Key.Alg().String(), l.URL})
	}
	for _, w := range p.Witnesses {
		s.Witnesses = append(s.Witnesses, policyKey{w.Name, w.Key.String(), w.Key.Alg().String(), w.URL})
	}
	for _, g := range p.Groups {
		s.Groups = append(s.Groups, policyGroup{g.Name, g.K, g.Members})
	}
	return s
}

func printPolicy(out io.Writer, p *c2sp.Policy) error {
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tNAME\tKEY NAME\tKEY ID\tTYPE\tURL")
	row := func(what, name string, k *c2sp.Key, url string) {
		if url == "" {
			url = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%08x\t%s\t%s\n", what, show(name), show(k.Name()), k.ID(), k.Alg(), show(url))
	}
	for _, l := range p.Logs {
		row("log", l.Key.Name(), l.Key, l.URL)
	}
	for _, w := range p.Witnesses {
		row("witness", w.Name, w.Key, w.URL)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, g := range p.Groups {
		fmt.Fprintf(out, "group %s: %d of %s\n", show(g.Name), g.K, showAll(g.Members))
	}
	_, err := fmt.Fprintf(out, "quorum: %s\n", show(p.Quorum))
	return err
}
