package logserver

// The listeners of a log: gRPC on one, HTTP (tiles and REST) on the other.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	pb "github.com/portbook/portbook/proto/portbook/v1"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// drainLimit is how long calls under way may go on after a stop was asked for.
// One more round of cosigning may follow.
const drainLimit = 8 * time.Second

// maxConnections of one listener are open at once, so that callers leave the log
// the descriptors it writes with: the storage engine does not survive without.
// More wait to be accepted.
func maxConnections() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<20 {
		return 1 << 19
	}
	const kept = 256
	return max(16, (int(limit.Cur)-kept)/2)
}

// Serve answers on both listeners until ctx ends, then lets calls under way
// finish, and closes the log. tlsConfig may be nil.
func (l *Log) Serve(ctx context.Context, grpcLis, httpLis net.Listener, tlsConfig *tls.Config) error {
	grpcLis, httpLis = netutil.LimitListener(grpcLis, maxConnections()), netutil.LimitListener(httpLis, maxConnections())
	var opts []grpc.ServerOption
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(handshakes{credentials.NewTLS(tlsConfig), l}))
		httpTLS := tlsConfig.Clone()
		httpTLS.NextProtos = []string{"h2", "http/1.1"}
		httpLis = tls.NewListener(httpLis, httpTLS)
	}
	outer := l.GRPC(opts...)
	// REST calls take the same way as gRPC calls, in memory.
	inner := l.grpcServer(&l.rest, grpc.MaxConcurrentStreams(1<<20)) // one connection for all; Config.MaxInFlight bounds it
	memory := bufconn.Listen(1 << 20)
	conn, err := grpc.NewClient("passthrough:///rest", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return memory.DialContext(ctx) }))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	handler, err := l.Handler(pb.NewLogClient(conn))
	if err != nil {
		return errors.Join(err, conn.Close(), l.Close())
	}
	web := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      l.cfg.MaxWait + 30*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          l.webErrors(),
	}

	failed := make(chan error, 3)
	var serving sync.WaitGroup
	serve := func(what string, run func() error) {
		serving.Go(func() {
			if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	serve("gRPC", func() error { return outer.Serve(grpcLis) })
	serve("REST", func() error { return inner.Serve(memory) })
	serve("HTTP", func() error { return web.Serve(httpLis) })

	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	l.setStatus(Status{Reason: errClosing}) // no new submissions; those under way are published
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainLimit)
	defer cancel()
	var stopping sync.WaitGroup
	stopping.Go(func() {
		if err := web.Shutdown(drain); err != nil {
			web.Close() // what is left is cut off; nothing of it was acknowledged
		}
		inner.Stop()
	})
	stopping.Go(func() {
		defer context.AfterFunc(drain, outer.Stop)()
		outer.GracefulStop()
	})
	stopping.Wait()
	serving.Wait()
	return errors.Join(err, conn.Close(), l.Close())
}
