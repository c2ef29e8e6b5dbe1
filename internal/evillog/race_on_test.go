//go:build race

package evillog_test

// The race detector keeps memory of its own beside all that is allocated.
const raced = true
