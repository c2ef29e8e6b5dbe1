package main

// verify: is this file the one that was logged? Offline, from the proof beside
// it; with a state also whether its log has shown one history only.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/registry/pypi"
	"github.com/spf13/cobra"
)

func verifyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify FILE... --registry REGISTRY",
		Short: "Check offline that files are the ones that were logged",
		Long: `verify checks each file against the proof beside it (FILE.tlog-proof): the log of
your policy holds an entry for exactly these bytes under this name in this
registry, and the quorum of witnesses confirmed it. It needs no network.

Say with --registry where you mean to install from: the same name in another
registry is another package. --any-registry accepts what the proof says.

A proof says that a file was logged, not that it is safe, and not that nothing
happened since. portbook remembers in a state file the newest it has seen of each
log, and says how old that is; --log-url asks the log itself. A log that went
back or shows two histories is refused, with evidence.

Exit codes: 0 all verified, 1 a file or its log is refused, 2 usage (also: the
policy cannot be used), 3 something could not be checked.`,
		Example: `  portbook verify six-1.17.0.tar.gz --registry pypi.example.org
  portbook verify dist/*.whl --registry pypi.example.org --policy policy \
      --log-url https://log.example.org/pypi`,
		Args: cobra.MinimumNArgs(1),
	}
	var v verifier
	f := cmd.Flags()
	policy := f.String("policy", "", "`FILE` that says which logs and witnesses to believe (default: portbook/policy in your configuration directory)")
	f.StringVar(&v.registry, "registry", "", "`REGISTRY` the files are of: host[:port][/path], or the index's URL")
	observedFlag(f, &v.observed)
	anyRegistry := f.Bool("any-registry", false, "accept whatever registry the proof says, and print it")
	f.StringVar(&v.ecosystem, "ecosystem", entry.PyPI, "`ECOSYSTEM`: pypi, npm, conda or generic")
	f.StringVar(&v.project, "project", "", "`PROJECT` the file is of; for pypi the file's name already says it")
	purl := f.String("purl", "", "package `URL` instead of these: pkg:pypi/six@1.17.0?repository_url=https://pypi.example.org")
	f.StringVar(&v.file, "file", "", "the file's `NAME` in the registry, if it has another here (one file only)")
	proof := f.String("proof", "", "proof `FILE`, if it is not beside the file (one file only)")
	state := f.String("state", "", "`FILE` that remembers each log's newest state, or none (default: portbook/state in your state directory)")
	logURL := f.String("log-url", "", "`URL` of the log, to ask it for its newest checkpoint")
	tokenFile := f.String("log-token-file", "", cli.LogTokenUsage)
	quiet := f.BoolP("quiet", "q", false, "print nothing about files that are verified")
	asJSON := f.Bool("json", false, "print a JSON object: files (with outcome, code, detail and what was proven), log, counts")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		var err error
		if v.registry, err = registryName(v.registry); err != nil {
			return cli.Usage(err)
		}
		if *purl != "" {
			if cmd.Flags().Changed("ecosystem") || cmd.Flags().Changed("project") || *anyRegistry {
				return cli.Usagef("--purl says the ecosystem, the project and the registry: leave the other flags out")
			}
			n, err := readPURL(*purl, v.registry)
			if err != nil {
				return cli.Usage(err)
			}
			v.registry, v.ecosystem, v.project, v.version = n.registry, n.ecosystem, n.project, n.version
		}
		switch {
		case (v.registry == "") != *anyRegistry:
			return cli.Usagef("give --registry, where you mean to install from, or --any-registry to accept what the proof says")
		case len(args) > 1 && (*proof != "" || v.file != ""):
			return cli.Usagef("--proof and --file are for one file")
		case *logURL != "" && *state == "none":
			return cli.Usagef("--log-url and --state none: without memory there is nothing to compare the log with")
		}
		if err := checkEcosystem(v.ecosystem); err != nil {
			return cli.Usage(err)
		}
		if *policy == "" {
			if *policy, err = defaultPolicy(); err != nil {
				return cli.Usage(err)
			}
		}
		if v.policy, err = client.ReadPolicy(*policy); err != nil {
			return cli.Usage(err)
		}
		v.now = time.Now
		if *state == "" {
			if *state, err = defaultState(); err != nil && *logURL != "" {
				return cli.Usagef("--state FILE is needed: %w", err)
			} else if err != nil {
				*state = "none" // a machine without homes still verifies; freshness is then said to be not checked
			}
		}
		if *state != "none" {
			if v.state, err = client.OpenState(*state); err != nil {
				return err
			}
			v.named, v.policy = v.policy, v.state.Policy(v.policy)
		}
		var report verifyReport
		if *logURL != "" {
			if v.reader, err = openLog(*logURL, *tokenFile); err != nil {
				return err
			}
			report.Log = v.askLog(ctx, *logURL)
		}
		for _, path := range args {
			report.add(v.verify(ctx, path, *proof))
		}
		if *asJSON {
			err = writeJSON(cmd.OutOrStdout(), report)
		} else {
			err = report.print(cmd.OutOrStdout(), *quiet)
		}
		return errors.Join(err, report.exit())
	}
	return cmd
}

