// The core metadata of a wheel (PEP 658): its digest is logged beside the file's,
// because installers resolve dependencies by it before they fetch the file.

package gateway

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"path"
	"strings"
)

const maxMetadata = 8 << 20

// metadataSHA256 is the digest of the METADATA of a wheel; "" for other files and
// for what is not a sound wheel, which is the index's to judge.
func metadataSHA256(r io.ReaderAt, size int64, name string) string {
	if !isWheel(name) {
		return ""
	}
	sum, err := readMetadata(r, size)
	if err != nil {
		return ""
	}
	return sum
}

var errNoMetadata = errors.New("no METADATA of reasonable size")

func readMetadata(r io.ReaderAt, size int64) (string, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return "", err
	}
	var found *zip.File
	for _, f := range z.File {
		if path.Base(f.Name) == "METADATA" && strings.HasSuffix(path.Dir(f.Name), ".dist-info") && strings.Count(f.Name, "/") == 1 {
			if found != nil {
				return "", errNoMetadata // two: nobody knows which one is served
			}
			found = f
		}
	}
	if found == nil || found.UncompressedSize64 > maxMetadata {
		return "", errNoMetadata
	}
	rc, err := found.Open()
	if err != nil {
		return "", err
	}
	defer rc.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(rc, maxMetadata+1))
	if err != nil {
		return "", err
	}
	if n > maxMetadata {
		return "", errNoMetadata
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
