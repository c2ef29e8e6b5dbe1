package proxy

// How a refusal reaches the person at the keyboard: pip prints the status
// line's reason and the URL and nothing else, uv the title and detail of an
// RFC 9457 body. The codes of what only a proxy meets are here, all others in
// package client.

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/portbook/portbook/client"
)

// Codes that only a proxy gives.
const (
	CodeDirect   = "PB151" // asked for by its own address, not through the index
	CodeFileHost = "PB152" // a file host that must not be asked
	CodePageName = "PB153" // page and URL disagree on the file's name
	CodeMetadata = "PB154" // metadata is not what was logged with the file

	CodeIndexUnreachable = "PB351"
	CodeIndexAnswer      = "PB352"
)

var explanations = map[string]string{
	CodeDirect: "Something was to be downloaded by its own address (a direct URL in a requirement or in a package's dependencies) instead of through the index. " +
		"What comes from elsewhere is not in the index's log, so nothing shows that others get the same. " +
		"Depend on a released version instead, or install that one thing by itself without portbook, knowingly.",
	CodeFileHost: "The file lies on a host that the proxy does not fetch from: no page of the index linked to this address since the proxy started, or the host's address is private. " +
		"Otherwise a page could make the proxy ask any machine in your network. " +
		"Ask for the project's page first; if the host is yours, allow it with --file-host.",
	CodePageName: "The index's page calls the file one name and links to another. " +
		"Installers differ in which of the two they go by, so neither can be trusted to be the file that was proven. " +
		"Tell whoever runs the index.",
	CodeMetadata: "The file itself is proven, but the metadata served beside it is not what was logged with it, or not what the page announced. " +
		"Metadata decides which other packages get installed. " +
		"Try again; if it stays like this, tell whoever runs the index.",
	CodeIndexUnreachable: "The index, or the host that keeps its files, could not be reached or did not answer in time. " +
		"This says nothing about any file. Check the network and try again later.",
	CodeIndexAnswer: "The index, or the host that keeps its files, answered with an error or with something that is no simple page and no file. " +
		"This says nothing about any file. Check the index's URL, and try again later.",
}

// Explain is client.Explain that also knows the codes of this package.
func Explain(code string) (string, bool) {
	if s, ok := explanations[code]; ok {
		return s, true
	}
	return client.Explain(code)
}

// refuse answers 403 and counts. what identifies the file in the counts. err
// is a *client.Refusal or a *client.CannotCheck; anything else means that it
// could not be checked.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, what string, err error) {
	var refusal *client.Refusal
	var cannot *client.CannotCheck
	var code, title, detail string
	switch {
	case errors.As(err, &refusal):
		code, detail = refusal.Code, refusal.Check+": "+refusal.Detail
		title = "PORTBOOK REFUSED (" + code + ")"
		p.counts.add(what, Refused, code, detail)
		p.cfg.Logger.Warn("refused", "file", what, "code", code, "check", refusal.Check, "detail", refusal.Detail)
	default:
		if !errors.As(err, &cannot) {
			cannot = &client.CannotCheck{Code: CodeIndexUnreachable, Reason: err.Error(), Err: err}
		}
		code, detail = cannot.Code, cannot.Reason
		title = "PORTBOOK CANNOT CHECK (" + code + ")"
		p.counts.add(what, CannotCheck, code, detail)
		p.cfg.Logger.Warn("cannot check", "file", what, "code", code, "reason", detail)
	}
	writeRefusal(w, r, title, code, shortReason(code, detail), detail)
}

// shortReason is the sentence after the code in the status line. It must make
// sense to someone who sees nothing else.
func shortReason(code, detail string) string {
	if strings.HasPrefix(code, "PB3") {
		what := "log unreachable"
		if code == CodeIndexUnreachable || code == CodeIndexAnswer {
			what = "index unreachable"
		}
		if s, ok := cannotReasons[code]; ok {
			what = s
		}
		return what + ", not evidence of tampering; retry"
	}
	if s, ok := refusedReasons[code]; ok {
		return s + "; see portbook explain " + code
	}
	return detail + "; see portbook explain " + code
}

var refusedReasons = map[string]string{
	client.CodeNoProof:        "this file has no proof that it was logged",
	client.CodeProofMalformed: "the file's proof is damaged or no proof at all",
	client.CodeQuorum:         "too few witnesses of your policy confirmed the file's proof",
	client.CodeUnknownLog:     "the file's proof is of a log that your policy does not name",
	client.CodeNoLogSignature: "the log did not sign the file's proof",
	client.CodeBadSignature:   "a signature on the file's proof is false",
	client.CodeInclusion:      "the file's proof is false: the log does not contain the entry",
	client.CodeRegistry:       "the proof is of a file in another registry",
	client.CodeProject:        "the proof is of a file of another project",
	client.CodeFileName:       "the proof is of another file",
	client.CodeDigest:         "the index hands out other contents than were logged for this file",
	client.CodeClaim:          "a follower saw this file served; the index itself did not log it",
	client.CodeOtherKey:       "another log of the same name was seen before",
	client.CodeForkSameSize:   "the log shows two histories",
	client.CodeForkPrefix:     "the log rewrote its history",
	client.CodeRollback:       "the log shows an older state than before",
	CodeDirect:                "a direct URL bypasses the index, so it cannot be verified",
	CodeFileHost:              "the proxy may not fetch from this host (--file-host allows one)",
	CodePageName:              "page and link disagree on the file's name",
	CodeMetadata:              "the metadata beside this file is not what was logged",
}

var cannotReasons = map[string]string{
	client.CodeBadAnswer:       "no log answers at the log's address",
	client.CodeNotCheckpoint:   "no log answers at the log's address",
	client.CodeStateUnreadable: "the state file cannot be read",
	client.CodeStateUnwritable: "the state file cannot be written",
	CodeIndexAnswer:            "the index answered with an error",
}

// writeRefusal answers 403. net/http has no way to set the reason phrase, so
// on HTTP/1 the connection is taken over and the answer written by hand.
func writeRefusal(w http.ResponseWriter, r *http.Request, title, code, reason, detail string) {
	body, err := json.Marshal(map[string]any{
		"type": "urn:portbook:problem:" + code, "title": title, "status": http.StatusForbidden,
		"detail": printable(reason + " (" + detail + ")"), "code": code,
	})
	if err != nil {
		body = []byte("{}")
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", fmt.Sprint(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Portbook-Code", code)
	if r.Method == http.MethodHead || r.Method == http.MethodConnect && r.ProtoMajor > 1 {
		body = nil
	}
	if r.ProtoMajor == 1 {
		if conn, buf, err := http.NewResponseController(w).Hijack(); err == nil {
			defer conn.Close()
			h.Set("Connection", "close")
			fmt.Fprintf(buf, "HTTP/1.1 403 %s\r\n", clip(printable(title+": "+reason), 300))
			h.Write(buf)
			buf.WriteString("\r\n")
			buf.Write(body)
			buf.Flush()
			return
		}
	}
	w.WriteHeader(http.StatusForbidden)
	w.Write(body)
}

// serveRefused answers for a link that a rewritten page could not make a file
// of: /refused/<CODE>/<name>.
func (p *Proxy) serveRefused(w http.ResponseWriter, r *http.Request, rest string) {
	code, name, ok := strings.Cut(rest, "/")
	if _, known := explanations[code]; !known || !ok || name == "" {
		http.NotFound(w, r)
		return
	}
	p.refuse(w, r, "refused "+printable(name), &client.Refusal{Code: code, Check: "the link on the index's page", Detail: printable(name)})
}

// printable makes s fit for a status line and a terminal: ASCII without
// controls.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
