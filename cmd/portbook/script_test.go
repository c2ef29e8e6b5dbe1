package main

// The scripts of testdata read as the threat model does: what someone tries,
// and what a person then sees. Each runs the real program.

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"k8s.io/klog/v2"
)

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // what Tessera has to say
	testscript.Main(m, map[string]func(){"portbook": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Values[scriptLog{}] = &fakeLog{origin: "log.example/test", leaves: map[uint64][]byte{}}
			e.Values[scriptDown{}] = new(atomic.Bool)
			e.Setenv("ESC", "\x1b[2J")
			e.Setenv("BIDI", "\u202e")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "mkpolicy": mkpolicy, "mkproof": mkproof, "mknote": mknote, "servelog": servelog, "damage": damage,
			"reallog": reallog, "mirror": mirror, "witnesses": switchWitnesses, "mode": mode, "fill": fill,
		},
	})
}

// exits CODE PROGRAM ARG...: runs the program, which must end with that code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want || neg {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// mode WANT FILE: its permissions.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	st, err := os.Lstat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// damage FILE OLD NEW: replaces the first OLD in the file, which must be there.
func damage(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.ReadFile(args[0])
	if !strings.Contains(s, args[1]) {
		ts.Fatalf("%s has no %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(s, args[1], args[2], 1)), 0o644))
}

// fill FILE...: puts verifier keys where the file has LOG(name), WITNESS(name) or RELABELLED(name), and
// a character that turns the writing direction where it has BIDI.
func fill(ts *testscript.TestScript, _ bool, args []string) {
	for _, file := range args {
		s := placeholder.ReplaceAllStringFunc(ts.ReadFile(file), func(m string) string {
			switch what, name, _ := strings.Cut(strings.TrimSuffix(m, ")"), "("); what {
			case "LOG":
				return signer(name, c2sp.AlgEd25519).Key().String()
			case "RELABELLED": // the key of a.example under another name
				k, err := c2sp.ParseVKey(relabel(signer("a.example", c2sp.AlgEd25519Cosig).Key(), name))
				ts.Check(err)
				return k.String()
			case "WITNESS":
				return signer(name, c2sp.AlgEd25519Cosig).Key().String()
			}
			return "\u202e"
		})
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(s), 0o644))
	}
}

var placeholder = regexp.MustCompile(`(LOG|WITNESS|RELABELLED)\([^)]+\)|BIDI`)

type scriptLog struct{}

func logOf(ts *testscript.TestScript) *fakeLog { return ts.Value(scriptLog{}).(*fakeLog) }

// options reads KEY=VALUE arguments over defaults.
func options(ts *testscript.TestScript, args []string, defaults map[string]string) map[string]string {
	o := map[string]string{}
	for k, v := range defaults {
		o[k] = v
	}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		if _, ok := defaults[k]; !ok {
			ts.Fatalf("unknown option %q", a)
		}
		o[k] = v
	}
	return o
}

// A fakeLog signs whatever a script wants. Its keys, and those of its
// witnesses, follow from their names.
type fakeLog struct {
	origin string
	leaves map[uint64][]byte // what mkproof put there; anything else is filler

	mu     sync.Mutex // of what is served
	size   uint64
	evil   bool
	down   bool
	server *httptest.Server
}

