package main

// mark: the file by which the witness knows an old copy of its database.

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/witness"
	"github.com/spf13/cobra"
)

func markFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("mark", "", "`FILE` of the high-water mark, on another file system than the directory; default: "+witness.MarkFile+" in the directory, which serve takes only with --mark-beside")
}

func markPath(mark, dir string) string {
	if mark == "" {
		return filepath.Join(dir, witness.MarkFile)
	}
	return mark
}

func markCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mark --dir DIRECTORY --mark FILE",
		Short: "Make a new high-water mark for a witness whose mark was lost, or that has none",
		Long: `mark makes a new mark that says what the database says now. With it you vouch
that this database is the newest: that it is no copy from a backup or snapshot,
and that no other copy of this witness ever ran. If you are not sure, this
witness has ended: begin a new one, with a new name.

Stop the witness first. An old mark is not replaced: choose another path.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	mark := markFlag(cmd)
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := witness.OpenDir(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		n, err := d.Store.Generation(cmd.Context())
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if !*yes {
			fmt.Fprintf(out, "This database has been written %d times.\nIs it surely the newest, and no copy from a backup or snapshot? [y/N] ", n)
			answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 100)).ReadString('\n')
			if err != nil && err != io.EOF {
				return fmt.Errorf("reading the answer: %w", err)
			}
			if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
				return cli.Exit(cli.Refused, errors.New("no mark made: nobody said yes (--yes answers for you)"))
			}
		}
		if err := d.Store.CreateMark(cmd.Context(), markPath(*mark, *dir)); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		fmt.Fprintf(out, "Made the mark %s.\n", markPath(*mark, *dir))
		return nil
	}
	return cmd
}
