package main

// run: one pip command behind a verifying proxy of its own.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/registry/proxy"
	"github.com/portbook/portbook/registry/pypi/pip"
	"github.com/spf13/cobra"
)

// commandFailed is run's own exit code: the command failed although nothing
// was refused and nothing was left unchecked.
const commandFailed = 4

func runCmd() *cobra.Command {
	var f verifyingFlags
	var allowLocal bool
	var report string
	cmd := &cobra.Command{
		Use:   "run [flags] -- pip install PACKAGE...",
		Short: "Run one pip command so that nothing unproven gets installed",
		Long: `run starts a verifying proxy for one pip command and stops it afterwards. Nothing
is configured and nothing stays behind. It ends with how many files were
verified, refused, and could not be checked.

The index is --index, else PIP_INDEX_URL, else pypi.org; pip's configuration files
are not read for it. pip gets the proxy as its only index. Its own configuration stays in force, but
not its indexes, links, HTTP proxy and caches. Refused before anything runs (exit
2): --index-url, --extra-index-url, --find-links, --no-index, --proxy, --cache-dir,
--isolated, also in requirement files, and requirements with a URL of their own
(https://…, git+…). A direct URL that a package's metadata brings in is refused
when pip follows it. Local paths (".", "./x.whl") come from no index: they need
--allow-local, and are counted as skipped.

The index is reached with HTTPS_PROXY and the certificates of the system (or
SSL_CERT_FILE), not with pip's settings for these.

Exit codes: 0 the command succeeded and every file it fetched was verified,
1 something was refused, 2 usage, 3 something could not be checked,
4 the command failed for a reason of its own (its exit code is printed).
What is installed already is not looked at.`,
		Example: "  portbook run -- pip install requests\n  portbook run --index https://pkg.example/simple/ -- python3 -m pip install -r requirements.txt",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pipArgs, ok := pip.Args(args)
			if !ok {
				return cli.Usagef("run knows pip only (pip, pip3, python -m pip), not %q; for other installers start \"portbook proxy\" and make it their only index", args[0])
			}
			local, err := pip.Check(pipArgs)
			if err != nil {
				return cli.Usage(err)
			}
			more, err := pip.CheckEnv(os.Environ())
			if err != nil {
				return cli.Usage(err)
			}
			local = append(local, more...)
			if len(local) > 0 && !allowLocal {
				return cli.Usagef("%s comes from no index and cannot be verified; with --allow-local it is skipped, and counted as such", local[0])
			}
			return run(cmd, f, args, local, report)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&allowLocal, "allow-local", false, "let the command install local paths, unverified and counted as skipped")
	cmd.Flags().StringVar(&report, "report", "", "write the counts and problems to `FILE` as JSON")
	cli.Config(cmd)
	return cmd
}

func run(cmd *cobra.Command, f verifyingFlags, args, local []string, reportFile string) error {
	if given := os.Getenv("PIP_INDEX_URL"); given != "" && !cmd.Flags().Changed("index") {
		f.index = given
	}
	cfg, err := f.config(slog.New(slog.DiscardHandler)) // what matters is said at the end
	if err != nil {
		return err
	}
	p, err := proxy.New(cfg)
	if err != nil {
		return cli.Usage(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return cli.Exit(cli.CannotCheck, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "portbook: index %s, registry %s\n", plain(withoutUser(cfg.Index)), cfg.Registry)
	srv := p.Server()
	served := make(chan struct{})
	go func() { srv.Serve(l); close(served) }()
	ctx := cmd.Context()
	refreshed := make(chan struct{})
	refreshing, giveUp := context.WithCancel(ctx)
	defer giveUp()
	go func() { p.Refresh(refreshing); close(refreshed) }()

	child := exec.CommandContext(ctx, args[0], args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	child.Env = pip.Env(os.Environ(), "http://"+l.Addr().String())
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = 10 * time.Second
	runErr := child.Run()
	srv.Close()
	<-served
	late := time.AfterFunc(2*time.Second, giveUp) // a silent log keeps nobody waiting
	<-refreshed
	late.Stop()

	var exit *exec.ExitError
	if runErr != nil && !errors.As(runErr, &exit) && ctx.Err() == nil {
		return cli.Usagef("%s: %w", args[0], runErr)
	}
	r := p.Report()
	tell(cmd.ErrOrStderr(), r, local, runErr)
	if reportFile != "" {
		if err := writeReport(reportFile, r, local); err != nil {
			return cli.Exit(cli.CannotCheck, err)
		}
	}
	switch {
	case r.Refused > 0 || r.LogRefused != "":
		return cli.Exit(cli.Refused, nil)
	case r.CannotCheck > 0:
		return cli.Exit(cli.CannotCheck, nil)
	case runErr != nil:
		return cli.Exit(commandFailed, nil)
	}
	return nil
}

// withoutUser is the URL without a password in it.
func withoutUser(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

// tell prints what a person must know, most important last.
func tell(w io.Writer, r proxy.Report, local []string, runErr error) {
	for _, s := range r.Warnings {
		fmt.Fprintln(w, "portbook: warning:", s)
	}
	if r.LogRefused != "" {
		fmt.Fprintln(w, "portbook: REFUSED:", r.LogRefused)
	}
	for _, p := range r.Problems {
		word := "REFUSED"
		if p.Outcome == proxy.CannotCheck {
			word = "CANNOT CHECK (not evidence of tampering)"
		}
		fmt.Fprintf(w, "portbook: %s %s: %s: %s\n", word, plain(p.File), p.Code, plain(p.Detail))
	}
	if runErr != nil {
		fmt.Fprintln(w, "portbook: the command failed:", runErr)
	}
	line := "portbook: " + countsOf(r)
	if len(local) > 0 {
		line += fmt.Sprintf(", %d skipped (local: %s)", len(local), plain(strings.Join(local, " ")))
	}
	fmt.Fprintln(w, line)
}

// plain keeps a terminal safe from what a page said.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

func writeReport(file string, r proxy.Report, local []string) error {
	type problem struct {
		File    string `json:"file"`
		Outcome string `json:"outcome"`
		Code    string `json:"code"`
		Detail  string `json:"detail"`
	}
	out := struct {
		Verified    int       `json:"verified"`
		Refused     int       `json:"refused"`
		CannotCheck int       `json:"cannot_check"`
		Skipped     []string  `json:"skipped"`
		Problems    []problem `json:"problems"`
		LogRefused  string    `json:"log_refused,omitempty"`
		Warnings    []string  `json:"warnings"`
	}{r.Verified, r.Refused, r.CannotCheck, append([]string{}, local...), []problem{}, r.LogRefused, append([]string{}, r.Warnings...)}
	for _, p := range r.Problems {
		o := "refused"
		if p.Outcome == proxy.CannotCheck {
			o = "cannot-check"
		}
		out.Problems = append(out.Problems, problem{p.File, o, p.Code, p.Detail})
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
