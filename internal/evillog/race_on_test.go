//go:build race

package evillog_test

// The race detector makes everything several times slower.
const (
	raced  = true
	slower = 3
)
