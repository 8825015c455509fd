# shellcheck shell=bash
# The two nodes: each a containerd and a kubelet with directories, cgroups, addresses and pod range of its own.
# Sourced by up and down. The arm64 one runs arm64 programs through qemu, all else about it is as on a real one.

BINFMT=/proc/sys/fs/binfmt_misc

register_qemu() {
	if [[ ! -e $BINFMT/register ]]; then
		mount -t binfmt_misc binfmt_misc $BINFMT
		touch "$STATE/mounted-binfmt"
	fi
	local name
	for name in "${EMULATED[@]}"; do
		if [[ ! -e $BINFMT/qemu-$name && $(uname -m) != "$name" ]]; then
			# Flag F: the kernel keeps the emulator open, so it works inside containers that do not have it.
			cat "/usr/lib/binfmt.d/qemu-$name.conf" >$BINFMT/register
			printf '%s\n' "qemu-$name" >>"$STATE/registered-binfmt"
		fi
	done
}

unregister_qemu() {
	local name
	if [[ -e $STATE/registered-binfmt ]]; then
		while read -r name; do
			if [[ -e $BINFMT/$name ]]; then echo -1 >"$BINFMT/$name"; fi
		done <"$STATE/registered-binfmt"
	fi
	if [[ -e $STATE/mounted-binfmt ]] && mountpoint -q $BINFMT; then
		umount $BINFMT
	fi
	rm -f "$STATE/registered-binfmt" "$STATE/mounted-binfmt"
}

# cgroup_roots: where the hierarchies are: several in version 1, one in version 2.
cgroup_roots() {
	awk '$3 == "cgroup" || $3 == "cgroup2" {print $2}' /proc/self/mounts
}

make_cgroup() {
	local root file
	while read -r root; do
		mkdir -p "$root/$1"
		# A new cpuset is empty, and takes no process.
		for file in cpuset.mems cpuset.cpus; do
			if [[ $root == */cpuset* && -e $root/$file ]]; then
				cat "$root/$file" >"$root/$1/$file"
			fi
		done
	done < <(cgroup_roots)
}

