package main

// token: who may submit what, and what becomes of a credential that leaked.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

func tokenCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Say who may submit: make, list, rotate and revoke credentials, and see what each logged; and who may read a private log",
		Long: `A credential lets its holder log entries for one registry, with one claim, of some
kinds. It is shown as a bearer token, of which the log stores a hash; or as a
workload token of an OIDC issuer (CI, cloud), or by a client certificate: then
nobody keeps a secret of the log's. A running server takes a change within a second.

When one has leaked:

  portbook-log token revoke --dir DIRECTORY ID
  portbook-log token entries --dir DIRECTORY ID
  portbook-log token dispute --dir DIRECTORY ID --log URL --token-file FILE --yes`,
	}
	cmd.AddCommand(tokenCreateCmd(), tokenListCmd(), tokenRotateCmd(), tokenRevokeCmd(), tokenConfirmCmd(), tokenEntriesCmd(), tokenDisputeCmd())
	return cmd
}

// credentialFlags say where the credentials are.
type credentialFlags struct{ placeFlags }

func credentialsIn(cmd *cobra.Command) credentialFlags { return credentialFlags{placeIn(cmd)} }

// open opens the credentials; the caller must call done.
func (f credentialFlags) open(ctx context.Context) (c *logserver.Credentials, done func(), err error) {
	switch shared, err := f.shared(); {
	case err != nil:
		return nil, nil, err
	case shared:
		return logserver.OpenSharedTokens(ctx, *f.database, time.Now)
	}
	if _, err := logserver.ReadIdentity(*f.dir); err != nil {
		return nil, nil, cli.Exit(cli.Refused, err)
	}
	c, err = logserver.OpenTokens(filepath.Join(*f.dir, logserver.TokensFile), time.Now)
	return c, func() {}, err
}

func tokenCreateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create --dir DIRECTORY --registry REGISTRY | --read",
		Short: "Make a credential; a bearer token is printed, once",
		Long: `create makes a bearer token and prints it: it is shown only now. With --oidc-issuer
or with --client-cert... it makes a credential without a secret instead.

A workload token must name the log in its audience, and no other; its subject must
fit --oidc-subject as a whole, where * stands for any characters but : and /, and
** for any at all; each --oidc-claim must be equal.

A client certificate must be signed by an authority of serve's --client-ca. Name
the certificate itself, or its authority and a name in it: dns:HOST, uri:URI or
subject:CN=...; * stands for one label, or one part of a URI.`,
		Example: `  portbook-log token create --dir DIRECTORY --registry index.example.org
  portbook-log token create --dir DIRECTORY --registry index.example.org \
      --oidc-issuer https://token.actions.githubusercontent.com --oidc-audience log.example.org/pypi \
      --oidc-subject repo:example/index:environment:release --oidc-claim repository_id=1234
  portbook-log token create --dir DIRECTORY --registry index.example.org \
      --client-cert-ca ca.pem --client-cert-name dns:uploader.example.org`,
		Args: cobra.NoArgs,
	}
	where := credentialsIn(cmd)
	f := cmd.Flags()
	registry := f.String("registry", "", "the only `REGISTRY` it may name: host[:port][/path]")
	claim := f.String("claim", string(entry.ClaimIndex), "`CLAIM`: index (the registry itself) or observed (a follower)")
	kinds := f.StringSlice("kinds", nil, "`KINDS` it may log, or all; default: upload and what undoes it (reject)")
	rate := f.Int("rate", 0, "entries a second, of the whole credential, over all frontends of a shared log; 0: no limit of its own")
	quota := f.Int("quota", 0, "new entries a day (UTC) for each project, over all frontends of a shared log and over restarts; 0: no limit")
	days := f.Int("days", 0, "ends after so many days; 0: never")
	note := f.String("note", "", "a `NOTE` for people")
	issuer := f.String("oidc-issuer", "", "workload tokens of this issuer (`URL`, exactly their iss)")
	audience := f.String("oidc-audience", "", "their only `AUDIENCE`; default: the log's origin")
	subject := f.String("oidc-subject", "", "`PATTERN` of their whole subject")
	claims := f.StringArray("oidc-claim", nil, "`NAME=VALUE` of a claim that must be equal: repository_id=1234; more than once for several")
	cert := f.String("client-cert", "", "`FILE` with the one client certificate (PEM) that it is for")
	certSum := f.String("client-cert-sha256", "", "or its SHA-256 (`HEX`)")
	ca := f.String("client-cert-ca", "", "`FILE` with the authority (PEM) that must have signed the client certificate")
	certName := f.String("client-cert-name", "", "`PATTERN` of a name in the client certificate: dns:HOST, uri:URI or subject:CN=...")
	read := f.Bool("read", false, "it reads a private log (serve --private) and logs nothing; without --registry, --claim, --kinds, --rate and --quota")
	asJSON := f.Bool("json", false, "print one JSON object instead of text")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t := logserver.Credential{Registry: *registry, Claim: entry.Claim(*claim), Rate: *rate, Quota: *quota, Note: *note}
		switch {
		case *rate < 0 || *quota < 0 || *days < 0:
			return cli.Usagef("--rate, --quota and --days cannot be negative")
		case *read:
			for _, name := range []string{"registry", "claim", "kinds", "rate", "quota"} {
				if cmd.Flags().Changed(name) {
					return cli.Usagef("--read: such a token logs nothing, so it has no --%s", name)
				}
			}
			t = logserver.Credential{Read: true, Note: *note}
		case *registry == "":
			return cli.Usagef("--registry is required, or --read (see portbook-log token create --help)")
		default:
			t.Kinds = kindsOf(*kinds, t.Claim)
		}
		if *days > 0 {
			t.Ends = time.Now().UTC().AddDate(0, 0, *days).Format(entry.TimeFormat)
		}
		var err error
		switch {
		case *issuer != "":
			if *audience == "" && *where.dir != "" {
				id, err := logserver.ReadIdentity(*where.dir)
				if err != nil {
					return cli.Exit(cli.Refused, err)
				}
				*audience = id.Origin
			}
			t.OIDC = &logserver.OIDCRule{Issuer: *issuer, Audience: *audience, Subject: *subject}
			if t.OIDC.Claims, err = claimsOf(*claims); err != nil {
				return cli.Usage(err)
			}
		case *audience != "" || *subject != "" || len(*claims) > 0:
			return cli.Usagef("--oidc-audience, --oidc-subject and --oidc-claim go with --oidc-issuer")
		}
		if *cert != "" || *certSum != "" || *ca != "" || *certName != "" {
			if t.Cert, err = certRule(*cert, *certSum, *ca, *certName); err != nil {
				return cli.Usage(err)
			}
		}
		if t.OIDC != nil && t.Cert != nil {
			return cli.Usagef("a credential is for workload tokens or for client certificates: make two")
		}
		creds, done, err := where.open(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		t, secret, err := creds.Create(t)
		if err != nil {
			return cli.Usagef("token: %w", err)
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
				ID    string `json:"id"`
				Token string `json:"token,omitempty"`
			}{t.ID, secret})
		}
		does := fmt.Sprintf("%s logs %s for %s, claim %s", t.ID, joinKinds(t.Kinds), t.Registry, t.Claim)
		if t.Read {
			does = t.ID + " reads this log, which must be served with --private"
		}
		if secret == "" {
			fmt.Fprintf(cmd.OutOrStdout(), "Credential %s, for %s.\n", does, shownBy(t))
			return nil
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "Token %s. It is shown only now:\n", does)
		fmt.Fprintln(cmd.OutOrStdout(), secret)
		return nil
	}
	return cmd
}

