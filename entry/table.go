// The kind × field table of FORMAT.md section 4 (TestFormatTable holds the two
// together) and the conditions its cells marked C stand for.

package entry

import (
	"fmt"
	"strings"
)

// always are the fields of every entry.
const always = "v kind claim time"

// target are the fields that name a project.
const target = " id registry ecosystem project"

// A rule is one row of the table: who may say it, and the fields it requires,
// permits under a condition (see conditions), and permits. All others are
// forbidden.
type rule struct {
	kind                            Kind
	claims                          string
	required, conditional, optional string
}

var rules = []rule{
	{KindUpload, "index observed", "registry ecosystem project file",
		"version size sha256 upload_time replaces",
		"sha512 metadata_sha256 publisher auth uploader attestation_sha256 sources_sha256"},
	{KindYank, "index observed", target, "version file sha256 sha512", "reason"},
	{KindUnyank, "index observed", target, "version file sha256 sha512", "reason"},
	{KindQuarantine, "index observed", target, "file sha256 sha512", "version reason"},
	{KindUnquarantine, "index observed", target, "file sha256 sha512", "version reason"},
	{KindDeprecate, "index observed", target, "file sha256 sha512", "version reason"},
	{KindUndeprecate, "index observed", target, "file sha256 sha512", "version reason"},
	{KindArchive, "index observed", target, "", "reason"},
	{KindUnarchive, "index observed", target, "", "reason"},
	{KindRemove, "index observed", target, "file sha256 sha512", "version reason"},
	{KindReject, "index", target + " file sha256", "", "sha512 reason"},
	{KindDispute, "index", "id registry index", "", "reason"},
	{KindDistTag, "index observed", target + " tag", "", "version"},
	{KindPublisherAdd, "index observed", target + " publisher", "", ""},
	{KindPublisherRemove, "index observed", target + " publisher", "", ""},
	{KindOwnerAdd, "index observed", target + " subject", "", ""},
	{KindOwnerRemove, "index observed", target + " subject", "", ""},
	{KindRegistryPolicy, "index", "id registry ecosystem overwrite", "", ""},
	{KindBaseline, "index observed", "id registry ecosystem count sha256", "", ""},
	{KindConflict, "log", target + " file slot_claim first_index", "sha256", "sha512"},
	{KindCanary, "log", "id", "", ""},
	{KindSuccessor, "log", "id origin vkeys url", "", ""},
	{KindPredecessor, "log", "id origin size root", "", ""},
}

// Kinds lists the kinds of version 1 in the order of the table.
func Kinds() []Kind {
	ks := make([]Kind, len(rules))
	for i, r := range rules {
		ks[i] = r.kind
	}
	return ks
}

// Claims lists the claims under which an entry of kind k may be made; none
// for an unknown kind.
func (k Kind) Claims() []Claim {
	var cs []Claim
	for _, r := range rules {
		if r.kind == k {
			for _, c := range strings.Fields(r.claims) {
				cs = append(cs, Claim(c))
			}
		}
	}
	return cs
}

// A fieldSet has bit i set for fields[i].
type fieldSet uint64

func (s fieldSet) has(i int) bool { return s>>i&1 == 1 }

// setOf turns field names into a set. It panics on a name that is no field:
// the table is wrong, not an entry.
func setOf(names string) (s fieldSet) {
next:
	for _, n := range strings.Fields(names) {
		for i := range fields {
			if fields[i].name == n {
				s |= 1 << i
				continue next
			}
		}
		panic("entry: no field " + n)
	}
	return s
}

// versionField is the set of v alone.
var versionField = setOf("v")

// compiled is rules by kind, ready for Validate.
var compiled = func() map[Kind]*compiledRule {
	m := make(map[Kind]*compiledRule)
	for _, r := range rules {
		req := setOf(always + " " + r.required)
		m[r.kind] = &compiledRule{claims: r.kind.Claims(), required: req, allowed: req | setOf(r.conditional+" "+r.optional)}
	}
	return m
}()

type compiledRule struct {
	claims            []Claim
	required, allowed fieldSet
}

// conditions checks what depends on more than the kind, given that the table
// and every single value are in order. The numbers are FORMAT.md's notes.
func (e *Entry) conditions() error {
	switch e.Kind {
	case KindUpload:
		switch {
		case e.Version == "" && e.Ecosystem != Generic: // 1
			return missing("version", "only generic uploads go without")
		case e.Size == nil && e.Claim == ClaimIndex: // 2
			return missing("size", "required with claim index")
		case e.UploadTime != "" && e.Claim != ClaimObserved: // 4
			return &FieldError{"upload_time", "forbidden: only with claim observed"}
		case e.Replaces != nil && e.Claim != ClaimIndex: // 5
			return &FieldError{"replaces", "forbidden: only with claim index"}
		}
		return e.digest(e.Claim) // 3
	case KindYank, KindUnyank, KindQuarantine, KindUnquarantine, KindDeprecate, KindUndeprecate, KindRemove:
		if e.File != "" { // 6
			if e.Version == "" && e.Ecosystem != Generic {
				return missing("version", "required with file")
			}
			return e.digest(e.Claim)
		}
		switch { // 7
		case e.SHA256 != "":
			return &FieldError{"sha256", "forbidden: only with file"}
		case e.SHA512 != "":
			return &FieldError{"sha512", "forbidden: only with file"}
		case e.Version == "" && (e.Kind == KindYank || e.Kind == KindUnyank): // 8
			return missing("version", fmt.Sprintf("%s names a version or a file", e.Kind))
		}
	case KindDistTag:
		if e.Ecosystem != NPM { // 9
			return &FieldError{"ecosystem", "dist-tag is for npm only"}
		}
	case KindConflict:
		return e.digest(e.SlotClaim) // 3
	}
	return nil
}

// digest requires sha256, or sha512 where npm was observed: npm publishes no
// SHA-256.
func (e *Entry) digest(c Claim) error {
	switch {
	case e.SHA256 != "":
		return nil
	case e.Ecosystem != NPM || c != ClaimObserved:
		return missing("sha256", "only an observed npm file goes without")
	case e.SHA512 == "":
		return missing("sha256", "an observed npm file has sha256 or sha512")
	}
	return nil
}

func missing(field, why string) error {
	return &FieldError{field, "missing: " + why}
}
