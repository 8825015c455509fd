# shellcheck shell=bash
# Images that are there from the start: the pause container, and stand-ins for a few of docker.io, which tests
# must not need. Made once, then kept as the contents of a registry in ~/.cache/kiln.
# Sourced by up, images/build and images/languages.

# What the stand-in for busybox is for: the nodes' platforms, and more that only tests build for.
NODE_PLATFORMS=linux/amd64,linux/arm64
TEST_PLATFORMS=$NODE_PLATFORMS,linux/arm/v7,linux/386,linux/ppc64le,linux/s390x,linux/riscv64

# make_pause_image FILE: an archive that containerd imports, for it can pull nothing before a pod runs.
make_pause_image() {
	local dir=$STATE/pause layer
	mkdir -p "$dir"
	tar -C "$(dirname "$(readlink -f "$BIN/pause")")" --owner 0 --group 0 -cf "$dir/layer.tar" pause
	layer=$(sha256sum <"$dir/layer.tar")
	cat >"$dir/config.json" <<-END
		{"os":"linux","architecture":"$(go env GOARCH)","config":{"Entrypoint":["/pause"],"User":"65535:65535"},
		"rootfs":{"type":"layers","diff_ids":["sha256:${layer%% *}"]}}
	END
	echo '[{"Config":"config.json","RepoTags":["kiln.local/pause:1"],"Layers":["layer.tar"]}]' >"$dir/manifest.json"
	tar -C "$dir" -cf "$1" manifest.json config.json layer.tar
	rm -r "$dir"
}

buildkitd_answers() {
	"$BIN/buildctl" --addr "unix://$STATE/buildkitd.sock" debug workers
}

# The machine's own buildkitd, started by the first image that is built.
ensure_buildkitd() {
	if alive buildkitd && buildkitd_answers >/dev/null 2>&1; then return; fi
	stop 5 buildkitd
	cat >"$CONF/buildkitd.toml" <<-END
		root = "$STATE/buildkitd"
		[grpc]
		address = ["unix://$STATE/buildkitd.sock"]
		[worker.oci]
		binary = "$BIN/runc"
		networkMode = "host"
		defaultCgroupParent = "kiln-images"
		maxUsedSpace = "10GB"
		[worker.containerd]
		enabled = false
		[registry."docker.io"]
		mirrors = ["$REGISTRY/docker.io"]
		[registry."$REGISTRY"]
		ca = ["$PKI/private-ca.crt"]
	END
	start buildkitd "$BIN/buildkitd" --config "$CONF/buildkitd.toml"
	wait_for 20 buildkitd buildkitd_answers
}

# busybox_root ARCHITECTURE DIR: Debian's static busybox, with a link per applet, as in the official image. The
# architecture is as OCI names it.
busybox_root() {
	local dir=$2 applet debian
	case $1 in
	386) debian=i386 ;;
	arm) debian=armhf ;;
	ppc64le) debian=ppc64el ;;
	*) debian=$1 ;;
	esac
	mkdir -p "$dir"/{bin,etc,home,root,tmp,usr/bin,usr/sbin,var/www} "$CACHE/apt"
	chmod 1777 "$dir/tmp"
	if [[ $debian == "$(dpkg --print-architecture)" ]]; then
		cp "$(readlink -f "$(command -v busybox)")" "$dir/bin/busybox"
	else
		fetch_foreign_package busybox-static "$debian" "$dir.package"
		cp "$dir.package"/{,usr/}bin/busybox "$dir/bin/" 2>/dev/null || [[ -e $dir/bin/busybox ]]
	fi
	for applet in $(busybox --list); do
		[[ -e $dir/bin/$applet ]] || ln -s busybox "$dir/bin/$applet"
	done
	ln -s ../../bin/env "$dir/usr/bin/env"
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$dir/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$dir/etc/group"
}

