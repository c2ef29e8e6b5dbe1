package main

// mutants, by what they take away. The test of each is the narrowest that is
// there for it; where power is cut it needs root.
var mutants = []mutant{
	// Durability of the log.
	{"fsync of the anchor and the checkpoint", "logserver/anchor.go", "f.Chmod(mode), f.Sync(), f.Close())", "f.Chmod(mode), f.Close())", "-run TestPowerCut ./logserver"},
	{"fsync of their directory", "logserver/anchor.go", "\treturn syncDir(dir)\n", "\treturn nil\n", "-run TestPowerCut ./logserver"},
	{"fsync of who logged what", "logserver/attribution.go", "return unix.Fdatasync(int(a.f.Fd()))", "_ = unix.Fdatasync\n\treturn nil", "-run TestPowerCut ./logserver"},
	{"anchor not moved", "logserver/publisher.go", "if err := p.anchor.swap(next); errors.Is", "if err := error(nil); errors.Is", "-run Guard|Restored|TestSignIsIdempotent|TestAnchor ./logserver"},
	{"a failed write of the anchor is a success", "logserver/anchor.go", "if err := writeDurably(a.path, next.bytes(), 0o600); err != nil {", "if err := writeDurably(a.path, next.bytes(), 0o600); err != nil && false {", "-run TestAnchor ./logserver"},

	// The guard.
	{"consistency with the last signed tree", "logserver/publisher.go", "c2sp.VerifyConsistency(last.size, uint64(size), proof, last.root, root); err != nil {", "c2sp.VerifyConsistency(last.size, uint64(size), proof, last.root, root); err != nil && false {", "-run TestDamagedTreeIsNotSigned|Restored|Guard ./logserver"},
	{"new leaves are not hashed", "logserver/publisher.go", "errors.Join(leavesMatchTiles(t, int64(last.size)), tiles", "errors.Join(tiles", "-run TestDamagedTreeIsNotSigned|TestGuard|TestFreeze ./logserver"},
	{"new nodes are not hashed", "logserver/publisher.go", ", tilesMatchTiles(t, int64(last.size)));", ");", "-run TestDamagedTreeIsNotSigned ./logserver"},
	{"an entry's hash is not the tile's", "logserver/tree.go", "if hash != want {", "if hash != want && false {", "-run TestDamagedNameIsNotFree ./logserver"},
	{"a moved anchor", "logserver/anchor.go", "if now != a.last && now != a.tried {", "if now != a.last && now != a.tried && false {", "-run TestGuardWhileRunning ./logserver"},
	{"a damaged anchor", "logserver/anchor.go", "if string(a.bytes()) != string(b) {", "if string(a.bytes()) != string(b) && false {", "-run TestBitFlips|TestGuardWhileRunning|TestAnchor ./logserver"},
	{"another log's anchor", "logserver/anchor.go", "if now.origin != origin {", "if now.origin != origin && false {", "-run Anchor|Guard|Restored|Start ./logserver"},
	{"the fence is not raised", "logserver/anchor.go", "\tnow.fence++\n", "", "-run TestOneWriter|TestGuard|TestAnchor|TestPausedPublisher ./logserver"},
	{"storage behind the anchor", "logserver/log.go", "if least := l.anchor.known().size; size < least {", "if least := l.anchor.known().size; size+1 < least {", "-run Restored|TestRestored ./logserver"},
	{"a checkpoint ahead of the anchor", "logserver/log.go", "if was.Size > l.anchor.known().size {", "if was.Size > l.anchor.known().size+1<<40 {", "-run Restored|Anchor|Start ./logserver"},
	{"an anchor on the log's file system", "logserver/log.go", "case same && !l.cfg.AnchorBeside:", "case same && !l.cfg.AnchorBeside && false:", "-run TestAnchorOnTheLogsFileSystemIsRefused ./logserver"},
	{"storage without state is made anew", "logserver/posix.go", "if errors.Is(err, fs.ErrNotExist) {\n\t\t\treturn nil, fmt.Errorf(\"%w: its storage has no state", "if errors.Is(err, fs.ErrNotExist) {\n\t\t\treturn newPOSIX(ctx, dir)\n\t\t}\n\t\tif errors.Is(err, fs.ErrClosed) {\n\t\t\treturn nil, fmt.Errorf(\"%w: its storage has no state", "-run Restored|Start|Guard ./logserver"},
	{"the lock of a directory", "logserver/lock.go", "if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {", "if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {", "-run TestOneWriter ./logserver"},
	{"writing goes on after a failed guard", "logserver/publisher.go", "\t\t\tp.note(err)\n\t\t\tp.latch(err)\n", "\t\t\tp.note(err)\n", "-run TestGuardWhileRunning ./logserver"},

	// Acknowledging.
	{"an acknowledgement below the quorum", "logserver/publisher.go", "if index < p.Size && p.Quorum {", "if index < p.Size {", "-run TestSetPolicy|Quorum ./logserver"},
	{"a proof of one entry too early", "logserver/publisher.go", "if p, _ = b.get(); index < p.Size", "if p, _ = b.get(); index <= p.Size", "-run Graceful|TestNoQuorum|Publish|Shut|TestBoard ./logserver"},
	{"publishing without a quorum", "logserver/publisher.go", "if _, err := quorum.policy.Verify(raw); err != nil {\n\t\treturn nil, fmt", "if _, err := quorum.policy.Verify(raw); err != nil && false {\n\t\treturn nil, fmt", "-run Quorum|TestOneBadWitness ./logserver"},
	{"too few witnesses at the start", "logserver/publisher.go", "if !claims && !quorum.policy.Satisfied(unheard) {", "if !claims {", "-run TestStartHearsEnoughWitnesses ./logserver"},
	{"a witness that shows more", "logserver/publisher.go", "case errors.As(err, &ahead):\n\t\t\t\treturn &guardError{err}", "case errors.As(err, &ahead):", "-run Restored|Start|Ahead ./logserver"},
	{"nobody records who logged it", "logserver/submit.go", "if err := t.log.who.ensure(ctx, indexes, t.by); err != nil {", "if err := t.log.who.ensure(ctx, indexes, t.by); err != nil && false {", "-run TestNoRecordNoAcknowledgement ./logserver"},

	// Uniqueness.
	{"other bytes under a pinned name", "logserver/slots.go", "err == nil && !allowed {", "err == nil && !allowed && false {", "-run TestUniquenessStory|TestOtherBytes ./logserver"},
	{"the same file again", "logserver/slots.go", "\t\tif same {\n\t\t\treturn r.index, false, nil\n", "\t\tif same && false {\n\t\t\treturn r.index, false, nil\n", "-run TestSameFileAgain|TestUniquenessStory ./logserver"},
	{"what is in flight", "logserver/sequencer.go", "if first := q.inFlight[s.key]; first != nil {", "if first := q.inFlight[s.key]; first != nil && false {", "-run TestRaceForOneSlot ./logserver"},
	{"an overwrite that no policy allows", "logserver/slots.go", "return r.removed && (named", "return (named", "-run TestUniquenessStory|TestUploadWaits|Overwrite|Policy ./logserver"},
	{"another's digest is rejected", "logserver/slots.go", "same, _ := sameDigest(r.digest, digest)\n\treturn same, nil", "return true, nil", "-run TestReject ./logserver"},
	{"a log that went back under its index", "logserver/index.go", "if from > t.size {", "if from > t.size && false {", "-run TestIndexAheadOfTheLog ./logserver"},
	{"doubt after a failed write", "logserver/sequencer.go", "doubt = err != nil", "doubt = false", "-run TestFailedWrites|TestEngineOut ./logserver"},
	{"fsync of the journal", "logserver/journal.go", "return unix.Fdatasync(int(j.f.Fd()))", "_ = unix.Fdatasync\n\treturn nil", "-run TestPowerCut ./logserver"},
	{"a receipt before the journal", "logserver/sequencer.go", "first, err := q.journal.append(b.subs)", "for i, s := range b.subs {\n\t\t\ts.resolve(q.journal.end()+uint64(i), true, nil)\n\t\t}\n\t\tfirst, err := q.journal.append(b.subs)", "-run TestJournalOut ./logserver"},
	{"the journal is not taken in", "logserver/log.go", "for size < end {", "for size < end && false {", "-run TestReceipts ./logserver"},
	{"journal and tiles are not compared", "logserver/log.go", "if !bytes.Equal(leaf, entries[uint64(index)-first].leaf) {", "if !bytes.Equal(leaf, entries[uint64(index)-first].leaf) && false {", "-run TestJournalAndTiles ./logserver"},
	{"a journal that begins behind the tiles", "logserver/log.go", "if len(segments) > 0 && first > size {", "if len(segments) > 0 && first > size && false {", "-run TestJournalAndTiles ./logserver"},
	{"what failed stays in the journal", "logserver/journal.go", "entries = entries[:s.first-first]", "s.first = first + uint64(len(entries))", "-run TestJournalFailed ./logserver"},
	{"what a failed write left is not synced", "logserver/log.go", "if err := l.engine.sync(); err != nil {", "if err := error(nil); err != nil {", "-run TestTakeInSyncs ./logserver"},
	{"a latched log ends", "logserver/freeze.go", "for !l.Status().Latched {", "for {", "-run TestLatchedLogEndsNot ./logserver"},
	{"one frame, however long", "logserver/journal.go", "if len(j.buf)-from > frameMax {", "if len(j.buf)-from > frameMax && false {", "-run TestJournalFrames ./logserver"},
	{"a journal's end is not looked behind", "logserver/journal.go", "if followed(rest) {", "if followed(rest) && false {", "-run TestJournalDamage ./logserver"},

	// Who may submit.
	{"a revoked credential", "logserver/tokens.go", "case t.Revoked != \"\":\n\t\treturn &refusal{reason: reasonRevoked", "case false:\n\t\treturn &refusal{reason: reasonRevoked", "-run Revoked|TestTokensFile ./logserver"},
	{"a credential that has ended", "logserver/tokens.go", "case t.Ends != \"\" && c.stamp(0) >= t.Ends:", "case t.Ends != \"\" && c.stamp(0) > t.Ends:", "-run TestRotate|TestEnds|TestEveryRefusal|Expire|End ./logserver"},
	{"a secret that was rotated away", "logserver/tokens.go", "if ends := t.Old[old].Ends; c.stamp(0) >= ends {", "if ends := t.Old[old].Ends; c.stamp(0) > ends {", "-run TestRotate ./logserver"},
	{"any secret", "logserver/tokens.go", "if !is(t.Hash) {", "if !is(t.Hash) && false {", "-run TestEveryRefusal|TestRotate ./logserver"},
	{"a credential of another registry", "logserver/tokens.go", "case e.Registry != t.Registry:", "case false:", "-run TestEveryRefusal ./logserver"},
	{"a kind that a credential may not log", "logserver/tokens.go", "case !slices.Contains(t.Kinds, e.Kind):", "case false:", "-run TestEveryRefusal ./logserver"},
	{"damaged credentials", "logserver/tokens.go", "stored.Sum != \"\" && stored.Sum != sum {", "sum == \"\" {", "-run TestTokensFile ./logserver"},
	{"a quota is not charged", "logserver/quota.go", "\tq.used[project]++\n\tif known =", "\tif known =", "-run Quota ./logserver"},
	{"a quota is never given back", "logserver/quota.go", "\t\tc.of.used[c.project]--\n", "", "-run Quota ./logserver"},
	{"one more than a quota", "logserver/quota.go", "case int(used) >= s.quota:", "case int(used) > s.quota:", "-run Quota ./logserver"},
	{"a rate is not charged", "logserver/submit.go", "return l.rates.upTo(by.ID, by.Rate, n), nil", "return n, nil", "-run Rate|Slowed ./logserver"},
	{"a credential takes all the room", "logserver/submit.go", "if a.of[by] >= share {", "if a.of[by] >= limit {", "-run Full|TooMuch|TestTenTimes ./logserver"},

	// The audit.
	{"audit: the root", "logserver/audit/audit.go", "\tif ours.got != ours.root {", "\tif false {", "./logserver/audit"},
	{"audit: what others were shown", "logserver/audit/audit.go", "\tfor i, o := range others {\n\t\tt := theirs[i]\n", "\tfor i, o := range others[:0] {\n\t\tt := theirs[i]\n", "./logserver/audit"},
	{"audit: a log that went back", "logserver/audit/audit.go", "case o.Published && o.checkpoint.Size > mine.checkpoint.Size:", "case false:", "./logserver/audit"},

	// The witness.
	{"witness: synchronous off", "witness/store.go", "\"synchronous(FULL)\"", "\"synchronous(OFF)\"", "-run TestPowerCut ./cmd/portbook-witness"},
	{"witness: signs before it writes", "witness/witness.go", "if err := w.store.advance(ctx, req.cp.Origin, known.Head, head); err != nil {", "go w.store.advance(context.WithoutCancel(ctx), req.cp.Origin, known.Head, head)\n\tif err := ctx.Err(); err != nil {", "-run TestKillUnderLoad|TestPowerCut ./cmd/portbook-witness"},
	{"witness: mark not written", "witness/store.go", "return results, s.mark.raise(uint64(generation), \"\")", "return results, nil", "-run Mark|OldCopy ./witness"},
	{"witness: fsync of the mark", "witness/mark.go", "if err := m.file.Sync(); err != nil {", "if err := error(nil); err != nil {", "-run TestPowerCut ./cmd/portbook-witness"},
	{"witness: an old copy of the database", "witness/mark.go", "if err == nil && n < m.said.n {", "if err == nil && n+1 < m.said.n {", "-run TestOldCopyIsRefused ./witness"},
	{"witness: a peer that was not heard", "witness/peers.go", "if len(troubles) > 0 {", "if len(troubles) > 0 && false {", "-run Peer ./witness"},
	{"witness: no peer is as far", "witness/peers.go", "case most.Size < own.size:", "case most.Size < own.size && false:", "-run Peer ./witness"},
	{"witness: what the peers show", "witness/peers.go", "case hasOwn && hasFloor:", "case hasOwn && (hasFloor || true):", "-run Peer ./witness"},
	{"witness: its own last, beside the peers'", "witness/peers.go", "case hasOwn && hasFloor:", "case hasFloor && (hasOwn || true):", "-run Peer ./witness"},
	{"witness: two programs, one mark", "witness/mark.go", "syscall.LOCK_EX|syscall.LOCK_NB", "syscall.LOCK_SH|syscall.LOCK_NB", "-run TestMarkInUse ./witness"},
	{"witness: compare-and-swap", "witness/store.go", "\tif n != 1 {\n\t\treturn errMoved\n", "\tif n > 1 {\n\t\treturn errMoved\n", "-run TestForksRace|TestOneOfThousandWins ./witness"},
	{"witness: old size below its own", "witness/witness.go", "if req.old != have {", "if req.old > have {", "-run TestEveryMust ./witness"},
	{"witness: the root of an equal size", "witness/witness.go", "if req.old == req.cp.Size && req.cp.Root != head.Root {", "if req.old == req.cp.Size {\n\t\treturn nil\n\t}\n\tif req.old == req.cp.Size && req.cp.Root != head.Root {", "-run TestEveryMust ./witness"},
	{"witness: consistency", "witness/witness.go", "c2sp.VerifyConsistency(req.old, req.cp.Size, req.proof, head.Root, req.cp.Root); err != nil {", "c2sp.VerifyConsistency(req.old, req.cp.Size, req.proof, head.Root, req.cp.Root); err != nil && false {", "-run TestEveryMust ./witness"},
	{"witness: a clock that went back", "witness/witness.go", "if head != nil && now.Unix() < head.Time.Unix() {", "if false {", "-run TestClockGoesBack ./witness"},
	{"witness: the log's signature", "witness/witness.go", "if err := k.VerifyLog(n.Text, s); err != nil {", "if err := k.VerifyLog(n.Text, s); err != nil && false {", "-run TestEveryMust ./witness"},
	{"witness: a subtree under a checkpoint it never cosigned", "witness/witness.go", "\tif !ours {\n\t\treturn &SignatureError{origin, errNotOurs}", "\tif !ours && false {\n\t\treturn &SignatureError{origin, errNotOurs}", "-run Subtree ./witness"},
	{"witness: a subtree's proof", "witness/witness.go", "c2sp.VerifySubtree(req.Subtree, cp.Size, req.Proof, cp.Root); err != nil {", "c2sp.VerifySubtree(req.Subtree, cp.Size, req.Proof, cp.Root); err != nil && false {", "-run Subtree ./witness"},
	{"witness: one log may ask without end", "witness/witness.go", "if !w.logs.allow(req.cp.Origin) {", "if false {", "-run TestOneLogIsLimited ./witness"},
	{"witness: state of another key", "witness/store.go", "if k.vkey == key.String() {", "if true {", "-run TestStoreOfAnotherKeyIsRefused|TestOneDirectory ./witness"},
}
