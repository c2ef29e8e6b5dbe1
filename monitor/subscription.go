// Subscriptions: who wants to hear of which projects, and what they expect.
// One YAML file, described in docs/monitor.md; a key it does not know is an
// error, so that a misspelt expectation cannot watch nothing and look green.

package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	packageurl "github.com/package-url/packageurl-go"
	"gopkg.in/yaml.v3"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
)

// MaxSubscriptions is the size in bytes of the largest subscriptions file read.
const MaxSubscriptions = 64 << 20

// Subscriptions is what a file says.
type Subscriptions struct {
	Operator Operator       `yaml:"operator"`
	List     []Subscription `yaml:"subscriptions"`

	byProject map[Watch][]*Subscription
}

// Operator hears of tampering and infrastructure troubles of the whole log.
type Operator struct {
	Notify []Target `yaml:"notify"`
}

// A Subscription watches projects for somebody.
type Subscription struct {
	Name     string   `yaml:"name"`     // shown in alerts; default: the first project
	Project  *Watch   `yaml:"project"`  // one project, or
	Projects []Watch  `yaml:"projects"` // several
	Notify   []Target `yaml:"notify"`   // who is told; at least one
	Expect   Expect   `yaml:"expect"`
}

// A Watch names a project: a package URL, or its three parts.
type Watch struct {
	Registry  string `yaml:"registry" json:"registry"`
	Ecosystem string `yaml:"ecosystem" json:"ecosystem"`
	Project   string `yaml:"project" json:"project"`
}

// A Target is one address and what it wants to hear.
type Target struct {
	Email      string           `yaml:"email"`
	Webhook    string           `yaml:"webhook"`     // URL
	Secret     string           `yaml:"secret"`      // whsec_…
	SecretFile string           `yaml:"secret_file"` // or a file that holds it, beside the subscriptions file
	Only       []alert.Severity `yaml:"only"`        // default: all three
}

// Expect says what is normal. What is normal is recorded and not sent.
type Expect struct {
	Uploads    string              `yaml:"uploads" json:"uploads,omitempty"`       // "none": the project is frozen; "any": never alert on an upload
	Publishers []ExpectedPublisher `yaml:"publishers" json:"publishers,omitempty"` // uploads by one of these are normal
	Changes    []entry.Kind        `yaml:"changes" json:"changes,omitempty"`       // status and ownership kinds that are normal, such as dist-tag
}

// An ExpectedPublisher matches a publisher that has all of the fields named
// here, whatever its other fields are.
type ExpectedPublisher struct {
	Kind         string `yaml:"kind" json:"kind"`
	Issuer       string `yaml:"issuer" json:"issuer,omitempty"`
	Subject      string `yaml:"subject" json:"subject,omitempty"`
	Repository   string `yaml:"repository" json:"repository,omitempty"`
	RepositoryID string `yaml:"repository_id" json:"repository_id,omitempty"` // pins the repository across renames
	OwnerID      string `yaml:"owner_id" json:"owner_id,omitempty"`
	Workflow     string `yaml:"workflow" json:"workflow,omitempty"`
	Environment  string `yaml:"environment" json:"environment,omitempty"`
}

// Matches reports whether p is the expected publisher. Repository names are
// compared without regard to case, as the forges do; all else is exact.
func (x *ExpectedPublisher) Matches(p *entry.Publisher) bool {
	if p == nil || x.Kind != p.Kind {
		return false
	}
	for _, f := range [...][2]string{
		{x.Issuer, p.Issuer}, {x.Subject, p.Subject}, {x.RepositoryID, p.RepositoryID}, {x.OwnerID, p.OwnerID},
		{x.Workflow, p.Workflow}, {x.Environment, p.Environment},
	} {
		if f[0] != "" && f[0] != f[1] {
			return false
		}
	}
	return x.Repository == "" || strings.EqualFold(x.Repository, p.Repository)
}

// String is the publisher in a few words.
func (x ExpectedPublisher) String() string {
	return describePublisher(&entry.Publisher{Kind: x.Kind, Issuer: x.Issuer, Subject: x.Subject, Repository: x.Repository,
		RepositoryID: x.RepositoryID, OwnerID: x.OwnerID, Workflow: x.Workflow, Environment: x.Environment})
}

// UnmarshalYAML accepts a package URL or a mapping.
func (w *Watch) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		got, err := ParseWatch(n.Value)
		if err != nil {
			return fmt.Errorf("line %d: %w", n.Line, err)
		}
		*w = got
		return nil
	}
	type plain Watch
	// Decoding a node forgets KnownFields, so the keys are checked here.
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i].Value; !slices.Contains([]string{"registry", "ecosystem", "project"}, k) {
			return fmt.Errorf("line %d: a project has no key %q (registry, ecosystem, project)", n.Content[i].Line, k)
		}
	}
	if err := n.Decode((*plain)(w)); err != nil {
		return err
	}
	if err := w.normalise(); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

