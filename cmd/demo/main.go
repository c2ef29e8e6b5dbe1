// Command demo starts a whole Portbook system on loopback and tells its story
// while doing it: a package is uploaded, logged, witnessed, proven, watched and
// installed, and a tampered one is refused.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

func main() {
	os.Exit(run())
}

func run() int {
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), `demo starts a log, three witnesses, a monitor, a package index, the gateway and
the verifying proxy on this machine, in a temporary directory, and tells a story
with them. It needs nothing but Go; pip and twine are used where they are found.

Usage: go run ./cmd/demo [-once] [-verbose]`)
		flag.PrintDefaults()
	}
	once := flag.Bool("once", false, "exit after the story, with status 0 only if every step did what it should")
	verbose := flag.Bool("verbose", false, "show what the parts of the system log, on standard error")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unknown argument %q (see -help)\n", flag.Arg(0))
		return 2
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // Tessera's own log
	logger := slog.New(slog.DiscardHandler)
	if *verbose {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	dir, err := os.MkdirTemp("", "portbook-demo-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 3
	}
	defer os.RemoveAll(dir)
	s := &story{out: os.Stdout, dir: dir, logger: logger, tools: findTools(ctx)}
	defer s.close()
	s.tell(ctx)
	if ctx.Err() != nil {
		fmt.Println("demo: interrupted")
		return 3
	}
	if !*once && s.failed == 0 {
		s.invite()
		<-ctx.Done()
		fmt.Println("\nStopping.")
	}
	if err := s.close(); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo: stopping:", err)
		s.failed++
	}
	fmt.Printf("demo: %d steps, %d ok\n", s.steps, s.steps-s.failed)
	if s.failed > 0 {
		return 1
	}
	return 0
}

// waitFor polls until ok says yes.
func waitFor(ctx context.Context, limit time.Duration, what string, ok func() bool) error {
	for deadline := time.Now().Add(limit); ; {
		if ok() {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for %s", limit, what)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
