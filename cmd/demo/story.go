package main

// The story: its scenes, each a plain sentence, what was seen, and how long it took.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/world"
	"github.com/portbook/portbook/registry/gateway"
)

const (
	registry = "packages.example"
	robot    = "release-robot" // the account that the project's release job uploads with
	password = "correct-horse"
)

// subscriptions say what the maintainer of lantern expects.
const subscriptions = `
subscriptions:
  - name: lantern
    project: {registry: packages.example, ecosystem: pypi, project: lantern}
    notify:
      - email: MAILBOX
      - webhook: WEBHOOK
        secret: whsec_cG9ydGJvb2stZGVtby1zZWNyZXQtMzItYnl0ZXMhISE=
    expect:
      publishers:
        - {kind: github, repository: acme/lantern, workflow: release.yml}
`

type story struct {
	out    io.Writer
	dir    string
	logger *slog.Logger
	tools  tools

	steps, failed int
	world         *world.World
	site          *world.Site
	closed        bool
}

// scene is one step. It returns what a person would have seen.
type scene struct {
	sentence string
	play     func(ctx context.Context) (seen []string, err error)
}

func (s *story) tell(ctx context.Context) {
	fmt.Fprintf(s.out, "Portbook: a public record of every package upload, that nobody can rewrite.\n%s\n", s.tools.say())
	for _, sc := range []scene{
		{"A log, three witnesses, a monitor, a package index, its gateway and a verifying proxy start.", s.start},
		{"The release job of the project lantern uploads version 1.0; each file is in the public log before anyone can install it.", s.upload},
		{"Somebody installs lantern through the proxy, which checks every file against the log.", s.install},
		{"An intruder at the index swaps the file: without Portbook, the swapped one installs and nobody notices.", s.swap},
		{"With Portbook, the same install is refused, and says why.", s.refuse},
		{"A thief uploads version 1.1 with a stolen token: the maintainer gets a mail at once.", s.thief},
		{"The log tries to show two histories: no witness signs the second one, and no client believes it.", s.fork},
		{"Two of three witnesses go down: what is proven still installs, a new upload is held back.", s.outage},
		{"The witnesses return: the held upload lands in the log, once, and installs.", s.recovery},
		{"The monitor has read the whole log and recomputed it, entry by entry.", s.audit},
	} {
		if ctx.Err() != nil {
			return
		}
		s.steps++
		start := time.Now()
		seen, err := sc.play(ctx)
		fmt.Fprintf(s.out, "\n%2d. %s  (%s)\n", s.steps, sc.sentence, short(time.Since(start)))
		for _, line := range seen {
			fmt.Fprintf(s.out, "      %s\n", line)
		}
		if err != nil {
			s.failed++
			fmt.Fprintf(s.out, "    NOT OK: %v\n", err)
			if s.site == nil {
				break // nothing further can be played
			}
		}
	}
	fmt.Fprintln(s.out)
}

func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func (s *story) start(ctx context.Context) ([]string, error) {
	var err error
	if s.world, err = world.New(ctx, s.dir, world.Options{Witnesses: 3, Quorum: 2, Logger: s.logger}); err != nil {
		return nil, err
	}
	s.site, err = s.world.NewSite(ctx, world.SiteOptions{
		Registry: registry, Accounts: map[string]string{robot: password}, Subscriptions: subscriptions,
		Known: map[string]gateway.Account{robot: {
			Auth:      "trusted-publisher",
			Publisher: &entry.Publisher{Kind: "github", Repository: "acme/lantern", Workflow: "release.yml"},
		}},
	})
	return []string{"Two of the three witnesses must sign before the log publishes anything."}, err
}

// lantern is a release of the example project.
func (s *story) lantern(version, light string) (wheel, sdist string, err error) {
	files := map[string]string{"lantern.py": fmt.Sprintf("LIGHT = %q\n", light)}
	wheel = filepath.Join(s.dir, world.WheelName("lantern", version))
	sdist = filepath.Join(s.dir, world.SdistName("lantern", version))
	return wheel, sdist, errors.Join(
		os.WriteFile(wheel, world.BuildWheel("lantern", version, files), 0o644),
		os.WriteFile(sdist, world.BuildSdist("lantern", version, files), 0o644),
	)
}

