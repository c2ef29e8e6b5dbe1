package logserver

// Who calls: what a caller presents, from the wire to a credential, and what
// becomes of those who are not let in.
//
// A refused caller learns that it was refused and, where a guess is not helped
// by it, why. The operator's log has the reason, the credential's ID if it is
// known, and the address; never a secret or a part of one. Refusals are counted
// by reason.

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// presented is what a caller shows of itself.
type presented struct {
	bearer string                // of the Authorization header, without "Bearer "
	scheme bool                  // there is an Authorization header; perhaps not one of ours
	chains [][]*x509.Certificate // of a client certificate, as the handshake has verified them; nil without
	peer   string                // address, for the operator's log only
}

// The reasons of refusals: names of counters, and words in the operator's log.
const (
	reasonNone        = "none"         // nothing was presented
	reasonMalformed   = "malformed"    // neither a token of ours nor a JWT
	reasonUnknown     = "unknown"      // no credential has this ID
	reasonSecret      = "secret"       // the ID is known, the secret is wrong
	reasonExpired     = "expired"      // the credential, an old secret, a certificate or a workload token
	reasonRevoked     = "revoked"      //
	reasonSuspended   = "suspended"    // it came from a backup, and nobody has confirmed it yet
	reasonCertificate = "certificate"  // verified, but no credential is for it
	reasonHandshake   = "handshake"    // no authority vouches for the client certificate
	reasonAmbiguous   = "ambiguous"    // several credentials are for it
	reasonIssuer      = "issuer"       // no credential is for tokens of this issuer
	reasonAlgorithm   = "algorithm"    // not an accepted signature algorithm, or not the key's
	reasonKey         = "key"          // the issuer has no such key
	reasonSignature   = "signature"    //
	reasonAudience    = "audience"     // made for somebody else
	reasonTime        = "time"         // not valid yet, or made for too long
	reasonSubject     = "subject"      // of a good issuer, but no credential is for this workload
	reasonCannotCheck = "cannot_check" // the issuer cannot be asked: no verdict
	reasonNotAllowed  = "not_allowed"  // the credential does not reach so far
	reasonRate        = "rate"         // the credential's
	reasonQuota       = "quota"        // the credential's, for a project
	reasonOverloaded  = "overloaded"   // the server, or the credential's share of it
)

// refusal says why a caller is not let in.
type refusal struct {
	reason string
	id     string // of the credential, if known
	detail string // for the operator's log only; never a secret
}

// Error is what the caller is told. It says little where more would help to guess.
func (r *refusal) Error() string {
	const how = "send Authorization: Bearer TOKEN, made by portbook-log token create, or what a credential of yours asks for"
	switch r.reason {
	case reasonNone, reasonMalformed, reasonUnknown, reasonSecret, reasonRevoked:
		return "no valid token: " + how
	case reasonExpired:
		return "no valid token: it has expired"
	case reasonSuspended:
		return "no valid token: the log was restored from a backup, and its operator has not confirmed this credential yet (portbook-log token confirm)"
	case reasonCertificate:
		return "no credential is for this client certificate"
	case reasonAmbiguous:
		return "several credentials are for what was presented: the log's operator must make their rules exclude each other"
	case reasonSubject:
		return "no valid token: no credential is for this workload (subject and claims)"
	}
	return "no valid token: " + r.reason + " of the workload token is not accepted"
}

// Is makes every refusal an errNoCredential.
func (r *refusal) Is(target error) bool { return target == errNoCredential }

// errNoCredential says that a request carries no valid credential.
var errNoCredential = errors.New("no valid credential")

// errCannotCheck says that a credential can be neither accepted nor refused now.
var errCannotCheck = errors.New("the credential cannot be checked now")

// limitError refuses what is too much for a credential.
type limitError struct {
	reason string // reasonRate or reasonQuota
	text   string
	after  time.Duration // when to come again
}

func (e *limitError) Error() string   { return ErrOverloaded.Error() + ": " + e.text }
func (e *limitError) Is(t error) bool { return t == ErrOverloaded }

// authenticate finds the credential that is presented: what is said in the
// request counts before what the connection shows. Its errors are a *refusal,
// errCannotCheck or ErrStorage.
func (c *Credentials) authenticate(ctx context.Context, p presented) (Credential, error) {
	byID, err := c.current(ctx)
	if err != nil {
		return Credential{}, err
	}
	switch {
	case strings.HasPrefix(p.bearer, tokenPrefix+"_"):
		return c.bearer(byID, p.bearer)
	case strings.Count(p.bearer, ".") == 2:
		return c.workload(ctx, byID, p.bearer)
	case p.scheme:
		return Credential{}, &refusal{reason: reasonMalformed}
	case len(p.chains) > 0:
		return c.certificate(byID, p.chains)
	}
	return Credential{}, &refusal{reason: reasonNone}
}