# fetch_foreign_package NAME ARCHITECTURE DIR: unpacked, through an apt state of its own, so the machine's stays as it is.
fetch_foreign_package() {
	local state=$CACHE/apt/$2
	mkdir -p "$state"/{lists/partial,archives/partial} "$3"
	touch "$state/status"
	local options=(-q -o APT::Sandbox::User=root -o "APT::Architecture=$2" -o "APT::Architectures::=$2" -o "Dir::State=$state"
		-o "Dir::State::status=$state/status" -o "Dir::Cache=$state" -o "Dir::State::lists=$state/lists"
		-o "Dir::Etc::sourcelist=$(sources_for "$2" "$state")" -o Dir::Etc::sourceparts=-
		-o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
	# One archive of several may be between two states: what is missing then, is not found next.
	apt-get "${options[@]}" update || true
	(cd "$state" && rm -f "$1"_*.deb && apt-get "${options[@]}" download "$1" && dpkg-deb -x "$1"_*.deb "$3")
}

# sources_for ARCHITECTURE DIR: where its packages are. Debian has riscv64 since release 13, trixie.
sources_for() {
	local sources
	sources=$(debian_sources)
	if [[ $1 == riscv64 ]] && grep -q bookworm "$sources"; then
		sed 's/bookworm/trixie/g' "$sources" >"$2/${sources##*/}"
		sources=$2/${sources##*/}
	fi
	printf '%s\n' "$sources"
}

# debian_sources: the machine's list of Debian's own archives, without those of others.
debian_sources() {
	local file
	for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
		if [[ -s $file ]]; then
			printf '%s\n' "$file"
			return
		fi
	done
	fail 'No list of Debian packages in /etc/apt.'
}

# buildkit_root DIR: what the official rootless BuildKit image holds, on Debian instead of Alpine.
buildkit_root() {
	local suite name
	suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
	mkdir -p "$1/bin"
	mmdebstrap --quiet --variant=essential \
		--include=ca-certificates,git,git-lfs,libcap2-bin,openssh-client,openssl,pigz,uidmap,xz-utils \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
		"$suite" "$1/root.tar" "$(debian_sources)"
	for name in buildkitd buildctl rootlesskit; do
		cp -L "$BIN/$name" "$1/bin/$name"
	done
	cp -L "$BIN/runc" "$1/bin/buildkit-runc"
}

# keep_images DIR NAME…: what the registry's storage holds of these images under docker.io/, their repositories and the
# blobs that those link to.
keep_images() {
	local name digest to=$1 from=$STATE/registry/docker/registry/v2
	local tmp=$to.tmp/docker/registry/v2
	shift
	rm -rf "$to.tmp"
	for name in "$@"; do
		name=repositories/docker.io/$name
		mkdir -p "$(dirname "$tmp/$name")"
		cp -a "$from/$name" "$tmp/$name"
		while read -r digest; do
			# What was deleted may still be linked to.
			[[ -d $from/blobs/sha256/${digest:0:2}/$digest ]] || continue
			mkdir -p "$tmp/blobs/sha256/${digest:0:2}"
			cp -a --reflink=auto "$from/blobs/sha256/${digest:0:2}/$digest" "$tmp/blobs/sha256/${digest:0:2}/"
		done < <(find "$tmp/$name" -name link -exec awk '{sub(/^sha256:/, ""); print}' {} + | sort -u)
	done
	mv -T "$to.tmp" "$to"
}

# restore_images DIR: into the storage of the registry, which looks there at each request.
restore_images() {
	mkdir -p "$STATE/registry"
	cp -a --reflink=auto "$1/." "$STATE/registry/"
}

# build_busybox PLATFORM[,PLATFORM…]
build_busybox() {
	local dir=$STATE/standins/busybox platform architecture
	rm -rf "$dir"
	mkdir -p "$dir"
	for platform in ${1//,/ }; do
		architecture=${platform#linux/}
		busybox_root "${architecture%/v7}" "$dir/${architecture%/v7}"
	done
	rm -rf "$dir/"*.package
	"$CLUSTER_DIR/images/build" --platform "$1" \
		--ref docker.io/library/busybox:latest,docker.io/library/busybox:1.36,docker.io/library/alpine:latest \
		busybox "$dir" "$CLUSTER_DIR/images/busybox.Dockerfile"
	rm -rf "$dir"
}

build_buildkit_image() {
	local dir=$STATE/standins/buildkit
	rm -rf "$dir"
	buildkit_root "$dir"
	"$CLUSTER_DIR/images/build" --ref "docker.io/moby/buildkit:v$BUILDKIT_VERSION-rootless" --index \
		buildkit "$dir" "$CLUSTER_DIR/images/buildkit-rootless.Dockerfile"
	rm -rf "$dir"
}

build_standins() {
	build_busybox "$NODE_PLATFORMS"
	build_buildkit_image
	keep_images "$1" library/busybox library/alpine moby/buildkit
}

build_standins_for_tests() {
	build_busybox "$TEST_PLATFORMS"
	keep_images "$1" library/busybox library/alpine
}

# standins_directory: where the cache keeps them, named by a hash of all that they are made from. Beside it, with a
# suffix, those for tests.
standins_directory() {
	local key
	key=$({
		readlink "$BIN"/{buildkitd,rootlesskit,runc}
		printf '%s\n' "$TEST_PLATFORMS"
		declare -f build_standins build_standins_for_tests build_busybox build_buildkit_image busybox_root buildkit_root \
			fetch_foreign_package sources_for
		cat "$CLUSTER_DIR"/images/{busybox,buildkit-rootless}.Dockerfile "$CLUSTER_DIR/images/build"
	} | sha256sum)
	printf '%s\n' "$CACHE/images/${key:0:12}"
}

# Fills the registry's storage from the cache, before it starts.
restore_standins() {
	local kept
	kept=$(standins_directory)
	if [[ -d $kept ]]; then restore_images "$kept"; fi
}

ensure_standins() {
	local kept
	kept=$(standins_directory)
	[[ -d $kept ]] ||
		step 'making stand-ins for busybox and rootless BuildKit (about 2 min)' "$CACHE/logs/images.log" build_standins "$kept"
}

# Those for more platforms replace those that the cluster started with.
ensure_standins_for_tests() {
	local kept
	kept=$(standins_directory)-for-tests
	[[ ! -e $STATE/standins-for-tests || $(<"$STATE/standins-for-tests") != "$kept" ]] || return 0
	if [[ -d $kept ]]; then
		restore_images "$kept"
	else
		step 'making stand-ins for busybox on more platforms (about 30 s)' "$CACHE/logs/images.log" \
			build_standins_for_tests "$kept"
	fi
	printf '%s\n' "$kept" >"$STATE/standins-for-tests"
}
