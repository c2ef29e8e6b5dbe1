// Package monitor watches a log for the people whose projects are in it.
//
//	checkpoint      signed by the log, the policy's quorum, fresh
//	   ▶ consistent with the last one accepted, by a proof from tiles      else: tampering
//	bundles         fetched in parallel, bounded            position "fetched", in memory only
//	   ▶ every leaf rehashed into a compact range
//	   ▶ root of the range proven a prefix of the checkpoint                else: tampering
//	verified        only now is anything concluded from a leaf
//	   ▶ entry.Parse                                       unreadable: an alert, and on
//	   ▶ ONE transaction { rows, cursor, owed alerts }     position "verified", in the database
//	   ▶ tlog-proofs attached to what is owed
//	   ▶ delivered, with retry ▶ sent                      package alert
//
// The cursor (size, root and compact range of what was verified) never moves
// back and never moves along a history that contradicts it. What the log did
// wrong is kept as evidence and told; the monitor then stands where it was
// until the log shows the history it showed before.
//
// Findings have three severities that are never mixed: tampering (the log or
// an index showed two truths), unexpected (an entry its maintainer did not
// announce), infrastructure (the monitor cannot see, or cannot reach somebody).
//
// Trust: who can change the database can suppress alerts; who can change the
// subscriptions file can redirect them. Neither can make the monitor accept a
// history that the log's witnesses did not cosign.
package monitor
