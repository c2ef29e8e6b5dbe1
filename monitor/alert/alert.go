// Package alert carries what the monitor found to the people it concerns.
//
//	owed (one transaction with the monitor's cursor)
//	   ▶ due: window over, proofs attached, receiver not backing off
//	   ▶ one delivery at a time for each receiver, many receivers at once
//	   ▶ 2xx or SMTP 250 ▶ sent
//	   ▶ anything else ▶ later: exponential, with jitter, for three days ▶ failed, which is itself an alert
//
// A delivery happens at least once, always under the same ID. The package
// knows no database: it takes from a [Queue] and hands to a [Channel].
package alert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// Severity says what kind of trouble an alert is about. The three are never
// mixed: an outage is not worded like an attack, nor an attack like an outage.
type Severity string

const (
	// Tampering: the log or an index showed two different truths.
	Tampering Severity = "tampering"
	// Unexpected: a true entry that its maintainer did not announce.
	Unexpected Severity = "unexpected"
	// Infrastructure: the monitor cannot see, or cannot reach somebody.
	Infrastructure Severity = "infrastructure"
)

// Severities lists the three, gravest first.
func Severities() []Severity { return []Severity{Tampering, Unexpected, Infrastructure} }

// Valid reports whether s is one of the three.
func (s Severity) Valid() bool { return s == Tampering || s == Unexpected || s == Infrastructure }

// An Alert is one finding, in words and with what proves it.
type Alert struct {
	ID       string    `json:"id"` // see [ID]
	Severity Severity  `json:"severity"`
	Kind     string    `json:"kind"` // "upload", "fork", "stale"…: what a program switches on
	Created  time.Time `json:"created"`

	Title string   `json:"title"`          // one line
	What  string   `json:"what"`           // what happened, in plain words
	Why   string   `json:"why"`            // why nobody expected it
	Next  []string `json:"next,omitempty"` // what to do now, in order

	Registry  string `json:"registry,omitempty"`
	Ecosystem string `json:"ecosystem,omitempty"`
	Project   string `json:"project,omitempty"`
	Version   string `json:"version,omitempty"`
	File      string `json:"file,omitempty"`

	Log          string          `json:"log,omitempty"`           // origin
	Index        *uint64         `json:"index,omitempty"`         // of the entry in the log
	Entry        json.RawMessage `json:"entry,omitempty"`         // the leaf, byte for byte
	Proof        string          `json:"proof,omitempty"`         // c2sp.org/tlog-proof text
	ProofMissing string          `json:"proof_missing,omitempty"` // why there is none, where one belongs
	Check        string          `json:"check,omitempty"`         // the command that checks the proof
	Page         string          `json:"page,omitempty"`          // the entry on the monitor's web page
	Evidence     string          `json:"evidence,omitempty"`      // text that convinces a third party
}

// A Notice is what one receiver gets at once: one alert, or the alerts of one
// release. Its ID is that of its first alert.
type Notice struct {
	ID           string   `json:"id"`
	Severity     Severity `json:"severity"`
	Subscription string   `json:"subscription,omitempty"` // the subscription's name; empty: the whole log
	Alerts       []Alert  `json:"alerts"`
}

// ID derives a stable alert ID: the same finding has the same ID in every
// process, before and after a crash, so that a receiver can drop repetitions.
// The parts are hashed with their lengths, so no two lists of parts collide.
func ID(parts ...string) string {
	h := sha256.New()
	fmt.Fprint(h, "portbook alert v1\n")
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(p), p)
	}
	return "pa_" + hex.EncodeToString(h.Sum(nil)[:16])
}

// Kinds of receivers.
const (
	Email   = "email"
	Webhook = "webhook"
)

// A Receiver is one address of one kind.
type Receiver struct {
	ID      int64
	Kind    string // Email or Webhook
	Address string // mail address or URL
	Secret  string // webhook: whsec_…
}

// A Delivery is one notice owed to one receiver.
type Delivery struct {
	ID       int64
	Receiver Receiver
	Owed     time.Time // since when
	Attempts int       // so far
	Failures int       // of the receiver, in a row
	Notice   Notice
}

// A Channel delivers notices to receivers of one kind. retry says whether the
// same delivery could succeed later; it is meaningful only with an error.
type Channel interface {
	Notify(ctx context.Context, to Receiver, n Notice) (retry bool, err error)
}

// A Queue is the durable side of the outbox.
type Queue interface {
	// Due returns deliveries that can be tried at now: at most one for each
	// receiver, none for the receivers in busy, gravest first, at most limit.
	Due(ctx context.Context, now time.Time, busy []int64, limit int) ([]Delivery, error)
	// Sent records a success.
	Sent(ctx context.Context, d Delivery, at time.Time) error
	// Retry records a failure; nothing is tried for this receiver before next.
	Retry(ctx context.Context, d Delivery, next time.Time, reason string) error
	// Failed gives a delivery up and owes the operator an alert that says so.
	Failed(ctx context.Context, d Delivery, at time.Time, reason string) error
}

// Marshal encodes v as JSON without escaping <, > and &, so that the leaf in an
// [Alert] keeps its bytes.
func Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