// registryName takes a registry's name or its URL.
func registryName(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if strings.Contains(s, "://") {
		name, err := entry.RegistryFromURL(s)
		if err != nil {
			return "", fmt.Errorf("--registry: %w", err)
		}
		return strings.TrimSuffix(name, "/simple"), nil
	}
	if err := entry.CheckRegistry(s); err != nil {
		return "", fmt.Errorf("--registry %s: %w", show(s), err)
	}
	return s, nil
}

func checkEcosystem(s string) error {
	if !slices.Contains(entry.Ecosystems(), s) {
		return fmt.Errorf("--ecosystem %s: want one of %s", show(s), strings.Join(entry.Ecosystems(), ", "))
	}
	return nil
}

// The outcomes of one file.
const (
	outcomeVerified = "verified"
	outcomeRefused  = "refused"
	outcomeCannot   = "cannot-check"
)

// A verifier holds what is the same for every file of one command.
type verifier struct {
	policy        *c2sp.Policy // with the logs that took over from those it names
	named         *c2sp.Policy // as its owner wrote it
	registry      string       // "" = whatever the proof says
	ecosystem     string
	project, file string         // "" = as the file's name says
	version       string         // "" = any
	state         *client.State  // nil = freshness is not checked
	reader        *client.Reader // nil = offline
	observed      bool           // a follower's entry is enough
	origin        string         // of the reader's log; "" = it could not be asked
	misbehaved    error          // what the log did that no proof of it is good any more
	now           func() time.Time
}

// fileResult is what became of one file, for people and for scripts.
type fileResult struct {
	File     string `json:"file"`
	Outcome  string `json:"outcome"`
	Code     string `json:"code,omitempty"`     // PB1xx, PB2xx, PB3xx
	Check    string `json:"check,omitempty"`    // which check failed
	Detail   string `json:"detail,omitempty"`   // what was found instead
	Evidence string `json:"evidence,omitempty"` // file that proves a log's misbehaviour
	*proven
}

// proven is what a proof proves.
type proven struct {
	Proof       string          `json:"proof"` // the file it was read from
	Refreshed   bool            `json:"refreshed,omitempty"`
	Registry    string          `json:"registry"`
	AnyRegistry bool            `json:"any_registry,omitempty"` // nobody said which one was meant
	Ecosystem   string          `json:"ecosystem"`
	Project     string          `json:"project"`
	Version     string          `json:"version,omitempty"`
	Name        string          `json:"name"`
	SHA256      string          `json:"sha256"`
	Claim       string          `json:"claim"`
	Publisher   string          `json:"publisher,omitempty"`
	Log         string          `json:"log"`
	Index       uint64          `json:"index"`
	TreeSize    uint64          `json:"tree_size"`
	LoggedAt    *time.Time      `json:"logged_at,omitempty"` // by then it was logged; absent under quorum none
	CosignedBy  []cosignedBy    `json:"cosigned_by"`
	Freshness   freshnessResult `json:"freshness"`
}

type cosignedBy struct {
	Witness string    `json:"witness"`
	Time    time.Time `json:"time"`
}

type freshnessResult struct {
	Checked bool       `json:"checked"`
	Kind    string     `json:"kind,omitempty"` // fresh, aging, stale
	AsOf    *time.Time `json:"as_of,omitempty"`
	Warn    bool       `json:"warn,omitempty"` // older than a day, or a clock is wrong
	Words   string     `json:"words"`
}

// verify judges one file. proof is "" for the one beside it.
func (v *verifier) verify(ctx context.Context, path, proof string) fileResult {
	r := fileResult{File: path}
	p, err := v.prove(ctx, path, proof)
	if err != nil {
		r.fail(err)
		return r
	}
	r.Outcome, r.proven = outcomeVerified, p
	return r
}

