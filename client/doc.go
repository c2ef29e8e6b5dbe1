// Package client verifies what a Portbook log says about package files, with
// public keys and a trust policy alone.
//
// [Verify] is offline: a file's name and digest, a proof and a policy in, an
// answer out. [State] remembers the newest checkpoint of each log between runs,
// refuses a log that goes back or forks, and writes evidence of it that
// [VerifyEvidence] checks for anyone. [Reader] fetches checkpoints, tiles and
// entries.
//
// There are three outcomes, and they are never mixed: verified (no error); a
// [*Refusal], when something is wrong with this file or this log; a
// [*CannotCheck], when the answer could not be had. Each carries a code that
// [Explain] turns into plain words.
//
// An installer links this package, so it needs nothing heavy: no gRPC, no
// database, no log storage. See TestImports.
package client
