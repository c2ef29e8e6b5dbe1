package trilliantest

// An S3-compatible service: versitygw on a directory.

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

const versityVersion = "v1.8.0"

var versitygw = sync.OnceValues(func() (string, error) {
	return install("versitygw-"+versityVersion, nil, "github.com/versity/versitygw/cmd/versitygw@"+versityVersion)
})

// S3 is a running S3-compatible service. It honours conditional writes.
type S3 struct {
	*Process
	Endpoint          string // host:port, without TLS
	AccessKey, Secret string

	home string
}

// StartS3 starts an S3-compatible service without buckets.
func StartS3(ctx context.Context) (*S3, error) {
	bin, err := versitygw()
	if err != nil {
		return nil, err
	}
	s := &S3{AccessKey: "access", Secret: "secretsecret"}
	if s.home, err = os.MkdirTemp("", "pb-s3-"); err != nil {
		return nil, err
	}
	root := filepath.Join(s.home, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s.Endpoint = fmt.Sprintf("127.0.0.1:%d", port)
	s.Process = &Process{Name: "versitygw", dir: s.home, ready: dialable(port), args: []string{filepath.Join(bin, "versitygw"),
		"--port=" + s.Endpoint, "--access=" + s.AccessKey, "--secret=" + s.Secret, "--quiet", "posix", root}}
	if err := s.Start(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// MakeBucket makes an empty bucket.
func (s *S3) MakeBucket(name string) error {
	return os.Mkdir(filepath.Join(s.home, "root", name), 0o755)
}

// BucketDir is the directory that holds a bucket's objects: how a test breaks them.
func (s *S3) BucketDir(name string) string { return filepath.Join(s.home, "root", name) }

// Close ends the service and removes its files.
func (s *S3) Close() {
	if s.Process != nil {
		s.Kill()
	}
	os.RemoveAll(s.home)
}
