package client

// The codes of refusals and of what cannot be checked, each with one paragraph
// for the person who meets it: what happened, why it matters, what to do. Those
// who stand on this package number their own from PB150 and PB350.

// Codes PB1xx: this file is refused.
const (
	CodeProofMalformed = "PB101"
	CodeNoLeaf         = "PB102"
	CodeUnknownLog     = "PB103"
	CodeNoLogSignature = "PB104"
	CodeBadSignature   = "PB105"
	CodeQuorum         = "PB106"
	CodeInclusion      = "PB107"
	CodeEntryMalformed = "PB108"
	CodeEntryVersion   = "PB109"
	CodeNotUpload      = "PB110"
	CodeRegistry       = "PB111"
	CodeEcosystem      = "PB112"
	CodeProject        = "PB113"
	CodeFileName       = "PB114"
	CodeDigest         = "PB115"
	CodeNoDigest       = "PB116"
	CodeNoProof        = "PB117" // for those who fetch proofs: there was none
	CodeClaim          = "PB118"
)

// Codes PB2xx: this log misbehaved.
const (
	CodeForkSameSize  = "PB201"
	CodeForkPrefix    = "PB202"
	CodeRollback      = "PB203"
	CodeTilesMismatch = "PB204"
	CodeHeadSignature = "PB205"
	CodeOtherKey      = "PB206"
	CodeAfterEnd      = "PB207"
	CodeHandover      = "PB208"
	CodeBadEntry      = "PB209"
)

// Codes PB3xx: it could not be checked.
const (
	CodeUnreachable     = "PB301"
	CodeBadAnswer       = "PB302"
	CodeNotCheckpoint   = "PB303"
	CodeMissing         = "PB304"
	CodeOtherLog        = "PB305"
	CodeHeadQuorum      = "PB306"
	CodeStateUnreadable = "PB307"
	CodeStateUnwritable = "PB308"
	CodePolicy          = "PB309"
	CodeStale           = "PB310" // for callers that insist on freshness
	CodeClock           = "PB311"
	CodeNotFollowed     = "PB312"
)

// Explain returns the paragraph for a code, and whether there is one.
func Explain(code string) (string, bool) {
	s, ok := explanations[code]
	return s, ok
}

