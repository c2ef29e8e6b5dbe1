package witness

import (
	"testing"

	"go.uber.org/goleak"
)

// stopping ends the database that tests shared before leaks are looked for.
type stopping struct{ *testing.M }

func (m stopping) Run() int {
	defer stopSharedPostgres()
	return m.M.Run()
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(stopping{m}, goleak.IgnoreAnyFunction("github.com/portbook/portbook/logserver/trillian/trilliantest.startOnOwnThread"),
		goleak.IgnoreAnyFunction("github.com/portbook/portbook/logserver/trillian/trilliantest.init.func2.1"))
}
