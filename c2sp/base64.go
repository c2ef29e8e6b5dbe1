package c2sp

// Numbers and base64 as the C2SP formats write them, in their one encoding.

import (
	"encoding/base64"
	"strconv"
	"strings"
)

// strict64 refuses set bits after the end of the data. It still skips line
// breaks, which is why decode64 looks for them first.
var strict64 = base64.StdEncoding.Strict()

// decode64 decodes canonical standard base64, and nothing else.
func decode64(s string) ([]byte, bool) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	b, err := strict64.DecodeString(s)
	return b, err == nil
}

// decodeHash decodes one 32-byte hash.
func decodeHash(s string) (h [32]byte, ok bool) {
	if len(s) != 44 {
		return h, false
	}
	b, ok := decode64(s)
	if !ok || len(b) != len(h) {
		return h, false
	}
	return [32]byte(b), true
}

func encodeHash(h [32]byte) string { return base64.StdEncoding.EncodeToString(h[:]) }

// parseSize reads a decimal number below 2^63 without leading zeros or sign.
func parseSize(s string) (uint64, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' || (s[0] == '0' && len(s) > 1) {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 63)
	return n, err == nil
}
