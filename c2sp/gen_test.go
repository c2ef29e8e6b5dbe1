package c2sp

// Makes the vector files from fixed keys: go test ./c2sp -run TestVectorFiles -update
// What each vector must yield is written here by hand, not taken from the code.

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
)

var update = flag.Bool("update", false, "rewrite the vector files")

// testSigner makes the same key from the same words every time.
func testSigner(name string, alg Alg, words string) *Signer {
	seed := sha256.Sum256([]byte("portbook test seed " + words))
	s, err := newSigner(name, alg, seed[:])
	if err != nil {
		panic(err)
	}
	return s
}

// The cast.
var (
	testLog     = testSigner("log.example/one", AlgEd25519, "log")
	testLogNew  = testSigner("log.example/one", AlgEd25519, "log rotated")
	testLogPQ   = testSigner("log.example/one", AlgMLDSA44, "log pq")
	otherLog    = testSigner("log.example/two", AlgEd25519, "other log")
	testW1      = testSigner("witness.example/w1", AlgEd25519Cosig, "w1")
	testW2      = testSigner("witness.example/w2", AlgEd25519Cosig, "w2")
	testW3      = testSigner("witness.example/w3", AlgEd25519Cosig, "w3")
	testWPQ     = testSigner("witness.example/w1", AlgMLDSA44, "w1 pq")
	testUnknown = testSigner("witness.example/unknown", AlgEd25519Cosig, "unknown")
	// Same name and key ID, other key: found by trying seeds.
	collide1 = testSigner("witness.example/collide", AlgEd25519Cosig, "collide-6198")
	collide2 = testSigner("witness.example/collide", AlgEd25519Cosig, "collide-8730")
)

var testCP = Checkpoint{Origin: "log.example/one", Size: 7, Root: sha256.Sum256([]byte("root"))}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// cosign is Cosign, but with the deterministic variant of ML-DSA.
func cosign(s *Signer, c Checkpoint, t int64) Signature {
	if s.mldsa == nil {
		return must(s.Cosign(c, time.Unix(t, 0)))
	}
	msg := must(subtreeV1(s.key.name, uint64(t), c.Origin, Subtree{End: c.Size, Hash: c.Root}))
	return must(s.signMLDSA44(uint64(t), msg, false))
}

// signed puts lines under a checkpoint, the log's own first.
func signed(c Checkpoint, sigs ...Signature) string {
	n := Note{Text: c.Text(), Sigs: append([]Signature{must(testLog.Sign(c.Text()))}, sigs...)}
	return string(n.Bytes())
}

type vector struct {
	b bytes.Buffer
}

func (v *vector) add(name string, lines ...string) {
	if v.b.Len() > 0 {
		v.b.WriteByte('\n')
	}
	fmt.Fprintf(&v.b, "name: %s\n", name)
	for _, l := range lines {
		v.b.WriteString(l + "\n")
	}
}

func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < 0x20 || c > 0x7e:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// pieces writes an input as one piece a line.
func pieces(key, s string) string {
	if s == "" {
		return key + `: ""`
	}
	var out []string
	for line := range strings.Lines(s) {
		out = append(out, key+": "+quoted(line))
	}
	return strings.Join(out, "\n")
}

func in(s string) string { return pieces("input", s) }