// defaultRegistry is where a package URL without repository_url points.
var defaultRegistry = map[string]string{entry.PyPI: "pypi.org", entry.NPM: "registry.npmjs.org"}

// ParseWatch reads a package URL: pkg:pypi/django,
// pkg:npm/%40scope/name?repository_url=https://npm.example. It must not name a
// version.
func ParseWatch(purl string) (Watch, error) {
	p, err := packageurl.FromString(purl)
	if err != nil {
		return Watch{}, fmt.Errorf("%q: not a package URL such as pkg:pypi/django: %w", purl, err)
	}
	if p.Version != "" || p.Subpath != "" {
		return Watch{}, fmt.Errorf("%q: names a version or a path; a whole project is watched", purl)
	}
	w := Watch{Ecosystem: p.Type, Project: p.Name}
	if p.Namespace != "" {
		w.Project = p.Namespace + "/" + p.Name
	}
	for k, v := range p.Qualifiers.Map() {
		if k != "repository_url" {
			return Watch{}, fmt.Errorf("%q: qualifier %q is not understood; only repository_url is", purl, k)
		}
		if !strings.Contains(v, "://") {
			v = "https://" + v
		}
		if w.Registry, err = entry.RegistryFromURL(v); err != nil {
			return Watch{}, fmt.Errorf("%q: repository_url: %w", purl, err)
		}
	}
	if w.Registry == "" {
		if w.Registry = defaultRegistry[w.Ecosystem]; w.Registry == "" {
			return Watch{}, fmt.Errorf("%q: say which registry with ?repository_url=", purl)
		}
	}
	if err := w.normalise(); err != nil {
		return Watch{}, fmt.Errorf("%q: %w", purl, err)
	}
	return w, nil
}

func (w *Watch) normalise() error {
	if err := entry.CheckRegistry(w.Registry); err != nil {
		return err
	}
	name, err := entry.NormalProject(w.Ecosystem, w.Project)
	if err != nil {
		return err
	}
	w.Project = name
	return nil
}

// String is the project as alerts name it.
func (w Watch) String() string { return w.Project + " (" + w.Ecosystem + " at " + w.Registry + ")" }

