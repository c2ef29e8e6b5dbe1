package trilliantest

// Trillian's log server and signer, as Trillian builds them.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/trillian"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Version is the Trillian that is built.
const Version = "v1.8.0"

const trillianModule = "github.com/google/trillian"

// Binaries builds trillian_log_server and trillian_log_signer from Trillian's
// own module, with its own dependencies, once for each machine. It returns the
// directory they are in.
var Binaries = sync.OnceValues(func() (string, error) {
	return install("trillian-"+Version, []string{"-tags=mysql,postgresql,etcd"}, // no Spanner, CockroachDB, Kubernetes: half the time
		trillianModule+"/cmd/trillian_log_server@"+Version, trillianModule+"/cmd/trillian_log_signer@"+Version)
})

// install builds programs of other modules, each with its module's own
// dependencies, into a directory of the user's cache, where they stay.
func install(name string, flags []string, programs ...string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "portbook-test", name+"-"+runtime.Version())
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
	missing := false
	for _, p := range programs {
		file, _, _ := strings.Cut(path.Base(p), "@")
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			missing = true
		}
	}
	if !missing {
		return dir, nil
	}
	cmd := exec.Command("go", append(append([]string{"install"}, flags...), programs...)...)
	cmd.Dir = dir // outside any module
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return dir, nil
}

// moduleDir is where Trillian's module is unpacked.
var moduleDir = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", trillianModule+"@"+Version)
	cmd.Dir = os.TempDir()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go mod download %s: %w", trillianModule, err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", err
	}
	return module.Dir, nil
})

// schema is the file of Trillian's schema for a storage system.
func schema(system string) (string, error) {
	dir, err := moduleDir()
	return filepath.Join(dir, "storage", system, "schema", "storage.sql"), err
}

// Options say how Trillian is run. The zero values are the fastest that lose
// nothing.
type Options struct {
	Database Database // required

	// Interval is the signer's pause between two passes: what an entry waits for
	// at least. 0 means 10 ms; Trillian's own default is 100 ms.
	Interval time.Duration
	// Batch is the most leaves the signer takes in one pass. 0 means 5000;
	// Trillian's default is 1000.
	Batch int
	// Servers is the number of log servers, 0 means 1. Conn is to the first.
	Servers int
	// ServerFlags and SignerFlags are added to the programs' own.
	ServerFlags, SignerFlags []string
}

// Trillian is a running log server and signer.
//
// What its settings mean for latency: the signer makes one pass over all trees,
// then waits for --sequencer_interval; a pass takes at most --batch_size leaves
// of a tree. --num_sequencers is the number of trees it works on at once, no
// help to one tree. --force_master skips the election: two such signers on one
// tree are refused by the database's unique keys, one of them wastes its work.
// Without --quota_system=noop every call first counts unsequenced rows.
// --http_endpoint= turns the metrics off, --tree_gc=false the deletion of trees.
type Trillian struct {
	Servers []*Process
	Signer  *Process
	Conn    *grpc.ClientConn // to the first server; log and admin API
	Conns   []*grpc.ClientConn

	home string
	opts Options
}

// Start builds Trillian if it has to, and starts a log server and a signer on a
// database.
func Start(ctx context.Context, o Options) (*Trillian, error) {
	if o.Interval == 0 {
		o.Interval = 10 * time.Millisecond
	}
	if o.Batch == 0 {
		o.Batch = 5000
	}
	bin, err := Binaries()
	if err != nil {
		return nil, err
	}
	t := &Trillian{opts: o}
	if t.home, err = os.MkdirTemp("", "pb-tr-"); err != nil {
		return nil, err
	}
	if err := t.start(ctx, bin); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Trillian) start(ctx context.Context, bin string) error {
	common := append(t.opts.Database.Flags(), "--quota_system=noop", "--http_endpoint=", "--logtostderr")
	for i := range max(t.opts.Servers, 1) {
		port, err := freePort()
		if err != nil {
			return err
		}
		endpoint := fmt.Sprintf("127.0.0.1:%d", port)
		conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: quickBackoff, MinConnectTimeout: time.Second}))
		if err != nil {
			return err
		}
		t.Conns = append(t.Conns, conn)
		server := &Process{Name: fmt.Sprintf("log_server%d", i), dir: t.home,
			args: append(append([]string{filepath.Join(bin, "trillian_log_server"), "--rpc_endpoint=" + endpoint, "--tree_gc=false"}, common...), t.opts.ServerFlags...),
			ready: func(ctx context.Context) error {
				_, err := trillian.NewTrillianAdminClient(conn).ListTrees(ctx, &trillian.ListTreesRequest{})
				return err
			}}
		t.Servers = append(t.Servers, server)
		if err := server.Start(ctx); err != nil {
			return err
		}
	}
	t.Conn = t.Conns[0]
	port, err := freePort()
	if err != nil {
		return err
	}
	t.Signer = &Process{Name: "log_signer", dir: t.home,
		args: append(append([]string{filepath.Join(bin, "trillian_log_signer"), fmt.Sprintf("--rpc_endpoint=127.0.0.1:%d", port), "--force_master",
			fmt.Sprintf("--sequencer_interval=%s", t.opts.Interval), fmt.Sprintf("--batch_size=%d", t.opts.Batch), "--num_sequencers=2"}, common...), t.opts.SignerFlags...),
		ready: dialable(port)}
	return t.Signer.Start(ctx)
}

// Address is that of the first log server.
func (t *Trillian) Address() string { return t.Conn.Target() }

// CreateTree makes an empty tree.
func (t *Trillian) CreateTree(ctx context.Context, kind trillian.TreeType) (int64, error) {
	tree, err := trillian.NewTrillianAdminClient(t.Conn).CreateTree(ctx, &trillian.CreateTreeRequest{Tree: &trillian.Tree{
		TreeState: trillian.TreeState_ACTIVE, TreeType: kind, DisplayName: "test", MaxRootDuration: durationpb.New(0)}})
	if err != nil {
		return 0, err
	}
	_, err = trillian.NewTrillianLogClient(t.Conn).InitLog(ctx, &trillian.InitLogRequest{LogId: tree.TreeId})
	return tree.TreeId, err
}

// SetState makes a tree ACTIVE, DRAINING or FROZEN.
func (t *Trillian) SetState(ctx context.Context, tree int64, state trillian.TreeState) error {
	_, err := trillian.NewTrillianAdminClient(t.Conn).UpdateTree(ctx, &trillian.UpdateTreeRequest{
		Tree: &trillian.Tree{TreeId: tree, TreeState: state}, UpdateMask: mask("tree_state")})
	return err
}

// Close ends the server and the signer and removes their files. The database
// is left running.
func (t *Trillian) Close() {
	for _, c := range t.Conns {
		c.Close()
	}
	for _, p := range append(t.Servers, t.Signer) {
		if p != nil {
			p.Kill()
		}
	}
	os.RemoveAll(t.home)
}

// Skippable says whether an error means that the machine lacks a neighbour, and
// names it; anything else is a failure.
func Skippable(err error) bool {
	return errors.Is(err, ErrAbsent) || err != nil && strings.Contains(err.Error(), "dial tcp: lookup proxy.golang.org")
}
