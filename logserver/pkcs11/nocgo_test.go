//go:build !cgo

package pkcs11

import (
	"errors"
	"testing"
)

// Without cgo a URI is still read, and every call says what is missing.
func TestWithoutCgo(t *testing.T) {
	u, err := ParseURI("pkcs11:token=t;object=o?module-path=/m")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), u, "log.example", nil); !errors.Is(err, ErrNoCgo) {
		t.Error(err)
	}
	if _, err := Generate(t.Context(), u, "log.example", nil); !errors.Is(err, ErrNoCgo) {
		t.Error(err)
	}
}
