package main

// submit: log files, and keep the proof of each beside it.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/registry/pypi"
	"github.com/spf13/cobra"
)

const tokenVariable = "PORTBOOK_TOKEN"

func submitCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "submit FILE... --log URL --registry REGISTRY --policy POLICY",
		Short: "Log files as uploads, and write the proof of each beside it",
		Long: `submit hashes each file, has the log add an entry for it, waits until witnesses
have confirmed it, verifies the proof under your policy as an installer would,
and writes it beside the file as FILE.tlog-proof.

Only an index submits: the log's operator gives it a token that is good for one
registry. Uploaders need not do anything; see "portbook gateway".

It can be run again at any time, with dist/* too: files *.tlog-proof are skipped,
a file whose proof is there and verifies is not submitted again, and the same
file submitted twice has one index. The first
proof is never overwritten, since its cosignatures bound when the file was
logged; a later one is written beside it as FILE.refreshed.tlog-proof.

The token is read from --token-file or from PORTBOOK_TOKEN, never from an
argument, which other users of the machine could see.

Exit codes: 0 all logged and proven, 1 the log refused one (or its proof is
wrong), 2 usage (nothing was sent), 3 a file could not be logged now: run it
again later.`,
		Example: `  portbook submit dist/* --log https://log.example.org:8443 --token-file token \
      --registry pypi.example.org --policy policy
  portbook submit tool.tar.gz --ecosystem generic --project tools --file linux/tool.tar.gz \
      --log http://127.0.0.1:8081 --token-file token --registry dl.example.org --policy policy`,
		Args: cobra.MinimumNArgs(1),
	}
	var o entryOptions
	var s submitting
	f := cmd.Flags()
	target := f.String("log", "", "`URL` of the log's submission API: https://host[:port], or http:// on this machine")
	tokenFile := f.String("token-file", "", "`FILE` with the token (or set "+tokenVariable+")")
	policy := f.String("policy", "", "policy `FILE` under which the proof must verify")
	noVerify := f.Bool("no-verify", false, "do without a policy: the proof is kept as the log gave it, UNVERIFIED")
	f.StringVar(&o.registry, "registry", "", "`REGISTRY` the files are of: host[:port][/path], or the index's URL")
	f.StringVar(&o.claim, "claim", string(entry.ClaimIndex), "`CLAIM`: index (you are the registry) or observed (you saw it serve the file)")
	f.StringVar(&o.ecosystem, "ecosystem", entry.PyPI, "`ECOSYSTEM`: pypi, npm, conda or generic")
	f.StringVar(&o.project, "project", "", "`PROJECT`; for pypi the file's name says it")
	f.StringVar(&o.version, "version", "", "`VERSION`; for pypi the file's name says it")
	purl := f.String("purl", "", "package `URL` instead of these: pkg:generic/tools@1.0?repository_url=https://dl.example.org")
	f.StringVar(&o.file, "file", "", "the file's `NAME` in the registry, if it has another here (one file only)")
	f.BoolVar(&s.refresh, "refresh", false, "fetch a new proof also where one verifies; it is written beside the first")
	f.DurationVar(&s.wait, "wait", time.Minute, "go on trying so long while the log or its witnesses are out")
	asJSON := f.Bool("json", false, "print a JSON object: files (with outcome, index, proof, code or field, detail), counts")
	cli.Require(cmd, "log")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		args, skipped := withoutProofs(args)
		switch {
		case len(args) == 0:
			return cli.Usagef("nothing to submit: %s is a proof by its name, as this command writes beside a file", show(skipped[0]))
		case (*policy == "") != *noVerify:
			return cli.Usagef("give --policy, under which the proof must verify, or --no-verify to keep it unverified")
		case len(args) > 1 && o.file != "":
			return cli.Usagef("--file is for one file")
		}
		var err error
		if o.registry, err = registryName(o.registry); err != nil {
			return cli.Usage(err)
		}
		if *purl != "" {
			if cmd.Flags().Changed("ecosystem") || cmd.Flags().Changed("project") || cmd.Flags().Changed("version") {
				return cli.Usagef("--purl says the ecosystem, the project and the version: leave the other flags out")
			}
			n, err := readPURL(*purl, o.registry)
			if err != nil {
				return cli.Usage(err)
			}
			o.registry, o.ecosystem, o.project, o.version = n.registry, n.ecosystem, n.project, n.version
		}
		if o.registry == "" {
			return cli.Usagef("--registry is required (see %s --help)", cmd.CommandPath())
		}
		if err := checkEcosystem(o.ecosystem); err != nil {
			return cli.Usage(err)
		}
		if *policy != "" {
			if s.policy, err = client.ReadPolicy(*policy); err != nil {
				return cli.Usage(err)
			}
		}
		token, err := readToken(*tokenFile)
		if err != nil {
			return cli.Usage(err)
		}
		// Everything that can be wrong here is found before anything is sent.
		var uploads []upload
		for _, path := range args {
			u, err := o.upload(ctx, path, time.Now())
			if err != nil {
				return err
			}
			uploads = append(uploads, u)
		}
		log, err := submit.Dial(*target, token)
		if err != nil {
			return cli.Usage(err)
		}
		defer log.Close()
		s.log = log
		if len(skipped) > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "portbook: skipped, for they are proofs by their names: %s\n", showAll(skipped))
		}
		if s.policy == nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "portbook: --no-verify: nobody checks what the log answers")
		}
		report := submitReport{Files: []submitResult{}}
		s.all(ctx, uploads, func(r submitResult) {
			report.add(r)
			if !*asJSON {
				r.print(cmd.OutOrStdout())
			}
		})
		if *asJSON {
			err = writeJSON(cmd.OutOrStdout(), report)
		} else if len(uploads) > 1 {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d logged, %d refused, %d could not be logged now\n", report.Logged, report.Refused, report.CannotCheck)
		}
		return errors.Join(err, report.exit())
	}
	return cmd
}

