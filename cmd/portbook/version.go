package main

// version: what this is, and which specifications it speaks.

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// specs are what this program reads and writes, as published.
var specs = []string{
	"c2sp.org/signed-note", "c2sp.org/tlog-checkpoint", "c2sp.org/tlog-cosignature", "c2sp.org/tlog-tiles",
	"c2sp.org/tlog-proof@v1", "c2sp.org/tlog-policy", "RFC 6962 (Merkle tree)", "RFC 8785 (entries)",
	"PEP 503", "PEP 691", "portbook entry format v1",
}

func versionCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version, and the specifications this program speaks",
		Example: `  portbook version --json`,
		Args:    cobra.NoArgs,
	}
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object with version, revision, modified, go, platform, specs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := buildVersion()
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), v)
		}
		out := cmd.OutOrStdout()
		fmt.Fprintf(out, "portbook %s", v.Version)
		if v.Revision != "" {
			fmt.Fprintf(out, " (%s", v.Revision)
			if v.Modified {
				fmt.Fprint(out, ", modified")
			}
			fmt.Fprint(out, ")")
		}
		fmt.Fprintf(out, "\n%s %s\n\nIt speaks:\n", v.Go, v.Platform)
		for _, s := range v.Specs {
			fmt.Fprintf(out, "  %s\n", s)
		}
		return nil
	}
	return cmd
}

type version struct {
	Version  string   `json:"version"`
	Revision string   `json:"revision,omitempty"` // of the source, where it was built from a checkout
	Modified bool     `json:"modified"`           // the checkout had changes of its own
	Go       string   `json:"go"`
	Platform string   `json:"platform"`
	Specs    []string `json:"specs"`
}

func buildVersion() version {
	v := version{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Specs: specs}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}
