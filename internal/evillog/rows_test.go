package evillog_test

// The table of the hostile log matrix. A cell that begins with "n/a: " says why
// the behaviour does not concern this reader.

import (
	"bytes"
	"net/http"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/evillog"
)

// A row is one behaviour, and what each reader makes of it.
type row struct {
	name                                  string
	honest                                bool // the witnesses are real ones
	fresh                                 bool // the reader has never seen the log
	heavy                                 bool // it sends megabytes
	lie                                   func(*stage)
	state, proof, proxy, monitor, witness string
}

const (
	offline   = notApplicable + "a proof is checked without the network"
	passive   = notApplicable + "a witness fetches nothing"
	noProof   = notApplicable + "it is not handed proofs; the monitor makes its own"
	noRequest = notApplicable + "it does not ask the log for proofs"
	toWitness = notApplicable + "only witnesses are asked to cosign"
	noEntries = notApplicable + "only monitors read the entries"
)

var rows = []row{
	{name: "honest growth", lie: func(s *stage) {},
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "honest growth, honest witnesses", honest: true, lie: func(s *stage) {},
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},

	// History: well-formed and properly signed. Where the witnesses collude, a proof
	// alone cannot show it: memory, other witnesses and monitors do.

	{name: "fork of the known size", lie: func(s *stage) { s.log.Fork(3, s.evil(3, known)...) },
		state: "PB201+evidence", proof: "verified", proxy: "PB201+evidence", monitor: "held, tampering/fork+evidence", witness: "422+evidence"},
	{name: "fork of the known size, honest witnesses", honest: true, lie: func(s *stage) { s.log.Fork(3, s.evil(3, known)...) },
		state: "PB201+evidence", proof: "PB106", proxy: "PB201+evidence", monitor: "held, tampering/fork+evidence", witness: "422+evidence"},
	{name: "fork of one size, only its last entry", lie: func(s *stage) { s.log.Fork(known-1, s.evil(known-1, known)...) },
		state: "PB201+evidence", proof: "verified", proxy: "PB201+evidence", monitor: "held, tampering/fork+evidence", witness: "422+evidence"},
	// Sizes differ: the proof that the log sends from its other history is what
	// convicts it, without tiles.
	{name: "larger fork", lie: func(s *stage) { s.log.Fork(3, s.evil(3, 320)...) },
		state: "PB202+evidence", proof: "verified", proxy: "PB202+evidence", monitor: "held, tampering/fork+evidence", witness: "422+evidence"},
	{name: "larger fork, honest witnesses", honest: true, lie: func(s *stage) { s.log.Fork(3, s.evil(3, 320)...) },
		state: "PB202+evidence", proof: "PB106", proxy: "PB202+evidence", monitor: "held, tampering/fork+evidence", witness: "422+evidence"},
	// What a quorum of colluding witnesses and a log that hides its tiles can do to
	// one installer: the file is served, with a warning. Broken storage looks the
	// same, and must not stop what is proven from being installed.
	{name: "larger fork with the tiles of the truth", lie: func(s *stage) { s.log.KeepTiles(); s.log.Fork(3, s.evil(3, grown)...) },
		state: "PB204", proof: "verified", proxy: "served, warned", monitor: "held, tampering/tiles", witness: "422+evidence"},
	// The log no longer has the tiles that would show the fork, so it is a rollback;
	// the monitor has every leaf itself.
	{name: "smaller fork", lie: func(s *stage) { s.log.Fork(3, s.evil(3, 200)...) },
		state: "PB203", proof: "verified", proxy: "PB203", monitor: "held, tampering/fork+evidence", witness: "409"},
	{name: "smaller fork with the tiles of the truth", lie: func(s *stage) { s.log.KeepTiles(); s.log.Fork(3, s.evil(3, 200)...) },
		state: "PB202+evidence", proof: "verified", proxy: "PB202+evidence", monitor: "held, tampering/fork+evidence", witness: "409"},
	{name: "split view by address", lie: func(s *stage) { move(s) },
		state: "PB201+evidence", proof: "verified", proxy: "PB201+evidence", monitor: "held, tampering/fork+evidence", witness: "422+evidence"},
	{name: "split view by address, honest witnesses", honest: true, lie: func(s *stage) { move(s) },
		state: "PB201+evidence", proof: "PB106", proxy: "PB201+evidence", monitor: "held, tampering/fork+evidence", witness: "422+evidence"},
	{name: "stale mix: new checkpoint, tiles of another history", lie: func(s *stage) { mix(s, evillog.Tiles) },
		state: "PB204", proof: "verified", proxy: "served, warned", monitor: "held, tampering/tiles", witness: "200"},
	{name: "stale mix: new checkpoint, bundles of another history", lie: func(s *stage) { mix(s, evillog.Bundles) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "held, tampering/tiles", witness: "200"},
	{name: "stale mix: new checkpoint, old tiles", lie: func(s *stage) { s.log.KeepTiles(); s.log.Append(keys().leaves[:300]...) },
		state: "PB304", proof: "verified", proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "rollback, signed again", lie: func(s *stage) { s.log.Rollback(200) },
		state: "PB203", proof: "verified", proxy: "PB203", monitor: "held, tampering/rollback", witness: "409"},
	{name: "rollback, honest witnesses", honest: true, lie: func(s *stage) { s.log.Rollback(200) },
		state: "PB203", proof: "PB106", proxy: "PB203", monitor: "held, tampering/rollback", witness: "409"},
	{name: "rollback, an old checkpoint again", lie: func(s *stage) { s.log.Replay(noteAt(s, 200)) },
		state: "PB203", proof: "verified", proxy: "PB203", monitor: "held, tampering/rollback", witness: "409"},
	{name: "rollback, restored from a backup", lie: func(s *stage) { s.log.Restore(200) },
		state: "PB203", proof: "verified", proxy: "PB203", monitor: "held, tampering/rollback", witness: "409"},
	{name: "rollback to size 0", lie: func(s *stage) { s.log.Rollback(0) },
		state: "PB203", proof: "PB107", proxy: "PB203", monitor: "held, tampering/rollback", witness: "409"},
	// A witness may cosign the same tree again; it says nothing new.
	{name: "freeze", lie: func(s *stage) { s.log.Replay(s.first); s.clock.Add(8 * 24 * time.Hour) },
		state: "kept, stale", proof: "verified", proxy: "served, warned", monitor: "held, infrastructure/silent", witness: "200"},
	// One liar cannot make an old checkpoint look new: freshness is the quorum's.
	{name: "freeze, one witness signs it again and again", lie: func(s *stage) { s.clock.Add(8 * 24 * time.Hour); s.log.Replay(dateAgain(s, s.first, 0)) },
		state: "kept, stale", proof: "verified", proxy: "served, warned", monitor: "held, infrastructure/silent", witness: "200"},
	{name: "future time, ten years", lie: func(s *stage) { s.log.FutureTime(10 * 365 * 24 * time.Hour) },
		state: "accepted, clock differs", proof: "verified", proxy: "served, warned", monitor: "indexed, infrastructure/clock", witness: "200"},
	{name: "future time, one witness of three", lie: func(s *stage) { s.log.FutureTime(10*365*24*time.Hour, 1) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "cosignature time 0", lie: func(s *stage) { s.log.CosignTime(0, 1) },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "200"},
	{name: "cosignature time 2^63", lie: func(s *stage) { s.log.CosignTime(1<<63, 1) },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "200"},
	// Whoever sees a log for the first time believes it, if the quorum does.
	{name: "a fork, to a newcomer", fresh: true, lie: func(s *stage) { s.log.Fork(3, s.evil(3, known)...) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "a fork, to a newcomer, honest witnesses", honest: true, fresh: true, lie: func(s *stage) { s.log.Fork(3, s.evil(3, known)...) },
		state: "PB306, no history", proof: "PB106", proxy: "PB106", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "a rollback, to a newcomer", fresh: true, lie: func(s *stage) { s.log.Rollback(200) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed, infrastructure/silent later", witness: "200"},
	{name: "root of another tree, to a newcomer", fresh: true, lie: func(s *stage) { s.log.WriteRoot("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=") },
		state: "accepted", proof: "PB107", proxy: "PB107", monitor: "held, tampering/tiles", witness: "200"},
	// Nothing to compare with, so no tile is read; the monitor rehashes all leaves.
	{name: "tiles of garbage, to a newcomer", fresh: true, lie: func(s *stage) { s.log.GarbageTiles() },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "size 0 with a root, to a newcomer", fresh: true, lie: func(s *stage) { s.log.WriteSize("0") },
		state: "PB303, no history", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "422"},
	{name: "bad signature on the head, a good proof beside the file", lie: func(s *stage) { good := s.proof(); s.proof = func() []byte { return good }; s.log.BadSignature(0) },
		state: "PB205", proof: "verified", proxy: "served, warned", monitor: "held, tampering/head-signature", witness: "403"},
	// One proof cannot show that there is another entry: this is the monitors' part.
	{name: "second digest for one file", lie: func(s *stage) { s.content, s.index = evilContent, s.log.Upload(upload(evilContent)) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed, tampering/second-digest", witness: "200"},
	{name: "second digest for one file, the first handed out", lie: func(s *stage) { s.log.Upload(upload(evilContent)) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed, tampering/second-digest", witness: "200"},

	// The checkpoint's text, signed as it stands.

	{name: "size with a leading zero", lie: func(s *stage) { s.log.WriteSize("0310") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size 07", lie: func(s *stage) { s.log.WriteSize("07") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size 00", lie: func(s *stage) { s.log.WriteSize("00") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size 2^63", lie: func(s *stage) { s.log.WriteSize("9223372036854775808") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size 2^64+310", lie: func(s *stage) { s.log.WriteSize("18446744073709551926") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size -1", lie: func(s *stage) { s.log.WriteSize("-1") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size +310", lie: func(s *stage) { s.log.WriteSize("+310") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size in hex", lie: func(s *stage) { s.log.WriteSize("0x136") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size with a space", lie: func(s *stage) { s.log.WriteSize("310 ") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size empty", lie: func(s *stage) { s.log.WriteSize("") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "size in other digits", lie: func(s *stage) { s.log.WriteSize("\u0663\u0661\u0660") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	// A Merkle root does not bind the size where the shape above the leaf is the
	// same; who reads tiles or leaves sees it.
	{name: "size one too large", lie: func(s *stage) { s.log.WriteSize("311") },
		state: "PB304", proof: "verified", proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "size one too small", lie: func(s *stage) { s.log.WriteSize("309") },
		state: "PB204", proof: "verified", proxy: "served, warned", monitor: "held, tampering/tiles", witness: "200"},
	{name: "size 2^62", lie: func(s *stage) { s.log.WriteSize("4611686018427387904") },
		state: "PB304", proof: "PB107", proxy: "PB107", monitor: "held, infrastructure/silent later", witness: "422"},
	{name: "size 0 with a root", lie: func(s *stage) { s.log.WriteSize("0") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "root of 0 bytes", lie: func(s *stage) { s.log.CutRoot(0) },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "root of 31 bytes", lie: func(s *stage) { s.log.CutRoot(31) },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "root of 33 bytes", lie: func(s *stage) { s.log.CutRoot(33) },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "root in loose base64", lie: func(s *stage) { s.log.LooseRoot() },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "root in hex", lie: func(s *stage) { s.log.WriteRoot(strings.Repeat("a5", 32)) },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "root of another tree", lie: func(s *stage) { s.log.WriteRoot("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=") },
		state: "PB204", proof: "PB107", proxy: "PB107", monitor: "held, tampering/tiles", witness: "422"},
	{name: "root line missing", lie: func(s *stage) {
		s.log.WriteText(func(t string) string { return t[:strings.LastIndexByte(t[:len(t)-1], '\n')+1] })
	},
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "origin empty", lie: func(s *stage) { s.log.WriteOrigin("") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "origin of an unknown log", lie: func(s *stage) { s.log.WriteOrigin("log.test/nobody") },
		state: "PB305", proof: "PB103", proxy: "PB103", monitor: "held, infrastructure/silent later", witness: "404"},
	{name: "origin with a space behind", lie: func(s *stage) { s.log.WriteOrigin(origin + " ") },
		state: "PB305", proof: "PB103", proxy: "PB103", monitor: "held, infrastructure/silent later", witness: "404"},
	{name: "origin in other case", lie: func(s *stage) { s.log.WriteOrigin("Log.test/evil") },
		state: "PB305", proof: "PB103", proxy: "PB103", monitor: "held, infrastructure/silent later", witness: "404"},
	{name: "origin of another log of the policy", lie: func(s *stage) { s.log.WriteOrigin("log.test/second") },
		state: "PB205", proof: "PB104", proxy: "PB104", monitor: "held, tampering/head-signature", witness: "404"},
	{name: "CRLF", lie: func(s *stage) { s.log.CRLF() },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "not UTF-8", lie: func(s *stage) { s.log.Extend("\xff\xfe") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "control character", lie: func(s *stage) { s.log.Extend("\x1b[2Jverified") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "NUL", lie: func(s *stage) { s.log.Extend("\x00") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	// Extension lines are legal: ignored, no credit.
	{name: "extension line", lie: func(s *stage) { s.log.Extend("an extension", "and another") },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "extension line that looks like a signature", lie: func(s *stage) {
		s.log.Cosigned(0)
		s.log.Extend(keys().witnesses[1].Key().String(), "\u2014 witness2.test AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	},
		state: "PB306", proof: "PB106", proxy: "PB106", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "empty extension line", lie: func(s *stage) { s.log.Extend("", "after an empty line") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "2 MiB of extension lines", heavy: true, lie: func(s *stage) { s.log.Extend(strings.Repeat(strings.Repeat("x", 1023)+"\n", 2<<10) + "end") },
		state: "PB302", proof: "PB101", proxy: "PB352", monitor: "held, infrastructure/silent later", witness: "413"},

	// The checkpoint's signatures.

	{name: "bad log signature", lie: func(s *stage) { s.log.BadSignature(0) },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "403"},
	{name: "bad log signature beside the good one", lie: func(s *stage) { s.log.BadBesideGood() },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "403"},
	{name: "bad cosignature beside a good quorum", lie: func(s *stage) { s.log.BadSignature(3) },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "200"},
	{name: "short log signature", lie: func(s *stage) { s.log.ShortSignature(63) },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "403"},
	{name: "signature of no bytes", lie: func(s *stage) { s.log.ShortSignature(0) },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "no log signature", lie: func(s *stage) { s.log.NoLogSignature() },
		state: "PB205", proof: "PB104", proxy: "PB104", monitor: "held, tampering/head-signature", witness: "403"},
	{name: "log signature twice", lie: func(s *stage) { s.log.Repeat(0, 1) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "below the quorum", lie: func(s *stage) { s.log.Cosigned(0) },
		state: "PB306", proof: "PB106", proxy: "PB106", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "no cosignature", lie: func(s *stage) { s.log.Cosigned() },
		state: "PB306", proof: "PB106", proxy: "PB106", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "one cosignature three times", lie: func(s *stage) { s.log.Cosigned(0); s.log.Repeat(1, 2) },
		state: "PB306", proof: "PB106", proxy: "PB106", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "cosignature relabelled as another witness", lie: func(s *stage) { s.log.Cosigned(0); s.log.Relabel(keys().witnesses[1].Key()) },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "200"},
	{name: "cosignature relabelled as a stranger", lie: func(s *stage) { s.log.Cosigned(0); s.log.RelabelAs("witness2.test", 1) },
		state: "PB306", proof: "PB106", proxy: "PB106", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "a cosignature under the log's name and key ID", lie: func(s *stage) { s.log.Cosigned(0); s.log.CosignedBy(keys().log) },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "403"},
	{name: "colliding key ID", lie: func(s *stage) { collide(s) },
		state: "PB205", proof: "PB105", proxy: "PB105", monitor: "held, tampering/head-signature", witness: "403"},
	{name: "the log's name, another key", lie: func(s *stage) { s.log.NoLogSignature(); s.log.SignedBy(stranger(origin)) },
		state: "PB205", proof: "PB104", proxy: "PB104", monitor: "held, tampering/head-signature", witness: "403"},
	{name: "the log's name, another key, beside the good one", lie: func(s *stage) { s.log.SignedBy(stranger(origin)) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "the log's key ID, another name", lie: func(s *stage) { s.log.RelabelAs("log.test/other", keys().log.Key().ID()) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "another log of the policy signs in its place", lie: func(s *stage) { s.log.NoLogSignature(); s.log.SignedBy(keys().second) },
		state: "PB205", proof: "PB104", proxy: "PB104", monitor: "held, tampering/head-signature", witness: "403"},
	// A signature by a known key that is not the origin's: valid, and no credit.
	{name: "another log of the policy signs too", lie: func(s *stage) { s.log.SignedBy(keys().second) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "a witness's name, another key, for a quorum", lie: func(s *stage) { s.log.Cosigned(0); s.log.CosignedBy(cosigner("witness2.test")) },
		state: "PB306", proof: "PB106", proxy: "PB106", monitor: "held, infrastructure/silent later", witness: "200"},
	{name: "unknown cosigners for a quorum", lie: func(s *stage) { s.log.Cosigned(0); s.log.Strangers(60, 72) },
		state: "PB306", proof: "PB106", proxy: "PB106", monitor: "held, infrastructure/silent later", witness: "200"},
	// Unknown lines are legal: ignored, no credit.
	{name: "unknown extra signature", lie: func(s *stage) { s.log.Strangers(5, 72) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "unknown extra ML-DSA signatures", heavy: true, lie: func(s *stage) { s.log.Strangers(40, 2428) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "100 signatures", lie: func(s *stage) { s.log.Strangers(100, 72) },
		state: "accepted", proof: "verified", proxy: "served", monitor: "indexed", witness: "200"},
	{name: "101 signatures", lie: func(s *stage) { s.log.Strangers(101, 72) },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "1000 signatures", heavy: true, lie: func(s *stage) { s.log.Strangers(1000, 16) },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "2 MiB note", heavy: true, lie: func(s *stage) { s.log.Strangers(90, 18<<10) },
		state: "PB302", proof: "PB101", proxy: "PB352", monitor: "held, infrastructure/silent later", witness: "413"},
	{name: "no final newline", lie: func(s *stage) { s.log.NoFinalNewline() },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "no empty line before the signatures", lie: func(s *stage) { s.log.NoSeparator() },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "hyphens for dashes", lie: func(s *stage) { s.log.Hyphens() },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "a line after the signatures", lie: func(s *stage) { s.log.AppendLine("trust me") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "signature line with a third word", lie: func(s *stage) { s.log.AppendLine("\u2014 stranger.test AAAAAAAAAAAA more") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "signature line in loose base64", lie: func(s *stage) { s.log.AppendLine("\u2014 stranger.test AAAAAAAAAB==") },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},
	{name: "nothing", lie: func(s *stage) { s.log.Bytes(func([]byte) []byte { return []byte{} }) },
		state: "PB303", proof: "PB101", proxy: "PB101", monitor: "held, infrastructure/silent later", witness: "400"},

	// The proof it hands out.

	{name: "proof with the leaf of another file", lie: func(s *stage) { s.log.ProveLeaf(s.log.Leaf(8)) },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	{name: "proof with a leaf that is in no tree", lie: func(s *stage) { s.content = evilContent; s.log.ProveLeaf(marshal(upload(evilContent))) },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	// The log itself has the right one, and the proxy asks it.
	{name: "proof of another file", lie: func(s *stage) { s.index = 8 },
		state: noProof, proof: "PB113", proxy: "served", monitor: noProof, witness: noProof},
	{name: "proof for another index", lie: func(s *stage) { s.log.ProveIndex(8) },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	{name: "proof for an index past the end", lie: func(s *stage) { s.log.ProveIndex(grown) },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	{name: "proof for index 2^63", lie: func(s *stage) { s.log.ReplaceInProof("\nindex 7\n", "\nindex 9223372036854775808\n") },
		state: noProof, proof: "PB101", proxy: "PB101", monitor: noProof, witness: noProof},
	{name: "proof for index 07", lie: func(s *stage) { s.log.ReplaceInProof("\nindex 7\n", "\nindex 07\n") },
		state: noProof, proof: "PB101", proxy: "PB101", monitor: noProof, witness: noProof},
	{name: "proof with a hash too few", lie: func(s *stage) { s.log.ProveHashes(8) },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	{name: "proof with a hash too many", lie: func(s *stage) { s.log.ProveHashes(10) },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	{name: "proof without hashes", lie: func(s *stage) { s.log.ProveHashes(0) },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	{name: "proof with 64 hashes", lie: func(s *stage) { s.log.ProveHashes(64) },
		state: noProof, proof: "PB101", proxy: "PB101", monitor: noProof, witness: noProof},
	{name: "proof with a garbage hash", lie: func(s *stage) { s.log.ProveGarbage() },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	{name: "proof with a hash of 31 bytes", lie: func(s *stage) { s.log.ProofBytes(cutHash) },
		state: noProof, proof: "PB101", proxy: "PB101", monitor: noProof, witness: noProof},
	{name: "proof under another tree's checkpoint", lie: func(s *stage) { s.log.ProveUnder(s.first) },
		state: noProof, proof: "PB107", proxy: "PB107", monitor: noProof, witness: noProof},
	// The log's own answer brings the leaf.
	{name: "proof without a leaf", lie: func(s *stage) { s.log.AlterProof(func(p *c2sp.Proof) { p.Extra = nil }) },
		state: noProof, proof: "PB102", proxy: "served", monitor: noProof, witness: noProof},
	{name: "proof with an endless leaf", lie: func(s *stage) { s.log.AlterProof(func(p *c2sp.Proof) { p.Extra = bytes.Repeat([]byte("x"), 5000) }) },
		state: noProof, proof: "PB102", proxy: "PB102", monitor: noProof, witness: noProof},
	{name: "proof of another version", lie: func(s *stage) { s.log.ReplaceInProof("tlog-proof@v1", "tlog-proof@v2") },
		state: noProof, proof: "PB101", proxy: "PB101", monitor: noProof, witness: noProof},
	{name: "proof with CRLF", lie: func(s *stage) {
		s.log.ProofBytes(func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) })
	},
		state: noProof, proof: "PB101", proxy: "PB101", monitor: noProof, witness: noProof},
	{name: "proof of 2 MiB", heavy: true, lie: func(s *stage) {
		s.log.ProofBytes(func(b []byte) []byte { return append(b, bytes.Repeat([]byte("x"), 2<<20)...) })
	},
		state: noProof, proof: "PB101", proxy: "PB352", monitor: noProof, witness: noProof},
	{name: "proof cut off", lie: func(s *stage) { s.log.ProofBytes(func(b []byte) []byte { return b[:len(b)/2] }) },
		state: noProof, proof: "PB101", proxy: "PB101", monitor: noProof, witness: noProof},
	{name: "proof of nothing", lie: func(s *stage) { s.log.ProofBytes(func([]byte) []byte { return []byte{} }) },
		state: noProof, proof: "PB101", proxy: "PB101", monitor: noProof, witness: noProof},
	{name: "proof of a file in another registry", lie: func(s *stage) { s.offer(func(e *entry.Entry) { e.Registry = "other.test/simple" }) },
		state: noProof, proof: "PB111", proxy: "PB111", monitor: noProof, witness: noProof},
	{name: "proof of a file in another ecosystem", lie: func(s *stage) { s.offer(func(e *entry.Entry) { e.Ecosystem = entry.Generic }) },
		state: noProof, proof: "PB112", proxy: "PB112", monitor: noProof, witness: noProof},
	{name: "proof of a file of another project", lie: func(s *stage) { s.offer(func(e *entry.Entry) { e.Project = "demo-2" }) },
		state: noProof, proof: "PB113", proxy: "PB113", monitor: noProof, witness: noProof},
	{name: "proof of another file of the project", lie: func(s *stage) { s.offer(func(e *entry.Entry) { e.Version, e.File = "1.1", "demo-1.1.tar.gz" }) },
		state: noProof, proof: "PB114", proxy: "PB114", monitor: noProof, witness: noProof},
	{name: "proof of other contents", lie: func(s *stage) { s.content = evilContent },
		state: noProof, proof: "PB115", proxy: "PB115", monitor: noProof, witness: noProof},
	{name: "proof of a removal", lie: func(s *stage) {
		s.offer(func(e *entry.Entry) { e.Kind, e.ID, e.Size = entry.KindRemove, strings.Repeat("0f", 16), nil })
	},
		state: noProof, proof: "PB110", proxy: "PB110", monitor: noProof, witness: noProof},
	{name: "leaf of an unknown version", lie: func(s *stage) { s.offerLeaf(`{"kind":"upload","new":"field","v":2}`) },
		state: "accepted", proof: "PB109", proxy: "PB109", monitor: "indexed, infrastructure/unreadable", witness: "200"},
	{name: "leaf that cannot be parsed", lie: func(s *stage) { s.offerLeaf("\x1b[2J<script>alert(1)</script>") },
		state: "accepted", proof: "PB108", proxy: "PB108", monitor: "indexed, infrastructure/unreadable", witness: "200"},
	{name: "leaf with a control character in a field", lie: func(s *stage) {
		s.offerLeaf(strings.Replace(string(marshal(upload(evilContent))), "demo-1.0", "demo-\x1b[31m1.0", 1))
	},
		state: "accepted", proof: "PB108", proxy: "PB108", monitor: "indexed, infrastructure/unreadable", witness: "200"},
	{name: "leaf with a path for a file name", lie: func(s *stage) {
		s.offerLeaf(strings.Replace(string(marshal(upload(evilContent))), "demo-1.0", "../../demo-1.0", 1))
	},
		state: "accepted", proof: "PB108", proxy: "PB108", monitor: "indexed, infrastructure/unreadable", witness: "200"},
	{name: "leaf of 5000 bytes", lie: func(s *stage) { s.offerLeaf(strings.Repeat("x", 5000)) },
		state: "accepted", proof: "PB102", proxy: "PB102", monitor: "indexed, infrastructure/unreadable", witness: "200"},
	{name: "leaf of 65535 bytes", heavy: true, lie: func(s *stage) { s.offerLeaf(strings.Repeat("x", 65535)) },
		state: "accepted", proof: "PB102", proxy: "PB102", monitor: "indexed, infrastructure/unreadable", witness: "200"},
	{name: "leaf in another encoding", lie: func(s *stage) { s.offerLeaf(string(marshal(upload(evilContent))) + "\n") },
		state: "accepted", proof: "PB108", proxy: "PB108", monitor: "indexed, infrastructure/unreadable", witness: "200"},
	{name: "empty leaf", lie: func(s *stage) { s.offerLeaf("") },
		state: "accepted", proof: "PB102", proxy: "PB102", monitor: "indexed, infrastructure/unreadable", witness: "200"},

	// The log's answer to a request for proofs.

	{name: "proof from the log", lie: func(s *stage) { s.beside = false },
		state: noRequest, proof: noRequest, proxy: "served", monitor: noRequest, witness: noRequest},
	{name: "no proof anywhere", lie: func(s *stage) { s.beside = false; s.log.Status(evillog.Proofs, 404) },
		state: noRequest, proof: noRequest, proxy: "PB117", monitor: noRequest, witness: noRequest},
	{name: "proof request: 500", lie: func(s *stage) { s.beside = false; s.log.Status(evillog.Proofs, 500) },
		state: noRequest, proof: noRequest, proxy: "PB302", monitor: noRequest, witness: noRequest},
	{name: "proof request: redirect", lie: func(s *stage) { s.beside = false; s.log.Redirect(evillog.Proofs) },
		state: noRequest, proof: noRequest, proxy: "PB302", monitor: noRequest, witness: noRequest},
	{name: "proof request: Retry-After ten years", lie: func(s *stage) { s.beside = false; s.log.RetryAfter(evillog.Proofs, 503, tenYears) },
		state: noRequest, proof: noRequest, proxy: "PB302", monitor: noRequest, witness: noRequest},
	{name: "proof request: HTML", lie: func(s *stage) { s.beside = false; s.log.HTML(evillog.Proofs) },
		state: noRequest, proof: noRequest, proxy: "PB302", monitor: noRequest, witness: noRequest},
	{name: "proof request: endless", heavy: true, lie: func(s *stage) { s.beside = false; s.log.Endless(evillog.Proofs) },
		state: noRequest, proof: noRequest, proxy: "PB302", monitor: noRequest, witness: noRequest},
	{name: "proof request: trickles", lie: func(s *stage) { s.beside = false; s.log.Trickle(evillog.Proofs) },
		state: noRequest, proof: noRequest, proxy: "PB302", monitor: noRequest, witness: noRequest},
	{name: "proof request: hangs", lie: func(s *stage) { s.beside = false; s.log.Hang(evillog.Proofs) },
		state: noRequest, proof: noRequest, proxy: "PB301", monitor: noRequest, witness: noRequest},
	{name: "proof request: gzip bomb", heavy: true, lie: func(s *stage) { s.beside = false; s.log.GzipBomb(evillog.Proofs) },
		state: noRequest, proof: noRequest, proxy: "PB302", monitor: noRequest, witness: noRequest},
	{name: "proof request: broken off", lie: func(s *stage) { s.beside = false; s.log.BreakOff(evillog.Proofs) },
		state: noRequest, proof: noRequest, proxy: "PB301", monitor: noRequest, witness: noRequest},
	{name: "proof request: a proof of another file", lie: func(s *stage) { s.beside = false; s.log.Replace(evillog.Proofs, otherProof(s)) },
		state: noRequest, proof: noRequest, proxy: "PB113", monitor: noRequest, witness: noRequest},
	{name: "proof request: garbage for a proof", lie: func(s *stage) {
		s.beside = false
		s.log.Replace(evillog.Proofs, []byte(`{"proofs":[{"index":"7","leaf":"AAAA","proof":"AAAA"}]}`))
	},
		state: noRequest, proof: noRequest, proxy: "PB302", monitor: noRequest, witness: noRequest},
	{name: "proof trickles, beside and from the log", lie: func(s *stage) { s.trickle = true; s.log.Trickle(evillog.Proofs) },
		state: noRequest, proof: noRequest, proxy: "PB351", monitor: noRequest, witness: noRequest},

	// Requests to cosign.

	{name: "old size too small", lie: func(s *stage) { s.log.ClaimOld(299) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "409"},
	{name: "old size too large", lie: func(s *stage) { s.log.ClaimOld(grown) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "409"},
	{name: "old size above the size", lie: func(s *stage) { s.log.ClaimOld(311) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "400"},
	{name: "old size 0", lie: func(s *stage) { s.log.ClaimOld(0) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "409"},
	{name: "first request with a proof", fresh: true, lie: func(s *stage) { s.log.RequestHashes(3) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "422"},
	{name: "consistency proof empty", lie: func(s *stage) { s.log.RequestHashes(0) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "422"},
	{name: "consistency proof with a hash too many", lie: func(s *stage) { s.log.RequestHashes(20) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "422"},
	{name: "consistency proof of 63 garbage hashes", lie: func(s *stage) {
		s.log.AlterRequest(func(a *c2sp.AddCheckpoint) { a.Proof = nil })
		s.log.RequestHashes(63)
	},
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "422"},
	{name: "consistency proof of 64 hashes", lie: func(s *stage) { s.log.RequestHashes(64) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "400"},
	{name: "consistency proof of 100000 hashes", heavy: true, lie: func(s *stage) { s.log.RequestHashes(100000) },
		state: toWitness, proof: toWitness, proxy: toWitness, monitor: toWitness, witness: "413"},

	// Tiles of hashes.

	{name: "tile short by a byte", lie: func(s *stage) { s.log.TileLength(-1) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile long by a byte", lie: func(s *stage) { s.log.TileLength(1) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile of 300 hashes", lie: func(s *stage) { s.log.TileLength(32 * 300) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile empty", lie: func(s *stage) { s.log.TileLength(-8192) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile of garbage", lie: func(s *stage) { s.log.GarbageTiles() },
		state: "PB204", proof: offline, proxy: "served, warned", monitor: "held, tampering/tiles", witness: passive},
	{name: "tile with one flipped bit", lie: func(s *stage) { s.log.OneBit() },
		state: "PB204", proof: offline, proxy: "served, warned", monitor: "held, tampering/tiles", witness: passive},
	{name: "full tile for a partial one", lie: func(s *stage) { s.log.FullForPartial() },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	// Legal: c2sp.org/tlog-tiles, "Partial Tiles".
	{name: "partial tiles gone, the full ones there", lie: func(s *stage) { s.log.ShowTiles(grown, more(300)...); s.log.NoPartials() },
		state: "accepted", proof: offline, proxy: "served", monitor: "indexed", witness: passive},
	{name: "partial tiles gone, the full ones of another tree", lie: func(s *stage) { s.log.ShowTiles(305, more(300)...); s.log.NoPartials() },
		state: "PB204", proof: offline, proxy: "served, warned", monitor: "held, tampering/tiles", witness: passive},
	{name: "tile missing", lie: func(s *stage) { s.log.Status(evillog.Tiles, 404) },
		state: "PB304", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: 500", lie: func(s *stage) { s.log.Status(evillog.Tiles, 500) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: redirect", lie: func(s *stage) { s.log.Redirect(evillog.Tiles) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: Retry-After ten years", lie: func(s *stage) { s.log.RetryAfter(evillog.Tiles, 429, tenYears) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: HTML", lie: func(s *stage) { s.log.HTML(evillog.Tiles) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: endless", heavy: true, lie: func(s *stage) { s.log.Endless(evillog.Tiles) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: trickles", lie: func(s *stage) { s.log.Trickle(evillog.Tiles) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: gzip bomb", heavy: true, lie: func(s *stage) { s.log.GzipBomb(evillog.Tiles) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: broken off", lie: func(s *stage) { s.log.BreakOff(evillog.Tiles) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "tile: gzip", lie: func(s *stage) { s.log.Gzip(evillog.Tiles) },
		state: "accepted", proof: offline, proxy: "served", monitor: "indexed", witness: passive},

	// Bundles of entries.

	{name: "wrong leaf in a bundle", lie: func(s *stage) { s.log.WrongLeaf(305, marshal(filler("other", 1))) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, tampering/tiles", witness: noEntries},
	// The monitor has recorded that leaf already and does not read it again.
	{name: "old leaf rewritten in a bundle", lie: func(s *stage) { s.log.WrongLeaf(258, marshal(filler("other", 1))) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "indexed", witness: noEntries},
	{name: "two leaves swapped", lie: func(s *stage) { s.log.SwapLeaves(303, 304) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, tampering/tiles", witness: noEntries},
	{name: "leftover entry in a bundle", lie: func(s *stage) { s.log.MoreEntries(1) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle short of an entry", lie: func(s *stage) { s.log.MoreEntries(-1) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle of 1001 entries", lie: func(s *stage) { s.log.Entries(1001) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle of 256 entries for a partial one", lie: func(s *stage) { s.log.Entries(256) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle with a length past its end", lie: func(s *stage) { s.log.LongEntry() },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle empty", lie: func(s *stage) { s.log.Entries(0) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle of garbage", lie: func(s *stage) { s.log.Replace(evillog.Bundles, bytes.Repeat([]byte("garbage"), 1000)) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle missing", lie: func(s *stage) { s.log.Status(evillog.Bundles, 404) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle: redirect", lie: func(s *stage) { s.log.Redirect(evillog.Bundles) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle: HTML", lie: func(s *stage) { s.log.HTML(evillog.Bundles) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle: endless", heavy: true, lie: func(s *stage) { s.log.Endless(evillog.Bundles) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle: trickles", lie: func(s *stage) { s.log.Trickle(evillog.Bundles) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle: gzip bomb", heavy: true, lie: func(s *stage) { s.log.GzipBomb(evillog.Bundles) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle: broken off", lie: func(s *stage) { s.log.BreakOff(evillog.Bundles) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "held, infrastructure/backlog later", witness: noEntries},
	{name: "bundle: gzip", lie: func(s *stage) { s.log.Gzip(evillog.Bundles) },
		state: noEntries, proof: noEntries, proxy: noEntries, monitor: "indexed", witness: noEntries},

	// The checkpoint over HTTP.

	{name: "checkpoint missing", lie: func(s *stage) { s.log.Status(evillog.Checkpoint, 404) },
		state: "PB304", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: 500", lie: func(s *stage) { s.log.Status(evillog.Checkpoint, 500) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: 204", lie: func(s *stage) {
		s.log.Answer(evillog.Checkpoint, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	},
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: redirect", lie: func(s *stage) { s.log.Redirect(evillog.Checkpoint) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: 503, Retry-After ten years", lie: func(s *stage) { s.log.RetryAfter(evillog.Checkpoint, 503, tenYears) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: 429, Retry-After ten years", lie: func(s *stage) { s.log.RetryAfter(evillog.Checkpoint, 429, tenYears) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: HTML", lie: func(s *stage) { s.log.HTML(evillog.Checkpoint) },
		state: "PB303", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: endless", heavy: true, lie: func(s *stage) { s.log.Endless(evillog.Checkpoint) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: trickles", lie: func(s *stage) { s.log.Trickle(evillog.Checkpoint) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: hangs", lie: func(s *stage) { s.log.Hang(evillog.Checkpoint) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: dropped", lie: func(s *stage) { s.log.Drop(evillog.Checkpoint) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: broken off", lie: func(s *stage) { s.log.BreakOff(evillog.Checkpoint) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: gzip bomb", heavy: true, lie: func(s *stage) { s.log.GzipBomb(evillog.Checkpoint) },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: gzip", lie: func(s *stage) { s.log.Gzip(evillog.Checkpoint) },
		state: "accepted", proof: offline, proxy: "served", monitor: "indexed", witness: passive},
	{name: "checkpoint: unknown encoding", lie: func(s *stage) { s.log.Encoding(evillog.Checkpoint, "br") },
		state: "PB302", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: gzip that is none", lie: func(s *stage) { s.log.Encoding(evillog.Checkpoint, "gzip") },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint: 4 MiB of headers", heavy: true, lie: func(s *stage) { s.log.HugeHeader(evillog.Checkpoint) },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint of an honest other log", lie: func(s *stage) { s.log.Replace(evillog.Checkpoint, otherLog(s, stranger("log.test/nobody"))) },
		state: "PB305", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "checkpoint of another log of the policy", lie: func(s *stage) { s.log.Replace(evillog.Checkpoint, otherLog(s, keys().second)) },
		state: "kept", proof: offline, proxy: "served", monitor: "held, infrastructure/silent later", witness: passive},
	{name: "the log is gone", lie: func(s *stage) { s.srv.Close() },
		state: "PB301", proof: offline, proxy: "served, warned", monitor: "held, infrastructure/silent later", witness: passive},
}
