package witness

// What an operator's Prometheus sees of a witness. deploy/prometheus alerts on
// these names.

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxCounted bounds how many origins the request counter names, and maxNamed how
// many have gauges of their own; the others are one log without a name. A
// stranger can name only logs that the witness knows; this is for a witness of
// very many.
const (
	maxCounted = 20_000
	maxNamed   = 20_000
)

// maxLabel is the most bytes of an origin that stands in a series as it is.
const maxLabel = 256

// label is the log of a series: its origin, or of a very long one the hash, as
// in the read API.
func label(origin string) string {
	if len(origin) > maxLabel {
		return c2sp.OriginHash(origin)
	}
	return origin
}

// metrics are the figures of one witness.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	signing  prometheus.Histogram
	commit   prometheus.Histogram
	together prometheus.Histogram

	mu       sync.Mutex
	counted  map[string]bool // guarded by mu; origins that have a series
	byStatus map[int]uint64  // guarded by mu
}

func newMetrics(s *Store, p *peers) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portbook_witness_requests_total", Help: "Requests for a cosignature by log (empty: none that is known) and status code.",
		}, []string{"log", "status"}),
		signing: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "portbook_witness_signing_seconds", Help: "Making the cosignatures of one checkpoint, with all keys.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .05},
		}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "portbook_witness_commit_seconds", Help: "Making heads durable: the transaction, its fsync and the mark's.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1},
		}),
		together: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "portbook_witness_commit_heads", Help: "Heads that shared a commit.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256},
		}),
		counted: map[string]bool{}, byStatus: map[int]uint64{},
	}
	held := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "portbook_witness_held_logs", Help: "Logs of which nothing is cosigned yet, because of what the peers show or do not.",
	}, func() float64 { return float64(p.held()) })
	m.registry.MustRegister(m.requests, m.signing, m.commit, m.together, heads{s, maxNamed}, held,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// request counts one answer.
func (m *metrics) request(origin string, status int) {
	origin = label(origin)
	m.mu.Lock()
	m.byStatus[status]++
	if origin != "" && !m.counted[origin] {
		if len(m.counted) >= maxCounted {
			origin = ""
		} else {
			m.counted[origin] = true
		}
	}
	m.mu.Unlock()
	m.requests.WithLabelValues(origin, strconv.Itoa(status)).Inc()
}

// answered is how often a status code was the answer to add-checkpoint.
type answered struct {
	Status int
	Means  string
	N      uint64
}

// meanings are the status codes of add-checkpoint, for people.
var meanings = map[int]string{
	200: "cosigned", 400: "not in the grammar", 403: "not signed by the log", 404: "unknown log", 409: "the log has to start from another size",
	410: "this witness has retired", 413: "too large", 422: "not shown to be consistent, or a fork", 429: "too many requests", 500: "our own failure", 503: "our clock, our peers, or too many large requests",
}

// answers lists what was answered since the start, by status.
func (m *metrics) answers() []answered {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []answered
	for _, status := range slices.Sorted(maps.Keys(m.byStatus)) {
		out = append(out, answered{status, meanings[status], m.byStatus[status]})
	}
	return out
}

// heads are the figures that stand in the database. The first logs by origin are
// named; the rest is a log without a name: the sum of sizes and forks, the oldest
// of times.
type heads struct {
	store *Store
	named int
}

var (
	sizeDesc  = prometheus.NewDesc("portbook_witness_cosigned_size", "Size of the checkpoint cosigned last.", []string{"log"}, nil)
	timeDesc  = prometheus.NewDesc("portbook_witness_cosigned_timestamp_seconds", "When it was cosigned.", []string{"log"}, nil)
	forksDesc = prometheus.NewDesc("portbook_witness_forks", "Pieces of evidence kept that the log signed two histories.", []string{"log"}, nil)
	upDesc    = prometheus.NewDesc("portbook_witness_database_up", "1 if the database answers, and its mark can be written.", nil, nil)
)

// Describe implements prometheus.Collector.
func (heads) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sizeDesc, timeDesc, forksDesc, upDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (h heads) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := h.store.summary(ctx)
	up := 1.0
	if err != nil {
		up = 0
	}
	ch <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, up)
	if len(list) > h.named {
		var rest summary
		for _, s := range list[h.named:] {
			rest.Size += s.Size
			rest.Forks += s.Forks
			if rest.Time.IsZero() || !s.Time.IsZero() && s.Time.Before(rest.Time) {
				rest.Time = s.Time
			}
		}
		list = append(list[:h.named], rest)
	}
	for _, s := range list {
		s.Origin = label(s.Origin)
		if !s.Time.IsZero() {
			ch <- prometheus.MustNewConstMetric(sizeDesc, prometheus.GaugeValue, float64(s.Size), s.Origin)
			ch <- prometheus.MustNewConstMetric(timeDesc, prometheus.GaugeValue, float64(s.Time.Unix()), s.Origin)
		}
		if s.Forks > 0 {
			ch <- prometheus.MustNewConstMetric(forksDesc, prometheus.GaugeValue, float64(s.Forks), s.Origin)
		}
	}
}

// Metrics serves the figures. They are for a private address.
func (w *Witness) Metrics() http.Handler {
	return promhttp.HandlerFor(w.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 15 * time.Second})
}
