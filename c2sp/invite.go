package c2sp

// An invitation: one line by which a log asks a witness, with everything its
// operator has to see before saying yes. It is public.
//
//	portbook-invite/v1 <url> <checkpoint> <vkey> [<vkey> ...]
//
// <url> is where the log is read, "-" if nowhere yet; <checkpoint> the newest
// signed checkpoint in base64, "-" if there is none yet; the vkeys, all of one
// name, are the keys that the log signs with.

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
)

const inviteMagic = "portbook-invite/v1"

// MaxInvite is the most bytes of an invitation: a checkpoint and a few keys.
const MaxInvite = 64 << 10

// An Invite is a log's invitation to a witness.
type Invite struct {
	Keys       []*Key
	URL        string // empty: nowhere yet
	Checkpoint []byte // signed note; nil: none yet
}

// String returns the line, without a newline.
func (i *Invite) String() string {
	words := []string{inviteMagic, "-", "-"}
	if i.URL != "" {
		words[1] = i.URL
	}
	if i.Checkpoint != nil {
		words[2] = base64.StdEncoding.EncodeToString(i.Checkpoint)
	}
	for _, k := range i.Keys {
		words = append(words, k.String())
	}
	return strings.Join(words, " ")
}

// IsInvite reports whether a text looks like an invitation.
func IsInvite(s string) bool { return strings.HasPrefix(strings.TrimSpace(s), "portbook-invite/") }

// ParseInvite reads an invitation. What it returns is of one log: the keys are
// of its origin and kinds that logs sign with, and the checkpoint, if there is
// one, is that log's and signed by each of them that claims to have signed it,
// and by one at least.
func ParseInvite(s string) (*Invite, error) {
	const what = "invitation"
	if len(s) > MaxInvite {
		return nil, malformed(what, "longer than %d bytes", MaxInvite)
	}
	words := strings.Split(strings.TrimSuffix(s, "\n"), " ")
	if words[0] != inviteMagic {
		return nil, malformed(what, "does not begin with %s", inviteMagic)
	}
	if len(words) < 4 {
		return nil, malformed(what, "%d words; it has a URL, a checkpoint and at least one key: is it cut off?", len(words))
	}
	i := &Invite{}
	if words[1] != "-" {
		u, err := url.Parse(words[1])
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.String() != words[1] {
			return nil, malformed(what, "%s is not the URL of a log", quote(words[1]))
		}
		i.URL = words[1]
	}
	for _, word := range words[3:] {
		k, err := ParseVKey(word)
		if err != nil {
			return nil, err
		}
		if k.alg != AlgEd25519 && k.alg != AlgMLDSA44 {
			return nil, malformed(what, "a key of type %s, which no log signs with", k.alg)
		}
		for _, have := range i.Keys {
			if have.name != k.name {
				return nil, malformed(what, "keys of two logs, %s and %s", quote(have.name), quote(k.name))
			}
			if string(have.raw) == string(k.raw) {
				return nil, malformed(what, "one key twice")
			}
		}
		i.Keys = append(i.Keys, k)
	}
	if words[2] == "-" {
		return i, nil
	}
	note, ok := decode64(words[2])
	if !ok {
		return nil, malformed(what, "the checkpoint is not canonical base64")
	}
	i.Checkpoint = note
	policy := &Policy{Quorum: QuorumNone}
	for _, k := range i.Keys {
		policy.Logs = append(policy.Logs, PolicyLog{Key: k})
	}
	if _, err := policy.VerifyLog(note); err != nil {
		return nil, fmt.Errorf("%s: its checkpoint: %w", what, err)
	}
	return i, nil
}

// A LoggedKey is one log of a witness-network log list.
type LoggedKey struct {
	Origin string // of the key, unless the list says another
	Key    *Key
}

// ParseLogList reads a log list as witness-network.org publishes them: a header
// line "logs/v0", then for each log "vkey <vkey>" and more lines about it, of
// which "origin <origin>" counts and others are ignored. Blank lines and those
// that begin with # are comments. skipped says which logs have keys that no
// checkpoint of ours can be verified with; they are left out.
func ParseLogList(b []byte) (logs []LoggedKey, skipped []string, err error) {
	const what = "log list"
	header := false
	var last *LoggedKey
	ignoring := false
	for n, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !header {
			if line != "logs/v0" {
				return nil, nil, malformed(what, "line %d: the first line is not logs/v0", n+1)
			}
			header = true
			continue
		}
		name, value, _ := strings.Cut(line, " ")
		switch {
		case name == "vkey":
			last, ignoring = nil, false
			k, kerr := ParseVKey(value)
			if kerr != nil || k.alg != AlgEd25519 && k.alg != AlgMLDSA44 {
				if kerr == nil {
					kerr = fmt.Errorf("a key of type %s, which no log signs with", k.alg)
				}
				skipped, ignoring = append(skipped, fmt.Sprintf("line %d: %v", n+1, kerr)), true
				continue
			}
			logs = append(logs, LoggedKey{k.name, k})
			last = &logs[len(logs)-1]
		case last == nil && !ignoring:
			return nil, nil, malformed(what, "line %d: %s before the first vkey", n+1, quote(name))
		case name == "origin" && last != nil:
			last.Origin = value
		}
	}
	if !header {
		return nil, nil, malformed(what, "it is empty: the first line is logs/v0")
	}
	return logs, skipped, nil
}
