package main

// A reader of a log, public or private.

import (
	"net/http"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/internal/cli"
)

// openLog makes a reader of the log at logURL. With a token file, or a token in
// the environment, it shows the token to that log alone. All its errors are usage.
func openLog(logURL, tokenFile string) (*client.Reader, error) {
	token, err := cli.LogToken(tokenFile)
	if err != nil {
		return nil, err
	}
	var hc *http.Client
	if token != "" {
		t, err := client.ReadToken(logURL, token, nil)
		if err != nil {
			return nil, cli.Usage(err)
		}
		hc = &http.Client{Transport: t}
	}
	r, err := client.NewReader(logURL, hc)
	if err != nil {
		return nil, cli.Usagef("--log-url: %w", err)
	}
	return r, nil
}
