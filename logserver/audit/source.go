package audit

// Where a log is read: a directory, or a URL with the same paths below it.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// source reads what stands at a path of c2sp.org/tlog-tiles. An error that is
// fs.ErrNotExist says that there is nothing, one that is errMisfit that it
// cannot be what was asked for; any other that it could not be read.
type source interface {
	read(ctx context.Context, path string, most int) ([]byte, error)
}

var errMisfit = errors.New("is not of a length that belongs there")

// directory is a source: the files below a directory.
type directory string

func (d directory) read(_ context.Context, path string, most int) ([]byte, error) {
	f, err := os.Open(filepath.Join(string(d), filepath.FromSlash(path)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(f, most)
}

func readBounded(r io.Reader, most int) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err == nil && len(raw) > most {
		err = errMisfit
	}
	return raw, err
}

// site is a source: a web server. It tries again when the server is at fault,
// and follows no redirect.
type site struct {
	base   string // without a slash at the end
	token  string // of a private log
	client *http.Client
}

const (
	siteTimeout = 30 * time.Second
	siteTries   = 4
)

func newSite(base, token string) (*site, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q is not an http or https URL without user, query and fragment", base)
	}
	return &site{strings.TrimSuffix(base, "/"), token, &http.Client{
		Timeout:       siteTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 16, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10},
	}}, nil
}

func (s *site) read(ctx context.Context, path string, most int) (raw []byte, err error) {
	for try := range siteTries {
		if try > 0 {
			select {
			case <-time.After(time.Duration(try) * 300 * time.Millisecond):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if raw, err = s.once(ctx, path, most); err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, errMisfit) {
			return raw, err
		}
	}
	return nil, err
}

func (s *site) once(ctx context.Context, path string, most int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "portbook-log-audit")
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		return readBounded(res.Body, most)
	case http.StatusNotFound, http.StatusGone:
		return nil, fmt.Errorf("%w (%s)", fs.ErrNotExist, res.Status)
	}
	return nil, fmt.Errorf("the server answered %s", res.Status)
}

// missing tells what is not there, or cannot be what was asked for, from what
// could not be read.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errMisfit) }

// readTile reads a tile or bundle at the width that a tree needs, cut from a
// wider file where the narrower one has been removed. where is what was read.
func readTile(ctx context.Context, src source, t tile) (raw []byte, where string, err error) {
	most := 32 * perTile
	if t.level < 0 {
		most = maxBundle
	}
	where = t.path()
	raw, err = src.read(ctx, where, most)
	if t.width == perTile || !errors.Is(err, fs.ErrNotExist) {
		return raw, where, err
	}
	whole := t
	whole.width = perTile
	full, ferr := src.read(ctx, whole.path(), most)
	if ferr != nil {
		return nil, where, err
	}
	where = whole.path()
	if t.level >= 0 {
		if len(full) != 32*perTile {
			return nil, where, fmt.Errorf("%w: has %d bytes", errMisfit, len(full))
		}
		return full[:32*t.width], where, nil
	}
	ends, err := splitBundle(full, perTile, nil)
	if err != nil {
		return nil, where, fmt.Errorf("%w: %w", errMisfit, err)
	}
	return full[:ends[t.width-1]], where, nil
}
