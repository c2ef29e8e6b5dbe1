package witness

// The HTTP side of c2sp.org/tlog-witness, below any prefix:
//
//	POST /add-checkpoint            200 signature lines · 409 text/x.tlog.size
//	POST /sign-subtree              200 signature lines
//	GET  /<origin hash>/checkpoint  200 the checkpoint with our cosignatures
//	GET  /                          200 the status page, for people
//	GET  /retirement                200 once it has ended, see retire.go
//	GET  /evidence/                 200 what logs were caught at, see evidence.go
//
// Every other answer is a problem document (RFC 9457).

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// bodyTimeout is how long a client may take to send its request body.
const bodyTimeout = 10 * time.Second

// Requests are small: a few kB, or 3.3 kB for each ML-DSA-44 signature. Larger
// ones than smallBody are read a few at a time, so that slow senders of large
// bodies cannot fill the memory.
const (
	smallBody = 32 << 10
	bigBodies = 32
)

// Handler returns the witness's HTTP interface. Submission and monitoring
// prefix are wherever it is mounted.
func (w *Witness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/add-checkpoint", only(http.MethodPost, w.sign(w.addCheckpoint)))
	mux.Handle("/sign-subtree", only(http.MethodPost, w.sign(w.signSubtree)))
	mux.Handle("/{hash}/checkpoint", only(http.MethodGet, w.serveCheckpoint))
	mux.Handle("/retirement", only(http.MethodGet, w.serveStatement))
	mux.Handle("/{$}", only(http.MethodGet, w.serveStatus))
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		problem(rw, http.StatusNotFound, "this is a c2sp.org/tlog-witness: it has add-checkpoint, sign-subtree and <origin hash>/checkpoint")
	})
	// A mux of its own: in one, /evidence/ and /{hash}/checkpoint would overlap.
	all := http.NewServeMux()
	all.Handle("/evidence/", only(http.MethodGet, w.serveEvidence))
	all.Handle("/", mux)
	return all
}

// NewServer returns an HTTP server for h with limits that no honest client
// meets: on headers, and on the time for each part of an exchange.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5*time.Second + bodyTimeout,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute, // logs keep their connection (keep-alive)
		MaxHeaderBytes:    16 << 10,
	}
}

// only refuses every method but one. HEAD is refused too: the specification
// says GET.
func only(method string, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			rw.Header().Set("Allow", method)
			problem(rw, http.StatusMethodNotAllowed, "only "+method+" is served here")
			return
		}
		h(rw, r)
	})
}

// sign serves a call that takes a request body and answers with signature lines.
func (w *Witness) sign(call func(context.Context, []byte) (string, []byte, error)) http.HandlerFunc {
	return func(out http.ResponseWriter, r *http.Request) {
		rw := &statusWriter{ResponseWriter: out, status: http.StatusOK}
		log := ""
		defer func() { w.metrics.request(log, rw.status) }()
		if !w.clients.allow(clientOf(r)) {
			rw.Header().Set("Connection", "close") // the body is not read
			w.refuse(rw, &BusyError{"too many requests from this address"})
			return
		}
		body, done, ok := w.readBody(rw, r)
		if !ok {
			return
		}
		defer done()
		origin, lines, err := call(r.Context(), body)
		if judged(err) { // else the origin is anybody's word
			log = origin
		}
		if err != nil {
			w.refuse(rw, err)
			return
		}
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rw.Header().Set("Cache-Control", "no-store")
		rw.Write(lines)
	}
}

// statusWriter remembers the status code of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// readBody reads a bounded request body; if it is not ok it has answered. done
// is called once the body has been judged.
func (w *Witness) readBody(rw *statusWriter, r *http.Request) (body []byte, done func(), ok bool) {
	done = func() {}
	if r.ContentLength > MaxBody {
		rw.Header().Set("Connection", "close")
		problem(rw, http.StatusRequestEntityTooLarge, tooLarge)
		return nil, nil, false
	}
	in := http.MaxBytesReader(rw.ResponseWriter, r.Body, MaxBody)
	body, err := io.ReadAll(io.LimitReader(in, smallBody))
	if err == nil && len(body) == smallBody {
		select {
		case w.big <- struct{}{}:
			done = func() { <-w.big }
			defer func() {
				if !ok {
					<-w.big
				}
			}()
		default:
			rw.Header().Set("Retry-After", "1")
			rw.Header().Set("Connection", "close")
			problem(rw, http.StatusServiceUnavailable, "too many large requests at once")
			return nil, nil, false
		}
		var rest []byte
		rest, err = io.ReadAll(in)
		body = append(body, rest...)
	}
	if err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			problem(rw, http.StatusRequestEntityTooLarge, tooLarge)
		} else {
			problem(rw, http.StatusBadRequest, "the request body ended early")
		}
		return nil, nil, false
	}
	return body, done, true
}

