//go:build !unix

package monitor

import "errors"

// ErrInUse is returned where another monitor runs on the same database.
var ErrInUse = errors.New("another monitor is running on this database")

// lock does nothing here: this system has no flock. Start one monitor only.
func (s *Store) lock() (unlock func(), err error) { return func() {}, nil }