// choose is the one live credential of those whose rule fits.
func (c *Credentials) choose(fits []Credential, none string) (Credential, error) {
	var live []Credential
	var last error
	for _, t := range fits {
		if err := c.live(t); err != nil {
			last = err
			continue
		}
		live = append(live, t)
	}
	switch {
	case len(live) == 1:
		return live[0], nil
	case len(live) > 1:
		return Credential{}, &refusal{reason: reasonAmbiguous, id: live[0].ID, detail: "also for " + live[1].ID}
	case last != nil:
		return Credential{}, last
	}
	return Credential{}, &refusal{reason: none}
}

const bearerPrefix = "Bearer "

// authorization reads the values of Authorization headers.
func (p *presented) authorization(values []string) {
	if len(values) == 0 {
		return
	}
	p.scheme = true
	if bearer, ok := strings.CutPrefix(values[0], bearerPrefix); ok && len(values) == 1 {
		p.bearer = bearer
	}
}

// presentedOver is what the caller of a gRPC method shows. Only the TLS
// handshake says that there is a client certificate; headers never do.
func presentedOver(ctx context.Context) presented {
	var p presented
	if from, ok := peer.FromContext(ctx); ok {
		p.peer = from.Addr.String()
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
			p.chains = info.State.VerifiedChains
		}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	p.authorization(md.Get("authorization"))
	return p
}

// presentedBy is what the caller of a REST method shows.
func presentedBy(r *http.Request) presented {
	p := presented{peer: r.RemoteAddr}
	if r.TLS != nil {
		p.chains = r.TLS.VerifiedChains
	}
	p.authorization(r.Header.Values("Authorization"))
	return p
}

// restCalls are the REST calls under way. Each takes its way through an inner
// gRPC server in memory, where neither its TLS connection nor its address can
// be seen: the inner server finds them here, by a random name that is made for
// each call, never shown to anybody, and looked at by the inner server alone.
type restCalls struct {
	mu    sync.Mutex
	calls map[string]restCall // guarded by mu
}

// restCall is one REST call. by is set if it has been authenticated.
type restCall struct {
	presented
	by *Credential
}

const restCallKey = "portbook-rest-call"

type restCallName struct{} // key of a request's context

// enter names a call in the request's context until leave is called.
func (r *restCalls) enter(req *http.Request, call restCall) (named *http.Request, leave func()) {
	name := rand.Text()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls == nil {
		r.calls = map[string]restCall{}
	}
	r.calls[name] = call
	return req.WithContext(context.WithValue(req.Context(), restCallName{}, name)), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.calls, name)
	}
}

// annotate hands the name on to the inner server, as the gateway asks.
func (*restCalls) annotate(ctx context.Context, _ *http.Request) metadata.MD {
	if name, ok := ctx.Value(restCallName{}).(string); ok {
		return metadata.Pairs(restCallKey, name)
	}
	return nil
}

