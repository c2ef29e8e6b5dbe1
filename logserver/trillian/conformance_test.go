package trillian_test

import (
	"context"
	"flag"
	"testing"

	"github.com/portbook/portbook/logserver/enginetest"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
	"github.com/transparency-dev/tessera"
)

var long = flag.Bool("long", false, "run what takes minutes")

// conform runs the suite of all engines on a Trillian and a store.
func conform(t *testing.T, tr *trilliantest.Trillian, store func(t *testing.T) trillian.Store) {
	enginetest.Run(t, enginetest.Options{Long: *long, New: func(t *testing.T) enginetest.Place {
		cfg := newLog(t, tr, store(t))
		cfg.Queuers = 1 // one goroutine's entries keep their order
		return func(context.Context) (tessera.Driver, error) { return trillian.New(cfg) }
	}})
}

func dir(t *testing.T) trillian.Store { return trillian.Dir(t.TempDir()) }

func TestConformancePostgreSQL(t *testing.T) { conform(t, need(t, postgres), dir) }

func TestConformanceMariaDB(t *testing.T) { conform(t, need(t, mariadb), dir) }

func TestConformanceBucket(t *testing.T) {
	conform(t, need(t, postgres), func(t *testing.T) trillian.Store { return newBucket(t) })
}
