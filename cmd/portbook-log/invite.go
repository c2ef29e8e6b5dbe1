package main

// invite-witness: the one line that a witness's operator needs.

import (
	"fmt"
	"net/url"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

func inviteCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "invite-witness --dir DIRECTORY",
		Short: "Print the line with which a witness's operator adds this log",
		Long: `invite-witness prints one line with this log's keys, its URL and its newest
checkpoint. It is public: send it to the operator of a witness, and tell them the
fingerprint (portbook-log key show) by another way. They run

  portbook-witness add-log --dir DIRECTORY 'THE LINE'

which shows it, asks, and prints the lines for your policy in answer.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	at := cmd.Flags().String("url", "", "`URL` at which the log is read; default: https:// and the origin")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		id, err := logserver.ReadIdentity(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		if *at == "" {
			*at = "https://" + id.Origin
		}
		if u, err := url.Parse(*at); err != nil || u.Host == "" {
			return cli.Usagef("--url %s is not a URL", *at)
		}
		invite := &c2sp.Invite{URL: *at}
		for _, known := range id.Keys {
			if known.State == logserver.KeyRetired {
				continue
			}
			k, err := c2sp.ParseVKey(known.VKey)
			if err != nil {
				return cli.Exit(cli.Refused, err)
			}
			invite.Keys = append(invite.Keys, k)
		}
		if invite.Checkpoint, err = logserver.ReadPublished(*dir); err != nil {
			return err
		}
		line := invite.String()
		if _, err := c2sp.ParseInvite(line); err != nil { // as the witness will read it
			return cli.Exit(cli.Refused, err)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
		return err
	}
	return cmd
}
