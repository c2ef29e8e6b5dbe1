// Package witnesstest runs witness software of others, for tests and benchmarks:
// litewitness and litebastion of filippo.io/torchwood, built from its module.
// Nothing of it belongs in a program that serves.
//
// Every server listens on loopback, keeps its files in a directory of its own,
// dies with the process that started it, and is ended by its own process ID.
package witnesstest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/portbook/portbook/c2sp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	_ "modernc.org/sqlite"
)

// Version is the torchwood that is built.
const Version = "v0.9.0"

const torchwood = "filippo.io/torchwood"

// binaries builds torchwood's programs once for each machine and returns the
// directory they are in. Its module cannot be installed from outside (it has
// replacements), so they are tools of a module that is made here.
var binaries = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "portbook-test", "torchwood-"+Version+"-"+runtime.Version())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// One test binary builds, the others wait.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "litebastion")); err == nil { // built last
		return dir, nil
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module witnesstest.invalid\n\ngo 1.26\n"), 0o644); err != nil {
		return "", err
	}
	for _, program := range []string{"litewitness", "litebastion"} {
		at := torchwood + "/cmd/" + program
		for _, args := range [][]string{{"get", "-tool", at + "@" + Version}, {"build", "-o", program, at}} {
			cmd := exec.Command("go", args...)
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				return "", fmt.Errorf("building %s: %w\n%s", program, err, out)
			}
		}
	}
	return dir, nil
})

// Litewitness is a running litewitness.
type Litewitness struct {
	URL string
	Key *c2sp.Key

	dir     string
	process *process
	quit    func()
}

// StartLitewitness starts a litewitness of this name that knows no logs.
func StartLitewitness(ctx context.Context, name string) (_ *Litewitness, err error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pb-lw-")
	if err != nil {
		return nil, err
	}
	w := &Litewitness{dir: dir, quit: func() {}}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	// Its key comes from an ssh-agent: ours, with one key.
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	keyring := agent.NewKeyring()
	if err := keyring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "agent")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	w.quit = func() { lis.Close() }
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(keyring, conn)
		}
	}()
	sshKey, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	if w.Key, err = cosignerKey(name, public); err != nil {
		return nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	w.URL = "http://" + address
	w.process, err = start(dir, filepath.Join(bin, "litewitness"), "-db", filepath.Join(dir, "litewitness.db"), "-name", name,
		"-key", ssh.FingerprintSHA256(sshKey), "-ssh-agent", socket, "-listen", address)
	if err != nil {
		return nil, err
	}
	return w, await(ctx, w.URL+"/", dir)
}

// AddLog makes it cosign for logs, as its operator does: by rows in its database.
func (w *Litewitness) AddLog(ctx context.Context, keys ...*c2sp.Key) error {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.dir, "litewitness.db")+"?_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		return err
	}
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, key := range keys {
		if _, err := tx.ExecContext(ctx, "INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)",
			key.Name(), base64.StdEncoding.EncodeToString(c2sp.EmptyRoot[:])); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO key (origin, key) VALUES (?, ?)", key.Name(), key.String()); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// Close ends it and removes its files.
func (w *Litewitness) Close() {
	w.process.kill()
	w.quit()
	os.RemoveAll(w.dir)
}

// cosignerKey is the vkey of an Ed25519 cosigner (c2sp.org/tlog-cosignature).
func cosignerKey(name string, public ed25519.PublicKey) (*c2sp.Key, error) {
	material := append([]byte{byte(c2sp.AlgEd25519Cosig)}, public...)
	id := sha256.Sum256(append([]byte(name+"\n"), material...))
	return c2sp.ParseVKey(fmt.Sprintf("%s+%x+%s", name, id[:4], base64.StdEncoding.EncodeToString(material)))
}

// process is a program that dies with this one.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func start(dir, name string, args ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{exec.Command(name, args...), make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = log, log, dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal comes when the thread that started it ends.
		runtime.LockOSThread()
		defer close(p.ended)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
		}
	}()
	return p, <-started
}

// kill ends it; a nil process has ended.
func (p *process) kill() {
	if p != nil && p.cmd.Process != nil {
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// await waits until a server answers anything at all.
func await(ctx context.Context, url, dir string) error {
	client := &http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(20 * time.Second); ; {
		res, err := client.Get(url)
		if err == nil {
			res.Body.Close()
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			said, _ := os.ReadFile(filepath.Join(dir, "log"))
			return errors.Join(fmt.Errorf("%s does not come up: %w\n%s", url, err, said), ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