// find is the call that the inner server is asked for.
func (r *restCalls) find(ctx context.Context) (restCall, bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	names := md.Get(restCallKey)
	if len(names) != 1 {
		return restCall{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	call, ok := r.calls[names[0]]
	return call, ok
}

// presents is what the caller shows, and the credential if it is known by now.
func (s *service) presents(ctx context.Context) restCall {
	if s.rest == nil {
		return restCall{presented: presentedOver(ctx)}
	}
	call, ok := s.rest.find(ctx)
	if !ok {
		return restCall{presented: presented{peer: "unknown"}} // shows nothing, so it may do nothing
	}
	return call
}

// credential finds who calls; it counts and logs a refusal. The caller turns
// its error into a status with fail.
func (s *service) credential(ctx context.Context) (Credential, error) {
	call := s.presents(ctx)
	if call.by != nil {
		return *call.by, nil
	}
	by, err := s.log.Tokens.authenticate(ctx, call.presented)
	if err != nil {
		s.log.refused(call.peer, "", err)
	}
	return by, err
}

// refusedEntry counts and logs that an entry of a credential was refused, if it
// was because of who asks. It returns err.
func (s *service) refusedEntry(ctx context.Context, by Credential, err error) error {
	s.log.refused(s.presents(ctx).peer, by.ID, err)
	return err
}

// refused counts and logs err if it is a refusal because of who asks.
func (l *Log) refused(from, id string, err error) {
	var (
		refused *refusal
		denied  *NotAllowedError
		limit   *limitError
	)
	switch {
	case errors.As(err, &refused):
		if refused.id != "" {
			id = refused.id
		}
		l.refusals.note(l.cfg.Logger, from, id, refused.reason, refused.detail)
	case errors.Is(err, errCannotCheck):
		l.refusals.note(l.cfg.Logger, from, id, reasonCannotCheck, err.Error())
	case errors.As(err, &denied):
		l.refusals.note(l.cfg.Logger, from, id, reasonNotAllowed, denied.Error())
	case errors.As(err, &limit):
		l.refusals.note(l.cfg.Logger, from, id, limit.reason, limit.text)
	case errors.Is(err, ErrOverloaded):
		l.refusals.note(l.cfg.Logger, from, id, reasonOverloaded, err.Error())
	}
}

// refusals counts refusals by reason, and logs them: in a flood not all of
// them, but how many were left out.
type refusals struct {
	mu     sync.Mutex
	counts map[string]uint64 // guarded by mu; the reasons above
	lines  *rate.Limiter     // of log lines
	silent uint64            // guarded by mu; refusals since the last line
}

// refusalLines a second are logged, and as many at once as in ten seconds.
const refusalLines = 50

func newRefusals() *refusals {
	return &refusals{counts: map[string]uint64{}, lines: rate.NewLimiter(refusalLines, 10*refusalLines)}
}

func (r *refusals) note(logger *slog.Logger, from, id, reason, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[reason]++
	if !r.lines.Allow() {
		r.silent++
		return
	}
	attrs := []any{"reason", reason, "peer", from}
	if id != "" {
		attrs = append(attrs, "credential", id)
	}
	if detail != "" {
		attrs = append(attrs, "detail", detail)
	}
	if r.silent > 0 {
		attrs = append(attrs, "not_logged_before", r.silent)
		r.silent = 0
	}
	logger.Warn("refused", attrs...)
}

// Refusals are the numbers of calls and entries that were refused because of
// who asked, by reason, since the start.
func (l *Log) Refusals() map[string]uint64 {
	l.refusals.mu.Lock()
	defer l.refusals.mu.Unlock()
	return maps.Clone(l.refusals.counts)
}

// Describe implements prometheus.Collector.
func (r *refusals) Describe(ch chan<- *prometheus.Desc) { ch <- refusedCallers }

// Collect implements prometheus.Collector.
func (r *refusals) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for reason, n := range r.counts {
		ch <- prometheus.MustNewConstMetric(refusedCallers, prometheus.CounterValue, float64(n), reason)
	}
}

var refusedCallers = prometheus.NewDesc("portbook_log_callers_refused_total", "Calls and entries refused because of who asked, by reason.", []string{"reason"}, nil)

// wildcards are what a pattern of a certificate's or workload's name may hold:
// * stands for any characters but separators, ** for any at all.
const wildcards = "*"

// matchName reports whether the whole of name fits pattern. A * stands for any
// run of characters, which may be empty, without a separator (: or /, in DNS
// names a dot); a ** for any run at all.
func matchName(pattern, name, separators string) bool {
	// fits[i] says whether the pattern so far fits name[:i].
	fits := make([]bool, len(name)+1)
	fits[0] = true
	for p := 0; p < len(pattern); p++ {
		if pattern[p] != '*' {
			for i := len(name); i > 0; i-- {
				fits[i] = fits[i-1] && name[i-1] == pattern[p]
			}
			fits[0] = false
			continue
		}
		all := p+1 < len(pattern) && pattern[p+1] == '*'
		if all {
			p++
		}
		for i := 1; i <= len(name); i++ {
			fits[i] = fits[i] || fits[i-1] && (all || !strings.Contains(separators, name[i-1:i]))
		}
	}
	return fits[len(name)]
}

// checkPattern refuses patterns that say too little to tell anybody apart.
func checkPattern(what, pattern string) error {
	literal, _, _ := strings.Cut(pattern, wildcards)
	switch {
	case pattern == "" || len(pattern) > 512:
		return fmt.Errorf("%s: want 1 to 512 characters", what)
	case strings.Contains(pattern, "***"):
		return fmt.Errorf("%s %q: want * or **", what, pattern)
	case literal == "":
		return fmt.Errorf("%s %q: it begins with a wildcard, so strangers fit it too", what, pattern)
	}
	for _, b := range []byte(pattern) {
		if b < ' ' || b > '~' {
			return fmt.Errorf("%s %q: want printable ASCII", what, pattern)
		}
	}
	return nil
}

// isDigest reports whether s is a SHA-256 in lower-case hex.
func isDigest(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == 32 && hex.EncodeToString(raw) == s
}
