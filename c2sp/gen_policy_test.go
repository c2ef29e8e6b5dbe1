package c2sp

// The vectors about policies: the file format, and notes judged by one.

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"crypto/ed25519"
)

// cosignRaw signs what Cosign refuses to: any text, any time.
func (s *Signer) cosignRaw(text string, t uint64) ([]byte, error) {
	return ed25519.Sign(s.ed, cosignatureV1(text, t)), nil
}

func policyVectors(pol, ver *vector) {
	const yes, no = "valid: yes", "valid: no"
	log := "log " + testLog.Key().String() + "\n"
	w1 := "witness w1 " + testW1.Key().String() + "\n"
	w2 := "witness w2 " + testW2.Key().String() + "\n"
	w3 := "witness w3 " + testW3.Key().String() + "\n"
	wpq := "witness w1-pq " + testWPQ.Key().String() + "\n"
	three := log + w1 + w2 + w3
	vk := func(s *Signer) string { return s.Key().String() }
	relabelled := testSigner("witness.example/alias", AlgEd25519Cosig, "w1")

	ok := func(name, s string, lines ...string) { pol.add(name, append([]string{in(s), yes}, lines...)...) }
	bad := func(name, s string, line int) { pol.add(name, in(s), no, fmt.Sprintf("line: %d", line)) }
	ok("quorum none", "quorum none\n", "satisfied: ")
	ok("one witness", log+w1+"quorum w1\n", "satisfied: w1", "unsatisfied: ")
	ok("2 of 3", three+"group g 2 w1 w2 w3\nquorum g\n", "satisfied: w1 w2", "satisfied: w2 w3", "satisfied: w1 w2 w3", "unsatisfied: w1", "unsatisfied: ")
	ok("all", three+"group g all w1 w2 w3\nquorum g\n", "satisfied: w1 w2 w3", "unsatisfied: w1 w2")
	ok("any", three+"group g any w1 w2 w3\nquorum g\n", "satisfied: w3", "unsatisfied: ")
	ok("one of one", three+"group g 1 w1\nquorum g\n", "satisfied: w1", "unsatisfied: w2 w3")
	ok("nested", three+"group a any w1 w2\ngroup b all a w3\nquorum b\n", "satisfied: w1 w3", "satisfied: w2 w3", "unsatisfied: w1 w2", "unsatisfied: w3")
	ok("one operator, two keys", log+w1+wpq+w2+"group op1 any w1 w1-pq\ngroup g 2 op1 w2\nquorum g\n", "satisfied: w1-pq w2", "unsatisfied: w1 w1-pq")
	ok("quorum of one witness among groups", three+"group g 2 w1 w2\nquorum w3\n", "satisfied: w3", "unsatisfied: w1 w2")
	ok("groups after the quorum line", three+"quorum w1\ngroup g 2 w1 w2\n", "satisfied: w1")
	ok("comments, tabs, empty lines", "# a policy\n\n \t \n\t log \t"+vk(testLog)+"   https://log.example/one \n  #x\nquorum\tnone\t\n", "satisfied: ")
	ok("URLs", "log "+vk(testLog)+" https://log.example/\nwitness w1 "+vk(testW1)+" https://w1.example/\nquorum w1\n", "satisfied: w1")
	ok("a log rotating its key", log+"log "+vk(testLogNew)+"\nlog "+vk(testLogPQ)+"\nquorum none\n", "satisfied: ")
	ok("two keys of one witness name", log+w1+"witness second "+vk(testSigner("witness.example/w1", AlgEd25519Cosig, "w1 rotated"))+"\nquorum w1\n", "satisfied: w1", "unsatisfied: second")
	ok("no log", w1+"quorum w1\n", "satisfied: w1")
	ok("names are octets", log+"witness \xe2\x84\xaa "+vk(testW1)+"\nwitness K "+vk(testW2)+"\nwitness \xff "+vk(testW3)+"\ngroup g 2 K \xff\nquorum g\n", `satisfied: K \xff`, `unsatisfied: K \xe2\x84\xaa`)
	ok("keywords as names", log+"witness log "+vk(testW1)+"\nwitness any "+vk(testW2)+"\ngroup quorum all log any\nquorum quorum\n", "satisfied: log any")

	bad("nothing", "", 0)
	bad("comments only", "# quorum none\n", 0)
	bad("no quorum", three, 0)
	bad("two quorum lines", three+"quorum w1\nquorum w2\n", 6)
	bad("two equal quorum lines", "quorum none\nquorum none\n", 2)
	bad("quorum none, then a witness", w1+"quorum none\nquorum w1\n", 3)
	bad("unknown quorum", three+"quorum g\n", 5)
	bad("quorum before its definition", log+"quorum w1\n"+w1, 2)
	bad("quorum with two names", three+"quorum w1 w2\n", 5)
	bad("quorum without name", three+"quorum\n", 5)
	bad("unknown keyword", "logs x\n", 1)
	bad("keyword in upper case", "Quorum none\n", 1)
	bad("no newline at the end", "quorum none", 1)
	bad("carriage returns", "# x\r\nquorum none\r\n", 1)
	bad("carriage return in a comment", "# \r\nquorum none\n", 1)
	bad("NUL", "quorum none\n#\x00\n", 2)
	bad("ESC", "# \x1b[2J\nquorum none\n", 1)
	bad("DEL", "# \x7f\nquorum none\n", 1)
	bad("form feed", "quorum\fnone\n", 1)
	bad("byte order mark", "\xef\xbb\xbfquorum none\n", 1)
	bad("no-break space as separator", "quorum\u00a0none\n", 1)
	bad("member twice", three+"group g 2 w1 w1\nquorum g\n", 5)
	bad("member of two groups", three+"group a any w1 w2\ngroup b any w1 w3\nquorum a\n", 6)
	bad("group member of two groups", three+"group a any w1 w2\ngroup b any a\ngroup c any a\nquorum c\n", 7)
	bad("unknown member", three+"group g any w4\nquorum g\n", 5)
	bad("member of itself", three+"group g any g\nquorum g\n", 5)
	bad("member defined later", log+"group g any w1\n"+w1+"quorum g\n", 2)
	bad("none as member", three+"group g any none\nquorum g\n", 5)
	bad("none as witness", "witness none "+vk(testW1)+"\nquorum none\n", 1)
	bad("none as group", three+"group none any w1\nquorum none\n", 5)
	bad("threshold 0", three+"group g 0 w1\nquorum g\n", 5)
	bad("threshold above members", three+"group g 4 w1 w2 w3\nquorum g\n", 5)
	bad("negative threshold", three+"group g -1 w1\nquorum g\n", 5)
	bad("threshold with leading zero", three+"group g 01 w1\nquorum g\n", 5)
	bad("threshold with sign", three+"group g +1 w1\nquorum g\n", 5)
	bad("threshold in words", three+"group g two w1 w2\nquorum g\n", 5)
	bad("enormous threshold", three+"group g 18446744073709551617 w1 w2\nquorum g\n", 5)
	bad("no members", three+"group g all\nquorum g\n", 5)
	bad("witness name twice", log+w1+"witness w1 "+vk(testW2)+"\nquorum w1\n", 3)
	bad("group named like a witness", three+"group w1 any w2\nquorum w1\n", 5)
	bad("group name twice", three+"group g any w1\ngroup g any w2\nquorum g\n", 6)
	bad("one key under two local names", log+w1+"witness x "+vk(testW1)+"\nquorum w1\n", 3)
	bad("one key under another key name", log+w1+"witness x "+vk(relabelled)+"\nquorum w1\n", 3)
	bad("log twice", log+log+"quorum none\n", 2)
	bad("log key under another origin", log+"log "+vk(testSigner("log.example/alias", AlgEd25519, "log"))+"\nquorum none\n", 2)
	bad("one raw key as log and witness", log+"witness w "+vk(testSigner("w.example", AlgEd25519Cosig, "log"))+"\nquorum none\n", 2)
	bad("one raw key as witness and log", w1+"log "+vk(testSigner("x.example", AlgEd25519, "w1"))+"\nquorum none\n", 2)
	bad("one ML-DSA-44 key as log and witness", "log "+vk(testLogPQ)+"\nwitness w "+vk(testSigner("w.example", AlgMLDSA44, "log pq"))+"\nquorum none\n", 2)
	bad("same name and key ID", "witness a "+vk(collide1)+"\nwitness b "+vk(collide2)+"\nquorum a\n", 2)
	bad("log with a cosigner key", "log "+vk(testW1)+"\nquorum none\n", 1)
	bad("witness with a log key", "witness w "+vk(testLog)+"\nquorum none\n", 1)
	bad("log without key", "log\nquorum none\n", 1)
	bad("witness without key", "witness w1\nquorum none\n", 1)
	bad("witness with key but no name", "witness "+vk(testW1)+"\nquorum none\n", 1)
	bad("log with too much", "log "+vk(testLog)+" https://x/ y\nquorum none\n", 1)
	bad("comment after a log", "log "+vk(testLog)+" #comment\nquorum none\n", 1)
	bad("comment after a quorum", "quorum none # no witness\n", 1)
	bad("key ID that does not fit", "log log.example/one+00000000+"+strings.SplitN(vk(testLog), "+", 3)[2]+"\nquorum none\n", 1)
	bad("private key", "log "+testLog.SKey()+"\nquorum none\n", 1)
	pol.add("over 1 MiB", "input*11: "+quoted("#"+strings.Repeat("x", 99998)+"\n"), in("quorum none\n"), no, "line: 0")

	// --- notes judged by a policy
	p := three + "group g 2 w1 w2 w3\nquorum g\n"
	at := func(s *Signer, t int64) Signature { return cosign(s, testCP, t) }
	ok = func(name, note string, rest ...string) {
		ver.add(name, append([]string{pieces("policy", p), in(note), yes}, rest...)...)
	}
	okTimes := func(name, note string, quorum, fresh int64, credited string) {
		ok(name, note, fmt.Sprintf("quorumtime: %d\nfreshtime: %d\ncredited: %s", quorum, fresh, credited))
	}
	refuse := func(name, note, err string) {
		ver.add(name, pieces("policy", p), in(note), no, "error: "+err)
	}
	raw := func(c Checkpoint, sigs ...Signature) string {
		n := Note{Text: c.Text(), Sigs: sigs}
		return string(n.Bytes())
	}
	okTimes("two of three", signed(testCP, at(testW1, 100), at(testW3, 300)), 300, 100, "w1 w3")
	okTimes("all three", signed(testCP, at(testW1, 100), at(testW2, 200), at(testW3, 300)), 200, 200, "w1 w2 w3")
	okTimes("cosignatures before the log's line", raw(testCP, at(testW1, 100), at(testW2, 200), must(testLog.Sign(testCP.Text()))), 200, 100, "w1 w2")
	okTimes("an unknown witness is ignored", signed(testCP, at(testUnknown, 1), at(testW1, 100), at(testW2, 200)), 200, 100, "w1 w2")
	garbage := Signature{Name: "witness.example/unknown", KeyID: 5, Sig: []byte("garbage")}
	okTimes("a garbage line of an unknown key is ignored", signed(testCP, garbage, at(testW1, 100), at(testW2, 200)), 200, 100, "w1 w2")
	okTimes("a known name with an unknown key ID is ignored", signed(testCP, Signature{testW1.key.name, 5, []byte("x")}, at(testW1, 100), at(testW2, 200)), 200, 100, "w1 w2")
	okTimes("the same line twice", signed(testCP, at(testW1, 100), at(testW1, 100), at(testW2, 200)), 200, 100, "w1 w2")
	okTimes("one key twice, later first: the earliest counts", signed(testCP, at(testW1, 900), at(testW1, 100), at(testW2, 200)), 200, 100, "w1 w2")
	okTimes("one key twice, earlier first: the earliest counts", signed(testCP, at(testW1, 100), at(testW1, 900), at(testW2, 200)), 200, 100, "w1 w2")
	ext := testCP
	ext.Extensions = []string{"ignored"}
	okTimes("extension lines are ignored", signed(ext, cosign(testW1, ext, 100), cosign(testW2, ext, 200)), 200, 100, "w1 w2")
	empty := Checkpoint{Origin: testCP.Origin, Root: EmptyRoot}
	okTimes("empty tree", signed(empty, cosign(testW1, empty, 100), cosign(testW2, empty, 200)), 200, 100, "w1 w2")

	refuse("one cosignature", signed(testCP, at(testW1, 100)), "quorum")
	refuse("no cosignature", signed(testCP), "quorum")
	refuse("one cosignature twice", signed(testCP, at(testW1, 100), at(testW1, 100)), "quorum")
	refuse("one key twice with other times", signed(testCP, at(testW1, 100), at(testW1, 200)), "quorum")
	refuse("one key relabelled", signed(testCP, at(testW1, 100), cosign(relabelled, testCP, 100)), "quorum")
	forged := at(testW1, 100)
	forged.Name, forged.KeyID = testW2.key.name, testW2.key.id
	refuse("w1's signature under w2's name", signed(testCP, at(testW1, 100), forged), "bad-signature")
	unknownTwo := []Signature{at(testUnknown, 1), cosign(collide1, testCP, 1)}
	refuse("only unknown witnesses", signed(testCP, unknownTwo...), "quorum")
	broken := at(testW3, 300)
	broken.Sig[len(broken.Sig)-1] ^= 1
	refuse("a quorum, and a third that fails", signed(testCP, at(testW1, 100), at(testW2, 200), broken), "bad-signature")
	badTwin := at(testW1, 100)
	badTwin.Sig[20] ^= 1
	refuse("a good line and a bad one of one key", signed(testCP, at(testW1, 100), at(testW2, 200), badTwin), "bad-signature")
	refuse("a cosignature over another checkpoint", signed(testCP, cosign(testW1, ext, 100), at(testW2, 200)), "bad-signature")
	refuse("time 0", signed(testCP, testW1.signature(append(make([]byte, 8), must(testW1.cosignRaw(testCP.Text(), 0))...)), at(testW2, 200)), "bad-signature")
	refuse("time 2^63", signed(testCP, testW1.signature(append(binary.BigEndian.AppendUint64(nil, 1<<63), must(testW1.cosignRaw(testCP.Text(), 1<<63))...)), at(testW2, 200)), "bad-signature")
	refuse("not signed by the log", raw(testCP, at(testW1, 100), at(testW2, 200)), "no-log-signature")
	refuse("signed by another key of that name", raw(testCP, must(testLogNew.Sign(testCP.Text())), at(testW1, 100), at(testW2, 200)), "no-log-signature")
	logBad := must(testLog.Sign(testCP.Text()))
	logBad.Sig[3] ^= 1
	refuse("a log signature that fails", raw(testCP, logBad, at(testW1, 100), at(testW2, 200)), "bad-signature")
	two := testCP
	two.Origin = otherLog.key.name
	refuse("another log", raw(two, must(otherLog.Sign(two.Text())), cosign(testW1, two, 1), cosign(testW2, two, 2)), "unknown-log")
	refuse("another log's origin, signed by a log of the policy", raw(two, must(testLog.Sign(two.Text())), cosign(testW1, two, 1), cosign(testW2, two, 2)), "unknown-log")
	refuse("size 0 with a root", func() string {
		c := testCP
		c.Size = 0
		return signed(c, cosign(testW1, c, 100), cosign(testW2, c, 200))
	}(), "malformed")
	refuse("leading zero in the size", strings.Replace(signed(testCP, at(testW1, 1), at(testW2, 2)), "\n7\n", "\n07\n", 1), "malformed")
	refuse("CRLF", strings.ReplaceAll(signed(testCP, at(testW1, 1), at(testW2, 2)), "\n", "\r\n"), "malformed")
	refuse("garbage", "garbage", "malformed")
	refuse("nothing", "", "malformed")
	wrongText := signed(testCP, at(testW1, 1), at(testW2, 2))
	other := testCP
	other.Size = 8
	refuse("text changed after signing", other.Text()+wrongText[len(testCP.Text()):], "bad-signature")
	refuse("another root under the same signatures", strings.Replace(wrongText, encodeHash(testCP.Root), base64.StdEncoding.EncodeToString(make([]byte, 32)), 1), "bad-signature")

	// A key that was made to have the name and key ID of a known one.
	p = log + "witness c " + vk(collide1) + "\nquorum c\n"
	okTimes("a key with a twin", signed(testCP, cosign(collide1, testCP, 100)), 100, 100, "c")
	refuse("the twin with the same name and key ID", signed(testCP, cosign(collide2, testCP, 100)), "bad-signature")
	refuse("both twins", signed(testCP, cosign(collide1, testCP, 100), cosign(collide2, testCP, 100)), "bad-signature")

	// Log keys of one origin, and two logs.
	p = log + "log " + vk(testLogNew) + "\nlog " + vk(otherLog) + "\nquorum none\n"
	okTimes("quorum none", raw(testCP, must(testLog.Sign(testCP.Text()))), 0, 0, "")
	okTimes("the rotated key alone", raw(testCP, must(testLogNew.Sign(testCP.Text()))), 0, 0, "")
	okTimes("both keys", raw(testCP, must(testLog.Sign(testCP.Text())), must(testLogNew.Sign(testCP.Text()))), 0, 0, "")
	okTimes("the other log", raw(two, must(otherLog.Sign(two.Text()))), 0, 0, "")
	refuse("a log of the policy signs for another log of the policy", raw(two, must(testLog.Sign(two.Text()))), "no-log-signature")
	newBad := must(testLogNew.Sign(testCP.Text()))
	newBad.Sig[3] ^= 1
	refuse("one log key good, one bad", raw(testCP, must(testLog.Sign(testCP.Text())), newBad), "bad-signature")

	// ML-DSA-44.
	p = "log " + vk(testLogPQ) + "\n" + wpq + w2 + "group g all w1-pq w2\nquorum g\n"
	okTimes("ML-DSA-44 log and witness", raw(testCP, at(testLogPQ, 50), at(testWPQ, 100), at(testW2, 200)), 200, 100, "w1-pq w2")
	okTimes("ML-DSA-44 log without a time", raw(testCP, at(testLogPQ, 0), at(testWPQ, 100), at(testW2, 200)), 200, 100, "w1-pq w2")
	refuse("ML-DSA-44 witness without a time", raw(testCP, at(testLogPQ, 50), at(testWPQ, 0), at(testW2, 200)), "bad-signature")
	refuse("the log's ML-DSA-44 line is no witness", raw(testCP, at(testLogPQ, 50), at(testW2, 200)), "quorum")

	// Two keys of one operator.
	p = log + w1 + wpq + w2 + "group op1 any w1 w1-pq\ngroup g 2 op1 w2\nquorum g\n"
	okTimes("one operator, both keys, and another", signed(testCP, at(testW1, 100), at(testWPQ, 50), at(testW2, 70)), 70, 70, "w1 w1-pq w2")
	refuse("one operator, both keys", signed(testCP, at(testW1, 100), at(testWPQ, 50)), "quorum")
}
