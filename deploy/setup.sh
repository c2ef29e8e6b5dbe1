#!/bin/sh
# setup.sh DIRECTORY makes a whole Portbook on one machine, to try it out: a log,
# three witnesses of which two must agree, a monitor, a token for a gateway, and
# the policies and configuration files of all. It starts nothing.
#
# It needs portbook-log, portbook-witness and portbook-monitor in PATH, and the
# directory config beside itself. It never touches what is there already.
#
# Environment:
#   ORIGIN    the log's name, for ever   (default log.example/try)
#   REGISTRY  the index's name in the log, for ever   (default 127.0.0.1:7480,
#             where the gateway listens)
#   ANCHOR    a file on another disk, in which the log remembers what it signed
#             (default DIRECTORY/anchor/anchor, which log.yaml then has to allow)
#
# Three witnesses run by one person protect against that person's disk and
# intruders, not against that person: docs/running.md.
set -eu
umask 077

die() { # STATUS MESSAGE
	echo "setup.sh: $2" >&2
	exit "$1"
}

[ $# -eq 1 ] || die 2 "usage: [ORIGIN=…] [REGISTRY=…] [ANCHOR=…] setup.sh DIRECTORY"
case $1 in
/*) dir=${1%/} ;;
*) dir=$(pwd)/${1%/} ;;
esac
origin=${ORIGIN:-log.example/try}
registry=${REGISTRY:-127.0.0.1:7480}
anchor=${ANCHOR:-$dir/anchor/anchor}
templates=$(dirname "$0")/config

# These go into YAML and policies as they are.
for value in "$dir" "$origin" "$registry" "$anchor"; do
	case $value in
	*[!A-Za-z0-9/._:-]*) die 2 "$value: only letters, digits and / . _ : - are allowed" ;;
	esac
done
for part in etc log anchor mark witness/w1 witness/w2 witness/w3 monitor gateway proxy; do
	[ -z "$(ls -A "$dir/$part" 2>/dev/null)" ] || die 1 "$dir/$part is not empty: choose another directory"
done
for program in portbook-log portbook-witness portbook-monitor; do
	command -v "$program" >/dev/null || die 3 "$program is not in PATH"
done
mkdir -p "$dir/etc" "$dir/anchor" "$dir/mark" "$dir/gateway" "$dir/proxy" "$(dirname "$anchor")"
trap 'echo "setup.sh: not finished; empty $dir before you try again" >&2' EXIT

# value KEY: that string of the JSON object on standard input.
value() { sed -n "s|.*\"$1\":\"\([^\"]*\)\".*|\1|p"; }

# configure: an example configuration with the paths and names of here.
configure() {
	sed -e 's|/etc/portbook/token|@DIR@/gateway/token|' -e 's|/etc/portbook/|@DIR@/etc/|' \
		-e 's|/var/lib/portbook-|@DIR@/|' -e 's|pkg\.example\.org|@REGISTRY@|' \
		-e "s|@DIR@|$dir|g" -e "s|@REGISTRY@|$registry|g"
}

log_key=$(portbook-log init --json --origin "$origin" --dir "$dir/log" --anchor "$anchor" | value vkey)
[ -n "$log_key" ] || die 3 "portbook-log init printed no key"
{
	configure <"$templates/log.yaml"
	if [ "$(stat -c %d "$dir/log")" = "$(stat -c %d "$(dirname "$anchor")")" ]; then
		echo
		echo "# The anchor is on the log's own disk: whoever restores that disk as a whole"
		echo "# brings both back, and only the witnesses then refuse a second history."
		echo "anchor-beside: true"
	fi
} >"$dir/etc/log.yaml"

# The log asks the witnesses at their addresses; others need their keys alone.
{
	echo "# The publish policy: who must cosign before this log publishes anything."
	echo "log $log_key"
} >"$dir/etc/publish.policy"
{
	echo "# The client policy: which log, and which witnesses, to believe."
	echo "log $log_key http://127.0.0.1:8080/"
} >"$dir/etc/client.policy"
for n in 1 2 3; do
	witness=$dir/witness/w$n
	key=$(portbook-witness init --json --name "witness.example/w$n" --dir "$witness" --mark "$dir/mark/w$n" | value vkey)
	[ -n "$key" ] || die 3 "portbook-witness init printed no key"
	portbook-witness add-log --yes --dir "$witness" "$log_key" >/dev/null
	{
		sed -e "s|w1|w$n|" -e "s|7380|738$n|" "$templates/witness.yaml" | configure
		if [ "$(stat -c %d "$witness")" = "$(stat -c %d "$dir/mark")" ]; then
			echo
			echo "# The mark is on the witness's own disk: whoever restores that disk as a"
			echo "# whole brings both back, and this witness may sign a second history."
			echo "mark-beside: true"
		fi
	} >"$dir/etc/witness-w$n.yaml"
	echo "witness w$n $key http://127.0.0.1:738$n/" >>"$dir/etc/publish.policy"
	echo "witness w$n $key" >>"$dir/etc/client.policy"
done
for policy in publish client; do
	printf 'group witnesses 2 w1 w2 w3\nquorum witnesses\n' >>"$dir/etc/$policy.policy"
done

portbook-log token create --json --dir "$dir/log" --registry "$registry" --note gateway | value token >"$dir/gateway/token"
[ -s "$dir/gateway/token" ] || die 3 "portbook-log token create printed no token"
configure <"$templates/gateway.yaml" >"$dir/etc/gateway.yaml"

# The log is empty: alerts begin at its first entry.
mkdir -p "$dir/monitor"
portbook-monitor init --from-start --db "$dir/monitor/monitor.db" --log-url http://127.0.0.1:8080/ --policy "$dir/etc/client.policy" >/dev/null
configure <"$templates/monitor.yaml" >"$dir/etc/monitor.yaml"
configure <"$templates/subscriptions.yaml" >"$dir/etc/subscriptions.yaml"

{
	configure <"$templates/proxy.yaml"
	echo "state: $dir/proxy/state"
} >"$dir/etc/proxy.yaml"

chmod 755 "$dir/etc"
chmod 644 "$dir"/etc/*
trap - EXIT
cat <<EOF
Made a log, three witnesses, a monitor and a gateway in $dir.

log key    $log_key
registry   $registry

For clients:  $dir/etc/client.policy
For the log:  $dir/etc/publish.policy
EOF
