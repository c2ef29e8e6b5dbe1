// The outbox: takes what is owed from the queue and keeps trying, each
// receiver at its own pace.

package alert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// OutboxConfig configures [NewOutbox].
type OutboxConfig struct {
	Queue    Queue
	Channels map[string]Channel // by receiver kind; a kind without a channel fails at once
	Now      func() time.Time   // default time.Now
	Logger   *slog.Logger

	Workers int           // deliveries at once; default 64
	Base    time.Duration // wait after the first failure; default 5 s, doubled each time
	Cap     time.Duration // longest wait; default 1 h
	GiveUp  time.Duration // a delivery owed for longer has failed; default 72 h
	Poll    time.Duration // how often to look without being woken; default 1 s
}

// Outbox delivers.
type Outbox struct {
	cfg  OutboxConfig
	wake chan struct{}

	mu   sync.Mutex
	busy map[int64]bool // receivers with a delivery in flight

	delivered, failed atomic.Uint64
}

// NewOutbox returns an outbox; [Outbox.Run] makes it work.
func NewOutbox(c OutboxConfig) *Outbox {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Workers <= 0 {
		c.Workers = 64
	}
	if c.Base <= 0 {
		c.Base = 5 * time.Second
	}
	if c.Cap <= 0 {
		c.Cap = time.Hour
	}
	if c.GiveUp <= 0 {
		c.GiveUp = 72 * time.Hour
	}
	if c.Poll <= 0 {
		c.Poll = time.Second
	}
	return &Outbox{cfg: c, wake: make(chan struct{}, 1), busy: map[int64]bool{}}
}

// Wake tells the outbox that something new is owed.
func (o *Outbox) Wake() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Run delivers until ctx ends, then waits for the deliveries in flight.
func (o *Outbox) Run(ctx context.Context) error {
	slots := make(chan struct{}, o.cfg.Workers)
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(o.cfg.Poll)
	defer tick.Stop()
	for {
		free := o.cfg.Workers - len(slots)
		if free > 0 {
			due, err := o.cfg.Queue.Due(ctx, o.cfg.Now(), o.inFlight(), free)
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("alert outbox: %w", err)
			}
			for _, d := range due {
				if !o.take(d.Receiver.ID) {
					continue
				}
				slots <- struct{}{}
				wg.Add(1)
				go func() {
					defer func() {
						o.release(d.Receiver.ID)
						<-slots
						wg.Done()
						o.Wake() // the receiver's next delivery, if there is one
					}()
					if err := o.deliver(ctx, d); err != nil {
						o.cfg.Logger.Error("alert outcome not recorded; it will be delivered again", "alert", d.Notice.ID, "err", err)
					}
				}()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-tick.C:
		}
	}
}

func (o *Outbox) inFlight() []int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	ids := make([]int64, 0, len(o.busy))
	for id := range o.busy {
		ids = append(ids, id)
	}
	return ids
}

func (o *Outbox) take(id int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy[id] {
		return false
	}
	o.busy[id] = true
	return true
}

func (o *Outbox) release(id int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.busy, id)
}

// deliver makes one attempt and records its outcome. The outcome is recorded
// even while shutting down: a mail that went out must not go out again merely
// because the program was asked to stop.
func (o *Outbox) deliver(ctx context.Context, d Delivery) error {
	retry, err := false, error(nil)
	ch, ok := o.cfg.Channels[d.Receiver.Kind]
	if !ok {
		retry, err = true, fmt.Errorf("no %s channel is configured on this monitor", d.Receiver.Kind)
	} else {
		retry, err = ch.Notify(ctx, d.Receiver, d.Notice)
	}
	record := context.WithoutCancel(ctx)
	now := o.cfg.Now()
	switch {
	case err == nil:
		o.delivered.Add(1)
		return o.cfg.Queue.Sent(record, d, now)
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return nil // cut short by our own shutdown: still owed, not a failure
	case !retry || now.Sub(d.Owed) >= o.cfg.GiveUp:
		o.failed.Add(1)
		o.cfg.Logger.Error("alert given up", "alert", d.Notice.ID, "receiver", d.Receiver.ID, "attempts", d.Attempts+1, "err", err)
		return o.cfg.Queue.Failed(record, d, now, err.Error())
	default:
		wait := o.backoff(d.Failures)
		o.cfg.Logger.Warn("alert delivery failed, will retry", "alert", d.Notice.ID, "receiver", d.Receiver.ID, "in", wait, "err", err)
		return o.cfg.Queue.Retry(record, d, now.Add(wait), err.Error())
	}
}

// backoff is Base·2^failures up to Cap, less up to a quarter at random so that
// receivers that fell together do not rise together.
func (o *Outbox) backoff(failures int) time.Duration {
	wait := o.cfg.Cap
	if failures < 30 {
		if w := o.cfg.Base << failures; w > 0 && w < wait {
			wait = w
		}
	}
	return wait - time.Duration(rand.Int64N(int64(wait)/4+1))
}
