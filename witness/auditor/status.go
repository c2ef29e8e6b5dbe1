package auditor

// What people and Prometheus see of an auditor. Everything on the page is
// public already.

import (
	"context"
	_ "embed"
	"html/template"
	"net/http"
	"strconv"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// A Standing is where one log stands at this auditor.
type Standing struct {
	Origin  string
	Hash    string
	URL     string
	Size    uint64    // cosigned
	Time    time.Time // of the last cosignature; zero: none yet
	Pending uint64    // size of the newest checkpoint the log has signed and shown
	Next    uint64    // entries before it are stored and checked
	Trouble error     // why the log is not followed to its newest checkpoint; nil: it is
	Since   time.Time // of the trouble
	Blocked *Finding  // nothing beyond it is cosigned
	Found   int       // findings
	Forks   int
}

// Lag is how many entries the log has signed that are not cosigned.
func (s Standing) Lag() uint64 { return max(s.Pending, s.Size) - s.Size }

// Standings lists all logs, by origin. Trouble is known to the running auditor
// alone: see Auditor.Standings.
func (d *Dir) Standings(ctx context.Context) ([]Standing, error) {
	logs, err := d.Store.Logs(ctx)
	if err != nil {
		return nil, err
	}
	var out []Standing
	for _, l := range logs {
		row, err := d.index.log(ctx, l.Origin)
		if err != nil {
			return nil, err
		}
		s, err := d.standing(ctx, row)
		if err != nil {
			return nil, err
		}
		st := Standing{Origin: l.Origin, Hash: c2sp.OriginHash(l.Origin), URL: row.url, Pending: s.info().Size, Next: s.next}
		if s.head != nil {
			st.Size, st.Time = s.head.Size, s.head.Time
		}
		if st.Blocked, err = d.index.blocked(ctx, row.id); err != nil {
			return nil, err
		}
		found, err := d.index.findings(ctx, row.id)
		if err != nil {
			return nil, err
		}
		forks, err := d.Store.Forks(ctx, l.Origin)
		if err != nil {
			return nil, err
		}
		st.Found, st.Forks = len(found), len(forks)
		out = append(out, st)
	}
	return out, nil
}

// Standings lists all logs, by origin, and how the following of each goes.
func (a *Auditor) Standings(ctx context.Context) ([]Standing, error) {
	out, err := a.dir.Standings(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range out {
		if b := a.books[out[i].Origin]; b != nil {
			_, _, out[i].Trouble, out[i].Since = b.state.get()
		}
	}
	return out, err
}

// Ping reports whether the databases answer.
func (a *Auditor) Ping(ctx context.Context) error {
	if err := a.store.Ping(ctx); err != nil {
		return err
	}
	_, err := a.index.findings(ctx, -1)
	return err
}

//go:embed status.html
var statusHTML string

var statusPage = template.Must(template.New("status").Funcs(template.FuncMap{
	"visible": witness.Visible,
	"utc":     func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
}).Parse(statusHTML))

func (a *Auditor) serveStatus(rw http.ResponseWriter, r *http.Request) {
	list, err := a.Standings(r.Context())
	if err != nil {
		a.refuse(rw, err)
		return
	}
	h := rw.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-cache")
	if err := statusPage.Execute(rw, struct {
		Name string
		Now  time.Time
		Logs []Standing
	}{a.signers[0].Key().Name(), a.now(), list}); err != nil {
		a.log.Debug("the status page was not read to its end", "error", err)
	}
}

// metrics are the figures of one auditor.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	entries  *prometheus.CounterVec
}

func newMetrics(a *Auditor) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portbook_auditor_requests_total", Help: "Requests by call, log (empty: none that is known) and status code.",
		}, []string{"call", "log", "status"}),
		entries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portbook_auditor_entries_total", Help: "Entries stored and checked since the start.",
		}, []string{"log"}),
	}
	m.registry.MustRegister(m.requests, m.entries, standings{a},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// count counts one answer. What a request says of its log is anybody's word: a
// series is named after a log only if it is one of ours.
func (a *Auditor) count(call, origin string, err error) {
	a.mu.Lock()
	known := a.books[origin] != nil
	a.mu.Unlock()
	if !known {
		origin = ""
	}
	status, _ := outcome(err)
	a.metrics.requests.WithLabelValues(call, label(origin), strconv.Itoa(status)).Inc()
}

// label is the log of a series: its origin, or of a very long one the hash, as
// in the read API.
func label(origin string) string {
	if len(origin) > 256 {
		return c2sp.OriginHash(origin)
	}
	return origin
}

// standings are the figures that stand in the databases.
type standings struct{ a *Auditor }

var (
	sizeDesc    = prometheus.NewDesc("portbook_auditor_cosigned_size", "Size of the checkpoint cosigned last.", []string{"log"}, nil)
	timeDesc    = prometheus.NewDesc("portbook_auditor_cosigned_timestamp_seconds", "When it was cosigned.", []string{"log"}, nil)
	lagDesc     = prometheus.NewDesc("portbook_auditor_lag_entries", "Entries that the log has signed and that are not cosigned here.", []string{"log"}, nil)
	troubleDesc = prometheus.NewDesc("portbook_auditor_trouble", "1 if the log is not followed to its newest checkpoint.", []string{"log"}, nil)
	foundDesc   = prometheus.NewDesc("portbook_auditor_findings", "Findings about the log; forks are counted too.", []string{"log"}, nil)
	stoppedDesc = prometheus.NewDesc("portbook_auditor_stopped", "1 if the log broke a rule, so that nothing more of it is cosigned.", []string{"log"}, nil)
	upDesc      = prometheus.NewDesc("portbook_auditor_database_up", "1 if the databases answer, and their mark can be written.", nil, nil)
)

// Describe implements prometheus.Collector.
func (standings) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sizeDesc, timeDesc, lagDesc, troubleDesc, foundDesc, stoppedDesc, upDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s standings) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := s.a.Standings(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(upDesc, yes(err == nil))
	for _, l := range list {
		l.Origin = label(l.Origin)
		if !l.Time.IsZero() {
			gauge(timeDesc, float64(l.Time.Unix()), l.Origin)
		}
		gauge(sizeDesc, float64(l.Size), l.Origin)
		gauge(lagDesc, float64(l.Lag()), l.Origin)
		gauge(troubleDesc, yes(l.Trouble != nil), l.Origin)
		gauge(foundDesc, float64(l.Found+l.Forks), l.Origin)
		gauge(stoppedDesc, yes(l.Blocked != nil), l.Origin)
	}
}

// Metrics serves the figures. They are for a private address.
func (a *Auditor) Metrics() http.Handler {
	return promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 15 * time.Second})
}