var explanations = map[string]string{
	CodeProofMalformed: "The proof that came with this file is not in the proof format: it is damaged, cut off, or something else altogether. " +
		"Without a readable proof nothing shows that the file was logged, so it is refused. " +
		"Fetch the proof again; if it stays like this, tell whoever runs the index.",
	CodeNoLeaf: "The proof does not carry the log entry it is about, or one longer than an entry can be. " +
		"The entry says which file, registry and digest were logged, so without it the proof could be about anything. " +
		"Fetch the proof again from the index that serves the file.",
	CodeUnknownLog: "The proof comes from a log that your policy does not name. " +
		"Anyone can run a log, so only the ones you chose count. " +
		"If the index has moved to another log, get the new policy from a source you trust, not from the proof.",
	CodeNoLogSignature: "The proof names a log of your policy, but no key of that log signed it. " +
		"An unsigned claim can be made by anyone. " +
		"If the log has changed its key, update your policy from a source you trust; otherwise treat the file as forged.",
	CodeBadSignature: "A signature on the proof is by a key of your policy and does not fit the text it stands under. " +
		"Somebody changed the proof after it was signed, or it was damaged on the way. " +
		"Fetch it again; if it stays like this, do not use the file and tell whoever runs the index.",
	CodeQuorum: "The log signed, but fewer of the witnesses in your policy confirmed it than you ask for. " +
		"Witnesses are what keeps a log from showing you a history that nobody else sees. " +
		"If your policy is old, update it or ask the index for a refreshed proof; otherwise do not use the file.",
	CodeInclusion: "The entry that came with the proof is not at the claimed place in the log's tree. " +
		"So nothing shows that this entry was ever logged. " +
		"Fetch the proof again; if it stays like this, the proof is false and the file must not be used.",
	CodeEntryMalformed: "The log does contain this entry, but it is not one that a Portbook log may contain. " +
		"It cannot be said what it stands for, so it cannot vouch for a file. " +
		"Report it to whoever runs the log; this file cannot be verified.",
	CodeEntryVersion: "The log contains this entry, but in a version of the format that this program does not know. " +
		"It may be perfectly good, yet it cannot be read here, so it is refused; other files are not affected. " +
		"Update this program.",
	CodeNotUpload: "The proof is true, but it is about something else than an upload: a removal, a warning, a change of owner. " +
		"Passing it off as proof of an upload is not an accident. " +
		"Do not use the file; fetch its own proof.",
	CodeRegistry: "The proof is about a file in another registry. " +
		"Files of one name in two registries are different files, and swapping them is a known attack. " +
		"Check which index you meant to install from.",
	CodeEcosystem: "The proof is about a package of another kind (for instance npm instead of PyPI). " +
		"A name means something else there. Do not use the file; check which index you meant to install from.",
	CodeProject: "The proof is about a file of another project. " +
		"So it does not show that this project's owners uploaded the file. Do not use the file; fetch its own proof.",
	CodeFileName: "The proof is about a file of another name. " +
		"A proof for an older or different release must not vouch for this one. Fetch the proof that belongs to the file.",
	CodeDigest: "A file of this name was logged, but with other contents than the ones you have. " +
		"This is what a swapped or damaged file looks like. " +
		"Do not use it. Download it again; if it stays like this, tell the project and whoever runs the index.",
	CodeNoDigest: "The log entry names the file but carries no SHA-256 digest of it, as entries made by watching a registry may. " +
		"So the contents cannot be compared. This file cannot be verified with this proof.",
	CodeNoProof: "There is no proof for this file: the index does not have one, or does not hand it out. " +
		"A file that was never logged is one that nobody was told about. " +
		"If it is brand new, wait a minute and try again; otherwise ask whoever runs the index.",

	CodeClaim: "The file was logged by somebody who saw the index hand it out, not by the index itself. " +
		"Such an entry says what was served, not what the index stands for: had the index served a swapped file, it would have been logged just so. " +
		"If a follower is all there is for this index, say that it is enough (--accept-observed).",

	CodeForkSameSize: "The log signed two different histories of the same length. " +
		"An honest log never does: one of them was made for somebody's eyes only. " +
		"Stop installing through this log, keep the evidence file and send it to the people who run the log, the witnesses and the index.",
	CodeForkPrefix: "The log signed a history that leaves out or changes what it had signed before. " +
		"An honest log only grows: something was rewritten. " +
		"Stop installing through this log, keep the evidence file and send it to the people who run the log, the witnesses and the index.",
	CodeRollback: "The log now shows an older state than the one you have already seen. " +
		"Entries that were there are hidden from you; it may be an attack, or a server restored from a backup, which is no better. " +
		"Do not trust it until it has caught up, and tell whoever runs it.",
	CodeTilesMismatch: "What the log serves does not add up to what it signed. " +
		"It may be hiding a changed history, or its storage or a cache in between is damaged; this alone proves nothing to others, so there is no evidence file. " +
		"Try again from another network; if it stays like this, tell whoever runs the log.",
	CodeHeadSignature: "The newest state that the log's address serves is not properly signed. " +
		"It was changed on the way, or somebody else answers in the log's name. " +
		"Try again from another network; if it stays like this, tell whoever runs the log.",

	CodeOtherKey: "A log of this name was seen before, under another key, and what is shown now does not continue it. " +
		"Either your policy was changed to another log of the same name, or somebody else answers in the log's name with a key you were made to believe. " +
		"If the change was meant, start a new memory (another --state file); if not, find out who changed the policy.",

	CodeAfterEnd: "The log signed an entry that says it is the last one, and then signed more after it. " +
		"A log that has ended signs nothing any more: whoever holds its key is not its operator, or its operator breaks the rule. " +
		"Files that were proven before the end stay proven; do not believe what came after it, and tell the operator of the log.",
	CodeBadEntry: "The log signed an entry that is none: it breaks the grammar that binds every version of the format. " +
		"No program takes it for a file, so nothing is installed by it; but a log checks each entry before it signs, so whoever has its key does not run it as they should. " +
		"Files that are proven stay proven. Tell the operator of the log, and those whose policy names it.",
	CodeHandover: "The log names another one that takes over from it, and what that one shows contradicts it: it begins with another entry, takes over from another log or from another state of it, or leads back to where it came from. " +
		"So it is not followed; whoever follows it could be led away from what was logged. " +
		"Files that are proven stay proven. Ask the operators of the log, and get a new policy from a source you trust.",

	CodeUnreachable: "The log could not be reached, or did not answer in time. " +
		"This says nothing about any file: what has a proof can still be verified without the log. " +
		"Check the network and try again later.",
	CodeBadAnswer: "Something answered in the log's place, but not in the form a log answers in: too long, too short, a redirect, an error page. " +
		"Usually that is a proxy or a captive portal. Check the address and the network, and try again.",
	CodeNotCheckpoint: "The address answered, but what came back is not a log's checkpoint. " +
		"Usually the address is wrong or a web page stands in between. Check the log's URL.",
	CodeMissing: "The log does not have a piece of its tree that is needed for this check. " +
		"It may have been removed, or the log has not finished writing. Try again later; if it stays like this, tell whoever runs the log.",
	CodeOtherLog: "The address serves a log that your policy does not name. " +
		"Nothing can be checked with it. Check that the URL and the policy belong together.",
	CodeHeadQuorum: "The newest state of the log is not confirmed by enough witnesses of your policy. " +
		"It is not used; what was known before stays. Usually witnesses are out, or your policy is old. Try again later.",
	CodeStateUnreadable: "The file in which this program remembers what it has seen of each log cannot be read, or is damaged. " +
		"Without it a log could go back in time unnoticed, so it is not silently replaced. " +
		"Restore it; or move it away, which forgets what was seen, and start again.",
	CodeStateUnwritable: "The file in which this program remembers what it has seen of each log cannot be written or locked. " +
		"Without it a log could go back in time unnoticed. Check the disk, the permissions, and whether another process hangs while holding it.",
	CodePolicy: "The policy file, which says which logs and witnesses to believe, cannot be read or has a mistake in it. " +
		"Without it nothing can be verified. Correct the line that is named.",
	CodeStale: "The newest state of the log that you have seen is older than you allow. " +
		"A file may have been withdrawn since, and you would not know. Connect to the log once, then try again.",
	CodeNotFollowed: "The log has ended and names another one that goes on, which could not be followed: it cannot be reached, has no entries yet, or your witnesses have not cosigned it. " +
		"Files that were logged before the end still verify; newer ones do not. " +
		"Try again later; if it stays like this, ask the operator of the log which log your policy should name.",
	CodeClock: "The witnesses' clocks are ahead of the one of this computer. " +
		"So it cannot be said how old anything is. Set the clock; if it is right, your policy's witnesses are not.",
}
