package gateway_test

import "crypto/sha256"

func nodeHash(l, r [32]byte) [32]byte {
	b := append([]byte{1}, l[:]...)
	return sha256.Sum256(append(b, r[:]...))
}
