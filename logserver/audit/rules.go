package audit

// What the fields of a leaf may say: FORMAT.md sections 2 to 7. The table of
// kinds is written as FORMAT.md prints it, a letter for each column.

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// columns are the columns of the table of kinds; letters in a row follow them:
// R required, O permitted, C looked at by conditions, - forbidden.
var columns = [...]int{fID, fRegistry, fEcosystem, fProject, fVersion, fFile, fSize, fSHA256, fSHA512, fReason}

type kindRow struct {
	letters string
	claims  string
	require []int // others
	permit  []int
}

const (
	byIndex    = "index"
	byObserver = "index observed"
	byLog      = "log"
)

var kindTable = map[string]kindRow{
	"upload": {"-RRRCRCCO-", byObserver, nil, []int{fUploadTime, fReplaces, fMetadata, fPublisher, fAuth, fUploader, fAttestation, fSources}},

	"yank":         {"RRRRCC-CCO", byObserver, nil, nil},
	"unyank":       {"RRRRCC-CCO", byObserver, nil, nil},
	"quarantine":   {"RRRROC-CCO", byObserver, nil, nil},
	"unquarantine": {"RRRROC-CCO", byObserver, nil, nil},
	"deprecate":    {"RRRROC-CCO", byObserver, nil, nil},
	"undeprecate":  {"RRRROC-CCO", byObserver, nil, nil},
	"archive":      {"RRRR-----O", byObserver, nil, nil},
	"unarchive":    {"RRRR-----O", byObserver, nil, nil},
	"remove":       {"RRRROC-CCO", byObserver, nil, nil},

	"reject":   {"RRRR-R-ROO", byIndex, nil, nil},
	"dispute":  {"RR-------O", byIndex, []int{fIndex}, nil},
	"dist-tag": {"RRRRO-----", byObserver, []int{fTag}, nil},

	"publisher-add":    {"RRRR------", byObserver, []int{fPublisher}, nil},
	"publisher-remove": {"RRRR------", byObserver, []int{fPublisher}, nil},
	"owner-add":        {"RRRR------", byObserver, []int{fSubject}, nil},
	"owner-remove":     {"RRRR------", byObserver, []int{fSubject}, nil},

	"registry-policy": {"RRR-------", byIndex, []int{fOverwrite}, nil},
	"baseline":        {"RRR----R--", byObserver, []int{fCount}, nil},

	"conflict":    {"RRRR-R-CO-", byLog, []int{fSlotClaim, fFirstIndex}, nil},
	"canary":      {"R---------", byLog, nil, nil},
	"successor":   {"R---------", byLog, []int{fOrigin, fVKeys, fURL}, nil},
	"predecessor": {"R-----R---", byLog, []int{fOrigin, fRoot}, nil},
}

// fieldsOf are the fields that each kind must and may have.
var fieldsOf = func() map[string][2]uint64 {
	sets := map[string][2]uint64{}
	for kind, row := range kindTable {
		must := uint64(1<<fV | 1<<fKind | 1<<fClaim | 1<<fTime)
		var may uint64
		for i, f := range columns {
			switch row.letters[i] {
			case 'R':
				must |= 1 << f
			case 'O', 'C':
				may |= 1 << f
			}
		}
		for _, f := range row.require {
			must |= 1 << f
		}
		for _, f := range row.permit {
			may |= 1 << f
		}
		sets[kind] = [2]uint64{must, must | may}
	}
	return sets
}()

func bad(field, why string) error { return &leafError{field: field, why: why} }

// check refuses a leaf of version 1 that keeps the grammar and breaks a rule. It
// names the first field in the order that FORMAT.md section 4 gives.
func (l *leaf) check() error {
	kind := string(l.text(fKind))
	sets, known := fieldsOf[kind]
	if !known {
		return bad("kind", "missing or unknown")
	}
	if !slices.Contains(strings.Fields(kindTable[kind].claims), string(l.text(fClaim))) {
		return bad("claim", "missing, or not one that "+kind+" is said with")
	}
	for f := range numFields {
		switch {
		case l.has(f) && sets[1]>>f&1 == 0:
			return bad(fieldNames[f], "forbidden for "+kind)
		case !l.has(f) && sets[0]>>f&1 == 1:
			return bad(fieldNames[f], "missing")
		}
	}
	for f := range numFields {
		if !l.has(f) {
			continue
		}
		if f == fPublisher {
			if err := l.checkPublisher(); err != nil {
				return err
			}
			continue
		}
		if !l.fieldOK(f) {
			return bad(fieldNames[f], "is not as FORMAT.md says")
		}
	}
	return l.conditions(kind)
}

