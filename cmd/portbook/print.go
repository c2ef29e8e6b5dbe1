package main

// What is safe to print. Names of files, projects, logs and witnesses come from
// others: a name with an escape sequence, a line break or a change of writing
// direction in it must not be able to write a verdict of its own.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/portbook/portbook/internal/cli"
)

// show returns s as it is if it is plain ASCII without spaces, else quoted and
// escaped.
func show(s string) string {
	q := strconv.QuoteToASCII(s)
	if s == "" || strings.Contains(s, " ") || q != `"`+s+`"` {
		return q
	}
	return s
}

func showAll(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = show(s)
	}
	return strings.Join(out, ", ")
}

// ascii is cli.ASCII: what names from strangers go through before they are printed.
func ascii(s string) string { return cli.ASCII(s) }

// oneLine is ascii without line ends.
func oneLine(s string) string { return strings.ReplaceAll(ascii(s), "\n", `\n`) }

// pathReason is what went wrong with a path, without the path itself: the
// caller has said it.
func pathReason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return ascii(err.Error())
}

// writeJSON prints v indented, in ASCII alone.
func writeJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	var out strings.Builder
	for _, r := range string(b) {
		switch {
		case r < 0x7f:
			out.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	_, err = fmt.Fprintln(w, out.String())
	return err
}

// utc is how times are printed.
func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// readFile reads a plain file of at most limit bytes; of a longer one, limit+1
// bytes, which whoever parses them refuses.
func readFile(path string, limit int) ([]byte, error) {
	f, err := openPlain(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(limit)+1))
}

var errNotPlain = errors.New("not a plain file")

// openPlain opens a file that is no directory, pipe or device: some of those
// never end.
func openPlain(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errNotPlain}
	}
	return os.Open(path)
}