func vectorFiles() map[string][]byte {
	files := map[string]*vector{}
	file := func(name string) *vector {
		if files[name] == nil {
			files[name] = &vector{}
		}
		return files[name]
	}
	const yes, no = "valid: yes", "valid: no"
	root := encodeHash(testCP.Root)
	b64 := base64.StdEncoding.EncodeToString

	// --- checkpoints
	v := file("checkpoint")
	ok := func(name, text string, size uint64, root [32]byte, ext int) {
		v.add(name, in(text), yes, fmt.Sprintf("size: %d\nroot: %x\nextensions: %d", size, root, ext))
	}
	bad := func(name, text string) { v.add(name, in(text), no) }
	text := func(origin, size, root string) string { return origin + "\n" + size + "\n" + root + "\n" }
	ok("simple", testCP.Text(), 7, testCP.Root, 0)
	ok("empty tree", text("o", "0", encodeHash(EmptyRoot)), 0, EmptyRoot, 0)
	ok("size 0 with another root is a matter for witnesses", text("o", "0", root), 0, testCP.Root, 0)
	ok("largest size", text("o", "9223372036854775807", root), 1<<63-1, testCP.Root, 0)
	ok("origin with spaces", text("Example Log, no 1", "7", root), 7, testCP.Root, 0)
	ok("origin not ASCII", text("höhle.example", "7", root), 7, testCP.Root, 0)
	ok("two extension lines", text("o", "7", root)+"ext 1\next 2\n", 7, testCP.Root, 2)
	ok("extension line that looks like a signature", text("o", "7", root)+"— x AAAA\n", 7, testCP.Root, 1)
	bad("nothing", "")
	bad("only newline", "\n")
	bad("two lines", "o\n7\n")
	bad("no newline at the end", strings.TrimSuffix(text("o", "7", root), "\n"))
	bad("empty origin", text("", "7", root))
	bad("leading zero", text("o", "07", root))
	bad("two zeros", text("o", "00", root))
	bad("size 2^63", text("o", "9223372036854775808", root))
	bad("size 2^64", text("o", "18446744073709551616", root))
	bad("negative size", text("o", "-1", root))
	bad("plus sign", text("o", "+7", root))
	bad("hex size", text("o", "0x7", root))
	bad("underscore in size", text("o", "1_0", root))
	bad("space before size", text("o", " 7", root))
	bad("space after size", text("o", "7 ", root))
	bad("empty size", text("o", "", root))
	bad("arabic digit", text("o", "٧", root))
	for _, n := range []int{0, 3, 31, 33, 64} {
		bad(fmt.Sprintf("root of %d bytes", n), text("o", "7", b64(make([]byte, n))))
	}
	bad("root without padding", text("o", "7", strings.TrimRight(root, "=")))
	bad("root with set bits after the end", text("o", "7", b64(make([]byte, 32))[:42]+"B="))
	bad("root in base64url", text("o", "7", base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 32))))
	bad("root with a space", text("o", "7", root+" "))
	bad("root in hex", text("o", "7", hex.EncodeToString(testCP.Root[:])))
	bad("carriage returns", strings.ReplaceAll(testCP.Text(), "\n", "\r\n"))
	bad("carriage return in root", text("o", "7", root[:20]+"\r"+root[20:]))
	bad("tab in origin", text("o\tp", "7", root))
	bad("NUL in origin", text("o\x00p", "7", root))
	bad("ESC in extension", text("o", "7", root)+"\x1b[31m\n")
	bad("not UTF-8", text("o\xff", "7", root))
	bad("surrogate", text("o\xed\xa0\x80", "7", root))
	bad("empty extension line", text("o", "7", root)+"\n")
	bad("empty line between extensions", text("o", "7", root)+"a\n\nb\n")

	// --- notes
	v = file("note")
	good := signed(testCP)
	sigLine := good[len(testCP.Text())+1:]
	okNote := func(name, s string, sigs, textLen int) {
		v.add(name, in(s), yes, fmt.Sprintf("signatures: %d\ntextbytes: %d", sigs, textLen))
	}
	bad = func(name, s string) { v.add(name, in(s), no) }
	okNote("checkpoint", good, 1, len(testCP.Text()))
	okNote("example of the specification", "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n", 1, 28)
	okNote("text with empty lines", "a\n\nb\n\n— k AAAAAAA=\n", 1, 5)
	okNote("text of one newline", "\n\n— k AAAAAAA=\n", 1, 1)
	okNote("the same line twice", "a\n\n— k AAAAAAA=\n— k AAAAAAA=\n", 2, 2)
	okNote("key name not ASCII", "a\n\n— schlüssel AAAAAAA=\n", 1, 2)
	okNote("DEL is no control character here", "a\x7f\n\n— k AAAAAAA=\n", 1, 3)
	okNote("replacement character spelled out", "a\ufffd\n\n— k AAAAAAA=\n", 1, 5)
	v.add("100 signatures", in("a\n\n"), "input*100: "+quoted("— k AAAAAAA=\n"), yes, "signatures: 100\ntextbytes: 2")
	v.add("101 signatures", in("a\n\n"), "input*101: "+quoted("— k AAAAAAA=\n"), no)
	v.add("exactly 512 KiB", "input*524271: "+quoted("a"), in("\n\n— k AAAAAAA=\n"), yes, "signatures: 1\ntextbytes: 524272")
	v.add("one byte over 512 KiB", "input*524272: "+quoted("a"), in("\n\n— k AAAAAAA=\n"), no)
	bad("nothing", "")
	bad("no signature", "a\n\n")
	bad("no empty line", "a\n— k AAAAAAA=\n")
	bad("no text at all", "\n— k AAAAAAA=\n")
	bad("no newline at the end", "a\n\n— k AAAAAAA=")
	bad("hyphen for dash", "a\n\n- k AAAAAAA=\n")
	bad("en dash", "a\n\n– k AAAAAAA=\n")
	bad("no space after dash", "a\n\n—k AAAAAAA=\n")
	bad("two spaces after dash", "a\n\n—  k AAAAAAA=\n")
	bad("no name", "a\n\n—  AAAAAAA=\n")
	bad("plus in name", "a\n\n— k+l AAAAAAA=\n")
	bad("no-break space in name", "a\n\n— k\u00a0l AAAAAAA=\n")
	bad("next line (U+0085) in name", "a\n\n— k\u0085l AAAAAAA=\n")
	bad("line separator (U+2028) in name", "a\n\n— k\u2028l AAAAAAA=\n")
	bad("ideographic space in name", "a\n\n— k\u3000l AAAAAAA=\n")
	bad("two spaces before signature", "a\n\n— k  AAAAAAA=\n")
	bad("space after signature", "a\n\n— k AAAAAAA= \n")
	bad("third field", "a\n\n— k AAAAAAA= x\n")
	bad("no signature bytes", "a\n\n— k\n")
	bad("empty signature", "a\n\n— k \n")
	bad("a bad line after a good one", "a\n\n— k AAAAAAA=\n— k AAAA\n")
	bad("three bytes", "a\n\n— k AAAA\n")
	bad("four bytes", "a\n\n— k AAAAAA==\n")
	bad("no padding", "a\n\n— k AAAAAAA\n")
	bad("set bits after the end", "a\n\n— k AAAAAAB=\n")
	bad("base64url", "a\n\n— k AAAAAA__\n")
	bad("CRLF", strings.ReplaceAll(good, "\n", "\r\n"))
	bad("carriage return in base64", "a\n\n— k AAAA\rAAA=\n")
	bad("tab in text", "a\tb\n\n— k AAAAAAA=\n")
	bad("NUL in text", "a\x00\n\n— k AAAAAAA=\n")
	bad("not UTF-8 in text", "a\xff\n\n— k AAAAAAA=\n")
	bad("not UTF-8 in name", "a\n\n— k\xff AAAAAAA=\n")
	bad("overlong UTF-8", "a\xc0\xaf\n\n— k AAAAAAA=\n")
	bad("text after the signatures", good+"more\n")
	bad("empty line after the signatures", good+"\n")
	bad("web page", "<!DOCTYPE html>\n<html>\n\n<body>Please log in</body>\n")

	v = file("siglines")
	v.add("one", in(sigLine), yes, "signatures: 1")
	v.add("two", in(sigLine+cosign(testW1, testCP, 100).Line()), yes, "signatures: 2")
	v.add("none", in(""), no)
	v.add("a whole note", in(good), no)
	v.add("no newline", in(strings.TrimSuffix(sigLine, "\n")), no)
	v.add("empty line after", in(sigLine+"\n"), no)
	v.add("empty line before", in("\n"+sigLine), no)
	v.add("CRLF", in(strings.ReplaceAll(sigLine, "\n", "\r\n")), no)
	v.add("101 lines", "input*101: "+quoted("— k AAAAAAA=\n"), no)

	// --- vkeys
	v = file("vkey")
	okKey := func(name string, k *Key) {
		v.add(name, in(k.String()), yes, fmt.Sprintf("id: %08x\nalg: %02x", k.ID(), byte(k.Alg())))
	}
	v.add("example of the specification", in("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"), yes, "id: 530d903a\nalg: 01")
	okKey("log", testLog.Key())
	okKey("witness", testW1.Key())
	okKey("ML-DSA-44", testWPQ.Key())
	vkey := testW1.Key().String()
	name, rest, _ := strings.Cut(vkey, "+")
	id, key64, _ := strings.Cut(rest, "+")
	raw := must(base64.StdEncoding.DecodeString(key64))
	remake := func(name string, data []byte) string {
		h := sha256.Sum256(append([]byte(name+"\n"), data...))
		return fmt.Sprintf("%s+%x+%s", name, h[:4], b64(data))
	}
	bad("nothing", "")
	bad("name only", name)
	bad("no key", name+"+"+id)
	bad("empty name", remake("", raw))
	bad("space in name", remake("a b", raw))
	bad("no-break space in name", remake("a\u00a0b", raw))
	bad("newline in name", remake("a\nb", raw))
	bad("ESC in name", remake("a\x1bb", raw))
	bad("not UTF-8 in name", remake("a\xff", raw))
	bad("plus in name", remake("a+b", raw))
	bad("another key ID", name+"+00000000+"+key64)
	bad("key ID of another name", "other+"+id+"+"+key64)
	bad("upper-case key ID", name+"+"+strings.ToUpper(id)+"+"+key64)
	bad("short key ID", name+"+"+id[:7]+"+"+key64)
	bad("key ID with sign", name+"++"+id[1:]+"+"+key64)
	pq := testWPQ.Key().String()
	bad("no padding", strings.TrimRight(pq, "="))
	bad("set bits after the end", pq[:len(pq)-2]+string(pq[len(pq)-2]+1)+"=")
	bad("newline in base64", name+"+"+id+"+"+key64[:8]+"\n"+key64[8:])
	bad("newline at the end", vkey+"\n")
	bad("carriage return at the end", vkey+"\r")
	bad("space at the end", vkey+" ")
	bad("31 bytes", remake(name, raw[:32]))
	bad("33 bytes", remake(name, append(bytes.Clone(raw), 0)))
	bad("no bytes", remake(name, nil))
	for _, alg := range []byte{0, 2, 3, 5, 7, 0xff} {
		bad(fmt.Sprintf("type 0x%02x", alg), remake(name, append([]byte{alg}, raw[1:]...)))
	}
	bad("Ed25519 key as ML-DSA-44", remake(name, append([]byte{6}, raw[1:]...)))
	bad("ML-DSA-44 key as Ed25519", remake(name, append([]byte{4}, testWPQ.Key().Raw()...)))
	bad("private key", testW1.SKey())
	small := func(hexY string) []byte { return append([]byte{4}, must(hex.DecodeString(hexY))...) }
	bad("small order, identity", remake(name, small("01"+strings.Repeat("00", 31))))
	bad("small order, y = 0", remake(name, small(strings.Repeat("00", 32))))
	bad("small order, y = 0, x negative", remake(name, small(strings.Repeat("00", 31)+"80")))
	bad("small order, y = -1", remake(name, small("ec"+strings.Repeat("ff", 30)+"7f")))
	bad("small order, order 8", remake(name, small("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")))
	bad("small order, order 8, other sign", remake(name, small("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa")))
	bad("y = p, a second encoding of 0", remake(name, small("ed"+strings.Repeat("ff", 30)+"7f")))
	bad("y = p + 3, a second encoding", remake(name, small("f0"+strings.Repeat("ff", 30)+"7f")))
	longName := strings.Repeat("n", 256)
	v.add("ML-DSA-44 with a name of 256 bytes", in(remake(longName, append([]byte{6}, testWPQ.Key().Raw()...))), no)
	okKey("Ed25519 with a name of 256 bytes", testSigner(longName, AlgEd25519Cosig, "long").Key())

	// --- single signatures
	v = file("cosignature")
	cosig := func(name string, k *Key, text string, s Signature, valid string, t string) {
		lines := []string{pieces("vkey", k.String()), pieces("text", text), in(s.Line()), valid}
		if t != "" {
			lines = append(lines, "time: "+t)
		}
		v.add(name, lines...)
	}
	ct := testCP.Text()
	at := func(s *Signer, t int64) Signature { return cosign(s, testCP, t) }
	flip := func(s Signature, i int) Signature {
		s.Sig = bytes.Clone(s.Sig)
		s.Sig[(i+len(s.Sig))%len(s.Sig)] ^= 1
		return s
	}
	cut := func(s Signature, n int) Signature { s.Sig = s.Sig[:n]; return s }
	ext := testCP
	ext.Extensions = []string{"more"}
	cosig("log signature", testLog.Key(), ct, must(testLog.Sign(ct)), yes, "0")
	cosig("Ed25519", testW1.Key(), ct, at(testW1, 1679315147), yes, "1679315147")
	cosig("ML-DSA-44", testWPQ.Key(), ct, at(testWPQ, 1679315147), yes, "1679315147")
	cosig("earliest time", testW1.Key(), ct, at(testW1, 1), yes, "1")
	cosig("latest time", testW1.Key(), ct, at(testW1, 1<<63-1), yes, "9223372036854775807")
	cosig("Ed25519 covers extension lines", testW1.Key(), ext.Text(), at(testW1, 5), no, "")
	cosig("ML-DSA-44 does not cover extension lines", testWPQ.Key(), ext.Text(), at(testWPQ, 5), yes, "5")
	cosig("log signature over another text", testLog.Key(), ext.Text(), must(testLog.Sign(ct)), no, "")
	cosig("time changed", testW1.Key(), ct, flip(at(testW1, 1000), 7), no, "")
	cosig("signature changed", testW1.Key(), ct, flip(at(testW1, 1000), -1), no, "")
	cosig("ML-DSA-44 time changed", testWPQ.Key(), ct, flip(at(testWPQ, 1000), 7), no, "")
	cosig("ML-DSA-44 signature changed", testWPQ.Key(), ct, flip(at(testWPQ, 1000), -1), no, "")
	cosig("cut off", testW1.Key(), ct, cut(at(testW1, 1000), 71), no, "")
	long := at(testW1, 1000)
	long.Sig = append(bytes.Clone(long.Sig), 0)
	cosig("a byte too many", testW1.Key(), ct, long, no, "")
	cosig("log signature cut off", testLog.Key(), ct, cut(must(testLog.Sign(ct)), 63), no, "")
	zero := testW1.signature(append(make([]byte, 8), must(testW1.cosignRaw(ct, 0))...))
	cosig("time 0", testW1.Key(), ct, zero, no, "")
	over := testW1.signature(append(binary.BigEndian.AppendUint64(nil, 1<<63), must(testW1.cosignRaw(ct, 1<<63))...))
	cosig("time 2^63", testW1.Key(), ct, over, no, "")
	cosig("ML-DSA-44 time 0", testWPQ.Key(), ct, at(testWPQ, 0), no, "")
	cosig("log signature by a cosigner's key", testW1.Key(), ct, testW1.signature(must(testLog.Sign(ct)).Sig), no, "")
	relabel := at(testW2, 1000)
	relabel.Name, relabel.KeyID = testW1.key.name, testW1.key.id
	cosig("another witness's signature under this name", testW1.Key(), ct, relabel, no, "")
	other := testSigner("witness.example/other", AlgMLDSA44, "w1 pq")
	relabelPQ := cosign(other, testCP, 1000)
	relabelPQ.Name, relabelPQ.KeyID = testWPQ.key.name, testWPQ.key.id
	cosig("ML-DSA-44 signature of the same key under another name", testWPQ.Key(), ct, relabelPQ, no, "")
	cosig("other key ID", testW1.Key(), ct, Signature{testW1.key.name, 1, at(testW1, 1000).Sig}, no, "")
	cosig("other name", testW1.Key(), ct, Signature{"x", testW1.key.id, at(testW1, 1000).Sig}, no, "")
	notCP := "hello\n"
	cosig("cosignature over what is no checkpoint", testW1.Key(), notCP, testW1.signature(append(binary.BigEndian.AppendUint64(nil, 5), must(testW1.cosignRaw(notCP, 5))...)), no, "")
	longOrigin := Checkpoint{Origin: strings.Repeat("o", 256), Size: 7, Root: testCP.Root}
	cosig("ML-DSA-44 over an origin of 256 bytes", testWPQ.Key(), longOrigin.Text(), at(testWPQ, 5), no, "")

	// --- proofs
	v = file("proof")
	h1, h2 := encodeHash(sha256.Sum256([]byte("h1"))), encodeHash(sha256.Sum256([]byte("h2")))
	const head = "c2sp.org/tlog-proof@v1\n"
	okProof := func(name, s string, index uint64, hashes int, extra string) {
		v.add(name, in(s), yes, fmt.Sprintf("index: %d\nhashes: %d\nextra: %x", index, hashes, extra))
	}
	okProof("without extra", head+"index 5\n"+h1+"\n"+h2+"\n\n"+good, 5, 2, "")
	okProof("with extra", head+"extra "+b64([]byte("leaf"))+"\nindex 5\n"+h1+"\n\n"+good, 5, 1, "leaf")
	okProof("index 0, no hashes", head+"index 0\n\n"+good, 0, 0, "")
	okProof("largest index", head+"index 9223372036854775807\n\n"+good, 1<<63-1, 0, "")
	v.add("63 hashes", in(head+"index 5\n"), "input*63: "+quoted(h1+"\n"), in("\n"+good), yes, "index: 5\nhashes: 63\nextra: ")
	v.add("64 hashes", in(head+"index 5\n"), "input*64: "+quoted(h1+"\n"), in("\n"+good), no)
	bad("nothing", "")
	bad("header only", head)
	bad("other version", "c2sp.org/tlog-proof@v2\nindex 5\n\n"+good)
	bad("CRLF", strings.ReplaceAll(head+"index 5\n\n"+good, "\n", "\r\n"))
	bad("empty extra", head+"extra \nindex 5\n\n"+good)
	bad("extra twice", head+"extra AAAA\nextra AAAA\nindex 5\n\n"+good)
	bad("extra after index", head+"index 5\nextra AAAA\n\n"+good)
	bad("extra not canonical", head+"extra AB==\nindex 5\n\n"+good)
	bad("extra without padding", head+"extra AA\nindex 5\n\n"+good)
	bad("no index", head+h1+"\n\n"+good)
	bad("index with leading zero", head+"index 05\n\n"+good)
	bad("index with sign", head+"index +5\n\n"+good)
	bad("negative index", head+"index -1\n\n"+good)
	bad("index 2^63", head+"index 9223372036854775808\n\n"+good)
	bad("two spaces", head+"index  5\n\n"+good)
	bad("short hash", head+"index 5\n"+b64(make([]byte, 31))+"\n\n"+good)
	bad("long hash", head+"index 5\n"+b64(make([]byte, 33))+"\n\n"+good)
	bad("hash not canonical", head+"index 5\n"+h1[:42]+string(h1[42]+1)+"=\n\n"+good)
	bad("space after hash", head+"index 5\n"+h1+" \n\n"+good)
	bad("no empty line", head+"index 5\n"+h1+"\n"+good)
	bad("two empty lines", head+"index 5\n\n\n"+good)
	bad("no checkpoint", head+"index 5\n\n")
	bad("checkpoint without signature", head+"index 5\n\n"+ct)
	bad("checkpoint with a bad size", head+"index 5\n\n"+strings.Replace(good, "\n7\n", "\n07\n", 1))
	bad("cut off in the checkpoint", (head + "index 5\n\n" + good)[:len(head)+60])
	bad("space before header", " "+head+"index 5\n\n"+good)

	// --- add-checkpoint
	v = file("addcheckpoint")
	v.add("first", in("old 0\n\n"+good), yes, "old: 0\nhashes: 0")
	v.add("growth", in("old 5\n"+h1+"\n"+h2+"\n\n"+good), yes, "old: 5\nhashes: 2")
	v.add("old above size is for the witness to refuse", in("old 8\n\n"+good), yes, "old: 8\nhashes: 0")
	v.add("63 hashes", in("old 5\n"), "input*63: "+quoted(h1+"\n"), in("\n"+good), yes, "old: 5\nhashes: 63")
	v.add("64 hashes", in("old 5\n"), "input*64: "+quoted(h1+"\n"), in("\n"+good), no)
	bad("nothing", "")
	bad("leading zero", "old 05\n\n"+good)
	bad("junk after old", "old 5 junk\n\n"+good)
	bad("two spaces", "old  5\n\n"+good)
	bad("no number", "old \n\n"+good)
	bad("no old line", h1+"\n\n"+good)
	bad("upper case", "Old 5\n\n"+good)
	bad("negative", "old -1\n\n"+good)
	bad("old 2^63", "old 9223372036854775808\n\n"+good)
	bad("old 2^64", "old 18446744073709551616\n\n"+good)
	bad("short hash", "old 5\n"+b64(make([]byte, 31))+"\n\n"+good)
	bad("hash not canonical", "old 5\n"+h1[:42]+string(h1[42]+1)+"=\n\n"+good)
	bad("no empty line", "old 5\n"+h1+"\n"+good)
	bad("no checkpoint", "old 5\n\n")
	bad("checkpoint without signature", "old 5\n\n"+ct)
	bad("CRLF", strings.ReplaceAll("old 5\n\n"+good, "\n", "\r\n"))
	bad("size with leading zero", "old 5\n\n"+strings.Replace(good, "\n7\n", "\n07\n", 1))

	// --- tile paths
	v = file("tilepath")
	okTile := func(path string, level int, index uint64, width int) {
		v.add(path, in(path), yes, fmt.Sprintf("level: %d\nindex: %d\nwidth: %d", level, index, width))
	}
	okTile("tile/0/000", 0, 0, 256)
	okTile("tile/0/x001/067.p/8", 0, 1067, 8)
	okTile("tile/63/999", 63, 999, 256)
	okTile("tile/entries/000", -1, 0, 256)
	okTile("tile/entries/x001/x234/067.p/255", -1, 1234067, 255)
	okTile("tile/1/x001/000", 1, 1000, 256)
	okTile("tile/0/x036/x028/x797/x018/x963/967", 0, 1<<55-1, 256)
	for _, path := range []string{
		"", "tile", "tile/", "tile/0", "tile/0/", "/tile/0/000", "tile/0/000/", "tile//000", "tile/00/000", "tile/64/000", "tile/-1/000", "tile/+1/000",
		"tile/0/00", "tile/0/0000", "tile/0/x000/067", "tile/0/001/067", "tile/0/x001", "tile/0/x001/x067", "tile/0/X001/067", "tile/0/x1/067",
		"tile/0/+01", "tile/0/-01", "tile/0/0x1", "tile/0/000.p", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/08", "tile/0/000.p/+8",
		"tile/0/000.p/8/", "tile/0/000.p/8/x", "tile/0/../000", "tile/0/x001/../067", "tile/0/x001/./067", "tile/../0/000", "tile/entries/../../etc/passwd",
		"tile/0/%30%30%30", "tile/0/000?x", "tile/0/000\x00", "tile/0/000\n", "tile\\0\\000", "tile/entry/000", "tile/Entries/000", "checkpoint", "tile/data/000",
		"tile/0/x036/x028/x797/x018/x963/968", "tile/0/x999/x999/x999/x999/x999/x999/x999/999", "tile/0/ 00", "tile/٠/000",
	} {
		v.add("refused "+quoted(path), in(path), no)
	}

	// --- bundles
	v = file("bundle")
	bundle := func(name, valid string, width int, b string) {
		v.add(name, in(b), fmt.Sprintf("width: %d", width), valid)
	}
	bundle("one", yes, 1, "\x00\x03abc")
	bundle("one empty entry", yes, 1, "\x00\x00")
	bundle("three", yes, 3, "\x00\x01a\x00\x00\x00\x02bc")
	v.add("256 of them", "input*256: "+quoted("\x00\x01a"), "width: 256", yes)
	v.add("65535 bytes", in("\xff\xff"), "input*65535: "+quoted("a"), "width: 1", yes)
	bundle("nothing", no, 1, "")
	bundle("half a length", no, 1, "\x00")
	bundle("cut off", no, 1, "\x00\x03ab")
	bundle("too few", no, 2, "\x00\x01a")
	bundle("too many", no, 1, "\x00\x01a\x00\x01b")
	bundle("a byte left over", no, 1, "\x00\x01a\x00")
	bundle("width 0", no, 0, "")
	v.add("width 257", "input*257: "+quoted("\x00\x01a"), "width: 257", no)

	// --- Merkle proofs, over a tree of seven leaves
	v = file("merkle")
	var leaves [][32]byte
	for i := range 7 {
		leaves = append(leaves, [32]byte(rfc6962.DefaultHasher.HashLeaf([]byte{byte(i)})))
	}
	node := func(a, b [32]byte) [32]byte { return [32]byte(rfc6962.DefaultHasher.HashChildren(a[:], b[:])) }
	n01, n23, n45 := node(leaves[0], leaves[1]), node(leaves[2], leaves[3]), node(leaves[4], leaves[5])
	n03, n46 := node(n01, n23), node(n45, leaves[6])
	root7, root4, root3, root6 := node(n03, n46), n03, node(n01, leaves[2]), node(n03, n45)
	cat := func(list ...[32]byte) string {
		var b strings.Builder
		for _, h := range list {
			b.Write(h[:])
		}
		return b.String()
	}
	hashes := func(list ...[32]byte) string {
		if len(list) == 0 {
			return in("")
		}
		var out []string
		for _, h := range list {
			out = append(out, "input: "+quoted(cat(h)))
		}
		return strings.Join(out, "\n")
	}
	incl := func(name, valid string, index, size uint64, leaf, root [32]byte, proof ...[32]byte) {
		v.add("inclusion, "+name, fmt.Sprintf("inclusion: %d %d\nleaf: %x\nroot: %x", index, size, leaf, root), hashes(proof...), valid)
	}
	incl("only leaf", yes, 0, 1, leaves[0], leaves[0])
	incl("3 of 7", yes, 3, 7, leaves[3], root7, leaves[2], n01, n46)
	incl("6 of 7", yes, 6, 7, leaves[6], root7, n45, n03)
	incl("wrong index", no, 2, 7, leaves[3], root7, leaves[2], n01, n46)
	incl("wrong leaf", no, 3, 7, leaves[4], root7, leaves[2], n01, n46)
	incl("wrong root", no, 3, 7, leaves[3], root6, leaves[2], n01, n46)
	incl("wrong size", no, 3, 4, leaves[3], root7, leaves[2], n01, n46)
	incl("too short", no, 3, 7, leaves[3], root7, leaves[2], n01)
	incl("too long", no, 3, 7, leaves[3], root7, leaves[2], n01, n46, n46)
	incl("swapped", no, 3, 7, leaves[3], root7, n01, leaves[2], n46)
	incl("index is size", no, 7, 7, leaves[6], root7, n45, n03)
	incl("empty tree", no, 0, 0, leaves[0], EmptyRoot)
	tall, siblings := leaves[0], make([][32]byte, 63) // a path that is right but for the size
	for i := range siblings {
		siblings[i] = leaves[1]
		tall = node(tall, leaves[1])
	}
	incl("size 2^62", yes, 0, 1<<62, leaves[0], func() [32]byte {
		h := leaves[0]
		for range 62 {
			h = node(h, leaves[1])
		}
		return h
	}(), siblings[:62]...)
	incl("size 2^63", no, 0, 1<<63, leaves[0], tall, siblings...)
	cons := func(name, valid string, old, size uint64, oldRoot, root [32]byte, proof ...[32]byte) {
		v.add("consistency, "+name, fmt.Sprintf("consistency: %d %d\noldroot: %x\nroot: %x", old, size, oldRoot, root), hashes(proof...), valid)
	}
	cons("3 to 7", yes, 3, 7, root3, root7, leaves[2], leaves[3], n01, n46)
	cons("4 to 7", yes, 4, 7, root4, root7, n46)
	cons("6 to 7", yes, 6, 7, root6, root7, n45, leaves[6], n03)
	cons("equal", yes, 7, 7, root7, root7)
	cons("from empty", yes, 0, 7, EmptyRoot, root7)
	cons("empty to empty", yes, 0, 0, EmptyRoot, EmptyRoot)
	cons("equal sizes, other root", no, 7, 7, root6, root7)
	cons("equal sizes, with proof", no, 7, 7, root7, root7, n46)
	cons("from empty, with proof", no, 0, 7, EmptyRoot, root7, n46)
	cons("from empty with a root", no, 0, 7, root3, root7)
	cons("empty with a root", no, 0, 0, root3, root3)
	cons("no proof", no, 3, 7, root3, root7)
	cons("old root wrong", no, 3, 7, root4, root7, leaves[2], leaves[3], n01, n46)
	cons("new root wrong", no, 3, 7, root3, root6, leaves[2], leaves[3], n01, n46)
	cons("too long", no, 4, 7, root4, root7, n46, n46)
	cons("shrinking", no, 7, 3, root7, root3, leaves[2])
	cons("size 2^62", yes, 1<<61, 1<<62, root7, node(root7, root4), root4)
	cons("size 2^63", no, 1<<62, 1<<63, root7, node(root7, root4), root4)

	policyVectors(file("policy"), file("verify"))

	out := map[string][]byte{}
	for name, v := range files {
		out[name+".txt"] = append([]byte("# Made by gen_test.go; see ../README.md for the form.\n\n"), v.b.Bytes()...)
	}
	return out
}

// TestVectorFiles checks that the files are what this program makes.
func TestVectorFiles(t *testing.T) {
	for name, want := range vectorFiles() {
		path := filepath.Join("testdata", "vectors", name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s is not what gen_test.go makes; run: go test ./c2sp -run TestVectorFiles -update", path)
		}
	}
}
