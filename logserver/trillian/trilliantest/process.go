// Package trilliantest starts the real neighbours of a scaled-out log for tests
// and benchmarks: PostgreSQL 15, MariaDB, and Trillian's own log server and
// signer, built from its module. Nothing of it belongs in a program that serves
// a log.
//
// Every server listens on loopback, keeps its files in a directory of its own,
// runs as an unprivileged user when the test runs as root, dies with the
// process that started it, and is ended by its own process ID.
//
//	db, err := trilliantest.StartPostgreSQL(ctx, nil)
//	defer db.Close()
//	tr, err := trilliantest.Start(ctx, trilliantest.Options{Database: db})
//	defer tr.Close()
//	tree, err := tr.CreateTree(ctx, trillian.TreeType_LOG)
//	d, err := ourtrillian.New(ourtrillian.Config{Conn: tr.Conn, TreeID: tree, ...})
//	tr.Signer.Kill(); tr.Signer.Start(ctx)
package trilliantest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is one server that can be ended and started again on the same files
// and port.
type Process struct {
	Name string

	args  []string // program and arguments
	dir   string   // of its log
	cred  *syscall.Credential
	ready func(context.Context) error // nil error: it answers

	mu     sync.Mutex
	cmd    *exec.Cmd     // guarded by mu; nil if it is not running
	exited chan struct{} // guarded by mu; closed when cmd has ended
}

// startLimit bounds how long a server may take until it answers.
const startLimit = 60 * time.Second

// Start starts the server and waits until it answers. A server that is running
// is left alone.
func (p *Process) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		if err := p.start(); err != nil {
			return err
		}
		err := p.awaitReady(ctx)
		if err == nil {
			return nil
		}
		p.end(syscall.SIGKILL)
		// A database that was killed has to outlive its own children first.
		if ctx.Err() != nil {
			return fmt.Errorf("%s does not come up: %w\n%s", p.Name, err, p.Tail())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *Process) logFile() string { return filepath.Join(p.dir, p.Name+".log") }

func (p *Process) start() error {
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred, Pdeathsig: syscall.SIGKILL}
	if err := startOnOwnThread(cmd); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	p.cmd, p.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(p.exited)
	return nil
}

func (p *Process) awaitReady(ctx context.Context) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := p.ready(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("it ended: %w", err)
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// PID is the server's process ID, 0 if it is not running.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill ends the server with SIGKILL, and its children, as a crash would.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	children := childrenOf(p.cmd.Process.Pid)
	p.end(syscall.SIGKILL)
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// Stop asks the server to end, and kills it after ten seconds.
func (p *Process) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		p.end(syscall.SIGINT) // PostgreSQL's fast shutdown
	}
}

// Restart stops the server and starts it again.
func (p *Process) Restart(ctx context.Context) error {
	p.Stop()
	return p.Start(ctx)
}

// Pause stops the server from running, and Resume lets it go on: a machine
// that was suspended, a garbage collection that took a minute.
func (p *Process) Pause() error { return p.signal(syscall.SIGSTOP) }

// Resume undoes Pause.
func (p *Process) Resume() error { return p.signal(syscall.SIGCONT) }

func (p *Process) signal(s syscall.Signal) error {
	pid := p.PID()
	if pid == 0 {
		return fmt.Errorf("%s is not running", p.Name)
	}
	return syscall.Kill(pid, s)
}

// end signals the running server and waits for its end.
func (p *Process) end(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	p.cmd = nil
}

// Tail is the end of what the server has logged.
func (p *Process) Tail() string {
	raw, err := os.ReadFile(p.logFile())
	if err != nil {
		return ""
	}
	return string(raw[max(0, len(raw)-2000):])
}

// childrenOf lists the direct children of a process.
func childrenOf(pid int) []int {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var out []int
	for _, f := range strings.Fields(string(raw)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// The parent of a Pdeathsig is the thread that forked, not the process: every
// server is started from one thread that never ends.
var starter = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func startOnOwnThread(cmd *exec.Cmd) error {
	done := make(chan error)
	starter() <- func() { done <- cmd.Start() }
	return <-done
}

// home makes a directory for one server, with a path short enough for a socket
// in it, and says as whom the server runs: databases refuse root.
func home(name string, users ...string) (dir string, cred *syscall.Credential, err error) {
	dir, err = os.MkdirTemp("", "pb-"+name+"-")
	if err != nil {
		return "", nil, err
	}
	if os.Geteuid() != 0 {
		return dir, nil, nil
	}
	for _, name := range users {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2, os.Chown(dir, int(uid), int(gid))); err != nil {
			return "", nil, err
		}
		return dir, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return "", nil, fmt.Errorf("none of the users %v exists to run %s as", users, name)
}

// run runs a program to its end as cred.
func run(ctx context.Context, dir string, cred *syscall.Credential, stdin *os.File, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	if stdin != nil {
		cmd.Stdin = stdin
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(args[0]), err, out)
	}
	return nil
}

// freePort is a loopback port that nobody had a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