// withoutProofs takes what this command has written out of what a shell made of
// dist/*. No registry has a file of such a name: its own proof could not be told
// from the proof of another.
func withoutProofs(paths []string) (files, proofs []string) {
	for _, path := range paths {
		if strings.HasSuffix(path, proofSuffix) {
			proofs = append(proofs, path)
		} else {
			files = append(files, path)
		}
	}
	return files, proofs
}

// readToken reads the token from a file, else from the environment.
func readToken(file string) (string, error) {
	if file != "" {
		token, err := readSecret(file)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		return token, nil
	}
	token := strings.TrimSpace(os.Getenv(tokenVariable))
	if token == "" {
		return "", errors.New("no token: give --token-file or set " + tokenVariable)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New(tokenVariable + " holds something that is no token")
	}
	return token, nil
}

// entryOptions are what the flags say about every file.
type entryOptions struct {
	registry, claim, ecosystem, project, version, file string
}

// An upload is a file to be logged.
type upload struct {
	path  string
	sum   [32]byte
	entry *entry.Entry
}

// upload hashes the file and makes its entry. Errors about names are usage
// errors; the others are about reading.
func (o *entryOptions) upload(ctx context.Context, path string, now time.Time) (upload, error) {
	name := cmp.Or(o.file, filepath.Base(path))
	project, version := o.project, o.version
	if o.ecosystem == entry.PyPI {
		p, v, err := pypi.ParseFileName(name)
		if project == "" && err != nil {
			return upload{}, cli.Usagef("%s: %w", show(path), err)
		}
		if project != "" {
			if v, err = pypi.VersionOf(project, name); err != nil {
				return upload{}, cli.Usagef("%s: %w", show(path), err)
			}
		}
		project, version = cmp.Or(project, p), cmp.Or(version, v)
		if !pypi.SameVersion(version, v) {
			return upload{}, cli.Usagef("%s: --version %s is not the one in the file's name", show(path), show(version))
		}
	}
	if project == "" {
		return upload{}, cli.Usagef("%s: --project is required for --ecosystem %s", show(path), o.ecosystem)
	}
	normal, err := entry.NormalProject(o.ecosystem, project)
	if err != nil {
		return upload{}, cli.Usagef("%s: %w", show(path), err)
	}
	sum, size, err := hashFile(ctx, path)
	if err != nil {
		return upload{}, fmt.Errorf("%s: %s", show(path), pathReason(err))
	}
	e := &entry.Entry{
		Kind: entry.KindUpload, Claim: entry.Claim(o.claim), Time: now.UTC().Format(entry.TimeFormat),
		Registry: o.registry, Ecosystem: o.ecosystem, Project: normal, Version: version, File: name,
		Size: entry.Uint(size), SHA256: hex64(sum),
	}
	if err := e.Validate(); err != nil {
		return upload{}, cli.Usagef("%s: %w", show(path), err)
	}
	return upload{path, sum, e}, nil
}

// submitter is the log, as far as this command needs it.
type submitter interface {
	Submit(ctx context.Context, e *entry.Entry) (*submit.Ack, error)
}

