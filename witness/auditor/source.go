package auditor

// Reading a log over HTTP, c2sp.org/tlog-tiles. Every body is bounded, no
// redirect is followed, and nothing that comes from here is believed.

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

// A source is a log at its URL. It is safe for concurrent use.
type source struct {
	base string
	http *http.Client
}

func newSource(base string) *source {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 2 * prefetch, IdleConnTimeout: 90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true, TLSHandshakeTimeout: readTimeout,
	}
	return &source{base: strings.TrimRight(base, "/"), http: &http.Client{Timeout: readTimeout, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

var errMissing = errors.New("not there (HTTP 404)")

// get fetches a resource of at most limit bytes after decompression.
func (s *source) get(ctx context.Context, path string, limit int) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, fmt.Errorf("reading the log: %s: %w", path, err) }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/"+path, nil)
	if err != nil {
		return fail(err)
	}
	req.Header.Set("User-Agent", "portbook-auditor")
	res, err := s.http.Do(req)
	if err != nil {
		var where *url.Error
		if errors.As(err, &where) {
			err = where.Err
		}
		return fail(err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusNotFound:
		return fail(errMissing)
	case res.StatusCode != http.StatusOK:
		return fail(fmt.Errorf("the log answers HTTP %d", res.StatusCode))
	}
	var body io.Reader = res.Body
	switch enc := res.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip": // unasked for, as the spec allows; the transport undoes what it asked for
		if body, err = gzip.NewReader(res.Body); err != nil {
			return fail(fmt.Errorf("not the gzip that it claims to be: %w", err))
		}
	default:
		return fail(fmt.Errorf("unknown Content-Encoding %.40q", enc))
	}
	b, err := io.ReadAll(io.LimitReader(body, int64(limit)+1))
	if err != nil {
		return fail(err)
	}
	if len(b) > limit {
		return fail(fmt.Errorf("more than %d bytes", limit))
	}
	return b, nil
}

func (s *source) checkpoint(ctx context.Context) ([]byte, error) {
	return s.get(ctx, "checkpoint", c2sp.MaxNote)
}

// partial fetches a tile, or the full one in the place of a partial one that is
// gone, and says which it was.
func (s *source) partial(ctx context.Context, t c2sp.Tile, each int) ([]byte, c2sp.Tile, error) {
	raw, err := s.get(ctx, t.Path(), each*t.Width)
	if errors.Is(err, errMissing) && t.Width < c2sp.TileWidth {
		full := t
		full.Width = c2sp.TileWidth
		if wide, ferr := s.get(ctx, full.Path(), each*full.Width); !errors.Is(ferr, errMissing) {
			return wide, full, ferr
		}
	}
	return raw, t, err
}

// Tile implements tileReader.
func (s *source) Tile(ctx context.Context, t c2sp.Tile) ([]byte, error) {
	raw, got, err := s.partial(ctx, t, 32)
	if err != nil {
		return nil, err
	}
	if len(raw) != 32*got.Width {
		return nil, fmt.Errorf("reading the log: %s has %d bytes instead of %d", got.Path(), len(raw), 32*got.Width)
	}
	return raw[:32*t.Width], nil
}

// bundle returns exactly width entries.
func (s *source) bundle(ctx context.Context, index uint64, width int) ([][]byte, error) {
	raw, got, err := s.partial(ctx, c2sp.Tile{Level: -1, Index: index, Width: width}, 2+1<<16-1)
	if err != nil {
		return nil, err
	}
	leaves, err := c2sp.ParseBundle(raw, got.Width)
	if err != nil {
		return nil, fmt.Errorf("reading the log: %s: %w", got.Path(), err)
	}
	return leaves[:width], nil
}
