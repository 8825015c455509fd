# shellcheck shell=bash
# Debian packages that the cluster needs, installed only when missing. Sourced by up.

PACKAGES=(
	apache2-utils docker-registry fcgiwrap nginx-light         # registry and Git server
	openssh-client                                             # keys for Git over ssh
	iptables iproute2 kmod nftables procps socat util-linux    # network, kubelet
	qemu-user-static                                           # the arm64 node, emulation
	busybox-static libcap2-bin mmdebstrap xz-utils             # images
	gcc libc6-dev libseccomp-dev pkg-config                    # runc, pause
	ca-certificates curl git jq openssl
)

missing_packages() {
	local package
	for package in "${PACKAGES[@]}"; do
		[[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s\n' "$package"
	done
}

POLICY=/usr/sbin/policy-rc.d

# Packages that bring a service must not start it: the cluster runs its own, with its own configuration.
install_packages() {
	local tries
	if [[ ! -e $POLICY ]]; then
		trap 'rm -f "$POLICY"' EXIT
		printf "#!/bin/sh\n# of Kiln's local cluster, while it installs packages\nexit 101\n" >$POLICY
		chmod 755 $POLICY
	fi
	export DEBIAN_FRONTEND=noninteractive
	# What an installation left half done that was broken off. A new machine may be busy with its own upgrades.
	for ((tries = 0; ; tries++)); do
		dpkg --configure -a && break
		((tries < 24)) || return 1
		sleep 5
	done
	apt-get -q update
	apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 install "$@"
}

# ensure_packages: one at a time on this machine, whichever clone needs them. The lock is also that of what it starts: dpkg
# goes on where the script is killed.
ensure_packages() {
	local missing lock
	exec {lock}>/run/lock/kiln-packages
	flock -n "$lock" || { echo 'waiting for another installation of packages' && flock "$lock"; }
	# One that an installation left which was broken off.
	if grep -qs "of Kiln's local cluster" $POLICY; then rm $POLICY; fi
	mapfile -t missing < <(missing_packages)
	((${#missing[@]} == 0)) ||
		step "installing ${missing[*]}" "$CACHE/logs/packages.log" install_packages "${missing[@]}"
	exec {lock}>&-
}
