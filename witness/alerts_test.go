package witness

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"gopkg.in/yaml.v3"
)

// TestAlertRules: the rules we ship are about figures that there are. Those of the
// auditor have a test of that name in its package.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../deploy/prometheus/portbook-witness.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	descs := make(chan *prometheus.Desc, 1000)
	newMetrics(nil, nil).registry.Describe(descs)
	close(descs)
	for d := range descs {
		name := strings.Split(d.String(), `"`)[1]
		for _, suffix := range []string{"", "_count", "_sum", "_bucket"} {
			have[name+suffix] = true
		}
	}
	rules := map[string]int{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			rules[g.Name]++
			if r.Alert == "" || r.Annotations["summary"] == "" || r.Labels["severity"] != "page" && r.Labels["severity"] != "ticket" {
				t.Errorf("%s: a rule has a name, a severity (page or ticket) and a summary", r.Alert)
			}
			if !strings.Contains(r.Expr, strings.ReplaceAll(g.Name, "-", "_")+"_") {
				t.Errorf("%s is about nothing of the %s", r.Alert, g.Name)
			}
			for _, name := range regexp.MustCompile(`portbook_witness_[a-z_]+`).FindAllString(r.Expr, -1) {
				if !have[name] {
					t.Errorf("%s: there is no %s", r.Alert, name)
				}
			}
		}
	}
	if rules["portbook-witness"] < 6 || rules["portbook-auditor"] < 4 {
		t.Errorf("rules: %v", rules)
	}
}

func timeOf(i int) time.Duration { return time.Duration(i+1) * time.Minute }

// TestMetricsAreBounded: logs beyond those that are named are summed, under no
// name, and no figure is lost on the way.
func TestMetricsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(r.post(r.log.request(0, 5)), 200)
	for i := range 4 {
		l := newLog(t, fmt.Sprintf("example.com/more%d", i))
		r.trust(l)
		r.clock.set(noon.Add(timeOf(i)))
		r.must(r.post(l.request(0, uint64(10*(i+1)))), 200)
		r.must(r.post(l.evil(2).request(0, uint64(10*(i+1)))), 409) // a fork of it
	}
	gather := func(named int) map[string]float64 {
		t.Helper()
		reg := prometheus.NewRegistry()
		reg.MustRegister(heads{r.dir.Store, named})
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				label := ""
				for _, l := range m.Label {
					label = l.GetValue()
				}
				out[strings.TrimPrefix(f.GetName(), "portbook_witness_")+" "+label] = m.Gauge.GetValue()
			}
		}
		return out
	}
	all, two := gather(100), gather(2)
	if len(all) != 1+3*5-1 || len(two) != 1+2*3-1+3 {
		t.Errorf("%d series, and %d with two names: %v", len(all), len(two), two)
	}
	at := float64(noon.Unix())
	for name, want := range map[string]float64{
		"cosigned_size example.com/log": 5, "cosigned_size example.com/more0": 10, "cosigned_size ": 20 + 30 + 40,
		"forks example.com/more0": 1, "forks ": 3,
		"cosigned_timestamp_seconds ": at + timeOf(1).Seconds(), "cosigned_timestamp_seconds example.com/more0": at + timeOf(0).Seconds(),
	} {
		if two[name] != want {
			t.Errorf("%s is %v, want %v", name, two[name], want)
		}
	}
}
