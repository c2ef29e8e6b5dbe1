package pkcs11

import (
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	const module = "?module-path=/usr/lib/softhsm/libsofthsm2.so"
	for s, want := range map[string]URI{
		"pkcs11:token=portbook;object=log-2026" + module:                                        {Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "portbook", Object: "log-2026"},
		"pkcs11:object=log%202026;token=a%3Bb;type=private" + module:                            {Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "a;b", Object: "log 2026"},
		"pkcs11:token=t;object=o" + module + "&pin-source=file:/etc/portbook/pin":               {Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "t", Object: "o", PINSource: "file:/etc/portbook/pin"},
		"pkcs11:token=t;object=o?pin-source=credential:pin&module-path=%2Fusr%2flib%2Fx%20y.so": {Module: "/usr/lib/x y.so", Token: "t", Object: "o", PINSource: "credential:pin"},
		"pkcs11:token=t;object=o?pin-source=file:/p?q&module-path=/m":                           {Module: "/m", Token: "t", Object: "o", PINSource: "file:/p?q"},
	} {
		u, err := ParseURI(s)
		if err != nil || *u != want {
			t.Errorf("%s: %+v, %v", s, u, err)
			continue
		}
		if again, err := ParseURI(u.String()); err != nil || *again != want {
			t.Errorf("%s is written as %s, which reads as %+v, %v", s, u, again, err)
		}
	}
	for s, want := range map[string]string{
		"":                                "does not begin",
		"log.key":                         "does not begin",
		"PKCS11:x=y":                      "does not begin",
		"pkcs11:":                         "want token",
		"pkcs11:token=t;object=o":         "want token",
		"pkcs11:token=t" + module:         "want token",
		"pkcs11:object=o" + module:        "want token",
		"pkcs11:token=;object=o" + module: "want token",
		"pkcs11:token=t;object=o?module-path=lib.so":                     "not an absolute path",
		"pkcs11:token=t;object=o;" + module:                              "not of the form",
		"pkcs11:token=t;object=o;token=u" + module:                       "token stands twice",
		"pkcs11:token=t;object=o;serial=12" + module:                     `"serial" is not supported`,
		"pkcs11:token=t;object=o;id=%01" + module:                        `"id" is not supported`,
		"pkcs11:token=t;object=o;type=cert" + module:                     "only a private key",
		"pkcs11:token=t;object=o" + module + "&pin-value=123456":         "would show the PIN",
		"pkcs11:token=t;object=o;pin-value=123456" + module:              "would show the PIN",
		"pkcs11:token=t;object=o" + module + "&pin-source=|cat":          "is a command",
		"pkcs11:token=t;object=o" + module + "&x=y":                      `"x" is not supported`,
		"pkcs11:token=t%0;object=o" + module:                             "two hex digits",
		"pkcs11:token=t%zz;object=o" + module:                            "two hex digits",
		"pkcs11:token=t%00;object=o" + module:                            "control character",
		"pkcs11:token=t t;object=o" + module:                             "must be percent-encoded",
		"pkcs11:token=\xc3\xa4;object=o" + module:                        "must be percent-encoded",
		"pkcs11:token=" + strings.Repeat("x", 33) + ";object=o" + module: "at most 32",
	} {
		u, err := ParseURI(s)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %q", s, u, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "123456") {
			t.Errorf("the error shows the PIN: %v", err)
		}
	}
}

// FuzzParseURI: what is read is written so that it reads the same.
func FuzzParseURI(f *testing.F) {
	f.Add("pkcs11:token=portbook;object=log%202026?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/pin")
	f.Add("pkcs11:token=t;object=o;type=private?module-path=/m&pin-value=1")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			return
		}
		if again, err := ParseURI(u.String()); err != nil || *again != *u {
			t.Errorf("%q reads as %+v, is written as %q and reads as %+v, %v", s, u, u, again, err)
		}
	})
}
