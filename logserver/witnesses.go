package logserver

// The log as a client of witnesses: c2sp.org/tlog-witness, add-checkpoint and
// the read API. Every answer is bounded in size and time, no redirect is
// followed, and nothing a witness says is believed without a signature, except
// where believing it only makes us more careful.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/c2sp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
)

// cosigner is a witness: the lines of the publish policy that have its URL. It
// is asked once for the cosignatures of all its keys.
type cosigner struct {
	name string // of its first line
	keys []c2sp.PolicyWitness
	url  string // submission and monitoring prefix, without trailing slash
	http *http.Client
	size atomic.Int64 // size of the latest checkpoint it cosigned, as far as we know
	busy sync.Mutex   // held while a request to it is under way
}

// aheadError says that a witness holds a checkpoint that our own key signed and
// that our tree does not contain.
type aheadError struct {
	who string // a witness, or our own published checkpoint
	why string
}

func (e *aheadError) Error() string {
	return fmt.Sprintf("%s holds a checkpoint signed by this log's key that this log does not have: %s", e.who, e.why)
}

func (e *aheadError) Is(target error) bool { return target == ErrBehind }

const (
	witnessTimeout = 5 * time.Second
	maxSizeBody    = 64 // of a 409 answer
)

func newWitnesses(p *c2sp.Policy) ([]*cosigner, error) { return newCosigners(p, false) }

// newCosigners returns the witnesses of a policy, or its auditors.
func newCosigners(p *c2sp.Policy, auditors bool) ([]*cosigner, error) {
	client := &http.Client{
		Timeout: witnessTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    witnessTimeout,
		},
	}
	var ws []*cosigner
	for _, w := range p.Witnesses {
		if w.Auditor != auditors {
			continue
		}
		if w.URL == "" {
			return nil, fmt.Errorf("policy: witness %s has no URL: the log must be able to reach it", w.Name)
		}
		at := strings.TrimSuffix(w.URL, "/")
		i := slices.IndexFunc(ws, func(c *cosigner) bool { return c.url == at })
		if i < 0 {
			i = len(ws)
			ws = append(ws, &cosigner{name: w.Name, url: at, http: client})
		}
		ws[i].keys = append(ws[i].keys, w)
	}
	return ws, nil
}

// cosign asks the witness to cosign the signed note, whose checkpoint is cp,
// and returns its verified cosignatures, at least one. consistency proves
// old → cp.Size.
func (w *cosigner) cosign(ctx context.Context, note *c2sp.Note, cp c2sp.Checkpoint, consistency func(old int64) ([][32]byte, error)) ([]cosignature, error) {
	for attempt := 0; ; attempt++ {
		old := w.size.Load()
		if old > int64(cp.Size) {
			old = 0 // we were lied to, or this is a probe: the answer names the size
		}
		proof, err := consistency(old)
		if err != nil {
			return nil, err
		}
		body := (&c2sp.AddCheckpoint{Old: uint64(old), Proof: proof, Checkpoint: note.Bytes()}).Bytes()
		status, answer, err := w.post(ctx, body)
		if err != nil {
			return nil, err
		}
		switch status {
		case http.StatusOK:
			sigs, err := w.pick(answer, note.Text)
			if err == nil {
				w.size.Store(int64(cp.Size))
			}
			return sigs, err
		case http.StatusConflict:
			size, err := parseSize(answer)
			if err != nil {
				return nil, fmt.Errorf("witness %s: conflict without a size", w.name)
			}
			if size > int64(cp.Size) {
				return nil, &claimError{w.name, size}
			}
			if attempt > 0 || size == old {
				return nil, fmt.Errorf("witness %s: contradicts itself about the size it holds (%d)", w.name, size)
			}
			w.size.Store(size)
		default:
			return nil, fmt.Errorf("witness %s: answered %d %s", w.name, status, printable(answer))
		}
	}
}

// claimError says that a witness claims, unsigned, to hold a larger checkpoint
// than it was shown.
type claimError struct {
	witness string
	size    int64
}

func (e *claimError) Error() string {
	return fmt.Sprintf("witness %s says it has cosigned size %d, more than it was shown", e.witness, e.size)
}

// cosignature is a verified cosignature by the key of a line of the policy.
type cosignature struct {
	witness string // the line's name
	sig     c2sp.Signature
}

// pick finds the cosignatures of the witness's own keys in its answer, one of
// each, and verifies them; all other lines are ignored. One that does not verify
// spoils the answer; a key that it did not sign with is a vote it does not have.
func (w *cosigner) pick(answer []byte, text string) ([]cosignature, error) {
	lines, err := c2sp.ParseSignatureLines(answer)
	if err != nil {
		return nil, fmt.Errorf("witness %s: %w", w.name, err)
	}
	var found []cosignature
	for _, k := range w.keys {
		i := slices.IndexFunc(lines, k.Key.Matches)
		if i < 0 {
			continue
		}
		if _, err := k.Key.VerifyNote(text, lines[i]); err != nil {
			return nil, fmt.Errorf("witness %s: its cosignature does not verify: %w", k.Name, err)
		}
		found = append(found, cosignature{k.Name, lines[i]})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("witness %s: answered without a cosignature of a key in the policy", w.name)
	}
	return found, nil
}

