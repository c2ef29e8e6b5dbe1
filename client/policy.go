package client

// Reading a policy file from disk.

import (
	"fmt"
	"io"
	"os"

	"github.com/portbook/portbook/c2sp"
)

// ReadPolicy reads a c2sp.org/tlog-policy file. Any error is a [*CannotCheck].
func ReadPolicy(path string) (*c2sp.Policy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cannot(CodePolicy, "opening the policy", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20+1)) // ParsePolicy refuses the one byte too many
	if err != nil {
		return nil, cannot(CodePolicy, "reading the policy "+path, err)
	}
	p, err := c2sp.ParsePolicy(b)
	if err != nil {
		return nil, &CannotCheck{Code: CodePolicy, Reason: fmt.Sprintf("%s: %v", path, err), Err: err}
	}
	return p, nil
}
