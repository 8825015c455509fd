# shellcheck shell=bash
# What all parts of the local cluster share: where things are, which addresses it uses, how a step is shown.
# Sourced, never run.

umask 022

# Ctrl-C ends the script. By itself bash would go on where the program that it waits for ends well in that moment.
trap 'exit 130' INT

# One cluster a machine, so its place and its addresses are fixed, whichever checkout starts it.
STATE=/var/lib/kiln-cluster
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/kiln
CLUSTER_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(cd "$CLUSTER_DIR/../.." && pwd)
BIN=$STATE/bin
PKI=$STATE/pki
LOGS=$STATE/logs
CONF=$STATE/conf

# The machine's own address in the cluster: registry, Git server and DNS listen here. The API server has one of its own:
# what is there is no source and no registry.
BRIDGE=kiln0
HOST_IP=10.217.0.1
API_IP=10.217.0.3
CLUSTER_CIDR=10.217.0.0/16
SERVICE_CIDR=10.218.0.0/16
API_SERVICE_IP=10.218.0.1
DNS_SERVICE_IP=10.218.0.10
REGISTRY=$HOST_IP:5000
GIT_URL=https://$HOST_IP:8443
GIT_SSH=$HOST_IP:2222
WEB_URL=https://$HOST_IP:8444
# Two other registries: one with OCI 1.1 referrers, one that wants tokens, and where it gets them.
REFERRERS_REGISTRY=$HOST_IP:5001
TOKEN_REGISTRY=$HOST_IP:5002
TOKEN_SERVER=$HOST_IP:5003

# The only way out of the cluster leads to package registries: their names mean this address.
PACKAGES_IP=10.217.0.2
PACKAGE_HOSTS=(deb.debian.org security.debian.org registry.npmjs.org registry.yarnpkg.com pypi.org files.pythonhosted.org
	repo.maven.apache.org repo1.maven.org proxy.golang.org sum.golang.org index.crates.io static.crates.io)

# Addresses that nobody is to reach: clouds' metadata service, a private host. A recorder stands there, in a namespace
# and on a link of this name.
RECORDER=kiln-recorder
METADATA_IP=169.254.169.254
FORBIDDEN_IP=10.217.0.66
# The routing table that only the cluster's packets see.
ROUTES=10217

# Architectures whose programs run by emulation on all nodes, as qemu names them; tests need some that do not.
EMULATED=(aarch64 arm s390x ppc64le riscv64)

# Each node's own address and its pods' range.
NODES=(amd64 arm64)
declare -A NODE_IP=([amd64]=10.217.0.11 [arm64]=10.217.0.12)
declare -A POD_CIDR=([amd64]=10.217.16.0/20 [arm64]=10.217.32.0/20)

fail() {
	printf '%s\n' "$*" >&2
	exit 1
}

# busy: what all processors of the machine have worked since it started, in clock ticks; 0 where no kernel tells it.
busy() {
	[[ -r /proc/stat ]] || { echo 0 && return; }
	local user nice system irq softirq
	read -r _ user nice system _ _ irq softirq _ </proc/stat
	echo $((user + nice + system + irq + softirq))
}

# account TEXT BUSY SECONDS: what a stage cost that began then, where anybody keeps the account (tests/costs.sh).
account() {
	[[ -z ${KILN_COSTS:-} ]] || printf '%s\t%d\t%d\n' "$1" $(($(busy) - $2)) $((SECONDS - $3)) >>"$KILN_COSTS"
}

# about COST: in words, how long this machine needs for what takes so many reference seconds (tests/speed). More than four
# processors are of no use to most of it.
about() {
	awk -v cost="$1" -v speed="${KILN_SPEED:-1}" -v cores="$(nproc)" 'BEGIN {
		seconds = cost / speed / (cores < 4 ? cores : 4) / 0.9
		if (seconds < 100) printf "about %.0f s", seconds + 0.5; else printf "about %.0f min", seconds / 60}'
}

# nearly_full DIR…: names those on whose disk there is hardly any space left, for a failure that may come of it: what failed
# may have had no space to say so.
nearly_full() {
	local dir left
	for dir in "$@"; do
		while [[ ! -d $dir ]]; do dir=$(dirname "$dir"); done
		left=$(df -m --output=avail "$dir" | tail -n 1)
		((left >= 256)) || printf 'The disk of %s is nearly full: %d MiB are left.\n' "$dir" "$left"
	done
}

# step TEXT LOG COMMAND...: one line for what is done, how long it took, and the end of its log when it fails.
step() {
	local text=$1 log=$2 begin=$SECONDS busy
	busy=$(busy)
	shift 2
	mkdir -p "$(dirname "$log")"
	printf '%s … ' "$text"
	# A subshell of its own with errexit on: in the condition of an "if", bash would ignore it.
	set +e
	(
		trap 'exit 130' INT
		set -e
		"$@"
	) </dev/null >"$log" 2>&1
	local status=$?
	set -e
	if ((status != 0)); then
		printf 'failed (%d)\n' "$status"
		tail -n 30 "$log" | sed 's/^/    /' >&2
		nearly_full "$CACHE" "${TMPDIR:-/tmp}" "$CHECKOUT" "$STATE" /var/cache/apt >&2
		fail "The whole log: $log"
	fi
	account "$text" "$busy" "$begin"
	printf 'done %ds\n' $((SECONDS - begin))
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
	local limit=$1 what=$2 i
	shift 2
	for ((i = 0; i < limit * 10; i++)); do
		"$@" >/dev/null 2>&1 && return 0
		sleep 0.1
	done
	fail "$what: not within $limit s"
}
