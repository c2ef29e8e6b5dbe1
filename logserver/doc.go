// Package logserver is a Portbook log: it takes entries from package indexes,
// decides uniqueness, sequences them, and publishes cosigned checkpoints and
// the tiles they cover.
//
//	index ── Submit ─▶ admit (who, how much) ─▶ reserve the slot, durably ─▶
//	driver: sequence, integrate, tiles ─▶ publisher: guard ─▶ anchor ─▶ sign ─▶
//	cosign by policy ─▶ public checkpoint ─▶ index + proof to everyone waiting
//
// An acknowledgement is an index and a proof against a published checkpoint
// that satisfies the log's publish policy; there is no lesser one.
//
// The package knows tessera.Driver and nothing below it but the directory
// layout of c2sp.org/tlog-tiles. Two things are true: the log's storage, and
// the anchor. The index directory follows from the storage and can be deleted.
package logserver
