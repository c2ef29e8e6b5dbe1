// Package audit reads a whole log and says whether everything in it is so: the
// bytes, what they hash to, what was signed, and that no file name ever got a
// second content against the rules.
//
// It is a second reading of the formats, written from c2sp.org (signed-note,
// tlog-checkpoint, tlog-tiles), RFC 6962 and entry/FORMAT.md, and shares no code
// with the server: only the standard library and golang.org/x/mod (FAULTS rule
// 8, kept by internal/rules). A mistake in the server's codec is therefore not
// repeated here; the vectors in entry/testdata hold both to one reading.
//
//	history, witnesses, files ─▶ checkpoints seen ─┐
//	published checkpoint ──────────────────────────┤ sizes and roots to meet
//	anchor, engine's state (directories only) ─────┘          │
//	journal (directories only) ─▶ its entries, held against bundle i's
//	bundle i ─▶ frame ─▶ parse ─▶ hash ─┐                     ▼
//	tile 0/i ──────────────────────────┴▶ agree ─▶ tiles above ─▶ root at each size
//	entries ─▶ one record for each slot or id ─▶ 256 buckets by key (spilled to
//	disk) ─▶ sorted ─▶ replayed ─▶ uniqueness, references, digest of the index
//
// Findings have three classes. Tampering: what the log's key has signed
// contradicts itself or breaks the log's rules. Damage: storage does not give
// what was signed. Leftover: bytes that nothing needs and that harm nobody.
//
// Memory is bounded: some 2 MB for each worker, 4 bytes for each entry (which
// registry it speaks for), one segment of the journal, the records of one bucket, and at most
// Config.MaxMemory of records that are not yet on disk.
package audit
