// Package pypi reads and writes what Python package indexes speak: simple
// pages in HTML (PEP 503) and JSON (PEP 691), distribution file names (PEP 427,
// PEP 625 and the legacy forms), version numbers (PEP 440) and the legacy
// upload form (what twine sends).
//
// Pages are parsed into a [Page] and written anew, never edited in place: a
// client sees only what was understood here, so there is no markup that this
// package overlooks and an installer follows. What is not understood but
// harmless (unknown attributes of an anchor, unknown JSON keys, meta elements)
// is kept word for word.
package pypi
