# make demo   the story, then a system to play with
# make test   everything that is tested here; installs what the tests need
.PHONY: demo test test-race fuzz bench proto build

demo:
	go run ./cmd/demo

test:
	./test.sh

# Hermetic tests under the race detector.
test-race:
	go test -race ./...

# Each fuzz target for FUZZTIME.
FUZZTIME ?= 20s
fuzz:
	./test.sh fuzz $(FUZZTIME)

bench:
	go run ./cmd/bench

build:
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/portbook ./cmd/portbook-log ./cmd/portbook-witness ./cmd/portbook-monitor

proto:
	./proto/generate.sh
