# shellcheck shell=bash
# Which cluster the demo, the tests and an installation use. Sourced, never run.
# The one that KUBECONFIG names, if it does; otherwise the local one, which is started where it does not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=cluster/lib.sh
. "$ROOT/tests/cluster/lib.sh"

# own_cluster: whether KUBECONFIG names a cluster that is not the local one.
own_cluster() {
	[[ -n ${KUBECONFIG:-} && $KUBECONFIG != "$CONF/admin.kubeconfig" ]]
}

# use_cluster [--for-tests]: sets KUBECONFIG, PATH and what KILN_… variables name. Scripts that a script calls find it
# done. What only tests need is there with --for-tests.
use_cluster() {
	if ! own_cluster; then
		[[ -n ${KILN_CLUSTER_STARTED:-} ]] || "$ROOT/tests/cluster/up" "$@"
		# shellcheck source=/dev/null
		. "$ROOT/.cluster/env"
	elif [[ -z ${KILN_CLUSTER_STARTED:-} ]]; then
		need_programs kubectl helm jq curl git
		local server
		server=$(kubectl config view --minify -o 'jsonpath={.clusters[0].cluster.server}' 2>/dev/null) ||
			fail "KUBECONFIG=$KUBECONFIG names no cluster: correct it, or unset it for the local one"
		printf 'using the cluster that KUBECONFIG names: %s\n' "$server"
		kubectl version --request-timeout 10s >/dev/null || fail "$server does not answer"
	fi
	export KILN_CLUSTER_STARTED=1
}

# need_machine COMMAND: what compiling and the local cluster need of this machine, all of it told before anything is done.
need_machine() {
	local lacks=''
	if ! own_cluster; then
		[[ $(uname -s) == Linux ]] || lacks+='  Linux: the cluster is made of its namespaces and cgroups'$'\n'
		command -v apt-get >/dev/null || lacks+="  Debian's or Ubuntu's packages (apt-get): busybox, qemu, nginx and others come from there"$'\n'
		command -v go >/dev/null || lacks+='  Go 1.26 or later (https://go.dev/dl): Kubernetes and BuildKit are compiled from source'$'\n'
		((EUID == 0)) ||
			lacks+='  root: it installs packages, and makes network namespaces, mounts, cgroups and packet rules for two nodes'$'\n'
	fi
	command -v cargo >/dev/null || lacks+='  Rust (https://rustup.rs): Kiln itself is compiled'$'\n'
	[[ -n $lacks ]] || return 0
	printf '%s needs what is not here; nothing has been done yet:\n%s' "$1" "$lacks" >&2
	own_cluster || printf 'On a cluster of your own it needs no root: KUBECONFIG=… %s; docs/quickstart.md makes one.\n' "$1" >&2
	exit 1
}

need_programs() {
	local name missing=()
	for name in "$@"; do
		command -v "$name" >/dev/null || missing+=("$name")
	done
	((${#missing[@]} == 0)) || fail "Not installed: ${missing[*]}"
}

# need VARIABLE MEANING [VARIABLE MEANING…]: on a cluster of one's own these come from the environment.
need() {
	local unset_ones=''
	while (($#)); do
		[[ -n ${!1:-} ]] || unset_ones+="  $1  $2"$'\n'
		shift 2
	done
	[[ -z $unset_ones ]] || fail 'Not set, and needed on a cluster of your own:'$'\n'"${unset_ones%$'\n'}"
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
