package client

// Reading a log over HTTP, c2sp.org/tlog-tiles. Nothing that comes from here is
// trusted: checkpoints are for c2sp.Policy.Verify, tiles for the Merkle proofs.

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// readTimeout bounds a whole request, with a body that trickles in.
const readTimeout = 10 * time.Second

// A TileReader has the tiles of a log. [*Reader] is one.
type TileReader interface {
	// Tile returns exactly 32*width bytes. Level counts from 0, width is 1..256.
	Tile(ctx context.Context, level int, index uint64, width int) ([]byte, error)
}

// A Reader reads a log's static files. Every body is bounded, no redirect is
// followed, every request ends. Its errors are [*CannotCheck]. It is safe for
// concurrent use.
type Reader struct {
	base string
	hc   *http.Client
}

// NewReader returns a reader of the log at baseURL, the prefix of /checkpoint
// and /tile/. With hc nil it uses a client of its own; otherwise hc's transport
// (for tokens, certificates), with hc's timeout if that is set.
func NewReader(baseURL string, hc *http.Client) (*Reader, error) {
	u, err := url.Parse(baseURL)
	if err != nil {
		return nil, fmt.Errorf("log URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, fmt.Errorf("log URL %q: want http or https, a host, no query and no fragment", baseURL)
	}
	c := http.Client{}
	if hc != nil {
		c = *hc
	}
	if c.Transport == nil {
		c.Transport = ownTransport()
	}
	if c.Timeout == 0 {
		c.Timeout = readTimeout
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Reader{base: strings.TrimRight(u.String(), "/"), hc: &c}, nil
}

// URL is where the log is read, without a slash at its end.
func (r *Reader) URL() string { return r.base }

// ownTransport is what a reader uses that was given none.
func ownTransport() http.RoundTripper {
	t, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport
	}
	t = t.Clone()
	t.MaxResponseHeaderBytes = 64 << 10
	return t
}

// Checkpoint returns the log's newest signed checkpoint, unverified: at most
// c2sp.MaxNote bytes.
func (r *Reader) Checkpoint(ctx context.Context) ([]byte, error) {
	return r.get(ctx, "checkpoint", c2sp.MaxNote)
}

// Tile returns exactly 32*width bytes: the hashes of a tile. If the partial
// tile is gone, the full one may be there instead, and is cut to width
// (c2sp.org/tlog-tiles, "Partial Tiles").
func (r *Reader) Tile(ctx context.Context, level int, index uint64, width int) ([]byte, error) {
	if level < 0 || level > 63 || width < 1 || width > c2sp.TileWidth {
		return nil, fmt.Errorf("tile level %d, width %d: want 0..63 and 1..%d", level, width, c2sp.TileWidth)
	}
	var b []byte
	_, err := r.partial(c2sp.Tile{Level: level, Index: index, Width: width}, func(t c2sp.Tile) (err error) {
		b, err = r.get(ctx, t.Path(), 32*t.Width)
		if err == nil && len(b) != 32*t.Width {
			return &CannotCheck{Code: CodeBadAnswer, Reason: fmt.Sprintf("%s/%s has %d bytes instead of %d", r.base, t.Path(), len(b), 32*t.Width)}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return b[: 32*width : 32*width], nil
}

// Bundle returns exactly width entries, from the full bundle if the partial one
// is gone.
func (r *Reader) Bundle(ctx context.Context, index uint64, width int) ([][]byte, error) {
	if width < 1 || width > c2sp.TileWidth {
		return nil, fmt.Errorf("bundle width %d: want 1..%d", width, c2sp.TileWidth)
	}
	var entries [][]byte
	_, err := r.partial(c2sp.Tile{Level: -1, Index: index, Width: width}, func(t c2sp.Tile) error {
		b, err := r.get(ctx, t.Path(), t.Width*(2+1<<16-1))
		if err != nil {
			return err
		}
		if entries, err = c2sp.ParseBundle(b, t.Width); err != nil {
			return &CannotCheck{Code: CodeBadAnswer, Reason: fmt.Sprintf("%s/%s: %v", r.base, t.Path(), err), Err: err}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return entries[:width:width], nil
}

// partial calls get for t, and if that is a partial tile which is not there,
// for the full one. It returns the tile that was got.
func (r *Reader) partial(t c2sp.Tile, get func(c2sp.Tile) error) (c2sp.Tile, error) {
	err := get(t)
	var c *CannotCheck
	if t.Width == c2sp.TileWidth || !errors.As(err, &c) || c.Code != CodeMissing {
		return t, err
	}
	full := t
	full.Width = c2sp.TileWidth
	if ferr := get(full); ferr != nil {
		if errors.As(ferr, &c) && c.Code == CodeMissing {
			return t, err // name the one that was asked for
		}
		return full, ferr
	}
	return full, nil
}

// get fetches a resource of at most limit bytes after decompression.
func (r *Reader) get(ctx context.Context, path string, limit int) ([]byte, error) {
	where := r.base + "/" + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, cannot(CodeUnreachable, "reading the log", err)
	}
	req.Header.Set("User-Agent", "portbook")
	if path == "checkpoint" {
		req.Header.Set("Cache-Control", "no-cache") // an old copy would look like a log that went back
	}
	resp, err := r.hc.Do(req)
	if err != nil {
		return nil, cannot(CodeUnreachable, "reading the log", err)
	}
	defer resp.Body.Close()
	bad := func(format string, args ...any) ([]byte, error) {
		return nil, &CannotCheck{Code: CodeBadAnswer, Reason: where + ": " + fmt.Sprintf(format, args...)}
	}
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return nil, &CannotCheck{Code: CodeMissing, Reason: fmt.Sprintf("%s: not there (HTTP %d)", where, resp.StatusCode)}
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return nil, &CannotCheck{Code: CodeBadAnswer, Reason: fmt.Sprintf("%s: the log is private, and takes no read token, or not this one (HTTP %d)", where, resp.StatusCode)}
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return nil, &CannotCheck{Code: CodeUnreachable, Reason: fmt.Sprintf("%s: the log answers HTTP %d", where, resp.StatusCode)}
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return bad("answers with a redirect (HTTP %d); a log does not, and it is not followed", resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return bad("HTTP %d", resp.StatusCode)
	}
	var body io.Reader = resp.Body
	switch enc := resp.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip": // unasked for, as the spec allows; the transport undoes what it asked for
		zr, err := gzip.NewReader(resp.Body)
		if err != nil {
			return bad("not the gzip it claims to be: %v", err)
		}
		body = zr
	default:
		return bad("unknown Content-Encoding %q", enc)
	}
	b, err := io.ReadAll(io.LimitReader(body, int64(limit)+1))
	if err != nil {
		return nil, cannot(CodeUnreachable, "reading "+where, err)
	}
	if len(b) > limit {
		return bad("more than %d bytes", limit)
	}
	return b, nil
}
