# shellcheck shell=bash
# What a cluster of one's own needs before Kiln is installed there or the demo runs: all that it lacks is named at once,
# a line each, and nothing has been changed by then. Sourced by target-cluster.sh, never run.

# The oldest Kubernetes that the chart takes: 1.KUBERNETES_MINOR.
KUBERNETES_MINOR=30

# preflight [images|install|demo|tests]: fails with all that is missing for it; without a word, only what every script needs.
preflight() {
	local purpose=${1:-} server=''
	lacking=()
	look_for_programs kubectl helm jq curl git
	case $purpose in
	images) look_for_docker ;;
	install | demo | tests) look_for_install ;;&
	demo | tests) look_for_demo ;;&
	tests) look_for_tests ;;
	esac
	if command -v kubectl >/dev/null && look_for_server; then
		case $purpose in
		images) look_for_loader ;;
		install | demo | tests)
			look_for_version
			look_for_rights
			look_for_storage
			;;&
		demo) look_for_nodes amd64 arm64 ;;
		esac
	fi
	((${#lacking[@]})) || return 0
	fail "Not possible${server:+ on $server}, and nothing was changed. What is missing:"$'\n'"$(printf '  %s\n' "${lacking[@]}")"
}

lacks() {
	lacking+=("$*")
}

look_for_programs() {
	local name
	for name in "$@"; do
		command -v "$name" >/dev/null || lacks "the program $name: install it"
	done
}

# look_for_variables NAME MEANING [NAME MEANING…]
look_for_variables() {
	while (($#)); do
		[[ -n ${!1:-} ]] || lacks "the variable $1: $2"
		shift 2
	done
}

look_for_docker() {
	local said
	look_for_programs docker
	command -v docker >/dev/null || return 0
	docker buildx version >/dev/null 2>&1 || lacks "docker's plugin buildx: install it"
	said=$(docker info 2>&1) || lacks "an answer of docker: ${said##*$'\n'}"
}

# image_loader: the command that puts images of this machine's docker into the nodes; nothing where there is none.
image_loader() {
	local context profile
	context=$(kubectl config current-context)
	profile=$(kubectl get nodes -o 'jsonpath={.items[0].metadata.labels.minikube\.k8s\.io/name}' 2>/dev/null) || true
	case $context in
	kind-*) echo "kind load docker-image --name ${context#kind-}" ;;
	k3d-*) echo "k3d image import --cluster ${context#k3d-}" ;;
	*) [[ -z $profile ]] || echo "minikube --profile $profile image load" ;;
	esac
}

look_for_loader() {
	local loader
	[[ -z ${KILN_IMAGES:-} ]] || return 0
	loader=$(image_loader)
	if [[ -z $loader ]]; then
		lacks 'the variable KILN_IMAGES: a registry, and a path there, that nodes pull from; only those of kind, k3d and minikube take images from docker'
	else
		look_for_programs "${loader%% *}"
	fi
}

look_for_install() {
	look_for_variables \
		KILN_OPERATOR_IMAGE "the operator's image, as make images prints it" \
		KILN_BUILDER_IMAGE "the builder's image, as make images prints it"
	if [[ -n ${KILN_REGISTRY_USER:-} ]]; then
		look_for_variables KILN_REGISTRY 'host:port of the registry that KILN_REGISTRY_USER belongs to' \
			KILN_REGISTRY_PASSWORD 'the password of KILN_REGISTRY_USER'
		look_for_login
	fi
}

look_for_demo() {
	[[ -n ${KILN_REGISTRY_USER:-} ]] ||
		look_for_variables KILN_REGISTRY 'host:port of a registry with TLS, to push demo/hello to' \
			KILN_REGISTRY_USER 'a user that may push there' KILN_REGISTRY_PASSWORD 'the password of KILN_REGISTRY_USER'
	look_for_variables KILN_GIT 'https base of a Git server; hello.git below it is overwritten'
	look_for_git
}

look_for_tests() {
	look_for_variables KILN_GIT_USER 'a user that the Git server asks for below KILN_GIT/private' \
		KILN_GIT_PASSWORD 'the password of KILN_GIT_USER' \
		KILN_GIT_ROOT 'the directory that the Git server serves as KILN_GIT' \
		KILN_AUDIT_LOG "the API server's audit log, a file here"
}

# ask OPTION… URL: the status that a server answers with; where it does not answer, what curl says.
ask() {
	curl -sS -m 20 -o /dev/null -w '%{http_code}' ${KILN_REGISTRY_CA:+--cacert "$KILN_REGISTRY_CA"} "$@" 2>&1 ||
		true # The caller tells an answer from curl's words.
}

# out_of_reach VARIABLE WORDS: what curl says of the server that the variable names.
out_of_reach() {
	local said=${2%%$'\n'*}
	[[ $said != *'curl: (60)'* ]] || said+='; name a private CA in KILN_REGISTRY_CA'
	lacks "a way to $1=${!1}: $said"
}

# look_for_login: whether the registry lets this user in; with a token, where it wants one.
look_for_login() {
	[[ -n ${KILN_REGISTRY:-} && -n ${KILN_REGISTRY_PASSWORD:-} ]] && command -v curl >/dev/null || return 0
	if [[ -n ${KILN_REGISTRY_CA:-} && ! -r $KILN_REGISTRY_CA ]]; then
		lacks "the file that KILN_REGISTRY_CA names, $KILN_REGISTRY_CA: the registry's CA in PEM"
		return
	fi
	local answer
	answer=$(ask --config <(registry_login '') "https://$KILN_REGISTRY/v2/")
	case $answer in
	200) ;;
	401 | 403) lacks "access to $KILN_REGISTRY: it refuses KILN_REGISTRY_USER=$KILN_REGISTRY_USER with this password" ;;
	[1-5][0-9][0-9]) lacks "a registry at KILN_REGISTRY=$KILN_REGISTRY: https://$KILN_REGISTRY/v2/ answers $answer" ;;
	*) out_of_reach KILN_REGISTRY "$answer" ;;
	esac
}

