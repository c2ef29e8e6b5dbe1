// Command portbook-monitor watches a log for maintainers: it verifies every
// entry, and tells them what was uploaded in their name that they did not
// expect.
package main

import (
	"net/http"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/monitor"
	"github.com/spf13/cobra"
)

func main() { cli.Main(rootCmd()) }

func rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "portbook-monitor",
		Short: "Watch a transparency log of package uploads, and tell maintainers what they did not expect",
		Long: `portbook-monitor reads every entry of a log, checks that it is in the history that
the log's witnesses cosigned, and compares it with what maintainers said they
expect. What nobody expected is told by mail and webhook, with a proof.

Three commands to begin:

  portbook-monitor subscriptions check subscriptions.yaml
  portbook-monitor init  --db monitor.db --log-url https://log.example.org --policy policy.txt
  portbook-monitor serve --db monitor.db --log-url https://log.example.org --policy policy.txt \
      --subscriptions subscriptions.yaml --smtp mail.example.org:587 --smtp-from monitor@example.org

Exit codes: 0 done, 1 refused (the log contradicts what it showed before),
2 usage or configuration, 3 cannot check (network, disk).`,
	}
	root.AddCommand(initCmd(), serveCmd(), subscriptionsCmd())
	return root
}

// logFlags are the flags that say which log is watched, and what is believed of it.
type logFlags struct {
	db, url, token, policy, origin *string
}

func addLogFlags(cmd *cobra.Command) logFlags {
	f := cmd.Flags()
	l := logFlags{
		db:     f.String("db", "", "database `FILE` (SQLite): what the monitor saw and what it owes"),
		url:    f.String("log-url", "", "`URL` of the log: the prefix of /checkpoint and /tile/"),
		token:  f.String("log-token-file", "", cli.LogTokenUsage),
		policy: f.String("policy", "", "policy `FILE` (c2sp.org/tlog-policy): the log's key, its witnesses and the quorum to believe"),
		origin: f.String("origin", "", "`NAME` of the log to watch, if the policy names several"),
	}
	cli.Require(cmd, "db", "log-url", "policy")
	return l
}

// open reads the policy and makes a reader of the log; all its errors are usage.
func (l logFlags) open() (*opened, error) {
	p, err := client.ReadPolicy(*l.policy)
	if err != nil {
		return nil, cli.Usage(err)
	}
	origin, err := monitor.OriginOf(p, *l.origin)
	if err != nil {
		return nil, cli.Usage(err)
	}
	token, err := cli.LogToken(*l.token)
	if err != nil {
		return nil, err
	}
	var hc *http.Client
	if token != "" {
		t, err := client.ReadToken(*l.url, token, nil)
		if err != nil {
			return nil, cli.Usagef("--log-url: %w", err)
		}
		hc = &http.Client{Transport: t}
	}
	r, err := client.NewReader(*l.url, hc)
	if err != nil {
		return nil, cli.Usagef("--log-url: %w", err)
	}
	return &opened{policy: p, origin: origin, reader: r}, nil
}
