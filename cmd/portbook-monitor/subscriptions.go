package main

// subscriptions check: what would be watched, in words, before it is.

import (
	"fmt"
	"io"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/spf13/cobra"
)

func subscriptionsCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "subscriptions", Short: "Look at a subscriptions file"}
	cmd.AddCommand(checkCmd())
	return cmd
}

func checkCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a subscriptions file and say in words what it means",
		Long: `check reads a subscriptions file as serve would and says what it means. With
--db it also says how many entries of each project the monitor has seen: a
subscription that matches nothing looks like one to which nothing happens.`,
		Example: "  portbook-monitor subscriptions check subscriptions.yaml --db monitor.db",
		Args:    cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	db := f.String("db", "", "database `FILE`, to count what each project has in it")
	origin := f.String("origin", "", "`NAME` of the log, with --db")
	private := f.Bool("allow-private-webhooks", false, "as for serve")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := monitor.LoadSubscriptions(args[0])
		if err != nil {
			return cli.Usage(err)
		}
		if err := s.CheckTargets(*private); err != nil {
			return cli.Usage(err)
		}
		var store *monitor.Store
		if *db != "" {
			if *origin == "" {
				return cli.Usagef("--db needs --origin, the name of the log in it")
			}
			if store, err = monitor.OpenStore(cmd.Context(), *db, nil); err != nil {
				return cli.Usage(err)
			}
			defer store.Close()
		}
		w := cmd.OutOrStdout()
		if len(s.Operator.Notify) == 0 {
			fmt.Fprintln(w, "note: operator.notify is empty: nobody is told when an alert cannot be delivered")
		}
		for _, sub := range s.List {
			fmt.Fprintf(w, "%s\n", sub.Name)
			for _, p := range sub.Projects {
				fmt.Fprintf(w, "  watches   %s", p)
				if store != nil {
					list, err := store.Timeline(cmd.Context(), *origin, p, 1<<62, 1000)
					if err != nil {
						return err
					}
					switch n := len(list); n {
					case 0:
						fmt.Fprint(w, ": NO ENTRY SEEN; is the name right?")
					case 1000:
						fmt.Fprint(w, ": 1000 entries or more")
					default:
						fmt.Fprintf(w, ": %d entries", n)
					}
				}
				fmt.Fprintln(w)
			}
			expects(w, sub.Expect)
			for _, t := range sub.Notify {
				who := t.Email
				if who == "" {
					who = "webhook " + t.Webhook
				}
				fmt.Fprintf(w, "  tells     %s", alert.OneLine(who))
				if len(t.Only) > 0 {
					fmt.Fprintf(w, ", only %v", t.Only)
				}
				fmt.Fprintln(w)
			}
		}
		fmt.Fprintf(w, "%d subscriptions, %d projects, %d mail addresses, %d webhooks: ok\n", len(s.List), s.Projects(), s.Targets(alert.Email), s.Targets(alert.Webhook))
		return nil
	}
	return cmd
}

func expects(w io.Writer, x monitor.Expect) {
	switch {
	case x.Uploads == "none":
		fmt.Fprintln(w, "  expects   no uploads at all; every one is told")
	case x.Uploads == "any":
		fmt.Fprintln(w, "  expects   any upload; none is told")
	case len(x.Publishers) == 0:
		fmt.Fprintln(w, "  expects   no publisher in particular; every upload is told")
	}
	for _, p := range x.Publishers {
		fmt.Fprintf(w, "  expects   uploads by %s\n", alert.OneLine(p.String()))
	}
	for _, k := range x.Changes {
		fmt.Fprintf(w, "  expects   %s\n", k)
	}
}
