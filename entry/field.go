// The fields of an entry, in the order of the leaf: RFC 8785 section 3.2.3
// sorts keys by UTF-16 code units, which for ASCII names is byte order.

package entry

// A field is one key of the leaf and where its value lives in an Entry.
// Exactly one of str, num, list and pub is set, and none for v.
type field struct {
	name  string
	str   func(*Entry) *string
	num   func(*Entry) **uint64
	list  func(*Entry) *[]string
	pub   bool
	check func(e *Entry, s string) string // a reason to refuse the string (each item of a list), or ""
}

// fields is sorted by name; a fieldSet is a set of positions in it.
var fields = []field{
	{name: "attestation_sha256", list: func(e *Entry) *[]string { return &e.AttestationSHA256 }, check: hex64},
	{name: "auth", str: func(e *Entry) *string { return &e.Auth }, check: oneOf("trusted-publisher", "token", "password", "other")},
	{name: "claim", str: func(e *Entry) *string { return (*string)(&e.Claim) }, check: oneOf("index", "observed", "log")},
	{name: "count", num: func(e *Entry) **uint64 { return &e.Count }},
	{name: "ecosystem", str: func(e *Entry) *string { return &e.Ecosystem }, check: oneOf(Ecosystems()...)},
	{name: "file", str: func(e *Entry) *string { return &e.File }, check: func(e *Entry, s string) string { return refuseFile(e.Ecosystem, s) }},
	{name: "first_index", num: func(e *Entry) **uint64 { return &e.FirstIndex }},
	{name: "id", str: func(e *Entry) *string { return &e.ID }, check: hex32},
	{name: "index", num: func(e *Entry) **uint64 { return &e.Index }},
	{name: "kind", str: func(e *Entry) *string { return (*string)(&e.Kind) }, check: accept},
	{name: "metadata_sha256", str: func(e *Entry) *string { return &e.MetadataSHA256 }, check: hex64},
	{name: "origin", str: func(e *Entry) *string { return &e.Origin }, check: refuseOrigin},
	{name: "overwrite", str: func(e *Entry) *string { return &e.Overwrite }, check: oneOf("never", "after-remove", "replace")},
	{name: "project", str: func(e *Entry) *string { return &e.Project }, check: func(e *Entry, s string) string { return refuseProject(e.Ecosystem, s) }},
	{name: "publisher", pub: true},
	{name: "reason", str: func(e *Entry) *string { return &e.Reason }, check: oneOf(Reasons()...)},
	{name: "registry", str: func(e *Entry) *string { return &e.Registry }, check: func(_ *Entry, s string) string { return refuseRegistry(s) }},
	{name: "replaces", num: func(e *Entry) **uint64 { return &e.Replaces }},
	{name: "root", str: func(e *Entry) *string { return &e.Root }, check: hex64},
	{name: "sha256", str: func(e *Entry) *string { return &e.SHA256 }, check: hex64},
	{name: "sha512", str: func(e *Entry) *string { return &e.SHA512 }, check: hex128},
	{name: "size", num: func(e *Entry) **uint64 { return &e.Size }},
	{name: "slot_claim", str: func(e *Entry) *string { return (*string)(&e.SlotClaim) }, check: oneOf("index", "observed")},
	{name: "sources_sha256", list: func(e *Entry) *[]string { return &e.SourcesSHA256 }, check: hex64},
	{name: "subject", str: func(e *Entry) *string { return &e.Subject }, check: hex64},
	{name: "tag", str: func(e *Entry) *string { return &e.Tag }, check: func(_ *Entry, s string) string { return refuseLabel(s) }},
	{name: "time", str: func(e *Entry) *string { return &e.Time }, check: refuseTime},
	{name: "upload_time", str: func(e *Entry) *string { return &e.UploadTime }, check: refuseTime},
	{name: "uploader", str: func(e *Entry) *string { return &e.Uploader }, check: hex64},
	{name: "url", str: func(e *Entry) *string { return &e.URL }, check: refuseURL},
	{name: "v"},
	{name: "version", str: func(e *Entry) *string { return &e.Version }, check: func(_ *Entry, s string) string { return refuseLabel(s) }},
	{name: "vkeys", list: func(e *Entry) *[]string { return &e.VKeys }, check: refuseVKey},
}

// present reports whether e has a value for f.
func (f *field) present(e *Entry) bool {
	switch {
	case f.str != nil:
		return *f.str(e) != ""
	case f.num != nil:
		return *f.num(e) != nil
	case f.list != nil:
		return len(*f.list(e)) > 0
	case f.pub:
		return e.Publisher != nil
	}
	return true // v
}

// pubFields are the keys of publisher, sorted likewise.
var pubFields = []struct {
	name string
	str  func(*Publisher) *string
}{
	{"environment", func(p *Publisher) *string { return &p.Environment }},
	{"issuer", func(p *Publisher) *string { return &p.Issuer }},
	{"kind", func(p *Publisher) *string { return &p.Kind }},
	{"owner_id", func(p *Publisher) *string { return &p.OwnerID }},
	{"repository", func(p *Publisher) *string { return &p.Repository }},
	{"repository_id", func(p *Publisher) *string { return &p.RepositoryID }},
	{"subject", func(p *Publisher) *string { return &p.Subject }},
	{"workflow", func(p *Publisher) *string { return &p.Workflow }},
}