// kindsOf are the kinds that --kinds asks for.
func kindsOf(names []string, claim entry.Claim) []entry.Kind {
	switch {
	case len(names) == 0 && claim == entry.ClaimIndex:
		return []entry.Kind{entry.KindUpload, entry.KindReject}
	case len(names) == 0:
		return []entry.Kind{entry.KindUpload}
	}
	var kinds []entry.Kind
	if len(names) == 1 && names[0] == "all" {
		for _, k := range entry.Kinds() {
			if slices.Contains(k.Claims(), claim) {
				kinds = append(kinds, k)
			}
		}
		return kinds
	}
	for _, k := range names {
		kinds = append(kinds, entry.Kind(k))
	}
	return kinds
}

func claimsOf(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	claims := map[string]string{}
	for _, p := range pairs {
		name, value, ok := strings.Cut(p, "=")
		if _, twice := claims[name]; twice || !ok {
			return nil, fmt.Errorf("--oidc-claim %q: want NAME=VALUE, each name once", p)
		}
		claims[name] = value
	}
	return claims, nil
}

func certRule(cert, sum, ca, name string) (*logserver.CertRule, error) {
	one := func(path string) (string, error) {
		certs, err := logserver.ReadCertificates(path)
		if err != nil {
			return "", err
		}
		if len(certs) != 1 {
			return "", fmt.Errorf("%s holds %d certificates: want the one", path, len(certs))
		}
		return logserver.Fingerprint(certs[0]), nil
	}
	r := &logserver.CertRule{SHA256: strings.ToLower(strings.ReplaceAll(sum, ":", "")), Name: name}
	var err error
	switch {
	case cert != "" && sum != "":
		return nil, errors.New("--client-cert and --client-cert-sha256 say the same")
	case (cert != "" || sum != "") && (ca != "" || name != ""):
		return nil, errors.New("name the certificate itself, or --client-cert-ca with --client-cert-name")
	case cert != "":
		r.SHA256, err = one(cert)
	case sum != "":
	case ca == "" || name == "":
		return nil, errors.New("--client-cert-ca and --client-cert-name go together")
	default:
		r.CA, err = one(ca)
	}
	return r, err
}

