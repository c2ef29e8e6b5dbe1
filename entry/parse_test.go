package entry

import (
	"errors"
	"strings"
	"testing"
)

// Each way to break the grammar is told in its own words. Where it is told is
// in the vectors.
func TestSyntaxErrorsSayWhy(t *testing.T) {
	const ok = `{"claim":"index","count":10,"ecosystem":"pypi","v":1}`
	for _, test := range []struct{ old, new, want string }{
		{`"count"`, `"claim"`, `duplicate key "claim"`},
		{`"count"`, `"auth"`, `key "auth" stands after "claim": keys are sorted`},
		{`"count"`, `"colour"`, `unknown field "colour"`},
		{`"count":10`, `"publisher":{"colour":"x"}`, `unknown field "colour" in publisher`},
		{`{"claim"`, `{ "claim"`, `white space`},
		{`,"v"`, "\t,\"v\"", `white space`},
		{`,"v"`, "\r\n,\"v\"", `white space`},
		{`1}`, "1}\n", `white space after the end of the entry`},
		{`1}`, "1}{", `character '{' after the end of the entry`},
		{`1}`, "1}\x00", `byte 0x00 after the end of the entry`},
		{`1}`, "1}\x7f", `byte 0x7f after the end of the entry`},
		{`1}`, "1}~", `character '~' after the end of the entry`},
		{`"pypi"`, `"py\u0070i"`, `escape`},
		{`"pypi"`, "\"py\x00pi\"", `control character 0x00`},
		{`"pypi"`, "\"py\x80pi\"", `byte 0x80 is not ASCII`},
		{`"pypi"`, `""`, `empty string`},
		{`"pypi"`, `null`, `ecosystem: null: a field is never null`},
		{`"pypi"`, `7`, `ecosystem: character '7', want a string`},
		{`:10`, `:010`, `leading zero`},
		{`:10`, `:1.0`, `count has a fraction or an exponent`},
		{`:10`, `:1e1`, `count has a fraction or an exponent`},
		{`:10`, `:1E1`, `count has a fraction or an exponent`},
		{`:10`, `:-1`, `count: negative number, want an integer from 0 to 2^53-1`},
		{`:10`, `:"10"`, `count: character '"', want an integer from 0 to 2^53-1`},
		{`:10`, `:9007199254740992`, `count is larger than 2^53-1`},
		{`"count":10`, `"publisher":[]`, `publisher: character '[', want an object`},
		{`"count":10`, `"sources_sha256":[]`, `empty array`},
		{`"count":10`, `"sources_sha256":"x"`, `sources_sha256: character '"', want an array`},
		{`"count":10`, `"sources_sha256":[1]`, `want an array of strings`},
		{`"count":10`, `"sources_sha256":["a" "b"]`, `white space where , or ] follows an item`},
		{`"count":10`, `"count"=10`, `character '=' where a colon follows the key`},
		{`:10,`, `:10`, `character '"' where , or } follows a value`},
		{ok, `{}`, `empty object`},
		{ok, `[1]`, `character '[' where an object starts with {`},
		{ok, `{"claim":"ind`, `the line ends inside a string`},
		{ok, `{"claim"`, `the end of the line where a colon follows the key`},
		{ok, ``, `the end of the line where an object starts with {`},
		{ok, strings.Repeat("x", MaxSize+1), `longer than 4096 bytes`},
	} {
		leaf := strings.Replace(ok, test.old, test.new, 1)
		if leaf == ok {
			t.Errorf("%q is not in the example", test.old)
		}
		_, err := Parse([]byte(leaf))
		var se *SyntaxError
		if !errors.As(err, &se) || !strings.Contains(se.Reason, test.want) {
			t.Errorf("%.100s\n got %v\nwant %s", leaf, err, test.want)
		}
	}
}