func (s *story) upload(ctx context.Context) ([]string, error) {
	wheel, sdist, err := s.lantern("1.0", "warm and steady")
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, file := range []string{wheel, sdist} {
		start := time.Now()
		if err := s.tools.upload(ctx, s.site.GatewayURL+"/legacy/", robot, password, file); err != nil {
			return seen, err
		}
		took := time.Since(start)
		proof, err := s.proof(ctx, filepath.Base(file))
		if err != nil {
			return seen, err
		}
		v, err := client.VerifyProof(s.world.ParsedPolicy(), proof)
		if err != nil {
			return seen, err
		}
		seen = append(seen, fmt.Sprintf("%s: entry %d of the log, seen by %d witnesses, a proof of %d bytes (upload %s)",
			filepath.Base(file), v.Index, len(v.Cosignatures), len(proof), short(took)))
	}
	return seen, nil
}

// proof fetches the proof that stands beside a file of lantern.
func (s *story) proof(ctx context.Context, file string) ([]byte, error) {
	href, err := findFile(ctx, s.site.GatewayURL+"/simple/lantern/", file)
	if err != nil {
		return nil, err
	}
	href, _, _ = strings.Cut(href, "#")
	return get(ctx, href+".tlog-proof")
}

// lit is what the installed lantern says.
func lit(target string) string {
	raw, err := os.ReadFile(filepath.Join(target, "lantern.py"))
	if err != nil {
		return "nothing installed"
	}
	_, light, _ := strings.Cut(strings.TrimSpace(string(raw)), " = ")
	return strings.Trim(light, `"`)
}

// installs installs lantern from an index into a fresh directory.
func (s *story) installs(ctx context.Context, index, requirement string) (light, output string, err error) {
	target, err := os.MkdirTemp(s.dir, "installed-")
	if err != nil {
		return "", "", err
	}
	output, err = s.tools.install(ctx, index, requirement, target)
	return lit(target), output, err
}

func (s *story) install(ctx context.Context) ([]string, error) {
	light, output, err := s.installs(ctx, s.site.ProxyURL+"/simple/", "lantern==1.0")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, output)
	}
	if light != "warm and steady" {
		return nil, fmt.Errorf("installed lantern says %q", light)
	}
	r := s.site.Proxy.Report()
	if r.Verified != 1 || r.Refused != 0 {
		return nil, fmt.Errorf("the proxy counts %d verified, %d refused", r.Verified, r.Refused)
	}
	return []string{fmt.Sprintf("installed: lantern 1.0, which is %q; %d file verified, %d refused", light, r.Verified, r.Refused)}, nil
}

func (s *story) swap(ctx context.Context) ([]string, error) {
	wheel := world.WheelName("lantern", "1.0")
	evil := world.BuildWheel("lantern", "1.0", map[string]string{"lantern.py": "LIGHT = \"stealing your passwords\"\n"})
	if err := s.site.Index.SwapFile("lantern", wheel, evil, true); err != nil {
		return nil, err
	}
	light, output, err := s.installs(ctx, s.site.IndexURL+"/simple/", "lantern==1.0")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, output)
	}
	if light != "stealing your passwords" {
		return nil, fmt.Errorf("the swapped lantern says %q", light)
	}
	return []string{fmt.Sprintf("straight from the index: lantern 1.0 installed, and it is %q", light)}, nil
}

func (s *story) refuse(ctx context.Context) ([]string, error) {
	light, output, err := s.installs(ctx, s.site.ProxyURL+"/simple/", "lantern==1.0")
	if err == nil {
		return nil, fmt.Errorf("the swapped file was installed through the proxy: it is %q", light)
	}
	for line := range strings.Lines(output) {
		if strings.Contains(line, "PORTBOOK REFUSED") {
			if light != "nothing installed" {
				return nil, fmt.Errorf("refused, but %q is installed", light)
			}
			return wrap(strings.TrimSpace(line), 110), nil
		}
	}
	return nil, fmt.Errorf("refused, but not in words that a person would understand: %s", output)
}

