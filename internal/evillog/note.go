package evillog

// Lies in the checkpoint. What is in the text is signed and cosigned as it
// stands, so that nothing but the lie itself is wrong with the note.

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/portbook/portbook/c2sp"
)

// WriteText signs what f makes of the checkpoint's text.
func (l *Log) WriteText(f func(string) string) {
	l.change(func(ls *lies) { ls.text = append(ls.text, f) })
}

// line changes one line of the text: 0 origin, 1 size, 2 root.
func (l *Log) line(n int, f func(string) string) {
	l.WriteText(func(text string) string {
		lines := strings.Split(text, "\n")
		lines[n] = f(lines[n])
		return strings.Join(lines, "\n")
	})
}

// WriteOrigin, WriteSize and WriteRoot sign another line in the place of the
// true one.
func (l *Log) WriteOrigin(s string) { l.line(0, func(string) string { return s }) }
func (l *Log) WriteSize(s string)   { l.line(1, func(string) string { return s }) }
func (l *Log) WriteRoot(s string)   { l.line(2, func(string) string { return s }) }

// CutRoot signs a root of n bytes: the true one cut off, or with zeros behind.
func (l *Log) CutRoot(n int) {
	l.line(2, func(s string) string {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			panic("evillog: " + err.Error())
		}
		return base64.StdEncoding.EncodeToString(append(b, make([]byte, 32)...)[:n])
	})
}

// LooseRoot signs the true root in its other base64: with bits set in the
// padding.
func (l *Log) LooseRoot() {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	l.line(2, func(s string) string {
		return s[:42] + string(alphabet[strings.IndexByte(alphabet, s[42])|1]) + "="
	})
}

// Extend signs extension lines, which are legal where they are not empty.
func (l *Log) Extend(lines ...string) {
	l.WriteText(func(text string) string { return text + strings.Join(lines, "\n") + "\n" })
}

// CRLF ends the lines of the text with CR LF.
func (l *Log) CRLF() {
	l.WriteText(func(text string) string { return strings.ReplaceAll(text, "\n", "\r\n") })
}

// Bytes changes the note after it has been signed.
func (l *Log) Bytes(f func([]byte) []byte) {
	l.change(func(ls *lies) { ls.note = append(ls.note, f) })
}

// NoFinalNewline cuts the last byte of the note off.
func (l *Log) NoFinalNewline() { l.Bytes(func(b []byte) []byte { return b[:len(b)-1] }) }

// NoSeparator leaves the empty line before the signatures out.
func (l *Log) NoSeparator() {
	l.Bytes(func(b []byte) []byte { return bytes.Replace(b, []byte("\n\n"), []byte("\n"), 1) })
}

// Hyphens begins signature lines with a hyphen instead of an em dash.
func (l *Log) Hyphens() {
	l.Bytes(func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("— "), []byte("- ")) })
}

// AppendLine puts a line after the last signature.
func (l *Log) AppendLine(s string) { l.Bytes(func(b []byte) []byte { return append(b, s+"\n"...) }) }

// Signatures changes the list of signature lines: the log's, then those of the
// witnesses in their order.
func (l *Log) Signatures(f func(text string, sigs []c2sp.Signature) []c2sp.Signature) {
	l.change(func(ls *lies) { ls.sigs = append(ls.sigs, f) })
}

// BadSignature flips a bit in signature n: 0 is the log's, 1 the first witness's.
func (l *Log) BadSignature(n int) {
	l.Signatures(func(_ string, sigs []c2sp.Signature) []c2sp.Signature {
		sigs[n].Sig = bytes.Clone(sigs[n].Sig)
		sigs[n].Sig[len(sigs[n].Sig)-1] ^= 1
		return sigs
	})
}

// BadBesideGood has a false line of the log's key before the true one.
func (l *Log) BadBesideGood() {
	l.Signatures(func(_ string, sigs []c2sp.Signature) []c2sp.Signature {
		bad := sigs[0]
		bad.Sig = bytes.Clone(bad.Sig)
		bad.Sig[0] ^= 1
		return append([]c2sp.Signature{bad}, sigs...)
	})
}

// ShortSignature cuts the log's signature to n bytes.
func (l *Log) ShortSignature(n int) {
	l.Signatures(func(_ string, sigs []c2sp.Signature) []c2sp.Signature {
		sigs[0].Sig = sigs[0].Sig[:n]
		return sigs
	})
}

// NoLogSignature leaves the log's own signature out.
func (l *Log) NoLogSignature() {
	l.Signatures(func(_ string, sigs []c2sp.Signature) []c2sp.Signature { return sigs[1:] })
}

// Repeat writes signature n another times times.
func (l *Log) Repeat(n, times int) {
	l.Signatures(func(_ string, sigs []c2sp.Signature) []c2sp.Signature {
		for range times {
			sigs = append(sigs, sigs[n])
		}
		return sigs
	})
}

// Cosigned asks only the witnesses with these indices.
func (l *Log) Cosigned(witnesses ...int) {
	l.change(func(ls *lies) { ls.only = append([]int{}, witnesses...) })
}

// Relabel copies the last signature under the name and key ID of another key.
func (l *Log) Relabel(as *c2sp.Key) { l.RelabelAs(as.Name(), as.ID()) }

// RelabelAs copies the last signature under this name and key ID.
func (l *Log) RelabelAs(name string, id uint32) {
	l.Signatures(func(_ string, sigs []c2sp.Signature) []c2sp.Signature {
		s := sigs[len(sigs)-1]
		s.Name, s.KeyID = name, id
		return append(sigs, s)
	})
}

// SignedBy adds the signature of another log key, in the first place.
func (l *Log) SignedBy(s *c2sp.Signer) {
	l.Signatures(func(text string, sigs []c2sp.Signature) []c2sp.Signature {
		return append([]c2sp.Signature{signAny(s, text)}, sigs...)
	})
}

// CosignedBy adds the cosignature of another key.
func (l *Log) CosignedBy(s *c2sp.Signer) {
	l.Signatures(func(text string, sigs []c2sp.Signature) []c2sp.Signature {
		return append(sigs, cosignAny(s, text, uint64(l.cfg.Now().Unix())))
	})
}

// Strangers adds signature lines of keys that nobody knows, until there are
// total lines, each with a signature of size bytes. They come first.
func (l *Log) Strangers(total, size int) {
	l.Signatures(func(_ string, sigs []c2sp.Signature) []c2sp.Signature {
		var more []c2sp.Signature
		for i := range total - len(sigs) {
			more = append(more, c2sp.Signature{Name: fmt.Sprintf("stranger.test/%d", i), KeyID: uint32(i), Sig: bytes.Repeat([]byte{byte(i)}, size)})
		}
		return slices.Concat(more, sigs)
	})
}
