package client_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
)

// What an installer does with a file, its proof and a policy: no network.
func ExampleVerify() {
	policy, err := client.ReadPolicy("policy.txt")
	if err != nil {
		fmt.Println(err)
		return
	}
	contents, err := os.ReadFile("Django-5.1.tar.gz")
	if err != nil {
		fmt.Println(err)
		return
	}
	proof, err := os.ReadFile("Django-5.1.tar.gz.tlog-proof")
	if err != nil {
		fmt.Println(err)
		return
	}
	v, err := client.Verify(policy, client.File{
		Registry:  "pypi.org",
		Ecosystem: entry.PyPI,
		Project:   "Django",
		Name:      "Django-5.1.tar.gz",
		SHA256:    sha256.Sum256(contents),
	}, proof)
	var refusal *client.Refusal
	if errors.As(err, &refusal) {
		why, _ := client.Explain(refusal.Code)
		fmt.Println(refusal)
		fmt.Println(why)
		return
	}
	fmt.Println("logged at", v.LoggedAt, "as entry", v.Index)
}

// What a program does once in a while: follow the log, and notice if it lies.
func ExampleState() {
	policy, err := client.ReadPolicy("policy.txt")
	if err != nil {
		fmt.Println(err)
		return
	}
	state, err := client.OpenState("/home/user/.local/state/portbook/state")
	if err != nil {
		fmt.Println(err)
		return
	}
	log, err := client.NewReader("https://log.example/packages", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	err = state.Latest(context.Background(), policy, log)
	var refusal *client.Refusal
	var cannot *client.CannotCheck
	switch {
	case errors.As(err, &refusal):
		fmt.Println("the log misbehaved; evidence:", refusal.Evidence)
	case errors.As(err, &cannot):
		fmt.Println("could not ask the log:", cannot.Reason)
	}
	fmt.Println(state.Freshness("log.example/packages", time.Now()))
}
