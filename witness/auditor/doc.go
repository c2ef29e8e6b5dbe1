// Package auditor is a witness that also reads: an auditing mirror of Portbook
// logs. It keeps a full copy of a log, rehashes every leaf, reads every entry,
// and cosigns, with a name and key of its own, only what it has stored durably
// and checked. Its wire and its statement are those of c2sp.org/tlog-mirror.
//
//	pull: checkpoint ─┐                     ┌─ bundles and tiles of the log
//	push: add-checkpoint ─▶ pending         push: add-entries
//	                        checkpoint ─▶ package: proven part of it ─▶ on disk
//	                        ─▶ grammar, uniqueness ─▶ next entry
//	          … all of it:  ─▶ tiles ─▶ root = the signed one ─▶ cosign ─▶ serve
//
// Pull and push are one path: following a log is being one's own client. A
// pending checkpoint is only ever replaced by one that is proven to contain it,
// so all that is stored belongs to one history, whoever sent it.
//
// What it says with a cosignature: the log signed this tree; I hold every entry
// of it, and give it to whoever asks; each one keeps the grammar that binds every
// version of the format; no file name was given a second content against the
// registry's logged policy; nothing was logged after the leaf that ends the log.
// What breaks a rule is kept and published as a finding, and from there on
// nothing of that log is cosigned any more.
//
// Who can change what:
//
//	auditor.db, keys, mark   package witness: what was cosigned, and for whom
//	mirror/<origin hash>/    tiles and bundles; who changes them can make the
//	                         mirror serve wrong bytes, which readers see, and
//	                         not cosign them: the root is computed from the files
//	audit.db                 pending checkpoints, which names are taken, findings;
//	                         made anew from the mirror if it is deleted
package auditor
