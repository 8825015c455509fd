# shellcheck shell=bash
# Which cluster the demo, the tests and an installation use. Sourced, never run.
# The one that KUBECONFIG names, if it does; otherwise the local one, which is started where it does not run.

((BASH_VERSINFO[0] >= 5)) || { echo "bash 5 or later is needed, this is $BASH_VERSION: install a newer one" >&2 && exit 1; }
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=cluster/lib.sh
. "$ROOT/tests/cluster/lib.sh"
# shellcheck source=preflight.sh
. "$ROOT/tests/preflight.sh"

# own_cluster: whether KUBECONFIG names a cluster that is not the local one.
own_cluster() {
	[[ -n ${KUBECONFIG:-} && $KUBECONFIG != "$CONF/admin.kubeconfig" ]]
}

# use_cluster [install|demo|tests]: sets KUBECONFIG, PATH and what KILN_… variables name. A cluster of one's own has to have
# what is needed for that, and what only tests need is started on the local one for them. Scripts that a script calls find
# it done.
use_cluster() {
	if ! own_cluster; then
		local options=()
		[[ ${1:-} != tests ]] || options=(--for-tests)
		[[ -n ${KILN_CLUSTER_STARTED:-} ]] || "$ROOT/tests/cluster/up" "${options[@]}"
		# shellcheck source=/dev/null
		. "$ROOT/.cluster/env"
	elif [[ -z ${KILN_CLUSTER_STARTED:-} ]]; then
		printf 'using the cluster that KUBECONFIG=%s names\n' "$KUBECONFIG"
		preflight "$@"
	fi
	export KILN_CLUSTER_STARTED=1
}

# one_at_a_time SCRIPT ARGUMENT…: runs the script again when no other one uses this machine's cluster, for two would install
# their Kiln over each other's. For the begin of a script; those that it calls find it done.
one_at_a_time() {
	local lock=/run/lock/kiln-in-use
	if [[ -n ${KILN_ALONE:-} ]] || own_cluster; then return 0; fi
	flock -n $lock true || echo 'waiting for another demo, test or installation on this machine'
	# All that is started here holds the lock, but for the cluster's own processes: what goes on where flock is ended is
	# waited for. Where it is ended, the script is too.
	KILN_ALONE=1 exec flock $lock setpriv --pdeathsig TERM -- "$@"
}

# newer VERSION THAN: whether it is, or the same. No version is older than any.
newer() {
	[[ $(printf '%s\n' "$1" "$2" | sort -V | tail -1) == "$1" ]]
}

# The oldest Go and Rust that compile all of it.
GO_MINIMUM=1.26
RUST_MINIMUM=1.95

# need_machine COMMAND: what the local cluster and compiling need of this machine, all of it told before anything is done.
need_machine() {
	local lacks='' version
	if own_cluster; then return; fi
	[[ $(uname -s) == Linux ]] || lacks+='  Linux: the cluster is made of its namespaces and cgroups'$'\n'
	command -v apt-get >/dev/null || lacks+="  Debian's or Ubuntu's packages (apt-get): busybox, qemu, nginx and others come from there"$'\n'
	[[ $(uname -m) == x86_64 ]] || lacks+="  an x86_64 machine: the arm64 node is emulated on it, not the other way round; this one is $(uname -m)"$'\n'
	version=$(go env GOVERSION 2>/dev/null) || version=
	newer "${version#go}" $GO_MINIMUM || lacks+="  Go $GO_MINIMUM or later (https://go.dev/dl): Kubernetes and BuildKit are compiled from source; here: ${version:-none}"$'\n'
	# With rustup there will be the one that rust-toolchain.toml names.
	version=$(cd "$ROOT" && RUSTUP_AUTO_INSTALL=0 rustc --version 2>/dev/null | cut -d' ' -f2) || version=
	command -v rustup >/dev/null || newer "$version" $RUST_MINIMUM || lacks+="  Rust $RUST_MINIMUM or later (https://rustup.rs): Kiln itself is compiled; here: ${version:-none}"$'\n'
	((EUID == 0)) ||
		lacks+='  root: it installs packages, and makes network namespaces, mounts, cgroups and packet rules for two nodes'$'\n'
	[[ -n $lacks ]] || return 0
	fail "$1 needs what is not here, and has done nothing yet:
${lacks}Without root there is a cluster of your own: docs/quickstart.md, by hand."
}

# ensure_toolchain: has rustup fetch the Rust that rust-toolchain.toml names, and says so: by itself it would do so at the
# first compile, which tells nobody.
ensure_toolchain() {
	command -v rustup >/dev/null || return 0
	! (cd "$ROOT" && RUSTUP_AUTO_INSTALL=0 rustc --version >/dev/null 2>&1) || return 0
	step "fetching Rust $(sed -n 's/^channel = "\(.*\)"/\1/p' "$ROOT/rust-toolchain.toml") into ${RUSTUP_HOME:-~/.rustup}" \
		"$CACHE/logs/rustup.log" fetch_toolchain
}

fetch_toolchain() {
	cd "$ROOT"
	RUSTUP_AUTO_INSTALL=1 rustc --version
}

# registry_login REPOSITORY: what curl takes as --config to be KILN_REGISTRY_USER, with a token where the registry wants one:
# to push to the repository, or where that is empty for nothing but to come in. The password passes through no command line.
registry_login() {
	local curl=(curl -sS -m 20) user=$KILN_REGISTRY_USER:$KILN_REGISTRY_PASSWORD challenge realm='' service='' token
	if [[ -n ${KILN_REGISTRY_CA:-} ]]; then curl+=(--cacert "$KILN_REGISTRY_CA"); fi
	user=${user//\\/\\\\}
	user="user = \"${user//\"/\\\"}\""
	challenge=$("${curl[@]}" -o /dev/null -D - "https://$KILN_REGISTRY/v2/" 2>/dev/null | grep -i '^www-authenticate: bearer ') || true
	if [[ -z $challenge ]]; then
		printf '%s\n' "$user"
		return
	fi
	[[ $challenge =~ realm=\"([^\"]*)\" ]] && realm=${BASH_REMATCH[1]}
	[[ $challenge =~ service=\"([^\"]*)\" ]] && service=${BASH_REMATCH[1]}
	token=$("${curl[@]}" --proto =https --config <(printf '%s\n' "$user") -G --data-urlencode "service=$service" \
		${1:+--data-urlencode "scope=repository:$1:pull,push"} "$realm" | jq -r '.token // .access_token // empty')
	printf 'header = "Authorization: Bearer %s"\n' "$token"
}

# login_secret NAMESPACE NAME: an imagePullSecret for the registry. The password passes through no command line.
login_secret() {
	export KILN_REGISTRY KILN_REGISTRY_USER KILN_REGISTRY_PASSWORD
	jq -n --arg namespace "$1" --arg name "$2" '
		{auths: {(env.KILN_REGISTRY): {username: env.KILN_REGISTRY_USER, password: env.KILN_REGISTRY_PASSWORD}}} as $login |
		{apiVersion: "v1", kind: "Secret", metadata: {$namespace, $name}, type: "kubernetes.io/dockerconfigjson",
		 stringData: {".dockerconfigjson": ($login | tojson)}}' |
		kubectl apply --server-side --force-conflicts -f - >/dev/null
}

# namespace NAME: makes it, where it is not there.
namespace() {
	kubectl get namespace "$1" >/dev/null 2>&1 || kubectl create namespace "$1" >/dev/null
}
