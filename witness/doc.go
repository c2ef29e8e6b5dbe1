// Package witness is a strict c2sp.org/tlog-witness server: it cosigns the
// checkpoints of the logs it knows, each only if it is proven to contain the
// one cosigned before.
//
// A request walks one way, and nothing is skipped:
//
//	body ─ bound ─ whole grammar (400) ─ origin known? (404) ─ log signatures (403)
//	     ─ old ≤ size (400) ─ old = our size (409) ─ root, proof (422) ─ clock (503)
//	     ─ sign a re-encoding ─ compare-and-swap, durable ─ answer (200)
//
// [Witness] decides, [Store] remembers, [Dir] is where both live on disk. The
// package knows no log entry and no leaf: a witness cannot care about content.
//
// A request that the log signed and that contradicts what was cosigned before is
// kept and published (evidence.go); a witness ends by [Store.Retire].
//
// Specifications: c2sp.org/tlog-witness (add-checkpoint, sign-subtree and the
// monitor retrieval mechanism), c2sp.org/tlog-cosignature.
package witness