// submitting holds what is the same for every file of one command.
type submitting struct {
	log     submitter
	policy  *c2sp.Policy // nil = unverified
	refresh bool
	wait    time.Duration
}

const (
	outcomeLogged  = "logged"
	outcomeAlready = "already-logged"

	atOnce       = 16              // submissions at a time: they share the log's rounds of cosigning
	attemptLimit = 2 * time.Minute // for one that never answers
)

// submitResult is what became of one file.
type submitResult struct {
	File       string  `json:"file"`
	Outcome    string  `json:"outcome"` // logged, already-logged, refused, cannot-check
	Verified   bool    `json:"verified"`
	Index      *uint64 `json:"index,omitempty"`
	Log        string  `json:"log,omitempty"`
	Proof      string  `json:"proof,omitempty"` // the file it is in
	SHA256     string  `json:"sha256"`
	Code       string  `json:"code,omitempty"`        // of a proof that does not verify
	Field      string  `json:"field,omitempty"`       // of the entry, that the log refuses
	FirstIndex *uint64 `json:"first_index,omitempty"` // of the entry that has the name already, with other bytes
	Detail     string  `json:"detail,omitempty"`
	Note       string  `json:"note,omitempty"`
}

// all submits uploads, some at a time, and hands on what became of each in
// their order.
func (s *submitting) all(ctx context.Context, uploads []upload, each func(submitResult)) {
	results := make([]chan submitResult, len(uploads))
	for i := range results {
		results[i] = make(chan submitResult, 1)
	}
	slots := make(chan struct{}, atOnce)
	go func() {
		for i, u := range uploads {
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				results[i] <- s.one(ctx, u)
			}()
		}
	}()
	for _, r := range results {
		each(<-r)
	}
}

func (s *submitting) one(ctx context.Context, u upload) submitResult {
	r := submitResult{File: u.path, SHA256: hex64(u.sum)}
	first, later := u.path+proofSuffix, u.path+refreshedSuffix
	have, kept := s.stored(u, first), false
	if have == nil {
		_, err := os.Lstat(first)
		kept = err == nil // something is there that is no proof of this
	}
	if !s.refresh {
		for _, path := range []string{first, later} {
			if v := s.stored(u, path); v != nil {
				r.Outcome, r.Verified, r.Index, r.Log, r.Proof = outcomeAlready, true, &v.Index, v.Checkpoint.Origin, path
				return r
			}
		}
	}
	ack, err := s.submit(ctx, u.entry)
	if err != nil {
		r.fail(err)
		return r
	}
	r.Index = &ack.Index
	if err := s.judge(u, ack, &r); err != nil {
		r.fail(err)
		return r
	}
	r.Proof = first
	if have != nil || kept {
		r.Proof = later
		err = writeOver(later, ack.Proof)
	} else if err = writeFirst(first, ack.Proof); errors.Is(err, fs.ErrExist) {
		// Another run was here in between; its proof is as good.
		r.Proof, err = later, writeOver(later, ack.Proof)
	}
	if err != nil {
		r.Outcome, r.Verified, r.Code, r.Proof = outcomeCannot, false, codeFile, ""
		r.Detail = "it is logged, but writing the proof failed: " + pathReason(err)
		return r
	}
	r.Outcome = outcomeLogged
	if kept {
		r.Note = "what was in " + filepath.Base(first) + " does not prove this file here; it is left as it was"
	}
	return r
}

// stored returns what the proof in path proves about u; nil if it does not.
func (s *submitting) stored(u upload, path string) *client.Verified {
	if s.policy == nil {
		return nil
	}
	b, err := readFile(path, c2sp.MaxProof)
	if err != nil {
		return nil
	}
	v, err := s.verify(u, b)
	if err != nil {
		return nil
	}
	return v
}

func (s *submitting) verify(u upload, proof []byte) (*client.Verified, error) {
	e := u.entry
	v, err := client.Verify(s.policy, client.File{Registry: e.Registry, Ecosystem: e.Ecosystem, Project: e.Project, Name: e.File, SHA256: u.sum, Observed: e.Claim == entry.ClaimObserved}, proof)
	if err != nil {
		return nil, err
	}
	if v.Entry.Claim != e.Claim {
		return nil, &client.Refusal{Code: client.CodeClaim, Check: "claim", Detail: fmt.Sprintf("the entry is logged with claim %q, not %q", v.Entry.Claim, e.Claim)}
	}
	return v, nil
}