// conditions are the notes below the table of kinds.
func (l *leaf) conditions(kind string) error {
	ecosystem, claim := string(l.text(fEcosystem)), string(l.text(fClaim))
	digest := func(claim string) error { // note 3
		if l.has(fSHA256) || ecosystem == "npm" && claim == "observed" && l.has(fSHA512) {
			return nil
		}
		return bad("sha256", "missing")
	}
	switch kind {
	case "upload":
		switch {
		case !l.has(fVersion) && ecosystem != "generic":
			return bad("version", "missing")
		case !l.has(fSize) && claim == "index":
			return bad("size", "missing")
		case l.has(fUploadTime) && claim != "observed":
			return bad("upload_time", "only an observer says it")
		case l.has(fReplaces) && claim != "index":
			return bad("replaces", "only the index says it")
		}
		return digest(claim)
	case "yank", "unyank", "quarantine", "unquarantine", "deprecate", "undeprecate", "remove":
		switch {
		case l.has(fFile) && !l.has(fVersion) && ecosystem != "generic":
			return bad("version", "a file needs it")
		case l.has(fFile):
			return digest(claim)
		case l.has(fSHA256):
			return bad("sha256", "only with a file")
		case l.has(fSHA512):
			return bad("sha512", "only with a file")
		case !l.has(fVersion) && strings.HasSuffix(kind, "yank"):
			return bad("version", "a release or a file is yanked")
		}
	case "dist-tag":
		if ecosystem != "npm" {
			return bad("ecosystem", "only npm has tags")
		}
	case "conflict":
		return digest(string(l.text(fSlotClaim)))
	}
	return nil
}

// fieldOK checks the value of one field that is there.
func (l *leaf) fieldOK(f int) bool {
	s := l.str[f]
	switch f {
	case fKind, fClaim, fV, fCount, fFirstIndex, fIndex, fReplaces, fSize:
		return true // the scanner and check have
	case fAttestation, fSources:
		return listOK(s, func(item []byte) bool { return isHex(item, 64) })
	case fVKeys:
		return listOK(s, isVKey)
	case fAuth:
		return among(s, "trusted-publisher", "token", "password", "other")
	case fEcosystem:
		return among(s, "pypi", "npm", "conda", "generic")
	case fFile:
		return isFile(string(l.text(fEcosystem)), s)
	case fID:
		return isHex(s, 32)
	case fMetadata, fRoot, fSHA256, fSubject, fUploader:
		return isHex(s, 64)
	case fSHA512:
		return isHex(s, 128)
	case fOrigin:
		return isOrigin(s)
	case fOverwrite:
		return among(s, "never", "after-remove", "replace")
	case fProject:
		return isProject(string(l.text(fEcosystem)), s)
	case fReason:
		return among(s, "broken", "compromised", "legal", "license", "malware", "mistake", "name-dispute", "other", "owner-request",
			"policy", "refused-by-index", "security", "spam", "stolen-credential", "superseded", "typosquat", "unmaintained", "upload-failed")
	case fRegistry:
		return isRegistry(s)
	case fSlotClaim:
		return among(s, "index", "observed")
	case fTag, fVersion:
		return isTrimmed(s, 128)
	case fTime, fUploadTime:
		return isTime(s)
	case fURL:
		return isURL(s)
	}
	return false
}

// publisherTable: R required, O permitted, - forbidden, in the order of
// publisherNames.
var publisherTable = map[string]string{
	"github":      "OOROROOR",
	"gitlab":      "OOROROOR",
	"google":      "-OR---R-",
	"activestate": "-OROR-O-",
	"npm":         "OOROROOO",
	"oidc":        "-RR---R-",
}

func (l *leaf) checkPublisher() error {
	p := &l.pub
	wrong := func(f int, why string) error { return bad("publisher."+publisherNames[f], why) }
	var kind string
	if p.have>>pKind&1 == 1 {
		kind = string(p.str[pKind])
	}
	letters, known := publisherTable[kind]
	if !known {
		return wrong(pKind, "missing or unknown")
	}
	for f := range numPublisher {
		has := p.have>>f&1 == 1
		switch {
		case !has && letters[f] == 'R':
			return wrong(f, "missing")
		case !has:
			continue
		case letters[f] == '-':
			return wrong(f, "forbidden for "+kind)
		case !isTrimmed(p.str[f], 256):
			return wrong(f, "longer than 256 or with a space at an end")
		case looksLikeEmail(string(p.str[f])):
			return wrong(f, "looks like an e-mail address")
		case !publisherFieldOK(kind, f, p.str[f]):
			return wrong(f, "is not as FORMAT.md says")
		}
	}
	return nil
}

