package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Help that a stranger can use: every command says what it does and shows how,
// every flag says what it wants.
func TestHelpIsComplete(t *testing.T) {
	var walk func(c *cobra.Command, path string)
	walk = func(c *cobra.Command, path string) {
		if c.Short == "" {
			t.Errorf("%s has no short help", path)
		}
		// A command that only holds others, or goes by its parent's help, needs no example.
		if c.Runnable() && c.Example == "" && !c.HasSubCommands() && c.HasParent() && c.Parent().Example == "" && c.Name() != "help" {
			t.Errorf("%s has no example", path)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s says nothing", path, f.Name)
			}
		})
		for _, line := range strings.Split(c.Long+"\n"+c.Example, "\n") {
			if len(line) > 110 {
				t.Errorf("%s: a line of %d bytes in its help", path, len(line))
			}
		}
		for _, sub := range c.Commands() {
			walk(sub, path+" "+sub.Name())
		}
	}
	walk(rootCmd(), "portbook")
}