// LoadSubscriptions reads the file at path. An empty path is an empty list.
func LoadSubscriptions(path string) (*Subscriptions, error) {
	if path == "" {
		return ParseSubscriptions(nil, "")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("subscriptions: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSubscriptions+1))
	if err != nil {
		return nil, fmt.Errorf("subscriptions: %w", err)
	}
	s, err := ParseSubscriptions(b, filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("subscriptions: %s: %w", path, err)
	}
	return s, nil
}

// ParseSubscriptions reads a subscriptions file. dir is where its secret_file
// names are found.
func ParseSubscriptions(b []byte, dir string) (*Subscriptions, error) {
	if len(b) > MaxSubscriptions {
		return nil, fmt.Errorf("larger than %d bytes", MaxSubscriptions)
	}
	s := &Subscriptions{byProject: map[Watch][]*Subscription{}}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	for i := range s.Operator.Notify {
		if err := s.Operator.Notify[i].check(dir); err != nil {
			return nil, fmt.Errorf("operator: %w", err)
		}
	}
	names := map[string]bool{}
	for i := range s.List {
		sub := &s.List[i]
		if sub.Project != nil {
			sub.Projects = append([]Watch{*sub.Project}, sub.Projects...)
			sub.Project = nil
		}
		if len(sub.Projects) == 0 {
			return nil, fmt.Errorf("subscription %d: names no project", i+1)
		}
		if sub.Name == "" {
			sub.Name = sub.Projects[0].String()
		}
		if len(sub.Name) > 200 || alert.OneLine(sub.Name) != sub.Name {
			return nil, fmt.Errorf("subscription %d: name must be at most 200 printable ASCII characters", i+1)
		}
		if names[sub.Name] {
			return nil, fmt.Errorf("subscription %q: there are two of that name; names tell alerts apart", sub.Name)
		}
		names[sub.Name] = true
		if len(sub.Notify) == 0 {
			return nil, fmt.Errorf("subscription %q: notify names nobody", sub.Name)
		}
		for j := range sub.Notify {
			if err := sub.Notify[j].check(dir); err != nil {
				return nil, fmt.Errorf("subscription %q: %w", sub.Name, err)
			}
		}
		if err := sub.Expect.check(); err != nil {
			return nil, fmt.Errorf("subscription %q: expect: %w", sub.Name, err)
		}
		for _, w := range sub.Projects {
			if !slices.Contains(s.byProject[w], sub) {
				s.byProject[w] = append(s.byProject[w], sub)
			}
		}
	}
	return s, nil
}

func (t *Target) check(dir string) error {
	switch {
	case t.Email != "" && t.Webhook != "":
		return errors.New("notify: one item names an email and a webhook; write two")
	case t.Email != "":
		if t.Secret != "" || t.SecretFile != "" {
			return fmt.Errorf("notify %s: a mail address has no secret", t.Email)
		}
		if err := alert.CheckAddress(t.Email); err != nil {
			return fmt.Errorf("notify: %w", err)
		}
	case t.Webhook != "":
		// Whether private addresses are allowed is the monitor's flag, checked
		// with CheckTargets and again when dialling.
		if err := alert.CheckURL(t.Webhook, true); err != nil {
			return fmt.Errorf("notify: %w", err)
		}
		if t.SecretFile != "" {
			if t.Secret != "" {
				return errors.New("notify: secret and secret_file are both given")
			}
			p := t.SecretFile
			if !filepath.IsAbs(p) {
				p = filepath.Join(dir, p)
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return fmt.Errorf("notify: secret_file: %w", err)
			}
			t.Secret = strings.TrimSpace(string(b))
		}
		if err := alert.CheckSecret(t.Secret); err != nil {
			return fmt.Errorf("notify: %w", err)
		}
	default:
		return errors.New("notify: an item names neither email nor webhook")
	}
	for _, s := range t.Only {
		if !s.Valid() {
			return fmt.Errorf("notify: only: %q is not tampering, unexpected or infrastructure", s)
		}
	}
	return nil
}

// wants reports whether t is told of s.
func (t *Target) wants(s alert.Severity) bool { return len(t.Only) == 0 || slices.Contains(t.Only, s) }

func (t *Target) receiver() alert.Receiver {
	if t.Email != "" {
		return alert.Receiver{Kind: alert.Email, Address: t.Email}
	}
	return alert.Receiver{Kind: alert.Webhook, Address: t.Webhook, Secret: t.Secret}
}

// changeKinds are the kinds that change a project without uploading to it.
var changeKinds = []entry.Kind{
	entry.KindYank, entry.KindUnyank, entry.KindQuarantine, entry.KindUnquarantine, entry.KindDeprecate, entry.KindUndeprecate,
	entry.KindArchive, entry.KindUnarchive, entry.KindRemove, entry.KindReject, entry.KindDispute, entry.KindDistTag,
	entry.KindPublisherAdd, entry.KindPublisherRemove, entry.KindOwnerAdd, entry.KindOwnerRemove,
}

func (x *Expect) check() error {
	switch x.Uploads {
	case "", "any":
	case "none":
		if len(x.Publishers) > 0 {
			return errors.New("uploads: none contradicts a list of publishers")
		}
	default:
		return fmt.Errorf("uploads: %q is neither none nor any", x.Uploads)
	}
	for i, p := range x.Publishers {
		if !slices.Contains(entry.PublisherKinds(), p.Kind) {
			return fmt.Errorf("publisher %d: kind %q is not one of %s", i+1, p.Kind, strings.Join(entry.PublisherKinds(), ", "))
		}
		if p.Repository == "" && p.RepositoryID == "" && p.Subject == "" {
			return fmt.Errorf("publisher %d: name a repository, a repository_id or a subject; kind alone would expect everybody", i+1)
		}
	}
	for _, k := range x.Changes {
		if !slices.Contains(changeKinds, k) {
			return fmt.Errorf("changes: %q is not a status or ownership kind", k)
		}
	}
	return nil
}

// For returns the subscriptions that watch a project.
func (s *Subscriptions) For(w Watch) []*Subscription { return s.byProject[w] }

// inRegistry returns the subscriptions that watch any project of a registry.
func (s *Subscriptions) inRegistry(registry, ecosystem string) []*Subscription {
	var out []*Subscription
	for i := range s.List {
		if slices.ContainsFunc(s.List[i].Projects, func(w Watch) bool { return w.Registry == registry && w.Ecosystem == ecosystem }) {
			out = append(out, &s.List[i])
		}
	}
	return out
}

// everyone returns all targets, the operator's first.
func (s *Subscriptions) everyone() []Target {
	out := slices.Clone(s.Operator.Notify)
	for i := range s.List {
		out = append(out, s.List[i].Notify...)
	}
	return out
}

// Targets counts the distinct addresses of a kind, alert.Email or alert.Webhook.
func (s *Subscriptions) Targets(kind string) int {
	seen := map[string]bool{}
	for _, t := range s.everyone() {
		if r := t.receiver(); r.Kind == kind {
			seen[r.Address] = true
		}
	}
	return len(seen)
}

// CheckTargets refuses webhooks that this monitor would refuse to call.
func (s *Subscriptions) CheckTargets(allowPrivate bool) error {
	secrets := map[string]string{}
	for _, t := range s.everyone() {
		if t.Webhook == "" {
			continue
		}
		if err := alert.CheckURL(t.Webhook, allowPrivate); err != nil {
			return fmt.Errorf("subscriptions: %w", err)
		}
		if old, ok := secrets[t.Webhook]; ok && old != t.Secret {
			return errors.New("subscriptions: one webhook URL is given two different secrets")
		}
		secrets[t.Webhook] = t.Secret
	}
	return nil
}

// Projects counts the distinct projects watched.
func (s *Subscriptions) Projects() int { return len(s.byProject) }

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of strings always marshal
	}
	return string(b)
}
