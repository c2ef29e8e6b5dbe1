package main

// retire: the end of a witness, told to those who count on it.

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/witness"
	"github.com/spf13/cobra"
)

func retireCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retire --dir DIRECTORY --reason TEXT --out FILE",
		Short: "End this witness, for ever, and write down what it cosigned last",
		Long: `retire ends a witness: because you stop, because its key may have been stolen, or
because another takes its place. It writes a statement to FILE with the notice and,
for each log, the checkpoint cosigned last. From then on the witness signs nothing
more, whoever asks; there is no way back.

Stop the witness first. Afterwards serve goes on without its keys, if you like: it
answers 410 with the reason, and serves the statement (/retirement), the last
checkpoints and the evidence. Send the statement to the operators of the logs and
publish it; policies must then do without this witness, or take its successor.

It works without the key, too: a lost one is retired in the same way. Run a second
time it writes the same statement again, to another FILE.`,
		Example: `  portbook-witness retire --dir /var/lib/portbook-witness --mark /other/disk/w1.mark \
      --reason 'moved to witness.example/w2' --out retired.txt`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	mark := markFlag(cmd)
	reason := cmd.Flags().String("reason", "", "`TEXT` for everybody, one line: why, and who takes over")
	file := cmd.Flags().String("out", "", "`FILE` for the statement; it must not be there yet")
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cli.Require(cmd, "reason", "out")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := witness.OpenStoreOf(*dir) // no key is needed
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer s.Close()
		if err := s.UseMark(cmd.Context(), markPath(*mark, *dir)); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		was, err := s.Retirement(cmd.Context())
		if err != nil {
			return err
		}
		logs, err := s.Logs(cmd.Context())
		if err != nil {
			return err
		}
		f, err := os.OpenFile(*file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		written := false
		defer func() {
			f.Close()
			if !written {
				os.Remove(*file)
			}
		}()
		out := cmd.OutOrStdout()
		if was == nil && !*yes {
			fmt.Fprintf(out, "%s ends, for ever, for all its logs (%d). There is no way back. Sure? [y/N] ", s.Name(), len(logs))
			answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 100)).ReadString('\n')
			if err != nil && err != io.EOF {
				return fmt.Errorf("reading the answer: %w", err)
			}
			if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
				return cli.Exit(cli.Refused, errors.New("not retired: nobody said yes (--yes answers for you)"))
			}
		}
		r, err := s.Retire(cmd.Context(), *reason, time.Now())
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		var text bytes.Buffer
		err = s.WriteStatement(cmd.Context(), &text)
		if err == nil {
			_, err = f.Write(text.Bytes())
			err = errors.Join(err, f.Sync())
		}
		if err != nil {
			return fmt.Errorf("the witness has retired, but its statement could not be written; run retire again: %w", err)
		}
		written = true
		if was != nil {
			fmt.Fprintf(out, "It had retired at %s already: %s\n", was.Time.Format(time.RFC3339), shown(was.Reason))
		} else {
			fmt.Fprintf(out, "Retired at %s. It signs nothing any more.\n", r.Time.Format(time.RFC3339))
		}
		fmt.Fprintf(out, `Statement:  %[1]s

Next:
  - send %[1]s to the operators of its logs and to whoever has it in a policy, and publish it
  - leave serve running as long as you can: it answers with the reason, and needs no keys
  - destroy the keys: shred -u %[2]s %[3]s
`, *file, filepath.Join(*dir, witness.KeyFile), filepath.Join(*dir, witness.MLDSAKeyFile))
		return nil
	}
	return cmd
}