// judge checks what the log answered, as an installer would.
func (s *submitting) judge(u upload, ack *submit.Ack, r *submitResult) error {
	if s.policy == nil {
		p, err := c2sp.ParseProof(ack.Proof)
		if err != nil {
			return &client.Refusal{Code: client.CodeProofMalformed, Check: "reading the proof", Detail: err.Error(), Err: err}
		}
		if n, err := c2sp.ParseNote(p.Checkpoint); err == nil {
			if c, err := c2sp.ParseCheckpoint(n.Text); err == nil {
				r.Log = c.Origin
			}
		}
		return nil
	}
	v, err := s.verify(u, ack.Proof)
	if err != nil {
		return err
	}
	if v.Index != ack.Index {
		return &client.Refusal{Code: client.CodeInclusion, Check: "the index", Detail: fmt.Sprintf("the log says %d, its proof is of entry %d", ack.Index, v.Index)}
	}
	r.Verified, r.Log = true, v.Checkpoint.Origin
	return nil
}

// submit tries again while the log is out, as long as s.wait.
func (s *submitting) submit(ctx context.Context, e *entry.Entry) (*submit.Ack, error) {
	end := time.Now().Add(s.wait)
	for pause := time.Second; ; pause = min(2*pause, 15*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, attemptLimit)
		ack, err := s.log.Submit(attempt, e)
		cancel()
		var out *submit.Unavailable
		if !errors.As(err, &out) {
			return ack, err
		}
		delay := max(out.RetryAfter, pause)
		if time.Now().Add(delay).After(end) {
			return nil, err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *submitResult) fail(err error) {
	r.Outcome = outcomeRefused
	var conflict *submit.Conflict
	var invalid *submit.Invalid
	var refusal *client.Refusal
	var frozen *submit.Frozen
	switch {
	case errors.As(err, &frozen):
		r.Detail = frozen.Reason + "; give its address with --log, a token of it, and a policy that names its key"
	case errors.As(err, &conflict):
		r.FirstIndex, r.Detail = &conflict.FirstIndex, fmt.Sprintf("the log holds other bytes under this name, as entry %d", conflict.FirstIndex)
	case errors.As(err, &invalid):
		r.Field, r.Detail = invalid.Field, invalid.Reason
	case errors.As(err, &refusal):
		r.Code, r.Detail = refusal.Code, "the log's proof does not verify: "+refusal.Check+": "+refusal.Detail
	case errors.Is(err, submit.ErrUnauthorized):
		r.Detail = err.Error()
	default:
		r.Outcome, r.Detail = outcomeCannot, err.Error()
		var out *submit.Unavailable
		if errors.As(err, &out) && out.RetryAfter > 0 {
			r.Detail += fmt.Sprintf(" (the log asks to come back in %s)", out.RetryAfter)
		}
	}
}

func (r *submitResult) print(out io.Writer) {
	name := show(r.File)
	switch r.Outcome {
	case outcomeLogged:
		how := "verified"
		if !r.Verified {
			how = "UNVERIFIED"
		}
		fmt.Fprintf(out, "%s: logged as entry %d of %s, proof %s in %s\n", name, *r.Index, show(r.Log), how, show(r.Proof))
	case outcomeAlready:
		fmt.Fprintf(out, "%s: already logged as entry %d of %s, proof verified in %s\n", name, *r.Index, show(r.Log), show(r.Proof))
	case outcomeRefused:
		fmt.Fprintf(out, "%s: REFUSED: %s%s\n", name, codePrefix(r.Code), oneLine(r.Detail))
	default:
		fmt.Fprintf(out, "%s: could not be logged now: %s\n", name, oneLine(r.Detail))
	}
	if r.Note != "" {
		fmt.Fprintf(out, "  note: %s\n", oneLine(r.Note))
	}
}

func codePrefix(code string) string {
	if code == "" {
		return ""
	}
	return code + ": "
}

// submitReport is what --json prints.
type submitReport struct {
	Files       []submitResult `json:"files"`
	Logged      int            `json:"logged"` // with those that were logged already
	Refused     int            `json:"refused"`
	CannotCheck int            `json:"cannot_check"`
}

func (r *submitReport) add(f submitResult) {
	r.Files = append(r.Files, f)
	switch f.Outcome {
	case outcomeLogged, outcomeAlready:
		r.Logged++
	case outcomeRefused:
		r.Refused++
	default:
		r.CannotCheck++
	}
}

func (r *submitReport) exit() error {
	switch {
	case r.Refused > 0:
		return cli.Exit(cli.Refused, nil)
	case r.CannotCheck > 0:
		return cli.Exit(cli.CannotCheck, nil)
	}
	return nil
}