func signer(name string, alg c2sp.Alg) *c2sp.Signer {
	seed := sha256.Sum256([]byte(name + alg.String()))
	pub := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	id := sha256.Sum256(append([]byte(name+"\n"+string(rune(alg))), pub...))
	s, err := c2sp.ParseSKey(fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", name, id[:4], base64.StdEncoding.EncodeToString(append([]byte{byte(alg)}, seed[:]...))))
	if err != nil {
		panic(err)
	}
	return s
}

// relabel returns the vkey of the same public key under another name.
func relabel(k *c2sp.Key, name string) string {
	data := append([]byte{byte(k.Alg())}, k.Raw()...)
	id := sha256.Sum256(append([]byte(name+"\n"), data...))
	return fmt.Sprintf("%s+%x+%s", name, id[:4], base64.StdEncoding.EncodeToString(data))
}

// witnessSigner is the key of the witness that policies call name.
func witnessSigner(name string) *c2sp.Signer {
	return signer(name+".example", c2sp.AlgEd25519Cosig)
}

// tree is the log's tree; an evil one has other leaves from index 3 on.
func (l *fakeLog) tree(size uint64, evil bool) *testonly.Tree {
	t := testonly.New(rfc6962.DefaultHasher)
	for i := range size {
		leaf := l.leaves[i]
		if leaf == nil {
			leaf = []byte("filler " + strconv.FormatUint(i, 10))
		}
		if evil && i >= 3 {
			leaf = []byte("evil " + strconv.FormatUint(i, 10))
		}
		t.AppendData(leaf)
	}
	return t
}

// note signs the tree of this size; witnesses cosign at, at + 1 min, ...
func (l *fakeLog) note(size uint64, evil bool, witnesses []string, at time.Time) *c2sp.Note {
	c := c2sp.Checkpoint{Origin: l.origin, Size: size, Root: [32]byte(l.tree(size, evil).HashAt(size))}
	n := &c2sp.Note{Text: c.Text()}
	sig, err := signer(l.origin, c2sp.AlgEd25519).Sign(n.Text)
	if err != nil {
		panic(err)
	}
	n.Sigs = append(n.Sigs, sig)
	for i, w := range witnesses {
		if w == "" {
			continue
		}
		sig, err := witnessSigner(w).Cosign(c, at.Add(time.Duration(i)*time.Minute))
		if err != nil {
			panic(err)
		}
		n.Sigs = append(n.Sigs, sig)
	}
	return n
}

// mkpolicy FILE [quorum=2] [witnesses=w1,w2,w3] [origin=O] [add=LINE]: a policy
// in which so many witnesses must have cosigned; quorum=none needs none.
func mkpolicy(ts *testscript.TestScript, _ bool, args []string) {
	o := options(ts, args[1:], map[string]string{"quorum": "2", "witnesses": "w1,w2,w3", "origin": logOf(ts).origin, "add": ""})
	var b strings.Builder
	fmt.Fprintf(&b, "log %s\n", signer(o["origin"], c2sp.AlgEd25519).Key())
	names := strings.Split(o["witnesses"], ",")
	for _, w := range names {
		fmt.Fprintf(&b, "witness %s %s\n", w, witnessSigner(w).Key())
	}
	if o["quorum"] == "none" {
		b.WriteString("quorum none\n")
	} else {
		fmt.Fprintf(&b, "group g %s %s\nquorum g\n", o["quorum"], strings.Join(names, " "))
	}
	if o["add"] != "" {
		b.WriteString(o["add"] + "\n")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o644))
}

