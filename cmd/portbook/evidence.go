package main

// evidence: judge a file that accuses a log.

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/internal/cli"
	"github.com/spf13/cobra"
)

func evidenceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "evidence",
		Short: "Check evidence that a log has shown two histories",
	}
	cmd.AddCommand(evidenceVerifyCmd())
	return cmd
}

func evidenceVerifyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify FILE {--policy POLICY | --log-key VKEY}",
		Short: "Check with public keys alone that a log misbehaved",
		Long: `verify reads an evidence file, as portbook writes one when a log shows it two
histories and as witnesses publish them at /evidence/, and checks with public
keys alone that the log signed both. It needs no network, and no trust in whoever
made the file: take the log's key from your policy or from the log's operator.
Comments in the file name keys too, but anyone can make a key and two trees for
it. Where a log and its successor contradict each other, it proves that one of
the two lied, and not which.

Exit codes: 0 the evidence proves that the log misbehaved, 1 it proves nothing,
2 usage, 3 the file cannot be read.`,
		Example: `  portbook evidence verify portbook-evidence-8c1f.txt --policy policy
  portbook evidence verify 7.txt --log-key log.example/l+1234abcd+AbCd...`,
		Args: cobra.ExactArgs(1),
	}
	policyFile := cmd.Flags().String("policy", "", "policy `FILE` with the log's public key")
	logKeys := cmd.Flags().StringArray("log-key", nil, "public `KEY` of the log (verifier key), instead of a policy; may be repeated")
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object with file, proven, code, log, second_log, first_size, second_size, witnesses, reason")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := evidencePolicy(*policyFile, *logKeys)
		if err != nil {
			return cli.Usage(err)
		}
		b, err := readFile(args[0], client.MaxEvidence)
		if err != nil {
			return err
		}
		var r evidenceResult
		r.File = args[0]
		e, err := client.ParseEvidence(b)
		var m *client.Misbehaviour
		if err == nil {
			m, err = e.Verify(p)
		}
		if err != nil {
			r.Reason = err.Error()
		} else {
			r.Proven, r.Code, r.Log, r.Witnesses = true, m.Code, m.First.Origin, m.Witnesses
			r.FirstSize = m.First.Size
			if m.Second != nil {
				r.SecondSize = m.Second.Size
				if m.Second.Origin != r.Log {
					r.SecondLog = m.Second.Origin
				}
			}
		}
		out := cmd.OutOrStdout()
		switch {
		case *asJSON:
			if err := writeJSON(out, r); err != nil {
				return err
			}
		case r.Proven:
			fmt.Fprintf(out, "%s: proven\n\n", show(r.File))
			s, _ := explainCode(r.Code)
			s = fmt.Sprintf("%s, %s", show(r.Log), strings.ToLower(s[:1])+s[1:])
			if r.SecondLog != "" {
				s = fmt.Sprintf("%s and %s contradict each other: the first has ended and names the second as the log that takes over, and the second begins with something else. "+
					"One of them lied, or somebody else has its key; which of the two, this does not tell. Do not accuse one alone.", show(r.Log), show(r.SecondLog))
			}
			fmt.Fprint(out, wrap(s, 80))
			tree := func(what string, v *c2sp.Verified) {
				fmt.Fprintf(out, "  %-13s size %d, root %x\n  %-13s key %08x", what, v.Size, v.Root, "  signed by", v.LogKey.ID())
				if slices.ContainsFunc(p.Logs, func(l c2sp.PolicyLog) bool { return l.Retired && l.Key == v.LogKey }) {
					fmt.Fprint(out, ", which your policy calls retired: who has it now may not be the log")
				}
				fmt.Fprintln(out)
			}
			fmt.Fprintf(out, "\n  log           %s\n", show(r.Log))
			tree("first tree", m.First)
			if r.SecondLog != "" {
				fmt.Fprintf(out, "  second log    %s\n", show(r.SecondLog))
			}
			if m.Second != nil {
				tree("second tree", m.Second)
			}
			fmt.Fprintf(out, "  code          %s\n", r.Code)
			if len(r.Witnesses) > 0 {
				fmt.Fprintf(out, "  cosigned both %s\n", showAll(r.Witnesses))
			}
		default:
			fmt.Fprintf(out, "%s: proves nothing: %s\n", show(r.File), ascii(strings.TrimPrefix(r.Reason, "evidence: ")))
		}
		if !r.Proven {
			return cli.Exit(cli.Refused, nil)
		}
		return nil
	}
	return cmd
}

// evidencePolicy is whose signatures count: those of a policy's logs, or of keys.
func evidencePolicy(file string, keys []string) (*c2sp.Policy, error) {
	if (file == "") == (len(keys) == 0) {
		return nil, errors.New("want the log's public key: either --policy, or --log-key")
	}
	if file != "" {
		return client.ReadPolicy(file)
	}
	text := ""
	for _, k := range keys {
		if _, err := c2sp.ParseVKey(k); err != nil {
			return nil, fmt.Errorf("--log-key: %w", err)
		}
		text += "log " + k + "\n"
	}
	return c2sp.ParsePolicy([]byte(text + "quorum none\n"))
}

type evidenceResult struct {
	File       string   `json:"file"`
	Proven     bool     `json:"proven"`
	Code       string   `json:"code,omitempty"`
	Log        string   `json:"log,omitempty"`
	SecondLog  string   `json:"second_log,omitempty"` // if two logs contradict each other: one of them lied
	FirstSize  uint64   `json:"first_size,omitempty"`
	SecondSize uint64   `json:"second_size,omitempty"`
	Witnesses  []string `json:"witnesses,omitempty"` // cosigned both trees
	Reason     string   `json:"reason,omitempty"`    // why it proves nothing
}
