// Package cli is what the four programs share at their edge: exit codes, and
// one YAML file whose keys are the flag names.
//
// Exit codes (every program, every command):
//
//	0  everything that was asked was done and checked
//	1  refused: something is wrong with a file, a log or a request
//	2  usage: the command line or the configuration is wrong
//	3  cannot check: infrastructure (network, disk, a log that is away)
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// The exit codes.
const (
	OK          = 0
	Refused     = 1
	BadUsage    = 2
	CannotCheck = 3
)

// exitError carries the exit code that an error asks for.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// Exit gives err the exit code that Main will end with. A nil err is printed as
// nothing: the command has already said all there is to say.
func Exit(code int, err error) error {
	if err == nil {
		err = errSilent
	}
	return &exitError{code, err}
}

var errSilent = errors.New("")

// Usage marks err as a mistake in the command line or the configuration (exit 2).
func Usage(err error) error { return Exit(BadUsage, err) }

// Usagef is Usage with a format.
func Usagef(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

// Code is the exit code for err: 0 for nil, the code given by Exit, else
// CannotCheck, because an error nobody classified is never a verdict.
func Code(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.code
	}
	return CannotCheck
}

// Main runs root until it is done or the process is asked to stop (SIGINT,
// SIGTERM: the command's context ends), prints its error as "program: error" to
// standard error and exits.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := Run(ctx, root)
	stop()
	os.Exit(code)
}

// Run is Main without the process: it returns the exit code.
func Run(ctx context.Context, root *cobra.Command) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Usagef("%w (see %s --help)", err, cmd.CommandPath())
	})
	walk(root, usageErrors)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return OK
	}
	if strings.HasPrefix(err.Error(), "unknown command") {
		err = Usage(err)
	}
	if !errors.Is(err, errSilent) {
		fmt.Fprintf(root.ErrOrStderr(), "%s: %s\n", root.Name(), ASCII(err.Error()))
	}
	return Code(err)
}

// ASCII escapes everything in s but printable ASCII and line ends: names come
// from strangers, and a terminal obeys what it is sent.
func ASCII(s string) string {
	if strings.IndexFunc(s, unsafeRune) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\uFFFD' && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i]) // not UTF-8
		case unsafeRune(r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unsafeRune(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }

func walk(cmd *cobra.Command, do func(*cobra.Command)) {
	do(cmd)
	for _, c := range cmd.Commands() {
		walk(c, do)
	}
}

// usageErrors turns what cobra itself finds wrong (arguments, missing flags,
// a group named without its command) into usage errors.
func usageErrors(cmd *cobra.Command) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(c *cobra.Command, a []string) error {
			if err := args(c, a); err != nil {
				return Usagef("%w (see %s --help)", err, c.CommandPath())
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil && cmd.Run == nil {
		cmd.RunE = func(c *cobra.Command, a []string) error {
			if len(a) > 0 {
				return Usagef("unknown command %q (see %s --help)", a[0], c.CommandPath())
			}
			return c.Help()
		}
	}
	if required := requiredFlags(cmd); len(required) > 0 {
		run := cmd.PreRunE
		cmd.PreRunE = func(c *cobra.Command, a []string) error {
			if run != nil {
				if err := run(c, a); err != nil {
					return err
				}
			}
			for _, name := range required {
				if !c.Flags().Changed(name) {
					return Usagef("--%s is required (see %s --help)", name, c.CommandPath())
				}
			}
			return nil
		}
	}
}

const requiredAnnotation = "portbook_required"

// Require marks flags that must be given, on the command line or in the
// configuration file. (cobra's own MarkFlagRequired looks before the file is read.)
func Require(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.Flags().SetAnnotation(name, requiredAnnotation, []string{"true"}); err != nil {
			panic(err) // a flag that was never defined: a mistake in this program
		}
	}
}

func requiredFlags(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Annotations[requiredAnnotation] != nil {
			names = append(names, f.Name)
		}
	})
	return names
}

// Config adds --config FILE to cmd: a YAML file whose keys are the names of
// cmd's flags, so that each key is documented where the flag is. A list sets a
// flag several times. The command line wins. An unknown key is refused.
func Config(cmd *cobra.Command) {
	var file string
	cmd.Flags().StringVar(&file, "config", "", "YAML `FILE` whose keys are these flags' names; the command line wins")
	pre := cmd.PreRunE
	cmd.PreRunE = func(c *cobra.Command, args []string) error {
		if file != "" {
			if err := load(c.Flags(), file); err != nil {
				return Usage(err)
			}
		}
		if pre != nil {
			return pre(c, args)
		}
		return nil
	}
}

func load(flags *pflag.FlagSet, file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	keys := map[string]yaml.Node{}
	if err := yaml.Unmarshal(raw, &keys); err != nil {
		return fmt.Errorf("configuration %s: %w", file, err)
	}
	for name, node := range keys {
		flag := flags.Lookup(name)
		if flag == nil || name == "config" {
			return fmt.Errorf("configuration %s, line %d: unknown key %q: the keys are the flags that --help lists", file, node.Line, name)
		}
		if flag.Changed {
			continue
		}
		values := []*yaml.Node{&node}
		if node.Kind == yaml.SequenceNode {
			values = node.Content
		}
		for _, v := range values {
			if v.Kind != yaml.ScalarNode {
				return fmt.Errorf("configuration %s, line %d: %s takes a plain value or a list of them", file, v.Line, name)
			}
			if err := flags.Set(name, v.Value); err != nil {
				return fmt.Errorf("configuration %s, line %d: %s: %w", file, v.Line, name, err)
			}
		}
	}
	return nil
}
