#!/usr/bin/env bash
# Runs the tests. Installs the real neighbours that they need (pip, twine, …) as
# root on Debian, else says what is missing. Ends with the counts, and names
# every test that was skipped.
#
#   ./test.sh                all tests, then the fuzz targets for a moment each
#   ./test.sh fuzz 20s       only the fuzz targets, for so long each
set -uo pipefail
cd "$(dirname "$0")" || exit 2
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT

# What the tests use besides Go, and what to look for.
neighbours=(
	"strace:strace" "python3:python3" "pip:python3-pip" "twine:twine" "shellcheck:shellcheck" "systemd-analyze:systemd"
	"postgres:postgresql" "mariadbd:mariadb-server" "softhsm2-util:softhsm2" "mkfs.xfs:xfsprogs" "ip:iproute2" "nft:nftables" "pkcs11-tool:opensc" "gcc:build-essential"
)
# Real wheels that the tests upload and install.
wheels=(pip setuptools wheel)

have() {
	case $1 in
	pip) /usr/bin/python3 -m pip --version >/dev/null 2>&1 ;;
	postgres) compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null ;; # not on the PATH in Debian
	*) command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] ;;
	esac
}

missing() {
	local n
	for n in "${neighbours[@]}"; do
		have "${n%%:*}" || echo "${n##*:}"
	done
	for n in "${wheels[@]}"; do
		compgen -G "/usr/share/python-wheels/$n-*.whl" >/dev/null || echo "python3-$n-whl"
	done
}

install_neighbours() {
	local need
	need=$(missing | tr '\n' ' ')
	[ -n "$need" ] || return 0
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		echo "installing for the tests: $need"
		# shellcheck disable=SC2086 # a list of packages
		if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need; } >"$tmp/apt" 2>&1; then
			tail -5 "$tmp/apt"
			echo "could not install: $need (the tests that need them are skipped, and named below)"
		fi
	else
		echo "missing: $need (apt-get install them as root; the tests that need them are skipped, and named below)"
	fi
}

# fuzz_targets prints "package target" a line.
fuzz_targets() {
	grep -rl --include='*_test.go' '^func Fuzz' . | while read -r f; do
		grep -o '^func Fuzz[A-Za-z0-9_]*' "$f" | sed "s|^func |$(dirname "$f") |"
	done | sort -u
}

# fuzz_one TIME PACKAGE TARGET BINARY
fuzz_one() {
	local cache
	cache=$(go env GOCACHE)/fuzz/$(go list "$2")
	(cd "$2" && "$4" -test.run '^$' -test.fuzz "^$3\$" -test.fuzztime "$1" -test.fuzzcachedir "$cache" -test.parallel 1) >"$4.out" 2>&1
}

# fuzz_package TIME PACKAGE links the package's targets once, as go test -fuzz
# would for each of them, and runs one after another.
fuzz_package() {
	local bin target _
	bin=$tmp/fuzz/$(tr ./ _ <<<"$2")
	if ! go test -c -fuzz . -o "$bin" "$2" >"$bin.out" 2>&1; then
		echo "FUZZ FAILED: $2 does not build"
		tail -30 "$bin.out"
		return
	fi
	while read -r _ target; do
		# Once more if it fails: fuzzing sometimes ends with "context deadline
		# exceeded". A finding is in testdata by then, and fails the second time too.
		if ! fuzz_one "$1" "$2" "$target" "$bin"; then
			echo "fuzz: $2 $target failed, trying again:"
			tail -5 "$bin.out"
			if ! fuzz_one "$1" "$2" "$target" "$bin"; then
				echo "FUZZ FAILED: $2 $target"
				tail -30 "$bin.out"
				continue
			fi
		fi
		echo "$2 $target" >>"$tmp/fuzz/passed"
	done < <(grep "^$2 " "$tmp/fuzz/targets")
	rm "$bin"
}

# run_fuzz TIME runs two packages at a time, and of each one target, on one core;
# the package with the most targets first.
run_fuzz() {
	local all passed pkg
	mkdir -p "$tmp/fuzz" && fuzz_targets >"$tmp/fuzz/targets" && : >"$tmp/fuzz/passed"
	while read -r _ pkg; do
		while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
		fuzz_package "$1" "$pkg" &
	done < <(cut -d' ' -f1 "$tmp/fuzz/targets" | uniq -c | sort -rn)
	wait
	all=$(wc -l <"$tmp/fuzz/targets") passed=$(wc -l <"$tmp/fuzz/passed")
	echo "fuzz: $all targets for $1 each, $((all - passed)) failed"
	[ "$all" -gt 0 ] && [ "$all" = "$passed" ]
}

if [ "${1:-}" = fuzz ]; then
	run_fuzz "${2:-20s}"
	exit
fi

install_neighbours

# Tests must not be led astray by how this machine reaches its package index.
unset PIP_FIND_LINKS PIP_CERT PIP_INDEX_URL PIP_EXTRA_INDEX_URL REQUESTS_CA_BUNDLE SSL_CERT_FILE

status=0
if ! unformatted=$(gofmt -l .) || [ -n "$unformatted" ]; then
	echo "gofmt failed, or is wanted for: $unformatted"
	status=1
fi
go vet ./... || status=1

# What takes longest begins first, so that no core is idle at the end.
slowest=(./logserver ./logserver/trillian ./cmd/portbook-log ./witness ./cmd/portbook-witness)

go test -json -timeout 30m "${slowest[@]}" ./... >"$tmp/test" || status=1
go run ./internal/testsum <"$tmp/test" >"$tmp/sum" || status=1
cat "$tmp/sum"

run_fuzz "${FUZZTIME:-3s}" || status=1

if [ "${RACE:-1}" = 1 ]; then
	echo "race detector:"
	# The hostile log goes alone, last: its rows have time limits, and beside the
	# databases of other packages the race detector makes them late.
	go list "${slowest[@]}" ./... | grep -v /internal/evillog$ | xargs go test -race -short -json -timeout 45m >"$tmp/race" || status=1
	go test -race -short -json -timeout 45m ./internal/evillog >>"$tmp/race" || status=1
	go run ./internal/testsum <"$tmp/race" >"$tmp/racesum" || status=1
	grep -v '^ok' "$tmp/racesum"
fi

go run ./cmd/demo -once || status=1

if [ "$status" = 0 ]; then echo "make test: ok"; else echo "make test: FAILED"; fi
grep -E '^[0-9]+ passed, [0-9]+ failed' "$tmp/sum"
exit "$status"
