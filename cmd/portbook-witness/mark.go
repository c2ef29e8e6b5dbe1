package main

// mark: the file by which the witness knows an old copy of its database; instances:
// who has one.

import (
	"bufio"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/witness"
	"github.com/spf13/cobra"
)

// askedYes returns nil if the answer is yes; otherwise is what did not happen.
func askedYes(in io.Reader, otherwise string) error {
	answer, err := bufio.NewReader(io.LimitReader(in, 100)).ReadString('\n')
	if err != nil && err != io.EOF {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return cli.Exit(cli.Refused, fmt.Errorf("%s: nobody said yes (--yes answers for you)", otherwise))
	}
	return nil
}

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

Stop the witness first. An old mark is not replaced: choose another path.

With the state in PostgreSQL, each instance has a mark, and a new mark is a new
instance: run this once on each machine. Nothing has to be stopped, and each of
the others has to be there for a second, to know of it. An instance whose mark was
lost gets a new one; take the old one out with portbook-witness instances --forget.`,
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
			if err := askedYes(cmd.InOrStdin(), "no mark made"); err != nil {
				return err
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

func instancesCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "instances --dir DIRECTORY",
		Short: "List who serves a witness on PostgreSQL, or take one out",
		Long: `instances lists the instances of a witness whose state is in PostgreSQL: their
names, their machines, and whether they have confirmed the database server. After
each start of that server every instance compares it with its mark, and until all
have, none signs.

--forget takes out an instance that will not come back, so that the others stop
waiting for it. With it you vouch that the database is the newest: that it was not
restored from a backup, and is no standby that had not received everything.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	forget := cmd.Flags().String("forget", "", "take out the instance with this `NAME`")
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := witness.OpenDir(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		out := cmd.OutOrStdout()
		if *forget != "" {
			if !*yes {
				fmt.Fprintf(out, "Is the database surely the newest, and %s gone for good? [y/N] ", shown(*forget))
				if err := askedYes(cmd.InOrStdin(), "nothing taken out"); err != nil {
					return err
				}
			}
			if err := d.Store.ForgetInstance(cmd.Context(), *forget); err != nil {
				return cli.Exit(cli.Refused, err)
			}
			fmt.Fprintf(out, "Took out %s.\n", shown(*forget))
			return nil
		}
		if !d.Store.Shared() {
			fmt.Fprintln(out, "One instance: the state is in SQLite.")
			return nil
		}
		list, err := d.Store.Instances(cmd.Context())
		if err != nil {
			return err
		}
		for _, i := range list {
			state := "confirmed"
			if !i.Confirmed {
				state = "NOT confirmed since the database server started: start it"
			}
			fmt.Fprintf(out, "%s  %s  %s\n", i.ID, shown(i.Host), state)
		}
		return nil
	}
	return cmd
}
