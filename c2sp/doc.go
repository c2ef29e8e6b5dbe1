// Package c2sp reads and writes the C2SP transparency formats that every role
// of Portbook speaks: signed notes, checkpoints, cosignatures, trust policies,
// proofs, the add-checkpoint request and tile paths.
//
// The codecs are strict. There is one encoding of each thing: what a parser
// accepts, its formatter writes back byte for byte (a policy, which has
// comments and free spacing, is the one exception). Sizes and indexes are below
// 2^63 and have no leading zeros, roots have 32 bytes, base64 is canonical (no
// line breaks inside, no set bits after the end), a note has at most 100
// signatures and [MaxNote] bytes. This is stricter than the libraries beneath;
// the differences that matter are listed in differential_test.go.
//
// Parsing says nothing about trust. [Policy.Verify] is the one place where a
// checkpoint becomes trusted.
//
// Specifications: c2sp.org/signed-note, c2sp.org/tlog-checkpoint,
// c2sp.org/tlog-cosignature, c2sp.org/tlog-policy, c2sp.org/tlog-proof,
// c2sp.org/tlog-witness, c2sp.org/tlog-tiles.
package c2sp
