// Answers that reach the person: twine and pip print the reason phrase of the
// status line and never the body, so the reason stands in both.

package gateway

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// answer refuses a request with a status and a reason, as problem details
// (RFC 9457).
func answer(w http.ResponseWriter, r *http.Request, status int, reason string, header http.Header) {
	h := http.Header{"Content-Type": {"application/problem+json"}, "Cache-Control": {"no-store"}}
	for k, v := range header {
		h[k] = v
	}
	body, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(status), status, reason})
	if err != nil {
		body = nil // only strings and a number are marshalled
	}
	answerRaw(w, r, status, reason, h, append(body, '\n'))
}

// answerRaw answers with a reason phrase of our choice. net/http has none, so on
// HTTP/1.1 it takes the connection over and closes it after the answer.
func answerRaw(w http.ResponseWriter, r *http.Request, status int, reason string, header http.Header, body []byte) {
	reason = phrase(reason)
	hj, ok := w.(http.Hijacker)
	if r.ProtoMajor != 1 || !ok || reason == "" || reason == http.StatusText(status) {
		for k, v := range header {
			w.Header()[k] = v
		}
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			w.Write(body)
		}
		return
	}
	conn, buf, err := hj.Hijack()
	if err != nil {
		return // the connection is gone
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	header = header.Clone()
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("Connection", "close")
	header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	fmt.Fprintf(buf, "HTTP/1.1 %d %s\r\n", status, reason)
	header.Write(buf)
	io.WriteString(buf, "\r\n")
	if r.Method != http.MethodHead {
		buf.Write(body)
	}
	buf.Flush()
}

// phrase makes s fit for a status line: printable ASCII, not endless.
func phrase(s string) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case c == '"':
			return '\''
		case c < ' ' || c > '~':
			return ' '
		}
		return c
	}, s)
	if len(s) > 400 {
		s = s[:400] + "..."
	}
	return strings.TrimSpace(s)
}
