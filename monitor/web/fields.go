// An entry's fields in words, for people; the leaf itself is below them.

package web

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/portbook/portbook/entry"
)

// A field of an entry: Note says what a reader may not know of it, Link is a
// path of this site, Code is set in one width.
type field struct {
	Name, Value, Note, Link string
	Code                    bool
}

var claimWords = map[entry.Claim]string{
	entry.ClaimIndex:    "the index, when it accepted it",
	entry.ClaimObserved: "a follower, who saw the index serve it",
	entry.ClaimLog:      "the log itself",
}

var authFieldWords = map[string]string{
	"trusted-publisher": "as a trusted publisher (a short-lived token of its build service)",
	"token":             "with an API token",
	"password":          "with a password",
	"other":             "by other means",
}

// fields lists what an entry says, what people ask first at the top.
func fields(e *entry.Entry) []field {
	var out []field
	text := func(name, value, note string) {
		if value != "" {
			out = append(out, field{Name: name, Value: value, Note: note})
		}
	}
	code := func(name, value, note string) {
		if value != "" {
			out = append(out, field{Name: name, Value: value, Note: note, Code: true})
		}
	}
	link := func(name string, index *uint64) {
		if index != nil {
			n := strconv.FormatUint(*index, 10)
			out = append(out, field{Name: name, Value: "entry " + n, Link: "/entry/" + n})
		}
	}
	code("File", e.File, "")
	text("Project", e.Project, "")
	text("Version", e.Version, "")
	text("Tag", e.Tag, "")
	if e.Kind == entry.KindDistTag && e.Version == "" {
		text("Version", "none: the tag was removed", "")
	}
	text("Index", e.Registry, e.Ecosystem)
	text("Logged by", or(claimWords[e.Claim], string(e.Claim)), "")
	if p := e.Publisher; p != nil {
		text("Publisher", p.Kind+space(p.Repository), "")
		text("Workflow", p.Workflow, "")
		text("Environment", p.Environment, "")
		code("Publisher's subject", p.Subject, "")
		code("Publisher's issuer", p.Issuer, "")
		text("Repository id", p.RepositoryID, "stays when the repository is renamed")
		text("Owner id", p.OwnerID, "")
	} else if e.Kind == entry.KindUpload {
		text("Publisher", "none named", "")
	}
	if e.Auth != "" {
		text("How the uploader authenticated", or(authFieldWords[e.Auth], e.Auth), "")
	}
	code("Uploader", e.Uploader, "a pseudonym that only the index can resolve")
	code("Person", e.Subject, "a pseudonym that only the index can resolve")
	if e.Size != nil {
		if e.Kind == entry.KindPredecessor {
			text("Size of the log", group(*e.Size)+" entries", "")
		} else {
			text("Size", bytesWords(*e.Size), "")
		}
	}
	code("SHA-256", e.SHA256, "")
	code("SHA-512", e.SHA512, "")
	text("Time", timeWords(e.Time), "by the clock of who logged it")
	text("Uploaded", timeWords(e.UploadTime), "as the index said")
	text("Reason", e.Reason, "")
	link("Takes the place of", e.Replaces)
	link("Disputed", e.Index)
	link("The name is held by", e.FirstIndex)
	text("That entry was logged by", claimWords[e.SlotClaim], "")
	text("Files under an existing name", e.Overwrite, "the index's policy: never, after-remove or replace")
	if e.Count != nil {
		text("Files listed", group(*e.Count), "")
	}
	code("The other log", e.Origin, "")
	code("Its address", e.URL, "")
	code("Its keys", strings.Join(e.VKeys, "\n"), "")
	code("Its root hash", e.Root, "")
	code("SHA-256 of the metadata", e.MetadataSHA256, "")
	code("SHA-256 of the attestations", strings.Join(e.AttestationSHA256, "\n"), "")
	code("SHA-256 of the sources", strings.Join(e.SourcesSHA256, "\n"), "")
	code("Request", e.ID, "the same number is logged once")
	return out
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func space(s string) string {
	if s == "" {
		return ""
	}
	return " · " + s
}

func timeWords(t string) string {
	at, err := time.Parse(entry.TimeFormat, t)
	if err != nil {
		return t
	}
	return at.Format("2006-01-02 15:04:05 UTC")
}

// bytesWords is a size as people say it, and exactly.
func bytesWords(n uint64) string {
	exact := group(n) + " bytes"
	if n == 1 {
		exact = "1 byte"
	}
	v, unit := float64(n), ""
	for _, u := range []string{"kB", "MB", "GB", "TB"} {
		if v < 999.5 {
			break
		}
		v, unit = v/1000, u
	}
	if unit == "" {
		return exact
	}
	return fmt.Sprintf("%.3g %s (%s)", v, unit, exact)
}
