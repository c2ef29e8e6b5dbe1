// Package bucket keeps the tiles of a log in an S3-compatible bucket. It stands
// apart from package trillian because of what it links.
//
// The service must honour conditional writes (If-None-Match: * and If-Match on
// PutObject, which Amazon S3, MinIO, Ceph and versitygw do) and be
// read-after-write consistent. Check refuses one that does not: fencing stands on
// it. Who holds the bucket's credentials can make readers fail; every reader
// checks what it reads against a cosigned checkpoint.
package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/portbook/portbook/logserver/trillian"
	"golang.org/x/sync/errgroup"
)

// Bucket is a trillian.Store in a bucket, under a prefix.
type Bucket struct {
	Client *minio.Client
	Name   string // of the bucket, which must exist
	Prefix string // of all objects; empty, or ending in a slash
}

var _ trillian.Store = Bucket{}

// maxObject bounds what is read: a bundle of 256 entries of 65 537 bytes.
const maxObject = 256 * (1<<16 + 1)

// Check makes sure of the bucket: that it is there, takes writes, and refuses
// those whose condition does not hold. It writes and removes one object.
func (b Bucket) Check(ctx context.Context) error {
	random := make([]byte, 16)
	rand.Read(random)
	name := ".state/check-" + hex.EncodeToString(random)
	if err := b.Swap(ctx, name, nil, []byte("one")); err != nil {
		return fmt.Errorf("bucket %s: %w", b.Name, err)
	}
	defer b.Client.RemoveObject(context.WithoutCancel(ctx), b.Name, b.Prefix+name, minio.RemoveObjectOptions{})
	// Straight to the service: Swap would look before it writes.
	for header, on := range map[string]condition{"If-None-Match": onlyNew, "If-Match": onlyIf("0123456789abcdef0123456789abcdef")} {
		switch err := b.put(ctx, name, []byte("two"), on); {
		case err == nil:
			return fmt.Errorf("bucket %s: the service overwrote an object that %s protects: it cannot fence an old publisher; choose another", b.Name, header)
		case !errors.Is(err, trillian.ErrChanged):
			return fmt.Errorf("bucket %s: a write with %s: %w", b.Name, header, err)
		}
	}
	if err := b.Swap(ctx, name, []byte("one"), []byte("two")); err != nil {
		return fmt.Errorf("bucket %s: the service refused a write whose condition holds: %w", b.Name, err)
	}
	return nil
}

// Get implements trillian.Store.
func (b Bucket) Get(ctx context.Context, name string) ([]byte, error) {
	raw, _, err := b.get(ctx, name)
	return raw, err
}

func (b Bucket) get(ctx context.Context, name string) (raw []byte, etag string, err error) {
	o, err := b.Client.GetObject(ctx, b.Name, b.Prefix+name, minio.GetObjectOptions{})
	if err != nil {
		return nil, "", translate(err)
	}
	defer o.Close()
	raw, err = io.ReadAll(io.LimitReader(o, maxObject+1))
	if err != nil {
		return nil, "", translate(err)
	}
	if len(raw) > maxObject {
		return nil, "", fmt.Errorf("object %s has more than %d bytes", name, maxObject)
	}
	info, err := o.Stat() // of the answer that was read
	return raw, info.ETag, translate(err)
}

// translate makes an error of the service one of the store.
func translate(err error) error {
	if err == nil {
		return nil
	}
	switch r := minio.ToErrorResponse(err); {
	case r.Code == minio.NoSuchKey || r.Code != minio.NoSuchBucket && r.StatusCode == http.StatusNotFound:
		return fs.ErrNotExist
	case r.Code == minio.PreconditionFailed || r.StatusCode == http.StatusPreconditionFailed,
		r.StatusCode == http.StatusConflict: // two conditional writes at once: S3 lets one of them fail so
		return trillian.ErrChanged
	}
	return err
}

// condition is on which a write is done.
type condition func(*minio.PutObjectOptions)

func onlyNew(o *minio.PutObjectOptions) { o.SetMatchETagExcept("*") }

func onlyIf(etag string) condition {
	return func(o *minio.PutObjectOptions) { o.SetMatchETag(strings.Trim(etag, `"`)) }
}

// put writes an object if the condition holds; if not, it is ErrChanged.
func (b Bucket) put(ctx context.Context, name string, content []byte, on condition) error {
	o := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true}
	switch {
	case name == "checkpoint":
		o.ContentType, o.CacheControl = "text/plain; charset=utf-8", "no-cache"
	case strings.HasPrefix(name, "tile/"):
		o.CacheControl = "public, max-age=31536000, immutable"
	}
	on(&o)
	_, err := b.Client.PutObject(ctx, b.Name, b.Prefix+name, bytes.NewReader(content), int64(len(content)), o)
	return translate(err)
}

// Create implements trillian.Store.
func (b Bucket) Create(ctx context.Context, objects ...trillian.Object) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, o := range objects {
		g.Go(func() error {
			err := b.put(ctx, o.Name, o.Content, onlyNew)
			if !errors.Is(err, trillian.ErrChanged) {
				return err
			}
			have, err := b.Get(ctx, o.Name)
			if err != nil {
				return err
			}
			if !bytes.Equal(have, o.Content) {
				return &trillian.ConflictError{Name: o.Name}
			}
			return nil
		})
	}
	return g.Wait()
}

// Swap implements trillian.Store.
func (b Bucket) Swap(ctx context.Context, name string, old, content []byte) error {
	if old == nil {
		return b.put(ctx, name, content, onlyNew)
	}
	have, etag, err := b.get(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Equal(have, old) {
		return trillian.ErrChanged
	}
	if err != nil {
		return err
	}
	err = b.put(ctx, name, content, onlyIf(etag))
	if errors.Is(err, fs.ErrNotExist) {
		return trillian.ErrChanged // removed meanwhile
	}
	if errors.Is(err, trillian.ErrChanged) {
		// The client sends a write again whose answer was lost: it may be our own
		// that we find.
		if have, err := b.Get(ctx, name); err == nil && bytes.Equal(have, content) {
			return nil
		}
	}
	return err
}

// RemoveAll implements trillian.Store.
func (b Bucket) RemoveAll(ctx context.Context, prefix string) error {
	ctx, cancel := context.WithCancel(ctx) // ends the listing
	defer cancel()
	for o := range b.Client.ListObjects(ctx, b.Name, minio.ListObjectsOptions{Prefix: b.Prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		if err := b.Client.RemoveObject(ctx, b.Name, o.Key, minio.RemoveObjectOptions{}); err != nil {
			return err
		}
	}
	return nil
}
