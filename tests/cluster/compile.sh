# shellcheck shell=bash
# Compiles what the cluster is made of, each thing once per version, into ~/.cache/kiln/bin. Sourced by up.
# A directory's name holds its version and a hash of its recipe: a change of either compiles it anew.

KUBERNETES_VERSION=1.36.3
CONTAINERD_VERSION=2.4.2
RUNC_VERSION=1.5.2
CNI_VERSION=1.9.1
BUILDKIT_VERSION=0.33.1
ROOTLESSKIT_VERSION=2.3.6
COREDNS_VERSION=1.13.1
HELM_VERSION=4.2.4
COLLECTOR_VERSION=0.161.0

# Debug information is compiled for nobody: all of it is linked without. That is a fifth of the compiler's work.
export GOFLAGS='-buildvcs=false -gcflags=all=-dwarf=false'

# build_NAME OUT: puts the binaries of NAME into the directory OUT.
build_kubernetes() {
	local version=k8s.io/component-base/version
	cd "$CLUSTER_DIR/kubernetes"
	CGO_ENABLED=0 go build -trimpath -o "$1/kubernetes" -ldflags "-s -w \
		-X $version.gitVersion=v$KUBERNETES_VERSION -X $version.gitMajor=1 -X $version.gitMinor=36 \
		-X $version.gitTreeState=clean -X $version.gitCommit=v$KUBERNETES_VERSION" .
	local name
	for name in etcd kubectl kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy \
		volume-provisioner network-policies; do
		ln -s kubernetes "$1/$name"
	done
}

# One file of its modules is replaced: a node may prefer images of an architecture that is not this machine's.
build_containerd() {
	local module=github.com/containerd/containerd/v2 platforms=github.com/containerd/platforms source=$1.source version
	version=$(awk -v name=$platforms '$1 == name {print $2}' \
		"$(go mod download -json $module@v$CONTAINERD_VERSION | jq -r .GoMod)")
	rm -rf "$source"
	mkdir "$source"
	cd "$source"
	cp -r "$(go mod download -json "$platforms@$version" | jq -r .Dir)" platforms
	chmod -R u+w platforms
	cp "$CLUSTER_DIR/containerd/defaults_unix.go" platforms/
	go mod init kiln.build/tests/cluster/containerd
	go mod edit -require "$module@v$CONTAINERD_VERSION" -replace "$platforms=./platforms"
	go get -tool $module/cmd/{containerd,containerd-shim-runc-v2,ctr}
	CGO_ENABLED=0 go build -trimpath -o "$1/" -tags no_btrfs,no_devmapper,no_zfs \
		-ldflags "-s -w -X $module/version.Version=$CONTAINERD_VERSION" \
		$module/cmd/{containerd,containerd-shim-runc-v2,ctr}
	rm -rf "$source"
}

# Static: the same binary is BuildKit's in the builder image.
build_runc() {
	CGO_ENABLED=1 GOBIN=$1 go install -trimpath -tags seccomp,netgo,osusergo \
		-ldflags "-s -w -extldflags -static -X main.version=$RUNC_VERSION" \
		github.com/opencontainers/runc@v$RUNC_VERSION
}

build_cni() {
	local module=github.com/containernetworking/plugins/plugins
	CGO_ENABLED=0 GOBIN=$1 go install -trimpath -ldflags '-s -w' \
		$module/main/{ptp,loopback}@v$CNI_VERSION $module/ipam/host-local@v$CNI_VERSION $module/meta/portmap@v$CNI_VERSION
}

build_buildkit() {
	local module=github.com/moby/buildkit
	cd "$CLUSTER_DIR/../../builder-image/build"
	CGO_ENABLED=0 go build -trimpath -o "$1/" -tags osusergo,netgo,static_build,seccomp \
		-ldflags "-s -w -X $module/version.Version=v$BUILDKIT_VERSION -X $module/version.Package=$module" \
		$module/cmd/{buildkitd,buildctl}
}

# What builds for the agent, of the same module, with the same tags: so what they share is compiled once. Its tests are run
# when it is compiled.
build_kiln_build() {
	local flags=(-trimpath -tags "osusergo,netgo,static_build,seccomp")
	cd "$CLUSTER_DIR/../../builder-image/build"
	CGO_ENABLED=0 go test "${flags[@]}" .
	CGO_ENABLED=0 go build "${flags[@]}" -ldflags '-s -w' -o "$1/kiln-build" .
}

build_rootlesskit() {
	CGO_ENABLED=0 GOBIN=$1 go install -trimpath -ldflags '-s -w' \
		github.com/rootless-containers/rootlesskit/v2/cmd/rootlesskit@v$ROOTLESSKIT_VERSION
}

