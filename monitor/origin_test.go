package monitor

import (
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
)

// TestOriginOf: a log that the policy retires is not the one to watch, unless it
// is asked for by name.
func TestOriginOf(t *testing.T) {
	var keys []string
	for _, origin := range []string{"old.example/log", "old.example/log", "new.example/log", "third.example/log"} {
		s, err := c2sp.GenerateSigner(origin, c2sp.AlgEd25519)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, s.Key().String())
	}
	oldLog, rotated, newLog, third := keys[0], keys[1], keys[2], keys[3]
	for _, tc := range []struct {
		lines       []string
		asked, want string // want "": refused
	}{
		{[]string{"log " + oldLog}, "", "old.example/log"},
		{[]string{"retired " + oldLog + " 5", "log " + newLog}, "", "new.example/log"},
		{[]string{"log " + newLog, "retired " + oldLog + " 5"}, "", "new.example/log"},
		{[]string{"retired " + oldLog + " 5", "log " + newLog}, "old.example/log", "old.example/log"},
		{[]string{"retired " + oldLog + " 5", "log " + rotated}, "", "old.example/log"},
		{[]string{"retired " + oldLog + " 5", "log " + rotated, "log " + newLog}, "", ""},
		{[]string{"log " + newLog, "log " + third}, "", ""},
		{[]string{"log " + newLog}, "old.example/log", ""},
		{[]string{"retired " + oldLog + " 5"}, "", ""},
	} {
		p, err := c2sp.ParsePolicy([]byte(strings.Join(tc.lines, "\n") + "\nquorum none\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OriginOf(p, tc.asked); got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%q of\n%s: %q, %v", tc.asked, strings.Join(tc.lines, "\n"), got, err)
		}
	}
}
