package client

// Offline verification of one file with one proof (c2sp.org/tlog-proof).

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// A File is what a person is about to install, as they know it themselves:
// from the URL they configured and the bytes they have, never from the proof.
type File struct {
	Registry  string // as in entry.RegistryFromURL
	Ecosystem string // entry.PyPI, ...
	Project   string // "" = do not check; any spelling of the ecosystem
	Name      string // path inside the project, "Django-5.1.tar.gz"
	SHA256    [32]byte

	// Observed also accepts an entry by a follower that saw the registry serve
	// the file (claim observed). The registry committed to nothing then, and
	// what it served to the follower may be a swapped file: an index's own entry
	// (claim index) is what pins a file's name to one content.
	Observed bool
}

// A Verified is what a proof proves.
type Verified struct {
	Entry        *entry.Entry // an upload
	Index        uint64       // of the entry in the log
	Checkpoint   c2sp.Checkpoint
	Cosignatures []c2sp.Cosignature // by witnesses of the policy
	LoggedAt     time.Time          // by then it was logged (c2sp.Verified.QuorumTime); zero under quorum none
}

// Verify checks offline that f was uploaded and logged: the checkpoint in the
// proof stands under the policy, the entry the proof carries is in that
// checkpoint's tree, it is an upload, and it is about f: registry, ecosystem,
// project, name and SHA-256, by the index itself unless f says otherwise. Any error is a [*Refusal].
//
// It says nothing about freshness; see [State.Freshness].
func Verify(p *c2sp.Policy, f File, proof []byte) (*Verified, error) {
	v, err := VerifyProof(p, proof)
	if err != nil {
		return nil, err
	}
	if err := v.Check(f); err != nil {
		return nil, err
	}
	return v, nil
}

// VerifyProof is [Verify] without a file: it says which upload the proof
// proves. The caller must then use [Verified.Check], or compare registry, file
// and digest with what they know from elsewhere. Any error is a [*Refusal].
func VerifyProof(p *c2sp.Policy, proof []byte) (*Verified, error) {
	pr, err := c2sp.ParseProof(proof)
	if err != nil {
		return nil, &Refusal{Code: CodeProofMalformed, Check: "reading the proof", Detail: err.Error(), Err: err}
	}
	v, err := p.Verify(pr.Checkpoint)
	if err != nil {
		return nil, refuseNote(err)
	}
	leaf := pr.Extra
	if len(leaf) == 0 || len(leaf) > entry.MaxSize {
		return nil, &Refusal{Code: CodeNoLeaf, Check: "the entry in the proof",
			Detail: fmt.Sprintf("the proof carries an entry of %d bytes; 1 to %d are possible", len(leaf), entry.MaxSize)}
	}
	if err := c2sp.VerifyInclusion(pr.Index, v.Size, entry.LeafHash(leaf), pr.Hashes, v.Root); err != nil {
		return nil, &Refusal{Code: CodeInclusion, Check: "inclusion in the log", Detail: err.Error(), Err: err}
	}
	// Only from here on is the leaf what the log says.
	e, err := entry.Parse(leaf)
	if err != nil {
		r := &Refusal{Code: CodeEntryMalformed, Check: "reading the entry", Detail: err.Error(), Err: err}
		if errors.Is(err, entry.ErrVersion) {
			r.Code = CodeEntryVersion
		}
		return nil, r
	}
	if e.Kind != entry.KindUpload {
		return nil, &Refusal{Code: CodeNotUpload, Check: "the kind of entry",
			Detail: fmt.Sprintf("entry %d is of kind %q; only \"upload\" vouches for a file", pr.Index, e.Kind)}
	}
	return &Verified{Entry: e, Index: pr.Index, Checkpoint: v.Checkpoint, Cosignatures: v.Cosignatures, LoggedAt: v.QuorumTime}, nil
}

// refuseNote turns an error of c2sp.Policy.Verify into a refusal.
func refuseNote(err error) *Refusal {
	r := &Refusal{Code: CodeProofMalformed, Check: "reading the checkpoint", Detail: err.Error(), Err: err}
	var quorum *c2sp.QuorumError
	switch {
	case errors.Is(err, c2sp.ErrUnknownLog):
		r.Code, r.Check = CodeUnknownLog, "which log it is"
	case errors.Is(err, c2sp.ErrNoLogSignature):
		r.Code, r.Check = CodeNoLogSignature, "the log's signature"
	case errors.Is(err, c2sp.ErrBadSignature):
		r.Code, r.Check = CodeBadSignature, "a signature"
	case errors.As(err, &quorum):
		r.Code, r.Check = CodeQuorum, "the quorum of witnesses"
	}
	return r
}

// Check compares what is proven with f. Any error is a [*Refusal].
func (v *Verified) Check(f File) error {
	e := v.Entry
	differs := func(code, what, proven, yours string) error {
		return &Refusal{Code: code, Check: what, Detail: fmt.Sprintf("the proof is about %s %q, this is %q", what, proven, yours)}
	}
	if e.Claim != entry.ClaimIndex && !(f.Observed && e.Claim == entry.ClaimObserved) {
		return &Refusal{Code: CodeClaim, Check: "who logged it",
			Detail: fmt.Sprintf("entry %d has the claim %q: it was not logged by the index", v.Index, string(e.Claim))}
	}
	if f.Registry == "" || e.Registry != f.Registry {
		return differs(CodeRegistry, "registry", e.Registry, f.Registry)
	}
	if f.Ecosystem == "" || e.Ecosystem != f.Ecosystem {
		return differs(CodeEcosystem, "ecosystem", e.Ecosystem, f.Ecosystem)
	}
	if f.Project != "" {
		if normal, err := entry.NormalProject(f.Ecosystem, f.Project); err != nil || e.Project != normal {
			return differs(CodeProject, "project", e.Project, f.Project)
		}
	}
	if f.Name == "" || e.File != f.Name {
		return differs(CodeFileName, "file", e.File, f.Name)
	}
	if e.SHA256 == "" {
		return &Refusal{Code: CodeNoDigest, Check: "digest", Detail: fmt.Sprintf("entry %d carries no SHA-256 of %q", v.Index, e.File)}
	}
	if yours := hex.EncodeToString(f.SHA256[:]); e.SHA256 != yours {
		return differs(CodeDigest, "sha256", e.SHA256, yours)
	}
	return nil
}
