package main

// init: a monitor's memory comes into being here and nowhere else.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/monitor"
	"github.com/spf13/cobra"
)

type opened struct {
	policy *c2sp.Policy
	origin string
	reader *client.Reader
}

func initCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init --db FILE --log-url URL --policy FILE",
		Short: "Begin to watch a log: make the database",
		Long: `init makes the database. It is a command of its own because beginning again means
to forget what the log showed before: serve never does that by itself.

What is in the log already is history: it is read, verified, indexed and searched
for tampering, but nobody is alerted to old uploads. With --from-start they are
alerted to all of it.`,
		Args: cobra.NoArgs,
	}
	l := addLogFlags(cmd)
	fromStart := cmd.Flags().Bool("from-start", false, "alert to what is in the log already, too; the log need not be reachable then")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := l.open()
		if err != nil {
			return err
		}
		size, err := begin(cmd.Context(), *l.db, o, *fromStart)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: watching %s; alerts begin at entry %d\n", *l.db, o.origin, size)
		return nil
	}
	return cmd
}

// begin makes the database and returns the index at which alerts begin.
func begin(ctx context.Context, db string, o *opened, fromStart bool) (uint64, error) {
	var size uint64
	if !fromStart {
		v, _, err := monitor.Head(ctx, o.reader, o.policy, o.origin)
		if err != nil {
			if errors.Is(err, c2sp.ErrBadSignature) || errors.Is(err, c2sp.ErrNoLogSignature) {
				return 0, cli.Exit(cli.Refused, fmt.Errorf("the log's checkpoint: %w", err))
			}
			return 0, fmt.Errorf("where the log stands now cannot be seen, so it cannot be said where alerts begin (--from-start does not need it): %w", err)
		}
		size = v.Size
	}
	if err := monitor.Begin(ctx, db, o.origin, size); errors.Is(err, fs.ErrExist) {
		return 0, cli.Usage(err)
	} else if err != nil {
		return 0, err
	}
	return size, nil
}
