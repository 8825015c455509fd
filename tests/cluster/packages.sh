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

# Packages that bring a service must not start it: the cluster runs its own, with its own configuration.
install_packages() {
	local policy=/usr/sbin/policy-rc.d
	# One that an installation left which was broken off.
	if grep -qs "of Kiln's local cluster" $policy; then rm $policy; fi
	if [[ ! -e $policy ]]; then
		# shellcheck disable=SC2064
		trap "rm -f $policy" EXIT
		printf "#!/bin/sh\n# of Kiln's local cluster, while it installs packages\nexit 101\n" >$policy
		chmod 755 $policy
	fi
	export DEBIAN_FRONTEND=noninteractive
	# What an installation left half done that was broken off.
	dpkg --configure -a
	apt-get -q update
	apt-get -q -y --no-install-recommends install "$@"
}

ensure_packages() {
	local missing
	mapfile -t missing < <(missing_packages)
	((${#missing[@]} == 0)) ||
		step "installing ${missing[*]}" "$CACHE/logs/packages.log" install_packages "${missing[@]}"
}
