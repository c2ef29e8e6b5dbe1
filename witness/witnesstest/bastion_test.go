package witnesstest_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
	"github.com/portbook/portbook/witness/witnesstest"
)

// TestBehindABastion: a witness that listens nowhere cosigns through a real
// litebastion, and comes back when the bastion does.
func TestBehindABastion(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	path := witness.BastionPath(public)
	bastion, err := witnesstest.StartLitebastion(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer bastion.Close()
	d, err := witness.CreateDir(t.Context(), filepath.Join(t.TempDir(), "w"), "witness.example/w1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	signer, err := c2sp.GenerateSigner("log.example/nat", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Store.AddLog(t.Context(), signer.Key().Name(), []*c2sp.Key{signer.Key()}); err != nil {
		t.Fatal(err)
	}
	w, err := witness.New(witness.Config{Signer: d.Signer, MLDSA: d.MLDSA, Store: d.Store})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var from []string
	spy := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		from = append(from, r.RemoteAddr)
		mu.Unlock()
		w.Handler().ServeHTTP(rw, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		witness.Bastion{Address: bastion.Address, Key: private, Roots: bastion.Roots, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}.Run(ctx, spy)
	}()
	defer func() { cancel(); <-ended }()

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: bastion.Roots}}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	cosign := func(size uint64) error {
		cp := c2sp.Checkpoint{Origin: signer.Key().Name(), Size: size, Root: [32]byte{byte(size)}}
		sig, err := signer.Sign(cp.Text())
		if err != nil {
			return err
		}
		body := (&c2sp.AddCheckpoint{Checkpoint: (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()}).Bytes()
		res, err := client.Post("https://"+bastion.Address+"/"+path+"/add-checkpoint", "text/plain", bytes.NewReader(body))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if res.StatusCode != 200 || err != nil {
			return fmt.Errorf("%d %s: %w", res.StatusCode, answer, errors.Join(err, errors.New("not cosigned")))
		}
		sigs, err := c2sp.ParseSignatureLines(answer)
		if err != nil {
			return err
		}
		_, err = d.Signer.Key().VerifyNote(cp.Text(), sigs[0])
		return err
	}
	eventually(t, "a cosignature through the bastion", func() error { return cosign(1) })
	mu.Lock()
	if last := from[len(from)-1]; last != "127.0.0.1:0" {
		t.Errorf("the request is from %q: limits would count the bastion", last)
	}
	mu.Unlock()

	bastion.Kill()
	if err := cosign(1); err == nil {
		t.Error("cosigned without the bastion")
	}
	if err := bastion.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection to be made again", func() error {
		if err := cosign(1); err != nil && !strings.Contains(err.Error(), "409") { // it is there: the size is cosigned already
			return err
		}
		return nil
	})
}

// TestBastionIsChecked: a bastion whose certificate nobody vouches for, and a
// server that is none, get no connection to serve.
func TestBastionIsChecked(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	bastion, err := witnesstest.StartLitebastion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer bastion.Close()
	pair, err := tls.LoadX509KeyPair(bastion.CAFile, filepath.Join(filepath.Dir(bastion.CAFile), "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}}) // no bastion: no such protocol
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		for {
			conn, err := other.Accept()
			if err != nil {
				return
			}
			go func(conn net.Conn) { io.Copy(io.Discard, conn); conn.Close() }(conn)
		}
	}()
	for name, b := range map[string]witness.Bastion{
		"authority unknown": {Address: bastion.Address, Key: private},
		"no bastion":        {Address: other.Addr().String(), Key: private, Roots: bastion.Roots},
		"nobody there":      {Address: "127.0.0.1:1", Key: private, Roots: bastion.Roots},
	} {
		t.Run(name, func(t *testing.T) {
			var said strings.Builder
			b.Logger = slog.New(slog.NewTextHandler(&said, nil))
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			b.Run(ctx, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request came through") }))
			if strings.Contains(said.String(), "connected to the bastion") || !strings.Contains(said.String(), "trying again") {
				t.Errorf("%s", said.String())
			}
		})
	}
}
