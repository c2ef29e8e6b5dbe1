package rules

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/portbook/portbook/"

// rule is one line of the house rules. A package matches the longest name it
// is equal to or below.
type rule struct {
	pkg    string
	may    []string // of ours, each with what is below it
	never  []string // of others, by import path prefix, over all that is linked
	reason string
}

var rules = []rule{
	{"entry", nil, []string{"golang.org/", "github.com/", "google.golang.org/"}, "the format must be readable with the standard library alone"},
	{"c2sp", nil, nil, "codecs know nothing of packages"},
	{"proto", nil, nil, "the wire is generated"},
	{"witness", []string{"c2sp"}, nil, "a witness must not be able to care about content"},
	{"witness/witnesstest", []string{"c2sp"}, nil, "it runs other people's witnesses, for tests"},
	{"witness/auditor", []string{"entry", "c2sp", "witness"}, nil, "the one witness that reads what is in a log"},
	{"client", []string{"entry", "c2sp"}, heavy, "an installer links it"},
	{"client/submit", []string{"entry", "proto", "client"}, nil, "gRPC stays out of package client"},
	{"registry", []string{"entry", "c2sp", "client", "registry"}, []string{"github.com/transparency-dev/tessera", "github.com/google/trillian"}, "it speaks to registries, and believes what client verified"},
	{"logserver", []string{"entry", "c2sp", "proto", "attest"}, nil, "the log does not verify itself with the clients' code"},
	{"logserver/trillian", nil, nil, "a storage engine moves bytes"},
	{"logserver/enginetest", nil, nil, "it knows engines by Tessera's interface alone"},
	{"logserver/pkcs11", []string{"c2sp"}, nil, "it needs cgo: nothing but the key it signs with"},
	{"logserver/audit", nil, []string{"github.com/", "google.golang.org/", "modernc.org/", "k8s.io/", "gopkg.in/", "filippo.io/", "golang.org/x/crypto", "golang.org/x/net", "golang.org/x/sync", "golang.org/x/time"}, "a second reading of the formats shares no code with the server (FAULTS rule 8); of others only golang.org/x/mod"},
	{"monitor", []string{"entry", "c2sp", "proto", "client", "attest", "monitor"}, []string{"github.com/transparency-dev/tessera/storage"}, "it judges the log from outside, with what anyone has"},
	{"internal/cli", nil, nil, "the programs' edge"},
	{"internal/mutants", nil, nil, "it reads files and runs go test"},
	{"internal/powercut", nil, nil, "file systems for tests"},
	{"internal/fullfile", nil, nil, "a full disk for tests"},
	{"internal/rules", nil, nil, "tests only"},
	{"internal/evillog", []string{"entry", "c2sp", "witness"}, nil, "a log that lies, on the real formats; its tests bring the readers"},
	{"internal/telemetry", nil, nil, "it sets a provider; who is traced knows nothing of it"},
	{"internal/testsum", nil, nil, "it reads what go test says"},
	{"internal/world", []string{""}, nil, "a whole system in temporary directories"},
	{"cmd", []string{""}, nil, "programs wire everything"},
}

// heavy is what no installer should have to link.
var heavy = []string{"google.golang.org/grpc", "github.com/transparency-dev/tessera", "github.com/google/trillian", "modernc.org/", "database/sql", "github.com/sigstore/", "github.com/jackc/"}

