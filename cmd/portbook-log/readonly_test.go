package main

// serve --read-only on a bucket of a real S3-compatible service.

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
)

// TestReadOnlyBucket: an export is put into a bucket, and served from there by the
// real command; then the bucket goes back.
func TestReadOnlyBucket(t *testing.T) {
	s3, err := trilliantest.StartS3(t.Context())
	if err != nil {
		if trilliantest.Skippable(err) {
			t.Skipf("no S3-compatible service: %v", err)
		}
		t.Fatal(err)
	}
	defer s3.Close()
	if err := s3.MakeBucket("log"); err != nil {
		t.Fatal(err)
	}
	client, err := minio.New(s3.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(s3.AccessKey, s3.Secret, "")})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := c2sp.GenerateSigner("log.example/bucket", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	leaf := "{\"v\":2}"
	root := c2sp.Checkpoint{Origin: "log.example/bucket", Size: 1, Root: entry.LeafHash([]byte(leaf))}
	note := func(c c2sp.Checkpoint) string {
		sig, err := signer.Sign(c.Text())
		if err != nil {
			t.Fatal(err)
		}
		return string((&c2sp.Note{Text: c.Text(), Sigs: []c2sp.Signature{sig}}).Bytes())
	}
	put := func(name, content string) {
		if _, err := client.PutObject(t.Context(), "log", "a/b/"+name, strings.NewReader(content), int64(len(content)), minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	hash := entry.LeafHash([]byte(leaf))
	put("tile/0/000.p/1", string(hash[:]))
	put("tile/entries/000.p/1", "\x00"+string(rune(len(leaf)))+leaf)
	put("checkpoint", note(root))

	t.Setenv("AWS_ACCESS_KEY_ID", s3.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3.Secret)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := lis.Addr().String()
	lis.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := rootCmd()
	cmd.SetErr(t.Output())
	cmd.SetArgs([]string{"serve", "--read-only", "--dir", "s3://log/a/b?region=us-east-1&endpoint=http://" + s3.Endpoint,
		"--state", filepath.Join(t.TempDir(), "state"), "--vkey", signer.Key().String(), "--http", address, "--grpc", "127.0.0.1:0"})
	ended := make(chan int, 1)
	go func() { ended <- cli.Run(ctx, cmd) }()
	get := func(path string) (int, string) {
		res, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		if err != nil {
			return 0, err.Error()
		}
		return res.StatusCode, string(raw)
	}
	await := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			code, body := get("/readyz")
			if code == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("/readyz: %d %s, want %d", code, body, want)
			}
		}
	}
	await(200)
	if code, body := get("/checkpoint"); code != 200 || body != note(root) {
		t.Errorf("checkpoint: %d %s", code, body)
	}
	if code, body := get("/tile/entries/000.p/1"); code != 200 || !strings.HasSuffix(body, leaf) {
		t.Errorf("bundle: %d %q", code, body)
	}
	if code, _ := get("/tile/0/001.p/1"); code != 404 {
		t.Errorf("a tile that is not there: %d", code)
	}
	forked := root
	forked.Root = [32]byte{1}
	put("checkpoint", note(forked))
	await(503)
	if code, body := get("/checkpoint"); code != 200 || body != note(root) {
		t.Errorf("after the bucket forked: %d %s", code, body)
	}
	cancel()
	if code := <-ended; code != cli.OK {
		t.Errorf("ends with %d", code)
	}
}
