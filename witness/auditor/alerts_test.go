package auditor

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestAlertRules: the rules we ship are about figures that there are.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../deploy/prometheus/portbook-witness.yml")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	descs := make(chan *prometheus.Desc, 1000)
	newMetrics(nil).registry.Describe(descs)
	close(descs)
	for d := range descs {
		have[strings.Split(d.String(), `"`)[1]] = true
	}
	names := regexp.MustCompile(`portbook_auditor_[a-z_]+`).FindAllString(string(raw), -1)
	if len(names) < 5 {
		t.Errorf("the rules are about %q", names)
	}
	for _, name := range names {
		if !have[name] {
			t.Errorf("there is no %s", name)
		}
	}
}
