package c2sp_test

import (
	"fmt"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// A log signs, two witnesses cosign, and a policy that wants both is content.
func Example() {
	log, _ := c2sp.GenerateSigner("log.example/packages", c2sp.AlgEd25519)
	w1, _ := c2sp.GenerateSigner("witness.example/w1", c2sp.AlgEd25519Cosig)
	w2, _ := c2sp.GenerateSigner("witness.example/w2", c2sp.AlgMLDSA44)
	policy, err := c2sp.ParsePolicy(fmt.Appendf(nil, "log %s\nwitness w1 %s\nwitness w2 %s\ngroup both all w1 w2\nquorum both\n",
		log.Key(), w1.Key(), w2.Key()))
	if err != nil {
		fmt.Println(err)
		return
	}

	head := c2sp.Checkpoint{Origin: log.Key().Name(), Size: 0, Root: c2sp.EmptyRoot}
	note := c2sp.Note{Text: head.Text()}
	s, _ := log.Sign(note.Text)
	note.Sigs = append(note.Sigs, s)
	s, _ = w1.Cosign(head, time.Unix(1700000000, 0))
	note.Sigs = append(note.Sigs, s)

	_, err = policy.Verify(note.Bytes())
	fmt.Println(err)

	s, _ = w2.Cosign(head, time.Unix(1700000060, 0))
	note.Sigs = append(note.Sigs, s)
	v, err := policy.Verify(note.Bytes())
	fmt.Println(v.Size, v.QuorumTime.Format(time.RFC3339), err)
	// Output:
	// too few witnesses cosigned: have w1; the policy needs all of (w1, w2)
	// 0 2023-11-14T22:14:20Z <nil>
}
