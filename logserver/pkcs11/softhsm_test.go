//go:build cgo

package pkcs11

// Against SoftHSM2, a real token in software.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"
	"github.com/portbook/portbook/c2sp"
)

const origin = "log.example/hsm"

var tokens string // SoftHSM's directory

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "softhsm")
	if err != nil {
		panic(err)
	}
	tokens = filepath.Join(dir, "tokens")
	conf := filepath.Join(dir, "conf")
	err = errors.Join(os.Mkdir(tokens, 0o700),
		os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600),
		os.Setenv("SOFTHSM2_CONF", conf)) // the C library reads it when it starts
	if err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func library(t testing.TB) string {
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Skip("SoftHSM2 is not installed (Debian: softhsm2)")
	return ""
}

var made int

// token makes a token with the PIN 1234 and returns the URI of a key in it.
func token(t testing.TB, label string) *URI {
	t.Helper()
	made++
	label = fmt.Sprintf("%s %d", label, made) // with -count, the last run's tokens are still there
	u := &URI{Module: library(t), Token: label, Object: "log key"}
	run(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "0000", "--pin", "1234")
	return u
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func pin(s string) func() (string, error) { return func() (string, error) { return s, nil } }

func generated(t testing.TB, label string) (*URI, *Signer) {
	t.Helper()
	u := token(t, label)
	key, err := Generate(t.Context(), u, origin, pin("1234"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), u, origin, pin("1234"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if s.Key().String() != key.String() {
		t.Fatalf("generated %s, opened %s", key, s.Key())
	}
	return u, s
}

var size uint64

// signs checks that the key signs, and that the signature is good.
func signs(t testing.TB, s *Signer) {
	t.Helper()
	size++
	c := c2sp.Checkpoint{Origin: origin, Size: size, Root: [32]byte{1}}
	sig, err := s.SignCheckpoint(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Key().VerifyLog(c.Text(), sig); err != nil {
		t.Fatal(err)
	}
}

func signFails(t testing.TB, s *Signer, want string) {
	t.Helper()
	_, err := s.SignCheckpoint(t.Context(), c2sp.Checkpoint{Origin: origin, Size: 1})
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("%v, want %q", err, want)
	}
}

func TestSign(t *testing.T) {
	u, s := generated(t, "sign")
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for i := range 20 {
				c := c2sp.Checkpoint{Origin: origin, Size: uint64(i)}
				sig, err := s.SignCheckpoint(t.Context(), c)
				if err == nil {
					err = s.Key().VerifyLog(c.Text(), sig)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	if s.logins != 1 {
		t.Errorf("%d logins", s.logins)
	}
	if _, err := s.SignCheckpoint(t.Context(), c2sp.Checkpoint{Origin: "other.example"}); err == nil {
		t.Error("signed for another log")
	}
	if _, err := s.SignCheckpoint(t.Context(), c2sp.Checkpoint{Origin: origin, Extensions: []string{"x"}}); err == nil {
		t.Error("signed an extension line")
	}
	if _, err := Generate(t.Context(), u, origin, pin("1234")); err == nil || !strings.Contains(err.Error(), "never overwritten") {
		t.Errorf("a second key under one label: %v", err)
	}
	// A second key of this process in the same token shares its login.
	second := *u
	second.Object = "log key 2"
	if _, err := Generate(t.Context(), &second, origin, pin("1234")); err != nil {
		t.Fatal(err)
	}
	other, err := Open(t.Context(), &second, origin, pin("1234"))
	if err != nil {
		t.Fatal(err)
	}
	signs(t, other)
	signs(t, s)
	other.Close()
	other.Close()
	signFails(t, other, "was closed")
	signs(t, s)
}

func TestKeyStaysInside(t *testing.T) {
	_, s := generated(t, "inside")
	if _, err := s.m.ctx.GetAttributeValue(s.session, s.object, []*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE, nil)}); err == nil {
		t.Error("the token gave the private key away")
	}
}

// TestSessionLost: whatever ends the session or the login, the next signature
// begins another.
func TestSessionLost(t *testing.T) {
	u, s := generated(t, "lost")
	signs(t, s)
	for name, lose := range map[string]func() error{
		"the sessions are closed": func() error {
			slot, err := s.slot()
			if err != nil {
				return err
			}
			return s.m.ctx.CloseAllSessions(slot)
		},
		"somebody logged out":   func() error { return s.m.ctx.Logout(s.session) },
		"the library restarted": func() error { return s.m.restart() },
		"the library ended":     func() error { return s.m.ctx.Finalize() },
	} {
		before := s.logins
		if err := lose(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		signs(t, s)
		if s.logins != before+1 {
			t.Errorf("%s: %d logins, want one", name, s.logins-before)
		}
	}

	// The token is taken away, and comes back.
	dir := tokenDir(t, u.Token)
	away := filepath.Join(filepath.Dir(tokens), "away")
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	if err := s.m.restart(); err != nil {
		t.Fatal(err)
	}
	signFails(t, s, "0 tokens with this label")
	signFails(t, s, "0 tokens with this label")
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	signs(t, s)

	// It comes back with another key under the label.
	if out, err := exec.Command("pkcs11-tool", "--module", u.Module, "--token-label", u.Token, "--login", "--pin", "1234", "--delete-object", "--type", "privkey", "--label", u.Object).CombinedOutput(); err != nil {
		t.Skipf("pkcs11-tool (Debian: opensc): %v\n%s", err, out)
	}
	run(t, "pkcs11-tool", "--module", u.Module, "--token-label", u.Token, "--login", "--pin", "1234", "--delete-object", "--type", "pubkey", "--label", u.Object)
	if err := s.m.restart(); err != nil {
		t.Fatal(err)
	}
	signFails(t, s, `no private key with the label "log key"`)
	if _, err := Generate(t.Context(), u, origin, pin("1234")); err != nil {
		t.Fatal(err)
	}
	signFails(t, s, "another key under this label")
}

// tokenDir is where SoftHSM keeps a token.
func tokenDir(t testing.TB, label string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(tokens, "*", "token.object"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), fmt.Sprintf("%-32s", label)) {
			return filepath.Dir(f)
		}
	}
	t.Fatalf("no token %q below %s", label, tokens)
	return ""
}

// TestWrongPIN: a PIN that the token refuses is shown to it once.
func TestWrongPIN(t *testing.T) {
	u, s := generated(t, "pin")
	s.Close() // or the process would be logged in
	if _, err := Open(t.Context(), u, origin, pin("4321")); err == nil || !strings.Contains(err.Error(), "PIN: the token refuses it") {
		t.Fatal(err)
	}
	if _, err := Generate(t.Context(), u, origin, pin("4321")); err == nil || !strings.Contains(err.Error(), "PIN: the token refuses it") {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), u, origin, func() (string, error) { return "", errors.New("the file is gone") }); err == nil || !strings.Contains(err.Error(), "the file is gone") {
		t.Fatal(err)
	}

	// The PIN is changed while the log runs, then in its file too.
	now := "1234"
	s, err := Open(t.Context(), u, origin, func() (string, error) { return now, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	signs(t, s)
	run(t, "pkcs11-tool", "--module", u.Module, "--token-label", u.Token, "--login", "--pin", "1234", "--change-pin", "--new-pin", "9999")
	if err := s.m.restart(); err != nil {
		t.Fatal(err)
	}
	before := s.logins
	signFails(t, s, "PIN: the token refuses it")
	for range 5 {
		signFails(t, s, "not tried again")
	}
	if n := s.logins - before; n != 1 {
		t.Errorf("the wrong PIN was shown to the token %d times", n)
	}
	now = "9999"
	signs(t, s)
}

func TestRefused(t *testing.T) {
	u, s := generated(t, "refused")
	for name, tc := range map[string]struct {
		change func(*URI)
		want   string
	}{
		"no library":          {func(u *URI) { u.Module = "/nowhere/lib.so" }, "cannot be loaded"},
		"no PKCS #11 library": {func(u *URI) { u.Module = "/etc/passwd" }, "cannot be loaded"},
		"no such token":       {func(u *URI) { u.Token = "other" }, "0 tokens with this label"},
		"no such key":         {func(u *URI) { u.Object = "other" }, `no private key with the label "other"`},
	} {
		other := *u
		tc.change(&other)
		if s, err := Open(t.Context(), &other, origin, pin("1234")); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, %v; want %q", name, s, err, tc.want)
		}
	}
	if _, err := Open(t.Context(), u, "no good name", pin("1234")); err == nil || !strings.Contains(err.Error(), "key name") {
		t.Error(err)
	}
	signs(t, s)

	ec := *u
	ec.Object = "ec"
	if out, err := exec.Command("pkcs11-tool", "--module", u.Module, "--token-label", u.Token, "--login", "--pin", "1234", "--keypairgen", "--key-type", "EC:prime256v1", "--label", "ec").CombinedOutput(); err != nil {
		t.Skipf("pkcs11-tool (Debian: opensc): %v\n%s", err, out)
	}
	if _, err := Open(t.Context(), &ec, origin, pin("1234")); err == nil || !strings.Contains(err.Error(), "is not an Ed25519 key") {
		t.Errorf("a P-256 key: %v", err)
	}
	// Two tokens, or two keys, of one label: none is guessed.
	run(t, "softhsm2-util", "--init-token", "--free", "--label", u.Token, "--so-pin", "0000", "--pin", "1234")
	if err := s.m.restart(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), u, origin, pin("1234")); err == nil || !strings.Contains(err.Error(), "2 tokens") {
		t.Errorf("two tokens of one label: %v", err)
	}
}

// TestDeadline: a token that hangs holds up who asks it as long as they want to
// wait, and whoever comes next as well.
func TestDeadline(t *testing.T) {
	u := token(t, "deadline")
	if _, err := Generate(t.Context(), u, origin, pin("1234")); err != nil {
		t.Fatal(err)
	}
	hang := make(chan struct{})
	asked := 0
	s, err := Open(t.Context(), u, origin, func() (string, error) {
		if asked++; asked > 1 {
			<-hang // as a token would that waits for somebody to press its button
		}
		return "1234", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.m.restart(); err != nil { // ends the session
		t.Fatal(err)
	}
	for _, want := range []string{"does not answer", "waiting for an earlier call"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := s.SignCheckpoint(ctx, c2sp.Checkpoint{Origin: origin}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		cancel()
	}
	close(hang)
	signs(t, s)
	s.Close()
}
