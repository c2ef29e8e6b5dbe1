package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/portbook/portbook/logserver/pkcs11"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// softHSM is SoftHSM2's library; "" if it is not installed, or cannot be used here.
func softHSM() string {
	if _, err := pkcs11.Open(context.Background(), &pkcs11.URI{Module: "/nowhere"}, "", nil); errors.Is(err, pkcs11.ErrNoCgo) {
		return ""
	}
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		return ""
	}
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// age-identity FILE makes an identity, and sets $RECIPIENT to whom it belongs.
func ageIdentity(ts *testscript.TestScript, _ bool, args []string) {
	id, err := age.GenerateX25519Identity()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte("# for a test\n"+id.String()+"\n"), 0o600))
	ts.Setenv("RECIPIENT", id.Recipient().String())
}

// dearmor FROM TO makes a binary age file of a printable one.
func dearmor(ts *testscript.TestScript, _ bool, args []string) {
	raw, err := io.ReadAll(armor.NewReader(strings.NewReader(ts.ReadFile(args[0]))))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), raw, 0o600))
}

// onTerminal runs the program on a terminal of its own, where each answer is
// typed when its question stands there, and returns all that was shown.
func onTerminal(t *testing.T, answers [][2]string, args ...string) (string, error) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("portbook-log", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	timeout := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timeout.Stop()
	var shown strings.Builder
	buf := make([]byte, 1024)
	for {
		n, err := master.Read(buf)
		shown.Write(buf[:n])
		if len(answers) > 0 && strings.Contains(shown.String(), answers[0][0]) {
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				if t, err := unix.IoctlGetTermios(int(master.Fd()), unix.TCGETS); err == nil && t.Lflag&unix.ECHO == 0 || time.Now().After(deadline) {
					break // nothing that is typed from now on is shown
				}
			}
			if _, err := master.WriteString(answers[0][1] + "\n"); err != nil {
				t.Fatal(err)
			}
			answers = answers[1:]
		}
		if err != nil { // EIO: the program has ended
			break
		}
	}
	return shown.String(), cmd.Wait()
}

// TestPassphraseOnTerminal: it is asked for where nothing else gives it, twice
// where it is new, and not shown.
func TestPassphraseOnTerminal(t *testing.T) {
	t.Setenv(passphraseEnv, "")
	file := filepath.Join(t.TempDir(), "log.key.age")
	generate := []string{"key", "generate", "--origin", "log.example/test", "--encrypt", "--out", file}
	shown, err := onTerminal(t, [][2]string{{"Passphrase of", "swordfish"}, {"The same again", "swordfihs"}}, generate...)
	if err == nil || !strings.Contains(shown, "differ") {
		t.Fatalf("two passphrases: %v\n%s", err, shown)
	}
	if _, err := os.Stat(file); err == nil {
		t.Fatal("a key was written")
	}
	shown, err = onTerminal(t, [][2]string{{"Passphrase of", "swordfish"}, {"The same again", "swordfish"}}, generate...)
	if err != nil || !strings.Contains(shown, "vkey") {
		t.Fatalf("%v\n%s", err, shown)
	}
	all := shown
	shown, err = onTerminal(t, [][2]string{{"Passphrase of", "herring"}}, "key", "show", "--key", file)
	if err == nil || !strings.Contains(shown, "wrong passphrase") {
		t.Fatalf("%v\n%s", err, shown)
	}
	all += shown
	shown, err = onTerminal(t, [][2]string{{"Passphrase of", "swordfish"}}, "key", "show", "--key", file)
	if err != nil || !strings.Contains(shown, "file encrypted with a passphrase") {
		t.Fatalf("%v\n%s", err, shown)
	}
	all += shown
	shown, err = onTerminal(t, [][2]string{{"Passphrase of", ""}}, "key", "show", "--key", file)
	if err == nil || !strings.Contains(shown, "nothing was typed") {
		t.Fatalf("%v\n%s", err, shown)
	}
	for _, secret := range []string{"swordfish", "herring", "PRIVATE+KEY"} {
		if strings.Contains(all, secret) {
			t.Errorf("the terminal shows %q:\n%s", secret, all)
		}
	}
}