func publisherFieldOK(kind string, f int, s []byte) bool {
	switch f {
	case pIssuer:
		return isURL(s)
	case pRepository:
		n := segments(s, func(c byte) bool { return isAlnum(c) || c == '.' || c == '_' || c == '-' })
		return n == 2 || n > 2 && (kind == "gitlab" || kind == "npm")
	case pRepositoryID, pOwnerID:
		if kind == "activestate" {
			return isUUID(s)
		}
		return len(s) <= 20 && isDecimal(s)
	case pSubject:
		return kind != "google" || isHex(s, 64)
	}
	return true
}

// looksLikeEmail is the rule of FORMAT.md section 5.
func looksLikeEmail(s string) bool {
	s = strings.ReplaceAll(s, "%40", "@")
	for i, c := range s {
		if c != '@' || i == 0 || strings.IndexByte(" /:<>@(),;", s[i-1]) >= 0 {
			continue
		}
		run := s[i+1:]
		if end := strings.IndexFunc(run, func(r rune) bool {
			return r > 0x7f || !isAlnum(byte(r)) && r != '.' && r != '-'
		}); end >= 0 {
			run = run[:end]
		}
		run = strings.Trim(run, ".")
		dot := strings.LastIndexByte(run, '.')
		if dot <= 0 {
			continue
		}
		last := run[dot+1:]
		if len(last) >= 2 && isLetter(last[0]) {
			return true
		}
	}
	return false
}

func isLower(c byte) bool  { return c >= 'a' && c <= 'z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return isLower(c) || c >= 'A' && c <= 'Z' }
func isAlnum(c byte) bool  { return isLetter(c) || isDigit(c) }

func among(s []byte, values ...string) bool {
	for _, v := range values {
		if string(s) == v {
			return true
		}
	}
	return false
}

func isHex(s []byte, n int) bool {
	for _, c := range s {
		if !isDigit(c) && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == n
}

// isDecimal is a number without leading zeros.
func isDecimal(s []byte) bool {
	for _, c := range s {
		if !isDigit(c) {
			return false
		}
	}
	return len(s) > 0 && (s[0] != '0' || len(s) == 1)
}

func isUUID(s []byte) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range s {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') || !dash && !isHex(s[i:i+1], 1) {
			return false
		}
	}
	return true
}

// isTrimmed is 1 to most characters with no space at either end. The scanner
// has seen to it that they are printable.
func isTrimmed(s []byte, most int) bool {
	return len(s) > 0 && len(s) <= most && s[0] != ' ' && s[len(s)-1] != ' '
}

// listOK checks an array of strings, given as it stands in the line: at most 16
// items, sorted, unique, each as item says.
func listOK(s []byte, item func([]byte) bool) bool {
	var before []byte
	n := 0
	for at := 1; at < len(s); n++ { // s is ["…","…"]
		end := at + 1 + bytes.IndexByte(s[at+1:], '"')
		this := s[at+1 : end]
		if n == 16 || !item(this) || n > 0 && bytes.Compare(before, this) >= 0 {
			return false
		}
		before = this
		at = end + 2 // the quote and what follows it
	}
	return true
}

var monthDays = [...]int{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}

func isTime(s []byte) bool {
	const like = "dddd-dd-ddTdd:dd:ddZ"
	if len(s) != len(like) {
		return false
	}
	for i := range s {
		if like[i] == 'd' && !isDigit(s[i]) || like[i] != 'd' && s[i] != like[i] {
			return false
		}
	}
	n := func(from, to int) (v int) {
		for _, c := range s[from:to] {
			v = 10*v + int(c-'0')
		}
		return v
	}
	year, month, day := n(0, 4), n(5, 7), n(8, 10)
	if year < 1970 || month < 1 || month > 12 || day < 1 || n(11, 13) > 23 || n(14, 16) > 59 || n(17, 19) > 59 {
		return false
	}
	days := monthDays[month-1]
	if month == 2 && (year%400 == 0 || year%4 == 0 && year%100 != 0) {
		days = 29
	}
	return day <= days
}

func isOrigin(s []byte) bool {
	return len(s) >= 1 && len(s) <= 255 && !bytes.ContainsAny(s, " +")
}

// isVKey is the shape of a verifier key: name+8 hex digits+base64.
func isVKey(s []byte) bool {
	parts := bytes.Split(s, []byte("+"))
	if len(s) > 2048 || len(parts) < 3 || !isOrigin(parts[0]) || !isHex(parts[1], 8) {
		return false
	}
	key := string(s[len(parts[0])+len(parts[1])+2:]) // base64 has + too
	raw, err := base64.StdEncoding.Strict().DecodeString(key)
	return err == nil && len(raw) >= 2
}

// segments counts the parts of a path; 0 if one is empty, "." or "..", or has a
// byte that ok refuses.
func segments(s []byte, ok func(byte) bool) int {
	n := 0
	for part := range bytes.SplitSeq(s, []byte("/")) {
		if len(part) == 0 || string(part) == "." || string(part) == ".." {
			return 0
		}
		for _, c := range part {
			if !ok(c) {
				return 0
			}
		}
		n++
	}
	return n
}