func (s *story) thief(ctx context.Context) ([]string, error) {
	wheel, _, err := s.lantern("1.1", "stealing your passwords")
	if err != nil {
		return nil, err
	}
	if n := len(s.site.Mail.Messages()); n != 0 {
		return nil, fmt.Errorf("%d mails before anything unexpected happened", n)
	}
	start := time.Now()
	if err := s.tools.upload(ctx, s.site.GatewayURL+"/legacy/", "__token__", s.site.Index.Token(robot), wheel); err != nil {
		return nil, err
	}
	took := time.Since(start)
	if err := waitFor(ctx, 30*time.Second, "the mail", func() bool { return len(s.site.Mail.Messages()) > 0 }); err != nil {
		return nil, err
	}
	if err := waitFor(ctx, 30*time.Second, "the webhook", func() bool { return len(s.site.Hook.Bodies()) > 0 }); err != nil {
		return nil, err
	}
	m := s.site.Mail.Messages()[0]
	if !strings.Contains(m.Subject+m.Body, "lantern") {
		return nil, fmt.Errorf("the mail does not name the project: %s", m.Subject)
	}
	seen := []string{
		fmt.Sprintf("mail %s after the upload began (the upload itself took %s): %s", short(m.At.Sub(start)), short(took), m.Subject),
		"a signed webhook says the same; the two uploads of the release job sent nothing",
	}
	return seen, nil
}

// fork makes the log's key sign another tree of the same size, and shows it to
// everybody who should refuse it.
func (s *story) fork(ctx context.Context) ([]string, error) {
	p := s.world.Log.Published()
	var other [32]byte
	rand.Read(other[:])
	cp := c2sp.Checkpoint{Origin: s.world.LogKey.Key().Name(), Size: p.Size, Root: other}
	sig, err := s.world.LogKey.Sign(cp.Text())
	if err != nil {
		return nil, err
	}
	note := &c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}
	body := (&c2sp.AddCheckpoint{Old: p.Size, Checkpoint: note.Bytes()}).Bytes()
	kept := 0
	for _, w := range s.world.Witnesses {
		status, err := post(ctx, "http://"+w.Address+"/add-checkpoint", body)
		if err != nil {
			return nil, err
		}
		// A witness that missed the newest checkpoint (it is not needed for the
		// quorum) says conflict; one that has it says that the proof is impossible.
		if status != http.StatusUnprocessableEntity && status != http.StatusConflict {
			return nil, fmt.Errorf("witness %s answered %d to a second history", w.Name, status)
		}
		forks, err := w.Forks(ctx, cp.Origin)
		if err != nil {
			return nil, err
		}
		if len(forks) > 0 {
			kept++
		}
	}
	if kept < 2 {
		return nil, fmt.Errorf("only %d witnesses kept the fork as evidence", kept)
	}
	_, err = s.world.ParsedPolicy().Verify(note.Bytes())
	var quorum *c2sp.QuorumError
	if !errors.As(err, &quorum) {
		return nil, fmt.Errorf("a client's policy on the second history: %v", err)
	}
	return []string{
		fmt.Sprintf("three witnesses refused; %d kept both signed histories: evidence against the log that anyone can check", kept),
		"a client that is shown the second history: too few witnesses have signed it",
	}, nil
}

func (s *story) outage(ctx context.Context) ([]string, error) {
	for _, w := range s.world.Witnesses[1:] {
		if err := w.Stop(); err != nil {
			return nil, err
		}
	}
	wheel, _, err := s.lantern("1.2", "warm, steady and bright")
	if err != nil {
		return nil, err
	}
	before := s.world.Log.Published().Size
	if err := s.tools.upload(ctx, s.site.GatewayURL+"/legacy/", robot, password, wheel); err != nil {
		return nil, err
	}
	if after := s.world.Log.Published().Size; after != before {
		return nil, fmt.Errorf("the log published size %d without its quorum", after)
	}
	if _, err := findFile(ctx, s.site.GatewayURL+"/simple/lantern/", filepath.Base(wheel)); err == nil {
		return nil, errors.New("the gateway lists a file that is not proven")
	}
	light, output, err := s.installs(ctx, s.site.ProxyURL+"/simple/", "lantern==1.1")
	if err != nil {
		return nil, fmt.Errorf("a proven file does not install while witnesses are down: %w: %s", err, output)
	}
	return []string{
		fmt.Sprintf("lantern 1.1, logged before, still installs (a logged file is not a safe file: it is %q)", light),
		"lantern 1.2 was accepted and is held back until it is proven; nothing was published",
	}, nil
}