look_for_git() {
	[[ -n ${KILN_GIT:-} ]] && command -v curl >/dev/null || return 0
	if [[ $KILN_GIT != https://* ]]; then
		lacks "an https URL in KILN_GIT=$KILN_GIT"
		return
	fi
	local answer
	answer=$(ask "$KILN_GIT/")
	[[ $answer == [1-5][0-9][0-9] ]] || out_of_reach KILN_GIT "$answer"
}

# look_for_server: sets server; fails where nothing more can be asked.
look_for_server() {
	local said
	server=$(kubectl config view --minify -o 'jsonpath={.clusters[0].cluster.server}' 2>/dev/null) || true
	if [[ -z $server ]]; then
		lacks "a cluster: KUBECONFIG=$KUBECONFIG names none; correct it, or unset it for the local one"
		return 1
	fi
	said=$(kubectl get --raw /version --request-timeout 10s 2>&1) && return
	lacks "an answer of the API server: ${said##*$'\n'}"
	return 1
}

look_for_version() {
	local minor
	minor=$(kubectl get --raw /version | sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p')
	((${minor:-0} >= KUBERNETES_MINOR)) || lacks "Kubernetes 1.$KUBERNETES_MINOR or later: this one is 1.$minor"
}

look_for_rights() {
	local resource
	for resource in namespaces customresourcedefinitions.apiextensions.k8s.io \
		clusterroles.rbac.authorization.k8s.io clusterrolebindings.rbac.authorization.k8s.io; do
		kubectl auth can-i create "$resource" --all-namespaces --quiet >/dev/null 2>&1 ||
			lacks "the right to create $resource: have a cluster administrator do it"
	done
}

look_for_storage() {
	local classes
	if ! classes=$(kubectl get storageclasses -o 'jsonpath={.items[*].metadata.annotations}' 2>&1); then
		lacks "the right to list storageclasses: ${classes##*$'\n'}"
	elif ! grep -qE '"storageclass(\.beta)?\.kubernetes\.io/is-default-class":"true"' <<<"$classes"; then
		lacks 'a default StorageClass, for the caches: kubectl get storageclasses'
	fi
}

# look_for_nodes ARCHITECTURE…: one of each that takes pods which tolerate clouds' taint of ARM nodes, and no other.
look_for_nodes() {
	local nodes architecture node='{range .items[*]}{.metadata.labels.kubernetes\.io/arch}'
	node+=' {.status.conditions[?(@.type=="Ready")].status} unschedulable={.spec.unschedulable}'
	node+='{range .spec.taints[*]} {.key}={.effect}{end}{"\n"}{end}'
	if ! nodes=$(kubectl get nodes -o "jsonpath=$node" 2>&1); then
		lacks "the right to list nodes: ${nodes##*$'\n'}"
		return
	fi
	nodes=$(sed -E 's# kubernetes\.io/arch=[A-Za-z]*##g' <<<"$nodes" | grep -vE 'unschedulable=true|=No(Schedule|Execute)') || true
	for architecture in "$@"; do
		grep -q "^$architecture True " <<<"$nodes" ||
			lacks "a node of $architecture that is ready and takes pods: the demo runs its image on amd64 and arm64"
	done
}
