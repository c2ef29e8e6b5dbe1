// The accounts file: what the operator of an index knows of its accounts.

package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/portbook/portbook/entry"
	"gopkg.in/yaml.v3"
)

// ReadAccounts reads an accounts file, YAML of this form:
//
//	accounts:
//	  release-bot:                  # user name of the basic authentication
//	    auth: trusted-publisher     # trusted-publisher, token, password, other
//	    publisher:                  # entry/FORMAT.md section 5
//	      kind: github
//	      repository: alice/demo
//	      repository_id: "123"
//	      owner_id: "45"
//	      workflow: release.yml
//	      environment: pypi
//
// Every key under an account may be left out; unknown keys are refused.
func ReadAccounts(file string) (map[string]Account, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("accounts: %w", err)
	}
	accounts, err := parseAccounts(b)
	if err != nil {
		return nil, fmt.Errorf("accounts %s: %w", file, err)
	}
	return accounts, nil
}

func parseAccounts(b []byte) (map[string]Account, error) {
	type publisher struct {
		Kind         string `yaml:"kind"`
		Issuer       string `yaml:"issuer"`
		Subject      string `yaml:"subject"`
		Repository   string `yaml:"repository"`
		RepositoryID string `yaml:"repository_id"`
		OwnerID      string `yaml:"owner_id"`
		Workflow     string `yaml:"workflow"`
		Environment  string `yaml:"environment"`
	}
	var doc struct {
		Accounts map[string]struct {
			Auth      string     `yaml:"auth"`
			Publisher *publisher `yaml:"publisher"`
		} `yaml:"accounts"`
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	out := map[string]Account{}
	for name, a := range doc.Accounts {
		if name == "" || name == "__token__" {
			return nil, fmt.Errorf("account %q: name the accounts that upload with a user name and password; whose a token is, only the index knows", name)
		}
		acc := Account{Auth: a.Auth}
		if p := a.Publisher; p != nil {
			acc.Publisher = (*entry.Publisher)(p)
		}
		if err := acc.check("registry.example"); err != nil {
			return nil, fmt.Errorf("account %q: %w", name, err)
		}
		out[name] = acc
	}
	return out, nil
}