// shownBy says how a credential is shown.
func shownBy(t logserver.Credential) string {
	switch {
	case t.OIDC != nil:
		s := fmt.Sprintf("workload tokens of %s, audience %s, subject %s", t.OIDC.Issuer, t.OIDC.Audience, t.OIDC.Subject)
		for _, name := range slices.Sorted(maps.Keys(t.OIDC.Claims)) {
			s += fmt.Sprintf(", %s=%s", name, t.OIDC.Claims[name])
		}
		return s
	case t.Cert != nil && t.Cert.SHA256 != "":
		return "the client certificate with SHA-256 " + t.Cert.SHA256
	case t.Cert != nil:
		return fmt.Sprintf("client certificates of %s, by the authority with SHA-256 %s", t.Cert.Name, t.Cert.CA)
	}
	return "bearer token"
}

func joinKinds(kinds []entry.Kind) string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}

func tokenListCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "list --dir DIRECTORY", Short: "List the credentials, without secrets", Args: cobra.NoArgs}
	where := credentialsIn(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print a JSON array instead of a table")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		creds, done, err := where.open(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		list := creds.List()
		if *asJSON {
			for i := range list { // hashes are of no use to a reader
				list[i].Hash = ""
				list[i].Old = slices.Clone(list[i].Old)
				for j := range list[i].Old {
					list[i].Old[j].Hash = ""
				}
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tREGISTRY\tCLAIM\tKINDS\tLIMITS\tCREATED\tSTATE\tSHOWN BY\tNOTE")
		now := time.Now().UTC().Format(entry.TimeFormat)
		for _, t := range list {
			state := "valid"
			switch {
			case t.Revoked != "":
				state = "revoked " + t.Revoked
			case t.Ends != "" && now >= t.Ends:
				state = "ended " + t.Ends
			case t.Suspended != "":
				state = "suspended " + t.Suspended + " (from a backup: confirm, rotate or revoke it)"
			case t.Ends != "":
				state = "ends " + t.Ends
			}
			kinds, limits := joinKinds(t.Kinds), "-"
			if t.Read {
				kinds = "(reads)"
			}
			if t.Rate > 0 || t.Quota > 0 {
				limits = fmt.Sprintf("%d/s, %d/day/project", t.Rate, t.Quota)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%q\n", t.ID, t.Registry, t.Claim, kinds, limits, t.Created, state, shownBy(t), t.Note)
			for _, old := range t.Old {
				state := "old secret, ends " + old.Ends
				if t.Revoked != "" || now >= old.Ends {
					state = "old secret, ended"
				}
				fmt.Fprintf(w, "%s\t\t\t\t\t\t%s\tbearer token\t\n", t.ID, state)
			}
		}
		return w.Flush()
	}
	return cmd
}

func tokenRotateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate --dir DIRECTORY ID",
		Short: "Give a bearer token a new secret and print it, once; the old one is good for a time yet",
		Args:  cobra.ExactArgs(1),
	}
	where := credentialsIn(cmd)
	overlap := cmd.Flags().Duration("overlap", 7*24*time.Hour, "how long the old secret is good beside the new one; 0: it ends now")
	asJSON := cmd.Flags().Bool("json", false, "print one JSON object instead of text")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *overlap < 0 {
			return cli.Usagef("--overlap cannot be negative")
		}
		creds, done, err := where.open(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		secret, err := creds.Rotate(args[0], *overlap)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
				ID    string `json:"id"`
				Token string `json:"token"`
			}{args[0], secret})
		}
		until := "The old secret has ended."
		if *overlap > 0 {
			until = fmt.Sprintf("The old secret is good for %v yet.", *overlap)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "Token %s has a new secret. %s The new one is shown only now:\n", args[0], until)
		fmt.Fprintln(cmd.OutOrStdout(), secret)
		return nil
	}
	return cmd
}

func tokenRevokeCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "revoke --dir DIRECTORY ID", Short: "End a credential now, with all its secrets", Args: cobra.ExactArgs(1)}
	where := credentialsIn(cmd)
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		creds, done, err := where.open(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		if err := creds.Revoke(args[0]); err != nil {
			return cli.Exit(cli.Refused, err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "Token %s is revoked; running servers take it within a second.\n", args[0])
		return nil
	}
	return cmd
}

func tokenConfirmCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "confirm --dir DIRECTORY {ID... | --all}",
		Short: "Say that credentials which came from a backup are still good",
		Long: `confirm ends the suspension of credentials that came from a backup. The backup does
not know what was revoked or rotated after it was made: look at each one in token
list first. Revoke again what was revoked since; what was rotated since gets a new
secret by token rotate --overlap 0, which confirms it without its old secrets.`,
		Args: cobra.ArbitraryArgs,
	}
	where := credentialsIn(cmd)
	all := cmd.Flags().Bool("all", false, "confirm every suspended credential: nothing was revoked or rotated since the backup")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *all == (len(args) > 0) {
			return cli.Usagef("give the IDs of credentials, or --all")
		}
		creds, done, err := where.open(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		confirmed, err := creds.Confirm(args...)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		for _, id := range confirmed {
			fmt.Fprintf(cmd.OutOrStdout(), "Token %s is confirmed; running servers take it within a second.\n", id)
		}
		if len(confirmed) == 0 {
			fmt.Fprintln(cmd.OutOrStdout(), "None of them was suspended.")
		}
		return nil
	}
	return cmd
}