var tooLarge = fmt.Sprintf("the request body has more than %d bytes", MaxBody)

// judged reports whether an outcome is one that only a known log has. Not so are
// those that come before it was looked up, and our own failures: a database that
// does not answer knows no log.
func judged(err error) bool {
	var (
		oldSize   *OldSizeError
		signature *SignatureError
		conflict  *ConflictError
		proof     *ProofError
		fork      *ForkError
		clock     *ClockError
		busy      *BusyError
		held      *HeldError
	)
	return err == nil || errors.As(err, &oldSize) || errors.As(err, &signature) || errors.As(err, &conflict) || errors.As(err, &proof) ||
		errors.As(err, &fork) || errors.As(err, &clock) || errors.As(err, &busy) || errors.As(err, &held)
}

// refuse is the one place where an outcome becomes a status code.
func (w *Witness) refuse(rw http.ResponseWriter, err error) {
	var (
		malformed *MalformedError
		oldSize   *OldSizeError
		unknown   *UnknownLogError
		signature *SignatureError
		conflict  *ConflictError
		proof     *ProofError
		fork      *ForkError
		clock     *ClockError
		busy      *BusyError
		retired   *RetiredError
		held      *HeldError
	)
	switch {
	case errors.As(err, &malformed), errors.As(err, &oldSize):
		problem(rw, http.StatusBadRequest, err.Error())
	case errors.As(err, &retired): // the specification has no word for it; HTTP has
		problem(rw, http.StatusGone, err.Error())
	case errors.As(err, &unknown):
		problem(rw, http.StatusNotFound, err.Error())
	case errors.As(err, &signature):
		problem(rw, http.StatusForbidden, err.Error())
	case errors.As(err, &conflict):
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.Header().Set("Cache-Control", "no-store")
		rw.WriteHeader(http.StatusConflict)
		io.WriteString(rw, strconv.FormatUint(conflict.Size, 10)+"\n")
	case errors.As(err, &proof), errors.As(err, &fork):
		problem(rw, http.StatusUnprocessableEntity, err.Error())
	case errors.As(err, &busy):
		rw.Header().Set("Retry-After", "1")
		problem(rw, http.StatusTooManyRequests, err.Error())
	case errors.As(err, &held): // told in the journal by HearPeers
		rw.Header().Set("Retry-After", "5")
		problem(rw, http.StatusServiceUnavailable, err.Error())
	case errors.As(err, &clock):
		w.log.Error("not signing", "error", err)
		problem(rw, http.StatusServiceUnavailable, err.Error())
	case errors.Is(err, errNoSubtrees):
		problem(rw, http.StatusNotFound, err.Error())
	default:
		w.log.Error("a request failed", "error", err)
		problem(rw, http.StatusInternalServerError, "the witness failed; nothing is said about the log; its operator's journal has the cause")
	}
}

func (w *Witness) serveCheckpoint(rw http.ResponseWriter, r *http.Request) {
	note, err := w.store.checkpoint(r.Context(), r.PathValue("hash"))
	switch {
	case err != nil:
		w.log.Error("reading a checkpoint failed", "error", err)
		problem(rw, http.StatusInternalServerError, "the witness failed; its operator's journal has the cause")
	case note == nil:
		problem(rw, http.StatusNotFound, "no checkpoint has been cosigned for a log with this origin hash (SHA-256 of the origin, lower-case hex)")
	default:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rw.Header().Set("Cache-Control", "no-cache") // a cache may keep it, and asks again
		rw.Write(note)
	}
}

// problem answers with a problem document (RFC 9457).
func problem(rw http.ResponseWriter, status int, detail string) {
	h := rw.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	rw.WriteHeader(status)
	json.NewEncoder(rw).Encode(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{http.StatusText(status), status, detail})
}
