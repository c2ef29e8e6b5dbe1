package logserver

// What can be changed while the log is being served: its publish policy. The
// credentials are read again by themselves.

import (
	"errors"
	"fmt"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// SetPolicy replaces the publish policy from the next round on. It refuses one
// that names another log or a witness without a URL, and changes nothing then.
// If the published checkpoint does not satisfy the new policy, a round begins
// at once, and what waits is acknowledged under the new one.
func (l *Log) SetPolicy(p *c2sp.Policy) error {
	own := *p
	if err := l.keys.ownPolicy(&own); err != nil {
		return err
	}
	witnesses, err := newWitnesses(&own)
	if err != nil {
		return err
	}
	auditors, err := newAuditors(&own, l.cfg.Private)
	if err != nil {
		return err
	}
	if l.pub == nil {
		return errors.New("the log takes no submissions: restart it with the new policy once it does")
	}
	for _, w := range witnesses {
		for _, old := range l.pub.quorum.Load().witnesses {
			if w.url == old.url {
				w.size.Store(old.size.Load()) // spares it a conflict
			}
		}
	}
	l.pub.quorum.Store(&quorum{&own, witnesses, auditors})
	l.board.forget()
	l.board.judge(func(p Published) bool {
		_, err := own.Verify(p.Note)
		return err == nil
	})
	l.pub.grown()
	return nil
}

// skew is how far the witnesses' clocks and ours may differ.
const skew = 5 * time.Minute

// fresh is nil while the published checkpoint satisfies the publish policy and
// its cosignatures are no older than the log lets them become.
func (l *Log) fresh() error {
	age, err := l.checkpointAge()
	if err != nil {
		return err
	}
	if most := l.cfg.Republish + l.cfg.RoundLimit + skew; age > most {
		return fmt.Errorf("the published checkpoint was cosigned %v ago, want at most %v: the quorum does not answer, or the clocks differ", age.Round(time.Second), most)
	}
	if age < -skew {
		return fmt.Errorf("the published checkpoint was cosigned %v in the future: the clock of this server or of the witnesses is wrong", -age.Round(time.Second))
	}
	return nil
}

// checkpointAge is how long ago the published checkpoint was cosigned: since
// the time T such that the cosignatures of T and later are a quorum.
func (l *Log) checkpointAge() (time.Duration, error) {
	p := l.Published()
	if p.Note == nil {
		return 0, errors.New("no checkpoint is published")
	}
	policy := l.policy()
	v, err := policy.Verify(p.Note)
	if err != nil {
		return 0, fmt.Errorf("the published checkpoint does not satisfy the publish policy: %w", err)
	}
	if policy.Quorum == c2sp.QuorumNone {
		return 0, nil // no witness says when; what counts is that the last round published
	}
	return l.cfg.Now().Sub(v.FreshTime), nil
}

// policy is the publish policy of now.
func (l *Log) policy() *c2sp.Policy {
	if l.pub == nil {
		return l.cfg.Policy
	}
	return l.pub.quorum.Load().policy
}
