# shellcheck shell=bash
# Takes everything down, in whatever state it is, and leaves nothing behind. Sourced by up and down.

# Processes of the cluster that no record names: pods, their shims, what outlived a damaged record.
leftover_processes() {
	local root dir exe
	while read -r root; do
		for dir in "$root"/kiln-amd64 "$root"/kiln-arm64 "$root"/kiln-images; do
			[[ ! -d $dir ]] || find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null
		done
	done < <(cgroup_roots)
	# One look at all processes: a machine may have a thousand.
	while read -r dir exe; do
		case $exe in
		"$CACHE"/bin/* | */docker-registry | */nginx | */fcgiwrap | */git-http-backend) ;;
		*) continue ;;
		esac
		# They are started in the cluster's directory; some, as nginx's workers, have no telling command line.
		case $(readlink "$dir/cwd" 2>/dev/null) in
		"$STATE" | "$STATE"/* | "$STATE (deleted)") printf '%s\n' "${dir#/proc/}" ;;
		esac
	done < <(find /proc/[0-9]*/exe -maxdepth 0 -printf '%h %l\n' 2>/dev/null || true)
}

kill_leftovers() {
	local i pids
	for ((i = 0; i < 100; i++)); do
		mapfile -t pids < <(leftover_processes | sort -un | grep -vx 0)
		((${#pids[@]} > 0)) || return 0
		kill -KILL "${pids[@]}" 2>/dev/null || true
		sleep 0.05
	done
	fail "These processes do not end: ${pids[*]}"
}

# Where end-to-end tests put volumes of their own.
TEST_VOLUMES=/var/tmp/kiln-e2e

unmount_all() {
	local i points
	for ((i = 0; i < 10; i++)); do
		mapfile -t points < <(awk -v state="$STATE/" -v tests="$TEST_VOLUMES/" \
			'index($5, state) == 1 || index($5, tests) == 1 {print $5}' /proc/self/mountinfo | tac)
		((${#points[@]} > 0)) || return 0
		umount -l "${points[@]}" 2>/dev/null || true
	done
	fail "These mounts stay: ${points[*]}"
}

remove_cgroups() {
	local root name i
	while read -r root; do
		for name in kiln-amd64 kiln-arm64 kiln-images; do
			[[ -d $root/$name ]] || continue
			# The kernel lets go of a killed process's group a moment later.
			for ((i = 0; i < 50; i++)); do
				find "$root/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
				[[ -d $root/$name ]] || break
				sleep 0.05
			done
		done
	done < <(cgroup_roots)
}

# Directories that kubelet and containerd make at fixed places: gone where nobody else uses them.
OUTSIDE=(/run/containerd /var/lib/kubelet /var/lib/cni /var/log/containers /var/log/pods)

note_outside() {
	local dir
	for dir in "${OUTSIDE[@]}"; do
		[[ -e $dir ]] || printf '%s\n' "$dir" >>"$STATE/outside"
	done
}

remove_outside() {
	local dir
	[[ -e $STATE/outside ]] || return 0
	while read -r dir; do
		rm -rf "$dir"
	done <"$STATE/outside"
}

# is_left: whether something of a cluster is there, its directory or what would outlive that.
is_left() {
	[[ -d $STATE ]] || is_network_left || [[ -n $(leftover_processes) ]]
}

clean() {
	local names=()
	# The first to stop are those that would start or mend things meanwhile.
	stop 3 kubelet-amd64 kubelet-arm64 kube-controller-manager kube-scheduler kube-proxy volume-provisioner
	if [[ -d $STATE/pids ]]; then mapfile -t names < <(ls "$STATE/pids"); fi
	stop 3 "${names[@]}"
	kill_leftovers
	unmount_all
	remove_cgroups
	clean_network
	unregister_qemu
	remove_outside
	rm -rf "$STATE" "$TEST_VOLUMES"
}
