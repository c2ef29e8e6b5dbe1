package proxy

// Where proofs come from: beside the file ("<file URL>.tlog-proof"), else from
// the log. Nothing about a proof is trusted before client.VerifyProof.

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/registry/pypi"
)

const (
	// proofTimeout is for finding a proof, attempts included: half of it for
	// the one beside the file where there is a log to ask for the other half.
	// pip gives a silent server 15 s.
	proofTimeout = 8 * time.Second
	proofKept    = 10 * time.Minute
	maxLogAnswer = 8 << 20 // a digest may have been logged several times
)

// errNeedDigest: there is no proof beside the file, and to ask the log for one
// the file's digest must be known.
var errNeedDigest = errors.New("the file's digest is needed to ask the log")

// prove finds a proof for the file at u and checks everything that can be
// checked before its bytes are there: policy, registry, project, file name, and
// the digest if want says one (what the page told, or what was hashed). Errors
// are *client.Refusal, *client.CannotCheck or errNeedDigest.
func (p *Proxy) prove(ctx context.Context, u *url.URL, t *told, want *[32]byte, auth string) (*client.Verified, error) {
	if bad := p.fresh.refusal(); bad != nil {
		return nil, bad
	}
	name := lastSegment(u)
	if t != nil && t.sha256 != nil && want == nil {
		want = t.sha256
	}
	if t != nil {
		t.mu.Lock()
		v, until := t.verified, t.until
		t.mu.Unlock()
		if v != nil && p.cfg.Now().Before(until) && p.check(v, name, t, want) == nil {
			return v, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	v, first := p.proveBeside(ctx, u, name, t, want, auth)
	if v == nil && p.reader != nil && !isTampering(first) {
		if want == nil {
			return nil, errNeedDigest
		}
		var err error
		if v, err = p.proveByLog(ctx, name, t, *want); err != nil && first == nil {
			first = err
		}
	}
	if v == nil {
		if first == nil {
			first = &client.Refusal{Code: client.CodeNoProof, Check: "looking for a proof",
				Detail: printable(name) + " has no proof beside it" + p.andNotInLog()}
		}
		return nil, first
	}
	if t != nil {
		t.mu.Lock()
		t.verified, t.until = v, p.cfg.Now().Add(proofKept)
		t.mu.Unlock()
	}
	return v, nil
}

func (p *Proxy) andNotInLog() string {
	if p.reader == nil {
		return ", and no log to ask is configured"
	}
	return ", and the log has none either"
}

func isTampering(err error) bool {
	var r *client.Refusal
	return errors.As(err, &r) && r.Tampering()
}

// proveBeside tries the proof that lies beside the file. nil, nil: there is
// none.
func (p *Proxy) proveBeside(ctx context.Context, u *url.URL, name string, t *told, want *[32]byte, auth string) (*client.Verified, error) {
	patience := proofTimeout
	if p.reader != nil {
		patience /= 2
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b, err := p.fetchProof(ctx, u, auth)
	if b == nil || err != nil {
		return nil, err
	}
	return p.verify(b, name, t, want)
}

// fetchProof returns nil, nil when there is no proof beside the file.
func (p *Proxy) fetchProof(ctx context.Context, u *url.URL, auth string) ([]byte, error) {
	resp, err := p.up.get(ctx, proofURL(u), nil, auth)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK:
		return readAll(resp.Body, c2sp.MaxProof)
	case resp.StatusCode >= 400 && resp.StatusCode < 500:
		// 404; or 403, with which storage buckets say the same.
		return nil, nil
	}
	return nil, &client.CannotCheck{Code: CodeIndexAnswer, Reason: fmt.Sprintf("%s answered %d for a proof", printable(u.Host), resp.StatusCode)}
}

// proofURL is the address of the proof beside a file: no query, no fragment.
func proofURL(u *url.URL) *url.URL {
	v := *u
	v.Path += ".tlog-proof"
	if v.RawPath != "" {
		v.RawPath += ".tlog-proof"
	}
	v.RawQuery, v.ForceQuery, v.Fragment, v.RawFragment = "", false, "", ""
	return &v
}

// verify checks one proof against the policy, the file, and what is remembered
// of its log.
func (p *Proxy) verify(proof []byte, name string, t *told, want *[32]byte) (*client.Verified, error) {
	v, err := client.VerifyProof(p.policy(), proof)
	if r := (*client.Refusal)(nil); errors.As(err, &r) && r.Code == client.CodeUnknownLog && p.follow() {
		v, err = client.VerifyProof(p.policy(), proof)
	}
	if err != nil {
		return nil, err
	}
	if err := p.check(v, name, t, want); err != nil {
		return nil, err
	}
	if p.cfg.State != nil {
		pr, err := c2sp.ParseProof(proof)
		if err != nil {
			return nil, err
		}
		if err := p.cfg.State.Observe(p.policy(), pr.Checkpoint); isTampering(err) {
			return nil, err
		}
	}
	return v, nil
}

// check compares what is proven with the file. Without a digest to compare,
// that is left for when the bytes have been hashed.
func (p *Proxy) check(v *client.Verified, name string, t *told, want *[32]byte) error {
	f := client.File{Registry: p.cfg.Registry, Ecosystem: entry.PyPI, Name: name, Observed: p.cfg.AcceptObserved}
	if t != nil {
		f.Project = t.project
	}
	if want != nil {
		f.SHA256 = *want
	} else if b, err := hex.DecodeString(v.Entry.SHA256); err == nil && len(b) == 32 {
		f.SHA256 = [32]byte(b)
	}
	if err := v.Check(f); err != nil {
		return err
	}
	// No page told the project: then the file's name must be one of the proven
	// project's, or a file of one project could be logged under another.
	if f.Project == "" {
		if _, err := pypi.VersionOf(v.Entry.Project, name); err != nil {
			return &client.Refusal{Code: client.CodeProject, Check: "project", Err: err,
				Detail: fmt.Sprintf("the proof is about project %q, and %q is not a name of one of its files", v.Entry.Project, printable(name))}
		}
	}
	return nil
}

// proveByLog asks the log for proofs of a digest and takes the first that is
// for this file. nil, nil: the log has none.
func (p *Proxy) proveByLog(ctx context.Context, name string, t *told, sum [32]byte) (*client.Verified, error) {
	var answer []logAnswer
	var first error
	if next := p.now.Load().log; next != nil {
		answer, first = p.askLog(ctx, next, sum)
	}
	if len(answer) == 0 { // the log that took over does not have what was logged before
		old, err := p.askLog(ctx, p.log, sum)
		if err != nil {
			return nil, errors.Join(first, err)
		}
		if len(old) == 0 {
			return nil, first // what is not known is not "none"
		}
		answer, first = old, nil
	}
	for _, a := range answer {
		proof, err := a.proof()
		if err != nil {
			return nil, err
		}
		v, err := p.verify(proof, name, t, &sum)
		if err == nil {
			return v, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

type logAnswer struct {
	Leaf  []byte `json:"leaf"`
	Proof []byte `json:"proof"`
}

// proof returns the proof with the leaf inside, as clients want it.
func (a logAnswer) proof() ([]byte, error) {
	pr, err := c2sp.ParseProof(a.Proof)
	if err != nil {
		return nil, &client.CannotCheck{Code: client.CodeBadAnswer, Reason: "the log's answer holds no proof: " + err.Error(), Err: err}
	}
	if len(pr.Extra) == 0 {
		pr.Extra = a.Leaf
	}
	return pr.Bytes(), nil
}

// askLog is GET /v1/proof?sha256=, with attempts. No answers, no error: the log
// does not know the digest.
func (p *Proxy) askLog(ctx context.Context, log *url.URL, sum [32]byte) ([]logAnswer, error) {
	u := log.JoinPath("v1/proof")
	u.RawQuery = "sha256=" + hex.EncodeToString(sum[:])
	for i := 0; ; i++ {
		answers, err := p.askLogOnce(ctx, u)
		if err == nil || i == len(tries) || ctx.Err() != nil {
			return answers, err
		}
		select {
		case <-time.After(tries[i]):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (p *Proxy) askLogOnce(ctx context.Context, u *url.URL) ([]logAnswer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "portbook")
	resp, err := p.asks.RoundTrip(req) // follows no redirect
	if err != nil {
		return nil, &client.CannotCheck{Code: client.CodeUnreachable, Reason: "asking the log for a proof: " + printable(rootCause(err)), Err: err}
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, nil
	default:
		return nil, &client.CannotCheck{Code: client.CodeBadAnswer, Reason: fmt.Sprintf("the log answered %d when asked for a proof", resp.StatusCode)}
	}
	b, err := readAll(resp.Body, maxLogAnswer)
	if err != nil {
		return nil, &client.CannotCheck{Code: client.CodeBadAnswer, Reason: "the log's answer: " + err.Error(), Err: err}
	}
	var answer struct {
		Proofs []struct {
			Leaf  string `json:"leaf"`
			Proof string `json:"proof"`
		} `json:"proofs"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, &client.CannotCheck{Code: client.CodeBadAnswer, Reason: "the log's answer is not JSON as expected", Err: err}
	}
	var out []logAnswer
	for _, a := range answer.Proofs {
		leaf, err1 := base64.StdEncoding.DecodeString(a.Leaf)
		proof, err2 := base64.StdEncoding.DecodeString(a.Proof)
		if err := errors.Join(err1, err2); err != nil {
			return nil, &client.CannotCheck{Code: client.CodeBadAnswer, Reason: "the log's answer is not base64", Err: err}
		}
		out = append(out, logAnswer{leaf, proof})
	}
	return out, nil
}
