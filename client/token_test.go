package client

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestReadToken: it goes to the log, under the log's prefix, and nowhere else.
func TestReadToken(t *testing.T) {
	const token = "pbt_0123456789abcdef_secret"
	var got []string
	record := roundTrip(func(r *http.Request) (*http.Response, error) {
		got = append(got, r.URL.String()+" "+r.Header.Get("Authorization"))
		return nil, errors.New("no network here")
	})
	rt, err := ReadToken("https://log.example/pypi", token, record)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{"https://log.example/pypi/checkpoint", "https://log.example/other/checkpoint", "https://log.example/pypix/checkpoint",
		"http://log.example/pypi/checkpoint", "https://evil.example/pypi/checkpoint", "https://log.example:444/pypi/checkpoint"} {
		req, err := http.NewRequest("GET", u, nil)
		if err != nil {
			t.Fatal(err)
		}
		rt.RoundTrip(req)
		if req.Header.Get("Authorization") != "" {
			t.Error("the caller's request was changed")
		}
	}
	for i, line := range got {
		if strings.Contains(line, token) != (i == 0) {
			t.Errorf("sent: %s", line)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %s", rt, rt, rt, rt); strings.Contains(s, token) {
		t.Errorf("printed: %s", s)
	}
	r := must(NewReader("https://log.example/pypi", &http.Client{Transport: rt}))
	if _, err := r.Checkpoint(t.Context()); err == nil || strings.Contains(err.Error(), token) {
		t.Errorf("error: %v", err)
	}

	for _, u := range []string{"http://log.example/", "http://10.0.0.1/", "http://localhost.example/", "ftp://log.example/", "/log", ""} {
		if _, err := ReadToken(u, token, nil); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", u, err)
		}
	}
	for _, u := range []string{"http://127.0.0.1:8080", "http://[::1]:8080/log", "http://localhost/", "https://log.example"} {
		if _, err := ReadToken(u, token, nil); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
	for _, bad := range []string{"", "a b", "a\nHost: x", "ü"} {
		if _, err := ReadToken("https://log.example", bad, nil); err == nil {
			t.Errorf("token %q is taken", bad)
		}
	}
}

// TestReadTokenIsNotRedirected: a log that redirects gets nobody's token.
func TestReadTokenIsNotRedirected(t *testing.T) {
	asked := 0
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer thief.Close()
	log := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			t.Error("the log did not get the token")
		}
		http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusFound)
	}))
	defer log.Close()
	rt, err := ReadToken(log.URL, "secret", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = must(NewReader(log.URL, &http.Client{Transport: rt})).Checkpoint(t.Context())
	var c *CannotCheck
	if !errors.As(err, &c) || c.Code != CodeBadAnswer || asked > 0 {
		t.Errorf("%v, asked %d times", err, asked)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