func isProject(ecosystem string, s []byte) bool {
	if len(s) < 1 || len(s) > 214 {
		return false
	}
	switch ecosystem {
	case "pypi":
		for i, c := range s {
			if isLower(c) || isDigit(c) {
				continue
			}
			if c != '-' || i == 0 || i == len(s)-1 || s[i-1] == '-' {
				return false
			}
		}
		return true
	case "npm":
		name := s
		if s[0] == '@' {
			scope, rest, found := bytes.Cut(s[1:], []byte("/"))
			if !found || !isNPMPart(scope) {
				return false
			}
			name = rest
		}
		return isNPMPart(name)
	case "conda":
		for _, c := range s {
			if !isLower(c) && !isDigit(c) && c != '.' && c != '_' && c != '-' {
				return false
			}
		}
		return s[0] != '.'
	case "generic":
		return segments(s, func(c byte) bool { return isAlnum(c) || strings.IndexByte("._+@~-", c) >= 0 }) > 0
	}
	return false
}

func isNPMPart(s []byte) bool {
	for _, c := range s {
		if !isAlnum(c) && strings.IndexByte("._~!*'()-", c) < 0 {
			return false
		}
	}
	return len(s) > 0 && s[0] != '.'
}

func isFile(ecosystem string, s []byte) bool {
	if len(s) < 1 || len(s) > 255 {
		return false
	}
	others := "._+!~@=-"
	if ecosystem == "npm" {
		others += "*'()"
	}
	n := segments(s, func(c byte) bool { return isAlnum(c) || strings.IndexByte(others, c) >= 0 })
	stem := func(name []byte, suffix string) bool {
		return len(name) > len(suffix) && bytes.HasSuffix(name, []byte(suffix))
	}
	switch ecosystem {
	case "pypi":
		return n == 1
	case "npm":
		return n == 1 && stem(s, ".tgz")
	case "conda":
		_, name, _ := bytes.Cut(s, []byte("/"))
		return n == 2 && (stem(name, ".conda") || stem(name, ".tar.bz2"))
	}
	return n >= 1
}

// isURL is a scheme, a registry name and at most one slash.
func isURL(s []byte) bool {
	rest, ok := bytes.CutPrefix(s, []byte("https://"))
	if !ok {
		rest, ok = bytes.CutPrefix(s, []byte("http://"))
	}
	return ok && len(s) <= 255 && isRegistry(bytes.TrimSuffix(rest, []byte("/")))
}

// isRegistry is host[:port][/path] of section 7.1.
func isRegistry(s []byte) bool {
	if len(s) < 1 || len(s) > 255 {
		return false
	}
	authority, path, slash := bytes.Cut(s, []byte("/"))
	if slash && segments(path, func(c byte) bool { return isAlnum(c) || strings.IndexByte("._~-", c) >= 0 }) == 0 {
		return false
	}
	host, port := authority, []byte(nil)
	if len(authority) > 0 && authority[0] == '[' {
		end := bytes.IndexByte(authority, ']')
		if end < 0 {
			return false
		}
		host, port = authority[:end+1], authority[end+1:]
	} else if colon := bytes.IndexByte(authority, ':'); colon >= 0 {
		host, port = authority[:colon], authority[colon:]
	}
	if len(port) > 0 {
		if port[0] != ':' || !isDecimal(port[1:]) {
			return false
		}
		n, err := strconv.ParseUint(string(port[1:]), 10, 16)
		if err != nil || n == 0 || n == 80 || n == 443 {
			return false
		}
	}
	return isHost(string(host))
}

func isHost(h string) bool {
	if strings.HasPrefix(h, "[") {
		a, err := netip.ParseAddr(strings.Trim(h, "[]"))
		return err == nil && a.Is6() && !a.Is4In6() && a.Zone() == "" && "["+a.String()+"]" == h
	}
	if len(h) < 1 || len(h) > 253 {
		return false
	}
	labels := strings.Split(h, ".")
	for _, label := range labels {
		if len(label) < 1 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !isLower(c) && !isDigit(c) && c != '-' {
				return false
			}
		}
	}
	if isDigit(labels[len(labels)-1][0]) {
		a, err := netip.ParseAddr(h)
		return err == nil && a.Is4()
	}
	return true
}

// slot is the key of the upload slot that l takes, frees or is about: section 4
// of FORMAT.md. claim is l's own, or a conflict's slot_claim.
func (l *leaf) slot(claim []byte) [32]byte {
	var buf [1400]byte
	b := buf[:0]
	for _, s := range [][]byte{l.text(fRegistry), l.text(fEcosystem), claim, l.text(fProject), l.text(fFile)} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(b)
}
