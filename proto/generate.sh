#!/bin/sh
# Regenerates the Go code and the OpenAPI file from log.proto. Needs protoc
# (Debian: protobuf-compiler, libprotobuf-dev); the plugins come from the Go
# module proxy at the versions below.
set -eu
cd "$(dirname "$0")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOBIN=$bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
GOBIN=$bin go install github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway@v2.31.0
GOBIN=$bin go install github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2@v2.31.0
rest=grpc_api_configuration=portbook/v1/log.rest.yaml
PATH=$bin:$PATH protoc -I . \
	--go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative \
	--grpc-gateway_out=. --grpc-gateway_opt=paths=source_relative,$rest \
	--openapiv2_out=. --openapiv2_opt=$rest,json_names_for_fields=false,disable_default_errors=true \
	portbook/v1/log.proto