// mkproof FILE [KEY=VALUE]...: logs the file and writes FILE.tlog-proof. Every
// option is what the log, the index or a thief may have made of it.
func mkproof(ts *testscript.TestScript, _ bool, args []string) {
	l := logOf(ts)
	o := options(ts, args[1:], map[string]string{
		"registry": "pypi.example", "ecosystem": "pypi", "project": "six", "version": "1.17.0", "name": filepath.Base(args[0]),
		"claim": "index", "kind": "upload", "publisher": "", "cosigned": "w1,w2,w3", "origin": l.origin, "index": "1", "size": "5",
		"at": "2026-11-21T05:00:00Z", "out": args[0] + proofSuffix, "cheat": "",
	})
	content, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	sum := sha256.Sum256(content)
	e := &entry.Entry{
		Kind: entry.Kind(o["kind"]), Claim: entry.Claim(o["claim"]), Time: "2026-11-21T04:59:00Z",
		Registry: o["registry"], Ecosystem: o["ecosystem"], Project: o["project"], Version: o["version"], File: o["name"],
		SHA256: hex.EncodeToString(sum[:]),
	}
	if e.Kind == entry.KindUpload {
		e.Size = entry.Uint(uint64(len(content)))
	} else {
		e.ID = strings.Repeat("0a", 16)
	}
	if o["publisher"] != "" {
		e.Publisher = &entry.Publisher{Kind: "github", Repository: o["publisher"], Workflow: "release.yml"}
	}
	leaf, err := e.Marshal()
	ts.Check(err)
	index, err := strconv.ParseUint(o["index"], 10, 63)
	ts.Check(err)
	size, err := strconv.ParseUint(o["size"], 10, 63)
	ts.Check(err)
	at, err := time.Parse(time.RFC3339, o["at"])
	ts.Check(err)

	log := &fakeLog{origin: o["origin"], leaves: l.leaves}
	l.leaves[index] = leaf
	hashes, err := log.tree(size, false).InclusionProof(index, size)
	ts.Check(err)
	p := &c2sp.Proof{Extra: leaf, Index: index}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, [32]byte(h))
	}
	n := log.note(size, false, strings.Split(o["cosigned"], ","), at)
	switch o["cheat"] {
	case "":
	case "other entry": // the leaf says something else than was logged
		p.Extra = bytes.Replace(p.Extra, []byte(hex.EncodeToString(sum[:])), []byte(strings.Repeat("00", 32)), 1)
	case "no entry":
		p.Extra = nil
	case "not signed by the log":
		n.Sigs = n.Sigs[1:]
	case "log signature damaged":
		n.Sigs[0].Sig[10] ^= 1
	case "cosignature damaged":
		n.Sigs[1].Sig[20] ^= 1
	case "w1 twice": // its line again, and another by it
		later := log.note(size, false, []string{"w1"}, at.Add(time.Hour))
		n.Sigs = append(n.Sigs, n.Sigs[1], later.Sigs[1])
	case "w1 as w2": // its cosignature under another's name
		again := n.Sigs[1]
		again.Name = witnessSigner("w2").Key().Name()
		n.Sigs = append(n.Sigs, again)
	case "w1 as w2, key ID too":
		again := n.Sigs[1]
		again.Name, again.KeyID = witnessSigner("w2").Key().Name(), witnessSigner("w2").Key().ID()
		n.Sigs = append(n.Sigs, again)
	default:
		ts.Fatalf("unknown cheat %q", o["cheat"])
	}
	p.Checkpoint = n.Bytes()
	ts.Check(os.WriteFile(ts.MkAbs(o["out"]), p.Bytes(), 0o644))
}

// mknote FILE [size=5] [evil=yes] [cosigned=w1,w2,w3]: a signed checkpoint.
func mknote(ts *testscript.TestScript, _ bool, args []string) {
	o := options(ts, args[1:], map[string]string{"size": "5", "evil": "", "cosigned": "w1,w2,w3", "quoted": ""})
	size, err := strconv.ParseUint(o["size"], 10, 63)
	ts.Check(err)
	b := logOf(ts).note(size, o["evil"] != "", strings.Split(o["cosigned"], ","), time.Now()).Bytes()
	if o["quoted"] != "" { // as in an evidence file
		b = []byte("| " + strings.ReplaceAll(strings.TrimSuffix(string(b), "\n"), "\n", "\n| ") + "\n")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

// servelog [size=5] [evil=yes] [down=yes]: serves the log at $LOGURL from now
// on as it is said, until the next servelog.
func servelog(ts *testscript.TestScript, _ bool, args []string) {
	l := logOf(ts)
	o := options(ts, args, map[string]string{"size": "5", "evil": "", "down": ""})
	size, err := strconv.ParseUint(o["size"], 10, 63)
	ts.Check(err)
	l.mu.Lock()
	l.size, l.evil, l.down = size, o["evil"] != "", o["down"] != ""
	l.mu.Unlock()
	if l.server == nil {
		l.server = httptest.NewServer(l)
		ts.Defer(l.server.Close)
		ts.Setenv("LOGURL", l.server.URL)
	}
}

func (l *fakeLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	if r.URL.Path == "/checkpoint" {
		// Cosigned an hour ago and later, so that no clock is ahead.
		w.Write(l.note(l.size, l.evil, []string{"w1", "w2", "w3"}, time.Now().Add(-time.Hour)).Bytes())
		return
	}
	t, err := c2sp.ParseTilePath(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil || t.Level != 0 || t.Index != 0 || uint64(t.Width) > l.size {
		http.NotFound(w, r)
		return
	}
	tree := l.tree(l.size, l.evil)
	for i := range t.Width {
		w.Write(tree.LeafHash(uint64(i)))
	}
}
