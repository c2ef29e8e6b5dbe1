//go:build !cgo

package pkcs11

import (
	"context"

	"github.com/portbook/portbook/c2sp"
)

// A Signer is a key in a token.
type Signer struct{}

// Open returns ErrNoCgo.
func Open(context.Context, *URI, string, func() (string, error)) (*Signer, error) {
	return nil, ErrNoCgo
}

// Generate returns ErrNoCgo.
func Generate(context.Context, *URI, string, func() (string, error)) (*c2sp.Key, error) {
	return nil, ErrNoCgo
}

// Key returns nil: there is no such signer.
func (s *Signer) Key() *c2sp.Key { return nil }

// SignCheckpoint returns ErrNoCgo.
func (s *Signer) SignCheckpoint(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
	return c2sp.Signature{}, ErrNoCgo
}

// Close does nothing.
func (s *Signer) Close() {}