func (s *story) recovery(ctx context.Context) ([]string, error) {
	before := s.world.Log.Published().Size
	for _, w := range s.world.Witnesses[1:] {
		if err := w.Start(); err != nil {
			return nil, err
		}
	}
	wheel := world.WheelName("lantern", "1.2")
	if err := waitFor(ctx, 30*time.Second, "the held file to be listed", func() bool {
		_, err := findFile(ctx, s.site.GatewayURL+"/simple/lantern/", wheel)
		return err == nil
	}); err != nil {
		return nil, err
	}
	light, output, err := s.installs(ctx, s.site.ProxyURL+"/simple/", "lantern==1.2")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, output)
	}
	if light != "warm, steady and bright" {
		return nil, fmt.Errorf("installed lantern says %q", light)
	}
	proof, err := s.proof(ctx, wheel)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "lantern.tlog-proof"), proof, 0o644); err != nil {
		return nil, err
	}
	if after := s.world.Log.Published().Size; after != before+1 {
		return nil, fmt.Errorf("the log grew from %d to %d for one held upload", before, after)
	}
	return []string{fmt.Sprintf("lantern 1.2 is entry %d and installs: %q", before, light)}, nil
}

func (s *story) audit(ctx context.Context) ([]string, error) {
	var size uint64
	if err := waitFor(ctx, 15*time.Second, "the monitor to read the whole log", func() bool {
		size = s.world.Log.Published().Size
		h, err := s.site.Monitor.Store().Health(ctx, s.site.Monitor.Origin())
		return err == nil && h.Verified == size
	}); err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("%d entries, none unaccounted for", size),
	}, nil
}

func (s *story) close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	var err error
	if s.site != nil {
		err = s.site.Close()
	}
	if s.world != nil {
		err = errors.Join(err, s.world.Close())
	}
	return err
}

// invite prints what to look at while the system is up.
func (s *story) invite() {
	policy := filepath.Join(s.dir, "policy")
	fmt.Fprintf(s.out, "Everything is still running. The project's history and the log's health, to look at:\n\n  %s/\n\nThree commands to copy:\n", s.site.MonitorURL)
	for _, c := range s.commands(policy) {
		fmt.Fprintf(s.out, "\n  %s:\n    %s\n", c[0], c[1])
	}
	fmt.Fprintln(s.out, "\nCtrl-C stops everything and removes it.")
}

// commands are what a person may try, each with what it does.
func (s *story) commands(policy string) [][2]string {
	install := [2]string{"Install a release, every file checked against the log",
		fmt.Sprintf("go run ./cmd/portbook run --index %s/simple/ --registry %s --policy %s --log %s --state %s -- %s install --target lantern-installed lantern==1.2",
			s.site.GatewayURL, registry, policy, s.world.Log.URL, filepath.Join(s.dir, "state"), strings.Join(s.tools.pip, " "))}
	if s.tools.pip == nil {
		install = [2]string{"Check the public record of a policy, in words", "go run ./cmd/portbook policy check " + policy}
	}
	return [][2]string{
		install,
		{"Check a file against its proof, without any network",
			fmt.Sprintf("go run ./cmd/portbook verify %s --proof %s --registry %s --policy %s --state none", filepath.Join(s.dir, world.WheelName("lantern", "1.2")), filepath.Join(s.dir, "lantern.tlog-proof"), registry, policy)},
		{"Watch uploads from the terminal", fmt.Sprintf("go run ./cmd/portbook watch --from 0 --log-url %s --policy %s", s.world.Log.URL, policy)},
	}
}

// wrap breaks a line for reading.
func wrap(line string, width int) []string {
	var out []string
	for len(line) > width {
		cut := strings.LastIndexByte(line[:width], ' ')
		if cut <= 0 {
			break
		}
		out, line = append(out, line[:cut]), "  "+line[cut+1:]
	}
	return append(out, line)
}
