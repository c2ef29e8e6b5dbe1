//go:build !race

package evillog_test

const (
	raced  = false
	slower = 1
)
