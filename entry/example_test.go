package entry_test

import (
	"errors"
	"fmt"

	"github.com/portbook/portbook/entry"
)

func Example() {
	project, err := entry.NormalProject(entry.PyPI, "Sample_Project")
	if err != nil {
		fmt.Println(err)
		return
	}
	e := &entry.Entry{
		Kind:      entry.KindUpload,
		Claim:     entry.ClaimIndex,
		Time:      "2026-11-21T05:10:08Z",
		Registry:  "pypi.org",
		Ecosystem: entry.PyPI,
		Project:   project,
		Version:   "4.0.0",
		File:      "sample_project-4.0.0.tar.gz",
		Size:      entry.Uint(4662),
		SHA256:    "c4f0a1d8a1f3c25bd3e0b7a1c4f0a1d8a1f3c25bd3e0b7a1c4f0a1d8a1f3c25b",
	}
	leaf, err := e.Marshal()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s\n", leaf)
	fmt.Printf("%x\n", entry.LeafHash(leaf))
	// Output:
	// {"claim":"index","ecosystem":"pypi","file":"sample_project-4.0.0.tar.gz","kind":"upload","project":"sample-project","registry":"pypi.org","sha256":"c4f0a1d8a1f3c25bd3e0b7a1c4f0a1d8a1f3c25bd3e0b7a1c4f0a1d8a1f3c25b","size":4662,"time":"2026-11-21T05:10:08Z","v":1,"version":"4.0.0"}
	// 23e229dfd300590f0da52f773a76d5e65df745b2e93ad9ff6089223f6c9fc0a4
}

func ExampleParse() {
	for _, leaf := range []string{
		`{"claim":"log","id":"00112233445566778899aabbccddeeff","kind":"canary","time":"2026-11-21T05:10:08Z","v":1}`,
		`{"claim":"log", "id":"00112233445566778899aabbccddeeff","kind":"canary","time":"2026-11-21T05:10:08Z","v":1}`,
		`{"claim":"log","id":"00112233445566778899AABBCCDDEEFF","kind":"canary","time":"2026-11-21T05:10:08Z","v":1}`,
		`{"claim":"log","kind":"hologram","v":7}`,
	} {
		e, err := entry.Parse([]byte(leaf))
		switch {
		case errors.Is(err, entry.ErrVersion):
			fmt.Println("hash it, but do not try to read it:", err)
		case err != nil:
			fmt.Println(err)
		default:
			fmt.Println(e.Kind)
		}
	}
	// Output:
	// canary
	// entry: byte 15: white space where a key starts with a quote
	// entry: id: "00112233445566778899AABBCCDDEEFF" is not 32 lower-case hex digits
	// hash it, but do not try to read it: entry: unknown version: v is 7, not 1
}

func ExampleRegistryFromURL() {
	for _, u := range []string{"https://PyPI.org:443/", "http://127.0.0.1:8080/alice/pypi/", "https://me:secret@pypi.org/"} {
		fmt.Println(entry.RegistryFromURL(u))
	}
	// Output:
	// pypi.org <nil>
	// 127.0.0.1:8080/alice/pypi <nil>
	//  entry: registry: URL with a user name: a registry has none
}