# CoreDNS and Helm are of Kubernetes' module, so what they share is compiled once, for the first of them.
build_coredns() {
	cd "$CLUSTER_DIR/kubernetes"
	CGO_ENABLED=0 go build -trimpath -o "$1/coredns" -ldflags '-s -w' ./coredns
}

build_helm() {
	cd "$CLUSTER_DIR/kubernetes"
	CGO_ENABLED=0 go build -trimpath -o "$1/helm" -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=v$HELM_VERSION" \
		helm.sh/helm/v4/cmd/helm
}

build_recorder() {
	cd "$CLUSTER_DIR/recorder"
	CGO_ENABLED=0 go build -trimpath -o "$1/recorder" -ldflags '-s -w' .
}

build_servers() {
	cd "$CLUSTER_DIR/servers"
	CGO_ENABLED=0 go build -trimpath -o "$1/servers" -ldflags '-s -w' .
}

build_collector() {
	cd "$CLUSTER_DIR/collector"
	CGO_ENABLED=0 go build -trimpath -o "$1/otel-collector" -ldflags '-s -w' .
}

# The container that holds a pod's namespaces.
build_pause() {
	gcc -Os -static -s -o "$1/pause" "$CLUSTER_DIR/images/pause.c"
}

# sources NAME: the files of this checkout that NAME is compiled from.
sources() {
	local module=$CLUSTER_DIR/kubernetes
	case $1 in
	kubernetes) find "$module" -type f -not -path "$module/coredns/*" -not -name '*_test.go' ;;
	coredns) find "$module/coredns" "$module"/go.{mod,sum} -type f ;;
	helm) printf '%s\n' "$module"/go.{mod,sum} ;;
	buildkit) printf '%s\n' "$CLUSTER_DIR"/../../builder-image/build/go.{mod,sum} ;;
	kiln_build) find "$CLUSTER_DIR/../../builder-image/build" -type f ;;
	pause) printf '%s\n' "$CLUSTER_DIR/images/pause.c" ;;
	*) if [[ -d $CLUSTER_DIR/$1 ]]; then find "$CLUSTER_DIR/$1" -type f; fi ;;
	esac
}

# compiled NAME VERSION: the directory with the binaries of NAME.
compiled() {
	local key
	key=$({
		declare -f "build_$1"
		go env GOVERSION
		sources "$1" | LC_ALL=C sort | xargs --no-run-if-empty -d '\n' cat
	} | sha256sum)
	printf '%s\n' "$CACHE/bin/$1-$2-${key:0:8}"
}

# build_into NAME OUT: one at a time on this machine, whichever clone it is for; for a step.
build_into() {
	local lock
	exec {lock}>"$CACHE/bin/lock"
	flock "$lock"
	# Another one may have made it meanwhile.
	[[ ! -d $2 ]] || return 0
	rm -rf "$2.tmp"
	mkdir -p "$2.tmp"
	"build_$1" "$2.tmp"
	mv -T "$2.tmp" "$2"
}

# Name, version, and what compiling it takes in reference seconds (tests/speed).
PARTS="
kubernetes $KUBERNETES_VERSION 900
coredns $COREDNS_VERSION 25
helm $HELM_VERSION 60
containerd $CONTAINERD_VERSION 170
runc $RUNC_VERSION 30
cni $CNI_VERSION 12
pause 1 1
servers 1 5
buildkit $BUILDKIT_VERSION 200
kiln_build 1 10
rootlesskit $ROOTLESSKIT_VERSION 15
"
# What only tests need.
PARTS_FOR_TESTS="
recorder 1 1
collector $COLLECTOR_VERSION 115
"

# compile PARTS: those that are not there already.
compile() {
	local name version cost out
	mkdir -p "$CACHE/bin"
	while read -r name version cost; do
		[[ -n $name ]] || continue
		out=$(compiled "$name" "$version")
		COMPILED+=("$out")
		[[ -d $out ]] ||
			step "compiling $name $version ($(about "$cost"))" "$CACHE/logs/compile-$name.log" build_into "$name" "$out"
	done <<<"$1"
}

# not_compiled PARTS: those that are not there, as they stand in the list.
not_compiled() {
	local name version cost
	while read -r name version cost; do
		[[ -z $name || -d $(compiled "$name" "$version") ]] || printf '%s %s %s\n' "$name" "$version" "$cost"
	done <<<"$1"
}

# link_binaries: all of them in one directory, for PATH.
link_binaries() {
	local out
	mkdir -p "$BIN"
	for out in "${COMPILED[@]}"; do
		ln -sf "$out"/* "$BIN/"
	done
}