func (w *cosigner) post(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("witness %s: %w", w.name, err)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	otel.GetTextMapPropagator().Inject(ctx, propagation.HeaderCarrier(req.Header))
	return w.do(req)
}

func (w *cosigner) do(req *http.Request) (status int, answer []byte, err error) {
	res, err := w.http.Do(req)
	if err != nil {
		var where *url.Error // the URL is the operator's business
		if errors.As(err, &where) {
			err = where.Err
		}
		return 0, nil, fmt.Errorf("witness %s: %w", w.name, err)
	}
	defer res.Body.Close()
	limit := int64(c2sp.MaxNote)
	if res.StatusCode != http.StatusOK {
		limit = 4 << 10
	}
	answer, err = io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return 0, nil, fmt.Errorf("witness %s: %w", w.name, err)
	}
	if int64(len(answer)) > limit {
		return 0, nil, fmt.Errorf("witness %s: answered more than %d bytes", w.name, limit)
	}
	return res.StatusCode, answer, nil
}

func parseSize(b []byte) (int64, error) {
	if len(b) > maxSizeBody {
		return 0, errors.New("too long")
	}
	s, ok := strings.CutSuffix(string(b), "\n")
	n, err := strconv.ParseInt(s, 10, 64)
	if !ok || err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, errors.New("not a size line")
	}
	return n, nil
}

// latest fetches the checkpoint that the witness shows for origin. known is
// false if the witness never cosigned one.
func (w *cosigner) latest(ctx context.Context, origin string) (note *c2sp.Note, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+"/"+c2sp.OriginHash(origin)+"/checkpoint", nil)
	if err != nil {
		return nil, false, fmt.Errorf("witness %s: %w", w.name, err)
	}
	status, answer, err := w.do(req)
	switch {
	case err != nil:
		return nil, false, err
	case status == http.StatusNotFound:
		return nil, false, nil
	case status != http.StatusOK:
		return nil, false, fmt.Errorf("witness %s: read API answered %d %s", w.name, status, printable(answer))
	}
	note, err = c2sp.ParseNote(answer)
	if err != nil {
		return nil, false, fmt.Errorf("witness %s: read API: %w", w.name, err)
	}
	return note, true, nil
}

// hear compares what the witness shows with our tree t, which is the whole
// integrated tree, and learns the size it holds. probe is a note we have signed
// before, resent as a stale checkpoint because the read API may lag by an hour.
//
// An aheadError means our own signature is on a tree that is not a prefix of t.
func (w *cosigner) hear(ctx context.Context, own *keyring, t tree, probe *c2sp.Note, probeCP c2sp.Checkpoint) error {
	note, known, err := w.latest(ctx, own.origin)
	if err != nil {
		return err
	}
	if known {
		if err := contains(t, own, "witness "+w.name, note); err != nil {
			return err
		}
	}
	w.size.Store(0)
	_, err = w.cosign(ctx, probe, probeCP, func(old int64) ([][32]byte, error) {
		at := t
		at.size = int64(probeCP.Size)
		return at.consistency(old)
	})
	var claim *claimError
	if errors.As(err, &claim) {
		if claim.size > t.size {
			return fmt.Errorf("%w; the log has %d entries: it may have been restored from a backup", claim, t.size)
		}
		w.size.Store(claim.size)
		return nil
	}
	return err
}

// containsNote is contains for a note as it came.
func containsNote(t tree, own *keyring, who string, raw []byte) error {
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", who, err)
	}
	return contains(t, own, who, note)
}

// contains checks that a note that one of our keys signed is a prefix of t.
func contains(t tree, own *keyring, who string, note *c2sp.Note) error {
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return fmt.Errorf("%s: %w", who, err)
	}
	if cp.Origin != own.origin {
		return fmt.Errorf("%s shows a checkpoint of %q", who, cp.Origin)
	}
	if err := own.signed(note); err != nil {
		return fmt.Errorf("%s shows a checkpoint that is not this log's: %w", who, err)
	}
	if int64(cp.Size) > t.size {
		return &aheadError{who, fmt.Sprintf("it has size %d, the log has %d entries", cp.Size, t.size)}
	}
	at := t
	at.size = int64(cp.Size)
	root, err := at.root()
	if err != nil {
		return err
	}
	if root != cp.Root {
		return &aheadError{who, fmt.Sprintf("at size %d its root differs from ours", cp.Size)}
	}
	return nil
}

// printable cuts what a witness said to something safe to print.
func printable(b []byte) string {
	if len(b) > 120 {
		b = b[:120]
	}
	return strconv.QuoteToASCII(strings.TrimSpace(string(b)))
}
