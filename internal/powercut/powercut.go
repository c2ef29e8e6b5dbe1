// Package powercut gives tests a file system whose power can be cut: on a loop
// device, by FS_IOC_SHUTDOWN, as the file systems' own crash tests do. What was
// written and not synced is gone afterwards, in the file system's log too; what
// the device was given stays, so a drive that lies about its cache is not shown.
//
// An fsync that is under way at that moment may report success for what is lost
// (Linux 6.18: 4 of 150 on ext4, 5 of 150 on XFS). No power cut is like that:
// nobody lives to hear of it. So the program is stopped first; see Crash.
package powercut

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shutdown is FS_IOC_SHUTDOWN, _IOR('X', 125, __u32); noLogFlush its harshest
// flag: not even the log in memory is written.
const (
	shutdown   = 2<<30 | 4<<16 | 'X'<<8 | 125
	noLogFlush = 2
)

// Kinds are the file systems that New can make. XFS wants 300 MiB at least; the
// image is sparse.
var Kinds = map[string][]string{
	"ext4": {"mkfs.ext4", "-q", "-F", "-J", "size=4"},
	"xfs":  {"mkfs.xfs", "-q"},
}

// Disk is a mounted file system.
type Disk struct {
	Dir   string // its root
	image string
}

// New makes a file system of one of the Kinds, for one test. It skips the test
// where that cannot be done: not as root, without mkfs, without loop devices.
func New(t testing.TB, kind string) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a power cut needs root, for a loop device and mount")
	}
	mkfs := Kinds[kind]
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skip("a power cut needs " + mkfs[0] + " (Debian: e2fsprogs, xfsprogs)")
	}
	dir := t.TempDir()
	d := &Disk{Dir: filepath.Join(dir, "disk"), image: filepath.Join(dir, "image")}
	err := os.Mkdir(d.Dir, 0o755)
	if err == nil {
		err = os.WriteFile(d.image, nil, 0o600)
	}
	if err == nil {
		err = os.Truncate(d.image, 320<<20)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], d.image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs[0], err, out)
	}
	if out, err := d.mount(); err != nil {
		t.Skipf("a power cut needs a loop device with %s: %v: %s", kind, err, out)
	}
	t.Cleanup(func() { d.unmount(t) })
	return d
}

func (d *Disk) mount() ([]byte, error) {
	return exec.Command("mount", "-o", "loop", d.image, d.Dir).CombinedOutput()
}

func (d *Disk) unmount(t testing.TB) {
	t.Helper()
	var out []byte
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if out, err = exec.Command("umount", d.Dir).CombinedOutput(); err == nil {
			return // what holds a file open just after it was killed is gone
		}
	}
	t.Fatalf("umount: %v: %s", err, out)
}

// Crash is a power cut under a program: it stops where it is, the disks lose what
// is not synced, and are mounted again once it is gone.
func Crash(t testing.TB, cmd *exec.Cmd, disks ...*Disk) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !stopped(t, cmd.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the program does not stop")
		}
	}
	for _, d := range disks {
		d.Cut(t)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, d := range disks {
		d.Restore(t)
	}
}

// stopped reports whether no thread of a process runs: each is stopped, or will
// be before it leaves the kernel.
func stopped(t testing.TB, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "stat"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range threads {
		raw, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, state, _ := strings.Cut(string(raw), ") ")
		if state[0] != 'T' && state[0] != 'D' {
			return false
		}
	}
	return len(threads) > 0
}

// Cut cuts the power: from now on everything fails on the file system.
func (d *Disk) Cut(t testing.TB) {
	t.Helper()
	root, err := os.Open(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := unix.IoctlSetPointerInt(int(root.Fd()), shutdown, noLogFlush); err != nil {
		t.Fatalf("FS_IOC_SHUTDOWN: %v", err)
	}
}

// Restore mounts what is there after a cut. Nobody may have a file open on it.
func (d *Disk) Restore(t testing.TB) {
	t.Helper()
	d.unmount(t)
	if out, err := d.mount(); err != nil {
		t.Fatalf("after the cut it cannot be mounted: %v: %s", err, out)
	}
}
