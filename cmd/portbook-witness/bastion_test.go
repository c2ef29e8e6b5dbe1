package main

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/witness"
	"github.com/portbook/portbook/witness/witnesstest"
)

// The program behind a real litebastion: its status page is there, under the
// path that bastion-key printed.
func TestServeBehindABastion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "w")
	d, err := witness.CreateDir(context.Background(), dir, "witness.example/w1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Store.CreateMark(context.Background(), filepath.Join(dir, witness.MarkFile)); err != nil {
		t.Fatal(err)
	}
	d.Close()
	refused := exec.Command("portbook-witness", "serve", "--dir", dir, "--mark-beside", "--listen", "127.0.0.1:0", "--bastion", "127.0.0.1:1")
	if out, err := refused.CombinedOutput(); err == nil || !strings.Contains(string(out), "make one with portbook-witness bastion-key") {
		t.Errorf("served behind a bastion without a key for it: %v %s", err, out)
	}
	out, err := exec.Command("portbook-witness", "bastion-key", "--dir", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimSpace(string(out))
	if again, err := exec.Command("portbook-witness", "bastion-key", "--dir", dir).Output(); err != nil || string(again) != string(out) {
		t.Errorf("%s: %v; it was %s", again, err, out)
	}
	bastion, err := witnesstest.StartLitebastion(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer bastion.Close()
	cmd := exec.Command("portbook-witness", "serve", "--dir", dir, "--mark-beside", "--listen", "127.0.0.1:0", "--bastion", bastion.Address, "--bastion-ca", bastion.CAFile)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: bastion.Roots}}, Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		res, err := client.Get("https://" + bastion.Address + "/" + path + "/")
		if err == nil {
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode == 200 && strings.Contains(string(b), "Witness witness.example/w1") {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("not reached through the bastion: %v", err)
		}
	}
	// A key that others can read is refused, and one that is no key.
	key := filepath.Join(dir, bastionKeyFile)
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("portbook-witness", "bastion-key", "--dir", dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "chmod 600") {
		t.Errorf("%v %s", err, out)
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("portbook-witness", "bastion-key", "--dir", dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "not one PEM block") {
		t.Errorf("%v %s", err, out)
	}
}
