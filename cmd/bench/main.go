// Command bench measures Portbook on this machine, each figure against a
// yardstick in the same run, in turn (A B A B), as medians. It asserts nothing:
// it reports.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/klog/v2"
)

// Row is one figure.
type Row struct {
	Name           string   `json:"name"`
	Value          float64  `json:"value"`
	Unit           string   `json:"unit"`
	Yardstick      string   `json:"yardstick"`       // what it is held against; empty: nothing
	YardstickValue *float64 `json:"yardstick_value"` // in the same unit
	Ratio          *float64 `json:"ratio"`           // value over yardstick value
	Aim            string   `json:"aim"`
	Met            bool     `json:"met"`
	Machine        string   `json:"machine"`
	Command        string   `json:"command"`
	Note           string   `json:"-"` // for people
}

// bench measures one row.
type bench struct {
	name, what string
	run        func(ctx context.Context, quick bool) (Row, error)
}

var benches = []bench{
	{"submit-bulk", "durable bulk submission by SubmitStream (receipts), with token and uniqueness, entries/s, against raw Tessera POSIX with the same batching and bytes", submitBulk},
	{"submit-bulk-vs-trillian", "one entry a call, 64 writers, gRPC (receipts), entries/s, against Trillian QueueLeaf on PostgreSQL, the same", submitVsTrillian},
	{"submit-latency-16", "Submit to cosigned proof, 3 local witnesses, 16 uploaders: p99", func(ctx context.Context, q bool) (Row, error) { return submitLatency(ctx, q, 16) }},
	{"submit-bulk-at-1m", "rate of submit-bulk in a log of 10^6 entries, against an empty one", submitAtMillion},
	{"rss-at-1m", "resident memory of portbook-log, a process of its own, at 10^6 entries under load", rssAtMillion},
	{"tile-get", "GETs/s of tiles and entry bundles, against net/http's file server on the same files", tileGet},
	{"disk-per-entry", "bytes on disk an entry, after garbage collection, over the entry's bytes", diskPerEntry},
	{"audit-at-1m", "portbook-log audit of a log of 10^6 entries, from a cold page cache, a process of its own", wholeRow("audit")},
	{"rebuild-index-at-1m", "portbook-log rebuild-index, the same", wholeRow("rebuild-index")},
	{"start-at-1m", "portbook-log serve until it is ready, the same, without its index", startAtMillion},
	{"submit-bulk-cosigned", "submit-bulk until each entry has its cosigned proof", submitBulkCosigned},
	{"submit-latency-1", "as submit-latency-16 with 1 uploader", func(ctx context.Context, q bool) (Row, error) { return submitLatency(ctx, q, 1) }},
	{"submit-latency-256", "the same with 256 uploaders", func(ctx context.Context, q bool) (Row, error) { return submitLatency(ctx, q, 256) }},
	{"verify-proof", "offline verification of one proof against the Ed25519 verifications it needs", verifyProof},
	{"witness-1-log", "add-checkpoint over HTTP, durable, Ed25519 and ML-DSA-44, one log after the other's answer, against litewitness (Ed25519)", witnessOneLog},
	{"witness-1000-logs", "the same of 1,000 logs at once, and p99", witnessManyLogs},
	{"witness-rss-10000-logs", "resident memory of portbook-witness, a process of its own, with 10,000 logs", witnessRSS},
	{"monitor-scan", "monitor: verified scan, every leaf rehashed to the signed root and parsed", monitorScan},
}

func main() {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // Tessera's own log
	os.Exit(command())
}

func command() int {
	match := flag.String("run", "", "only rows whose name matches this `REGEXP`")
	asJSON := flag.Bool("json", false, "one JSON object a row")
	quick := flag.Bool("quick", false, "keep each row under 20 s")
	list := flag.Bool("list", false, "list the rows")
	profile := flag.String("cpuprofile", "", "write a CPU profile to `FILE`, for go tool pprof")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "bench measures Portbook on this machine, against yardsticks in the same run.\n\nUsage: go run ./cmd/bench [flags]")
		flag.PrintDefaults()
	}
	flag.Parse()
	re, err := regexp.Compile(*match)
	if err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "bench: -run takes a regular expression, and there are no other arguments:", err, flag.Args())
		return 2
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 3
		}
		defer pprof.StopCPUProfile()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err = run(ctx, os.Stdout, re, *asJSON, *quick, *list)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	switch {
	case errors.Is(err, errNoRow):
		return 2
	case err != nil:
		return 3
	}
	return 0
}

var errNoRow = errors.New("no row")

func run(ctx context.Context, out io.Writer, match *regexp.Regexp, asJSON, quick, list bool) error {
	var rows []Row
	found := false
	for _, b := range benches {
		if !match.MatchString(b.name) {
			continue
		}
		found = true
		if list {
			fmt.Fprintf(out, "%-20s %s\n", b.name, b.what)
			continue
		}
		if !asJSON {
			fmt.Fprintf(os.Stderr, "measuring %s ...\n", b.name)
		}
		row, err := b.run(ctx, quick)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		row.Name, row.Machine, row.Command = b.name, machine(), "go run ./cmd/bench -run '^"+b.name+"$'"
		if quick {
			row.Command += " -quick"
		}
		if asJSON {
			if err := json.NewEncoder(out).Encode(row); err != nil {
				return err
			}
		}
		rows = append(rows, row)
	}
	if !found {
		return fmt.Errorf("%w matches %q: -list lists them", errNoRow, match)
	}
	if asJSON || list {
		return nil
	}
	fmt.Fprintf(out, "\n%s\n\n", machine())
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\tVALUE\tYARDSTICK\tRATIO\tAIM\tMET\tNOTE")
	for _, r := range rows {
		yard, ratio := "-", "-"
		if r.YardstickValue != nil {
			yard = fmt.Sprintf("%s %s", r.Yardstick, number(*r.YardstickValue))
			ratio = fmt.Sprintf("%.2f", *r.Ratio)
		}
		met := "no"
		if r.Met {
			met = "yes"
		}
		fmt.Fprintf(w, "%s\t%s %s\t%s\t%s\t%s\t%s\t%s\n", r.Name, number(r.Value), r.Unit, yard, ratio, r.Aim, met, r.Note)
	}
	return w.Flush()
}

func number(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

// against fills in a yardstick.
func (r Row) against(yardstick string, value float64) Row {
	ratio := r.Value / value
	r.Yardstick, r.YardstickValue, r.Ratio = yardstick, &value, &ratio
	return r
}

// machine describes where the figures come from.
func machine() string {
	model := "unknown processor"
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	return fmt.Sprintf("%s/%s, %d cores, %s, %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), model, runtime.Version())
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return v[len(v)/2]
}

func percentile(v []time.Duration, p float64) time.Duration {
	v = slices.Sorted(slices.Values(v))
	return v[min(int(float64(len(v))*p), len(v)-1)]
}

// inTempDir runs do in a directory that is removed afterwards.
func inTempDir(do func(dir string) error) error {
	dir, err := os.MkdirTemp("", "portbook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return do(dir)
}
