# shellcheck shell=bash
# Compiled Rust dependencies, kept between clones in ~/.cache/kiln/cargo. Sourced, never run; needs cluster/lib.sh.
#
# A fresh clone starts with a copy of them in its own target directory. The project's own crates are never among them, and
# no target directory is shared: cargo judges own crates by relative path and time, and would take another clone's for
# fresh (https://github.com/rust-lang/cargo/issues/16642). tests/dependencies-test shows that this does not happen.

# What all clones may keep together, in MiB.
: "${KILN_DEPENDENCIES_LIMIT:=6144}"

target_directory() {
	printf '%s\n' "${CARGO_TARGET_DIR:-$ROOT/target}"
}

# dependencies_directory: named by all that decides whether they fit: toolchain, versions, profiles, flags.
dependencies_directory() {
	local key
	key=$(cd "$ROOT" && {
		rustc -vV
		cat Cargo.lock
		awk '/^\[/ {profile = /^\[profile/} profile' Cargo.toml
		cat .cargo/config.toml 2>/dev/null || true
		printf '%s\n' "${RUSTFLAGS:-}"
	} | sha256sum)
	printf '%s\n' "$CACHE/cargo/${key:0:12}"
}

# restore_dependencies: into a target directory that has nothing yet.
restore_dependencies() {
	local target kept
	target=$(target_directory)
	kept=$(dependencies_directory)
	[[ -d $kept && (! -e $target/debug || -e $target/debug.tmp) ]] || return 0
	mkdir -p "$target"
	# Without them all works, and takes longer.
	with_dependencies_locked copy_dependencies "$kept" "$target/debug" 2>/dev/null ||
		echo "compiled dependencies could not be copied from $kept; they are compiled anew" >&2
}

# copy_dependencies FROM TO: in one move, when all is there.
copy_dependencies() {
	# Nobody else copies now, so that of another start was broken off.
	rm -rf "$2.tmp"
	# It may have ended well, or somebody compiles there.
	[[ ! -e $2 ]] || return 0
	if ! touch -c "$1" || ! cp -a --reflink=auto "$1" "$2.tmp" || ! mv -T "$2.tmp" "$2"; then
		rm -rf "$2.tmp"
		return 1
	fi
}

# keep_dependencies: those of a build that succeeded, where more than are kept already.
keep_dependencies() {
	local target kept
	target=$(target_directory)
	kept=$(dependencies_directory)
	if (($(units "$target/debug") <= $(units "$kept"))); then return 0; fi
	mkdir -p "$CACHE/cargo"
	# Without them all works, and takes longer.
	with_dependencies_locked replace_dependencies "$target/debug" "$kept" ||
		echo "compiled dependencies could not be kept for other clones in $CACHE/cargo" >&2
}

# units DIR: how many crates of others are compiled there.
units() {
	find "$1/.fingerprint" -mindepth 1 -maxdepth 1 ! -name 'kiln*' 2>/dev/null | wc -l
}

# with_dependencies_locked COMMAND…: one at a time on this machine.
with_dependencies_locked() {
	local lock
	(
		flock "$lock"
		"$@"
	) {lock}>"$CACHE/cargo/lock"
}

# replace_dependencies FROM TO: in one move, when all is there.
replace_dependencies() {
	local from=$1 to=$2 own
	rm -rf "$CACHE"/cargo/*.tmp
	# A crate's files end in the hash of its fingerprint's directory.
	own=$(find "$from/.fingerprint" -mindepth 1 -maxdepth 1 -name 'kiln*' -printf '%f\n' | sed 's/.*-/-/')
	if ! mkdir -p "$to.tmp"/{deps,build,.fingerprint} || ! copy_others deps || ! copy_others build ||
		! copy_others .fingerprint || ! rm -rf "$to" || ! mv -T "$to.tmp" "$to"; then
		rm -rf "$to.tmp"
		return 1
	fi
	trim_dependencies "$to"
}

# copy_others DIR: what is not the project's own; times are kept, for cargo compares them.
copy_others() {
	find "$from/$1" -mindepth 1 -maxdepth 1 ! -name 'kiln*' ! -name 'libkiln*' -print0 |
		{ grep -zvF -e "${own:-kiln}" || true; } | xargs -0 -r cp -a --reflink=auto -t "$to.tmp/$1"
}

# trim_dependencies DIR: the least recently used go, but for DIR.
trim_dependencies() {
	local kept
	# shellcheck disable=SC2012 # Their names are hashes.
	ls -1tr "$CACHE/cargo" | while read -r kept; do
		(($(du -sm "$CACHE/cargo" | cut -f1) > KILN_DEPENDENCIES_LIMIT)) || break
		[[ ! -d $CACHE/cargo/$kept || $CACHE/cargo/$kept == "$1" ]] || rm -rf "${CACHE:?}/cargo/$kept"
	done
}