// fail says what err means for a file.
func (r *fileResult) fail(err error) {
	var refusal *client.Refusal
	var cannot *client.CannotCheck
	switch {
	case errors.As(err, &refusal):
		r.Outcome, r.Code, r.Check, r.Detail, r.Evidence = outcomeRefused, refusal.Code, refusal.Check, refusal.Detail, refusal.Evidence
	case errors.As(err, &cannot):
		r.Outcome, r.Code, r.Detail = outcomeCannot, cannot.Code, cannot.Reason
	default:
		r.Outcome, r.Code, r.Detail = outcomeCannot, codeFile, pathReason(err)
	}
}

func (v *verifier) prove(ctx context.Context, path, proof string) (*proven, error) {
	sum, _, err := hashFile(ctx, path)
	if err != nil {
		return nil, err
	}
	candidates := []string{path + proofSuffix, path + refreshedSuffix}
	if proof != "" {
		candidates = []string{proof}
	}
	var first error
	for i, c := range candidates {
		p, err := v.proveBy(ctx, path, sum, c)
		if err == nil {
			p.Refreshed = i > 0
			return p, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var refusal *client.Refusal
		if !errors.As(err, &refusal) || refusal.Tampering() {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	switch {
	case first != nil:
		return nil, first
	case proof != "":
		return nil, &client.Refusal{Code: client.CodeNoProof, Check: "looking for a proof", Detail: "there is no file " + show(proof)}
	}
	return nil, &client.Refusal{Code: client.CodeNoProof, Check: "looking for a proof", Detail: "there is no " + show(filepath.Base(path)+proofSuffix) + " beside the file"}
}

func (v *verifier) proveBy(ctx context.Context, path string, sum [32]byte, proof string) (*proven, error) {
	b, err := readFile(proof, c2sp.MaxProof)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, &client.CannotCheck{Code: codeFile, Reason: "reading the proof: " + pathReason(err), Err: err}
	}
	got, err := v.check(path, sum, b)
	if err != nil {
		return nil, err
	}
	if err := v.history(ctx, got, b); err != nil {
		return nil, err
	}
	return v.proven(got, proof), nil
}

// check is the offline part: what client.Verify does, and for a Python file
// whose project nobody named, that its name is one of the proven project.
func (v *verifier) check(path string, sum [32]byte, proof []byte) (*client.Verified, error) {
	got, err := client.VerifyProof(v.policy, proof)
	if err != nil {
		return nil, err
	}
	want := client.File{Registry: v.registry, Ecosystem: v.ecosystem, Project: v.project, Name: v.file, SHA256: sum, Observed: v.observed}
	if want.Registry == "" {
		want.Registry = got.Entry.Registry
	}
	if want.Name == "" {
		want.Name = filepath.Base(path)
	}
	if err := got.Check(want); err != nil {
		return nil, err
	}
	if v.version != "" && v.version != got.Entry.Version && !(want.Ecosystem == entry.PyPI && pypi.SameVersion(v.version, got.Entry.Version)) {
		return nil, &client.Refusal{Code: client.CodeFileName, Check: "version", Detail: fmt.Sprintf("the proof is about version %q, you asked for %q", got.Entry.Version, v.version)}
	}
	if want.Ecosystem == entry.PyPI && want.Project == "" {
		if _, err := pypi.VersionOf(got.Entry.Project, want.Name); err != nil {
			return nil, &client.Refusal{Code: client.CodeProject, Check: "project", Err: err,
				Detail: fmt.Sprintf("the proof is about project %q, and %q is not a name of one of its files", got.Entry.Project, want.Name)}
		}
	}
	return got, nil
}

// history compares the proof's checkpoint with what is remembered of its log.
func (v *verifier) history(ctx context.Context, got *client.Verified, proof []byte) error {
	if v.misbehaved != nil && (v.origin == "" || v.origin == got.Checkpoint.Origin) {
		return v.misbehaved
	}
	if v.state == nil {
		return nil
	}
	p, err := c2sp.ParseProof(proof)
	if err != nil {
		return err
	}
	if v.reader != nil && v.origin == got.Checkpoint.Origin {
		return v.state.Update(ctx, v.policy, p.Checkpoint, v.reader)
	}
	return v.state.Observe(v.policy, p.Checkpoint)
}

// logResult is what asking the log came to.
type logResult struct {
	URL    string `json:"url"`
	Origin string `json:"origin,omitempty"`
	// Handovers are the logs that ended on the way to Origin, in words.
	Handovers []string `json:"handovers,omitempty"`
	Asked     bool     `json:"asked"` // its newest checkpoint was had and agrees with what is remembered
	Code      string   `json:"code,omitempty"`
	Detail    string   `json:"detail,omitempty"`
}

// askLog fetches the log's newest checkpoint into the state.
func (v *verifier) askLog(ctx context.Context, url string) *logResult {
	r := &logResult{URL: url}
	if note, err := v.reader.Checkpoint(ctx); err == nil {
		// Which log this is only matters if it then stands under the policy.
		if n, perr := c2sp.ParseNote(note); perr == nil {
			if c, perr := c2sp.ParseCheckpoint(n.Text); perr == nil {
				r.Origin = c.Origin
			}
		}
	}
	f, err := v.state.Follow(ctx, v.named, v.reader)
	if err == nil {
		v.policy, v.reader = f.Policy, f.Reader
		for _, h := range f.Handovers {
			r.Handovers = append(r.Handovers, h.String())
			r.Origin = h.To
		}
		v.origin, r.Asked = r.Origin, true
		return r
	}
	v.reader = nil
	r.Detail = err.Error()
	var refusal *client.Refusal
	var cannot *client.CannotCheck
	if errors.As(err, &refusal) {
		r.Code, r.Detail = refusal.Code, refusal.Check+": "+refusal.Detail
		v.origin, v.misbehaved = r.Origin, err
	} else if errors.As(err, &cannot) {
		r.Code, r.Detail = cannot.Code, cannot.Reason
	}
	return r
}

func (v *verifier) proven(got *client.Verified, proof string) *proven {
	e := got.Entry
	p := &proven{
		Proof: proof, Registry: e.Registry, AnyRegistry: v.registry == "", Ecosystem: e.Ecosystem, Project: e.Project, Version: e.Version,
		Name: e.File, SHA256: e.SHA256, Claim: string(e.Claim), Log: got.Checkpoint.Origin, Index: got.Index, TreeSize: got.Checkpoint.Size,
		CosignedBy: []cosignedBy{}, Freshness: freshnessResult{Words: "not checked (--state none)"},
	}
	if e.Publisher != nil {
		p.Publisher = publisherWords(e.Publisher)
	}
	if !got.LoggedAt.IsZero() {
		t := got.LoggedAt.UTC()
		p.LoggedAt = &t
	}
	slices.SortStableFunc(got.Cosignatures, func(a, b c2sp.Cosignature) int { return strings.Compare(a.Witness, b.Witness) })
	for _, c := range got.Cosignatures {
		p.CosignedBy = append(p.CosignedBy, cosignedBy{c.Witness, c.Time.UTC()})
	}
	if v.state != nil {
		f := v.state.Freshness(got.Checkpoint.Origin, v.now())
		p.Freshness = freshnessResult{Kind: string(f.Kind), Words: strings.TrimPrefix(f.String(), "freshness ")}
		switch f.Kind {
		case client.Fresh, client.Aging, client.Stale:
			p.Freshness.Checked = true
			p.Freshness.AsOf = &f.AsOf
		}
		if v.named.Retired(got.Checkpoint.Origin) {
			// Its owner has put another in its place: nothing new comes from it.
			p.Freshness.Words = "not judged: your policy has retired this log"
			p.Freshness.Kind, p.Freshness.Checked, p.Freshness.AsOf = "", false, nil
			return p
		}
		p.Freshness.Warn = f.Kind != client.Fresh && f.Kind != client.NoHistory && f.Kind != client.NoWitness
	}
	return p
}

func publisherWords(p *entry.Publisher) string {
	s := p.Kind
	for _, f := range []string{p.Repository, p.Subject, p.Workflow, p.Environment} {
		if f != "" {
			s += " " + f
		}
	}
	return s
}

// hashFile returns the SHA-256 and the size of a plain file.
func hashFile(ctx context.Context, path string) (sum [32]byte, size uint64, err error) {
	f, err := openPlain(path)
	if err != nil {
		return sum, 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, readerFunc(func(b []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return f.Read(b)
	}))
	if err != nil {
		return sum, 0, err
	}
	return [32]byte(h.Sum(nil)), uint64(n), nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func hex64(sum [32]byte) string { return hex.EncodeToString(sum[:]) }

// verifyReport is what the command prints.
type verifyReport struct {
	Files       []fileResult `json:"files"`
	Log         *logResult   `json:"log,omitempty"` // with --log-url
	Verified    int          `json:"verified"`
	Refused     int          `json:"refused"`
	CannotCheck int          `json:"cannot_check"`
}

func (r *verifyReport) add(f fileResult) {
	r.Files = append(r.Files, f)
	switch f.Outcome {
	case outcomeVerified:
		r.Verified++
	case outcomeRefused:
		r.Refused++
	default:
		r.CannotCheck++
	}
}

// exit is the exit code: a refusal outweighs what could not be checked.
func (r *verifyReport) exit() error {
	switch {
	case r.Refused > 0, r.Log != nil && strings.HasPrefix(r.Log.Code, "PB2"):
		return cli.Exit(cli.Refused, nil)
	case r.CannotCheck > 0, r.Log != nil && !r.Log.Asked:
		return cli.Exit(cli.CannotCheck, nil)
	}
	return nil
}

func (r *verifyReport) print(out io.Writer, quiet bool) error {
	var codes []string
	for _, f := range r.Files {
		if f.Outcome != outcomeVerified || !quiet {
			f.print(out)
		}
		if f.Code != "" && !slices.Contains(codes, f.Code) {
			codes = append(codes, f.Code)
		}
	}
	if l := r.Log; l != nil && !quiet {
		for _, h := range l.Handovers {
			fmt.Fprintf(out, "note: %s\n", oneLine(h))
		}
	}
	if l := r.Log; l != nil && !l.Asked {
		if strings.HasPrefix(l.Code, "PB2") {
			fmt.Fprintf(out, "THE LOG at %s MISBEHAVED (%s): %s\n", show(l.URL), l.Code, oneLine(l.Detail))
		} else {
			fmt.Fprintf(out, "the log at %s could not be asked, so freshness is not checked: %s\n", show(l.URL), oneLine(l.Detail))
		}
		if l.Code != "" && !slices.Contains(codes, l.Code) {
			codes = append(codes, l.Code)
		}
	}
	_, err := fmt.Fprintf(out, "%d verified, %d refused, %d could not be checked\n", r.Verified, r.Refused, r.CannotCheck)
	for _, c := range codes {
		fmt.Fprintf(out, "Why, and what to do: portbook explain %s\n", c)
	}
	return err
}

func (f *fileResult) print(out io.Writer) {
	name := show(f.File)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(out, "  %-11s %s\n", what, fmt.Sprintf(format, args...))
	}
	switch f.Outcome {
	case outcomeRefused:
		fmt.Fprintf(out, "%s: REFUSED (%s)\n", name, f.Code)
		line("why", "%s: %s", ascii(f.Check), oneLine(f.Detail))
		if f.Evidence != "" {
			line("evidence", "%s", show(f.Evidence))
		}
		return
	case outcomeCannot:
		fmt.Fprintf(out, "%s: could not be checked (%s)\n", name, f.Code)
		line("reason", "%s", oneLine(f.Detail))
		return
	}
	p := f.proven
	fmt.Fprintf(out, "%s: verified\n", name)
	project := show(p.Project)
	if p.Version != "" {
		project += " " + show(p.Version)
	}
	line("project", "%s (%s)", project, p.Ecosystem)
	if p.AnyRegistry {
		line("REGISTRY", "%s -- as the proof says; nobody checked that you meant this one", show(p.Registry))
	} else {
		line("registry", "%s", show(p.Registry))
	}
	line("logged", "%s, as entry %d of %s", claimWords(p.Claim), p.Index, show(p.Log))
	if p.LoggedAt == nil {
		line("time", "unknown: the policy needs no witness")
	} else {
		line("time", "%s or before", utc(*p.LoggedAt))
	}
	if len(p.CosignedBy) > 0 {
		var names []string
		for _, c := range p.CosignedBy {
			names = append(names, c.Witness)
		}
		line("cosigned", "by %s", showAll(names))
	}
	if p.Publisher != "" {
		line("publisher", "%s", ascii(p.Publisher))
	}
	if p.Refreshed {
		line("proof", "%s, since the first proof does not stand", show(p.Proof))
	}
	warn := ""
	if p.Freshness.Warn {
		warn = "WARNING "
	}
	line("freshness", "%s%s", warn, ascii(p.Freshness.Words))
}

// claimWords says who speaks.
func claimWords(claim string) string {
	if claim == string(entry.ClaimObserved) {
		return "seen by a follower"
	}
	return "by the index"
}