# A process may lower its out-of-memory score only with CAP_SYS_RESOURCE.
lacks_sys_resource() {
	local caps
	caps=$(awk '/^CapEff/ {print $2}' /proc/self/status)
	(((16#$caps >> 24 & 1) == 0))
}

configure_node() {
	local node=$1 dir=$STATE/nodes/$1 restrict=false taints='[]'
	if lacks_sys_resource; then restrict=true; fi
	if [[ $node == arm64 ]]; then taints='[{key: kubernetes.io/arch, value: arm64, effect: NoSchedule}]'; fi
	mkdir -p "$dir"/{cni,certs.d/"$REGISTRY",certs.d/docker.io,logs}
	cat >"$dir/certs.d/$REGISTRY/hosts.toml" <<-END
		server = "https://$REGISTRY"
		[host."https://$REGISTRY"]
		capabilities = ["pull", "resolve"]
		ca = "$PKI/private-ca.crt"
	END
	# Nobody has credentials for docker.io, so its mirror's are the node's.
	cat >"$dir/certs.d/docker.io/hosts.toml" <<-END
		server = "https://$REGISTRY/v2/docker.io"
		[host."https://$REGISTRY/v2/docker.io"]
		capabilities = ["pull", "resolve"]
		override_path = true
		ca = "$PKI/private-ca.crt"
		[host."https://$REGISTRY/v2/docker.io".header]
		authorization = "Basic $(jq -r '.auths[].auth' "$CONF/docker/config.json")"
	END
	cat >"$dir/cni/10-kiln.conflist" <<-END
		{"cniVersion": "1.0.0", "name": "kiln-$node", "plugins": [
		  {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {
		    "type": "host-local", "dataDir": "$dir/addresses",
		    "ranges": [[{"subnet": "${POD_CIDR[$node]}"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}},
		  {"type": "network-policies-cni"}]}
	END
	cat >"$dir/containerd.toml" <<-END
		version = 3
		root = "$dir/containerd"
		state = "$dir/run"
		disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri"]
		[grpc]
		address = "$dir/containerd.sock"
		[ttrpc]
		address = "$dir/containerd.sock.ttrpc"
		[plugins."io.containerd.cri.v1.images"]
		snapshotter = "overlayfs"
		use_local_image_pull = true
		[plugins."io.containerd.cri.v1.images".pinned_images]
		sandbox = "kiln.local/pause:1"
		[plugins."io.containerd.cri.v1.images".registry]
		config_path = "$dir/certs.d"
		[plugins."io.containerd.cri.v1.runtime"]
		restrict_oom_score_adj = $restrict
		netns_mounts_under_state_dir = true
		tolerate_missing_hugetlb_controller = true
		[plugins."io.containerd.cri.v1.runtime".cni]
		bin_dirs = ["$BIN"]
		conf_dir = "$dir/cni"
		use_internal_loopback = true
		[plugins."io.containerd.cri.v1.runtime".containerd]
		default_runtime_name = "runc"
		[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
		runtime_type = "io.containerd.runc.v2"
		[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
		BinaryName = "$BIN/runc"
		SystemdCgroup = false
	END
	cat >"$dir/kubelet.yaml" <<-END
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		address: ${NODE_IP[$node]}
		port: 10250
		healthzBindAddress: ${NODE_IP[$node]}
		tlsCertFile: $PKI/node-$node.crt
		tlsPrivateKeyFile: $PKI/node-$node.key
		authentication:
		  anonymous: {enabled: false}
		  webhook: {enabled: true}
		  x509: {clientCAFile: $PKI/cluster-ca.crt}
		authorization: {mode: Webhook}
		clusterDNS: [$DNS_SERVICE_IP]
		clusterDomain: cluster.local
		containerRuntimeEndpoint: unix://$dir/containerd.sock
		podLogsDir: $dir/logs
		registerWithTaints: $taints
		cgroupRoot: /kiln-$node
		cgroupDriver: cgroupfs
		failCgroupV1: false
		failSwapOn: false
		podPidsLimit: 2048
		# How soon a changed Secret reaches its pods: certificates of a minute are renewed in time.
		syncFrequency: 10s
		serializeImagePulls: false
		registryPullQPS: 0
		# A test machine's disk may be nearly full, and its images are not to vanish during a run.
		imageGCHighThresholdPercent: 100
		imageGCLowThresholdPercent: 99
		evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
		shutdownGracePeriod: 0s
	END
	# As a kernel without Landlock answers; a test gives it to a builder.
	mkdir -p "$dir/kubelet/seccomp"
	cat >"$dir/kubelet/seccomp/no-landlock.json" <<-END
		{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
		  {"names": ["landlock_create_ruleset"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}
	END
}

containerd_ready() {
	"$BIN/ctr" -a "$STATE/nodes/$1/containerd.sock" version
}

start_node() {
	local node=$1 dir=$STATE/nodes/$1
	configure_node "$node"
	make_cgroup "kiln-$node"
	# Of an image for several platforms, each node runs the one for its own architecture; failing that, this machine's.
	start "containerd-$node" env "NODE_PLATFORM=linux/$node" "$BIN/containerd" -c "$dir/containerd.toml"
	wait_for 20 "containerd of $node" containerd_ready "$node"
	"$BIN/ctr" -a "$dir/containerd.sock" -n k8s.io images import --local "$STATE/pause.tar"
	start "kubelet-$node" "$BIN/kubelet" --config "$dir/kubelet.yaml" --root-dir "$dir/kubelet" \
		--kubeconfig "$CONF/node-$node.kubeconfig" --hostname-override "kiln-$node" --node-ip "${NODE_IP[$node]}"
}

# nodes_ready: both, and each with its architecture.
nodes_ready() {
	local node state
	state=$(kubectl_admin get nodes --request-timeout 2s -o \
		jsonpath='{range .items[*]}{.metadata.name}{"="}{.metadata.labels.kubernetes\.io/arch}{"="}{.status.conditions[?(@.type=="Ready")].status}{"="}{.status.runtimeHandlers[0].features.userNamespaces}{"\n"}{end}')
	for node in "${NODES[@]}"; do
		grep -qx "kiln-$node=$node=True=true" <<<"$state" || return 1
	done
}

start_nodes() {
	local node
	register_qemu
	make_pause_image "$STATE/pause.tar"
	for node in "${NODES[@]}"; do
		start_node "$node"
	done
	wait_for 60 'nodes ready' nodes_ready
	# As a controller of routes does it: Kiln knows by that which addresses are Pods'.
	for node in "${NODES[@]}"; do
		kubectl_admin patch node "kiln-$node" --patch \
			"{\"spec\": {\"podCIDR\": \"${POD_CIDR[$node]}\", \"podCIDRs\": [\"${POD_CIDR[$node]}\"]}}" >/dev/null
	done
	wait_for 60 'controllers' controllers_work
}