// onlyFor says who may import a package at all.
var onlyFor = []struct {
	pkg    string
	by     []string
	reason string
}{
	{"cmd", []string{"cmd"}, "nobody imports programs"},
	{"internal/cli", []string{"cmd"}, "the edge belongs to programs"},
	{"internal/telemetry", []string{"cmd"}, "only a program decides where spans go"},
	{"internal/evillog", []string{"internal/world", "internal/evillog"}, "nothing that is shipped may lie"},
	{"logserver/trillian/trilliantest", []string{"cmd/bench", "logserver/trillian/trilliantest"}, "it starts databases: for tests and benchmarks"},
	{"logserver/enginetest", []string{"logserver/enginetest"}, "it is for tests"},
	{"internal/powercut", nil, "it mounts file systems: tests only"},
	{"internal/fullfile", nil, "it makes writes fail: tests only"},
	{"internal/world", []string{"cmd/demo", "cmd/bench", "internal/world"}, "it is for tests, the demo and the benchmarks"},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var list []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// below reports whether name is root or a package below it.
func below(name, root string) bool {
	return root == "" || name == root || strings.HasPrefix(name, root+"/")
}

func ruleFor(name string) *rule {
	var best *rule
	for i := range rules {
		if r := &rules[i]; below(name, r.pkg) && (best == nil || len(r.pkg) > len(best.pkg)) {
			best = r
		}
	}
	return best
}

// violations lists what p does against the rules.
func violations(p pkg) []string {
	name := strings.TrimPrefix(p.ImportPath, module)
	if len(p.Imports) == 0 && (p.ImportPath+"/" == module || name == "deploy") {
		return nil // these hold nothing but a test: of the README, of the deployment
	}
	r := ruleFor(name)
	if r == nil {
		return []string{name + " is in no room of the house: give it a rule"}
	}
	var bad []string
	for _, imp := range p.Imports {
		ours, ok := strings.CutPrefix(imp, module)
		if !ok {
			continue
		}
		allowed := slices.ContainsFunc(r.may, func(m string) bool { return below(ours, m) }) || below(ours, r.pkg) && below(name, r.pkg)
		if !allowed {
			bad = append(bad, name+" imports "+ours+": "+r.reason)
		}
		for _, o := range onlyFor {
			if below(ours, o.pkg) && !slices.ContainsFunc(o.by, func(b string) bool { return below(name, b) }) {
				bad = append(bad, name+" imports "+ours+": "+o.reason)
			}
		}
	}
	for _, dep := range p.Deps {
		for _, n := range r.never {
			if strings.HasPrefix(dep, n) && !strings.HasPrefix(dep, module) {
				bad = append(bad, name+" links "+dep+": "+r.reason)
			}
		}
	}
	return bad
}

func TestImportRules(t *testing.T) {
	list := packages(t)
	if len(list) < 10 {
		t.Fatalf("only %d packages found: the list is not the project's", len(list))
	}
	for _, p := range list {
		for _, v := range violations(p) {
			t.Error(v)
		}
	}
}

// TestRulesBite shows that each kind of rule can fail.
func TestRulesBite(t *testing.T) {
	for _, tc := range []struct {
		name, imp, dep string
		want           int
	}{
		{"witness", module + "c2sp", "", 0},
		{"witness", module + "entry", "", 1},
		{"client", "", "google.golang.org/grpc", 1},
		{"client/submit", "", "google.golang.org/grpc", 0},
		{"client", module + "client/submit", "", 0}, // its dependencies would show under never
		{"client", "", "modernc.org/sqlite", 1},
		{"entry", "", "golang.org/x/mod/sumdb/note", 1},
		{"logserver", module + "client", "", 1},
		{"logserver/audit", module + "entry", "", 1},
		{"logserver/audit", module + "c2sp", "", 1},
		{"logserver/audit", module + "logserver", "", 1},
		{"logserver/audit", "", "github.com/transparency-dev/merkle", 1},
		{"logserver/audit", "", "golang.org/x/mod/sumdb/tlog", 0},
		{"monitor", module + "logserver", "", 1},
		{"registry/proxy", module + "internal/world", "", 2},
		{"registry/proxy", module + "client", "", 0},
		{"cmd/portbook", module + "internal/world", "", 1},
		{"cmd/demo", module + "internal/world", "", 0},
		{"logserver", module + "cmd/portbook", "", 2},
		{"util", "", "", 1},
	} {
		p := pkg{ImportPath: module + tc.name}
		if tc.imp != "" {
			p.Imports = []string{tc.imp}
		}
		if tc.dep != "" {
			p.Deps = []string{tc.dep}
		}
		if got := violations(p); len(got) != tc.want {
			t.Errorf("%s imports %q links %q: %d violations %v, want %d", tc.name, tc.imp, tc.dep, len(got), got, tc.want)
		}
	}
}

// TestNoVagueRooms refuses package names that say nothing.
func TestNoVagueRooms(t *testing.T) {
	for _, p := range packages(t) {
		for part := range strings.SplitSeq(strings.TrimPrefix(p.ImportPath, module), "/") {
			if slices.Contains([]string{"pkg", "util", "utils", "common", "types", "helpers"}, part) {
				t.Errorf("%s: %q says nothing about what is inside", p.ImportPath, part)
			}
		}
	}
}
