package logserver

// What an operator's Prometheus sees of a log. The names are part of the
// interface: deploy/prometheus alerts on them.

import (
	"context"
	"errors"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/status"
)

// metrics are the figures of one log.
type metrics struct {
	registry  *prometheus.Registry
	submitted *prometheus.HistogramVec // by wait level
	refused   *prometheus.CounterVec   // by reason
	published *prometheus.HistogramVec // rounds, by outcome
	cosigned  *prometheus.HistogramVec // requests to witnesses, by witness and outcome
}

func newMetrics(l *Log) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		submitted: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "portbook_log_submit_seconds", Help: "From a submission's arrival to its acknowledgement, by what it waited for.",
			Buckets: []float64{.005, .01, .025, .05, .1, .15, .25, .35, .5, 1, 2.5, 5, 10, 30},
		}, []string{"wait"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portbook_log_refusals_total", Help: "Calls that failed, by the reason of the API's ErrorInfo.",
		}, []string{"reason"}),
		published: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "portbook_log_publish_seconds", Help: "Rounds of signing, cosigning and publishing.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 6},
		}, []string{"outcome"}),
		cosigned: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "portbook_log_witness_seconds", Help: "Requests for a cosignature, by witness and outcome (ok, conflict, failed).",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"witness", "outcome"}),
	}
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	m.registry.MustRegister(l.refusals, m.submitted, m.refused, m.published, m.cosigned,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge("portbook_log_tree_size", "Entries under the published checkpoint.", func() float64 { return float64(l.Published().Size) })
	gauge("portbook_log_checkpoint_age_seconds", "Since the quorum cosigned the published checkpoint, by the witnesses' clocks; -1 without one.", func() float64 {
		age, err := l.checkpointAge()
		if err != nil {
			return -1
		}
		return age.Seconds()
	})
	gauge("portbook_log_in_flight", "Submissions that wait for their acknowledgement.", func() float64 { return float64(l.admission.count()) })
	gauge("portbook_log_in_flight_limit", "Submissions that may wait at once.", func() float64 { return float64(l.cfg.MaxInFlight) })
	gauge("portbook_log_journal", "Entries that have their index and are in the journal alone, not in the tiles yet.", func() float64 { return float64(l.journal.Load().waiting()) })
	gauge("portbook_log_reads", "Lookups and proofs under way over the API.", func() float64 { return float64(l.reads.Load()) })
	gauge("portbook_log_lookup_size", "Entries that the lookup index covers.", func() float64 {
		p, _ := l.lookup.covered.get()
		return float64(p.Size)
	})
	gauge("portbook_log_disk_free_ratio", "Smallest share that is free of the bytes and the inodes of the log's and the anchor's file systems; 1 for a frontend.", func() float64 { return l.room.left() })
	gauge("portbook_log_disk_free_least_ratio", "Share below which no submissions are taken.", func() float64 { return l.room.least })
	gauge("portbook_log_ready", "1 if /readyz says so.", func() float64 { return truth(l.Ready() == nil) })
	gauge("portbook_log_latched", "1 if a guard failed: the log signs nothing more until an operator has looked.", func() float64 { return truth(l.Status().Latched) })
	return m
}

// round notes a round of publishing.
func (m *metrics) round(err error, took time.Duration) {
	var guard *guardError
	outcome := "published"
	switch {
	case err == nil:
	case errors.As(err, &guard):
		outcome = "guard"
	case errors.Is(err, ErrStorage):
		outcome = "storage"
	case errors.Is(err, ErrSigner):
		outcome = "signer"
	case errors.Is(err, context.Canceled):
		outcome = "stopped"
	default:
		outcome = "no quorum"
	}
	m.published.WithLabelValues(outcome).Observe(took.Seconds())
}

// witness notes a request for a cosignature.
func (m *metrics) witness(name string, err error, took time.Duration) {
	var claim *claimError
	outcome := "ok"
	switch {
	case errors.As(err, &claim):
		outcome = "conflict"
	case err != nil:
		outcome = "failed"
	}
	m.cosigned.WithLabelValues(name, outcome).Observe(took.Seconds())
}

// refusal notes a failed call.
func (m *metrics) refusal(reason string) { m.refused.WithLabelValues(reason).Inc() }

// acknowledged notes n submissions that were answered with an index together.
func (m *metrics) acknowledged(wait string, took time.Duration, n int) {
	of := m.submitted.WithLabelValues(wait)
	for range n {
		of.Observe(took.Seconds())
	}
}

// Admin serves /metrics and /debug/pprof. It is for a private address: it
// tells who asks a lot about the process and nothing about the entries.
func (l *Log) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(l.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// reasonOf is the reason in a call's ErrorInfo, for the metrics.
func reasonOf(err error) string {
	if r := streamError(err).Reason; r != "" {
		return r
	}
	return status.Code(err).String()
}
