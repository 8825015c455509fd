# shellcheck shell=bash
# What a command costs, in reference seconds: seconds of this machine's processors, times its speed (tests/speed), so
# that machines can be compared. Budgets stand in CONTRIBUTING.md; above one there is a warning and no failure, for
# noise must not stop anybody. Sourced, never run; needs cluster/lib.sh, cluster/compile.sh, cluster/processes.sh and
# dependencies.sh.

# Who measures: a script that another one calls adds to its account.
COSTS_OWNER=

# budget COMMAND STATE: in reference seconds; nothing where there is none.
budget() {
	case $1-$2 in
	demo-nothing) echo 3000 ;;
	demo-caches) echo 450 ;;
	demo-dependencies) echo 1050 ;;
	demo-cluster) echo 200 ;;
	test-nothing) echo 6000 ;;
	test-caches | test-cluster) echo 2200 ;;
	test-dependencies) echo 2800 ;;
	check-compiled) echo 120 ;;
	esac
}

# state COMMAND: what is there already: nothing (or not all) of what is compiled once, all but Rust's dependencies, all, a
# cluster too; for make check, which has none, a tree that was checked before. A cluster of one's own is another thing, and
# has no budget.
state() {
	if own_cluster; then
		echo own
	elif [[ $1 != check && -n $(not_compiled "$PARTS") ]]; then
		echo nothing
	elif [[ ! -d $(dependencies_directory) && ! -e $(target_directory)/debug/.checked ]]; then
		echo dependencies
	elif [[ ! -d $(target_directory)/debug ]]; then
		echo caches
	elif [[ $1 == check ]]; then
		if [[ -e $(target_directory)/debug/.checked ]]; then echo compiled; else echo caches; fi
	elif [[ -e $STATE/complete ]] && alive kube-apiserver; then
		echo cluster
	else
		echo caches
	fi
}

# begin_costs COMMAND DIR: from here on, with the account in DIR. Sets KILN_SPEED.
begin_costs() {
	[[ -z ${KILN_COSTS:-} ]] || return 0
	COSTS_OWNER=$1
	COSTS_STATE=$(state "$1")
	KILN_SPEED=$("$ROOT/tests/speed/measure") || {
		nearly_full "${TMPDIR:-/tmp}" >&2
		fail 'This machine cannot compile a small Rust file (tests/speed/measure), so it can compile nothing else.'
	}
	KILN_COSTS=$2/costs
	export KILN_SPEED KILN_COSTS
	COSTS_BEGIN=$EPOCHREALTIME
	COSTS_BUSY=$(busy)
}

# end_costs: tells them. For the end of a script that has done its work.
end_costs() {
	[[ -n $COSTS_OWNER ]] || return 0
	local busy wall speed limit
	busy=$(($(busy) - COSTS_BUSY))
	wall=$(awk -v from="$COSTS_BEGIN" -v to="$EPOCHREALTIME" 'BEGIN {printf "%.0f", to - from}')
	# Whatever else still runs makes a machine look slower, never faster.
	speed=$(printf '%s\n' "$KILN_SPEED" "$("$ROOT/tests/speed/measure")" | sort -n | tail -1)
	limit=$(budget "$COSTS_OWNER" "$COSTS_STATE")
	[[ $COSTS_OWNER != test ]] || stages "$busy" "$speed"
	printf '\nmake %s: %s reference s (%s%s), %d min %02d s of wall time, speed %s\n' "$COSTS_OWNER" \
		"$(reference "$busy" "$speed")" "${limit:+budget $limit, with }" "$(described "$COSTS_STATE")" \
		$((wall / 60)) $((wall % 60)) "$speed"
	if [[ -n $limit ]] && (($(reference "$busy" "$speed") > limit)); then
		printf 'warning: that is above the budget; CONTRIBUTING.md says how to stay within it\n' >&2
	fi
	if [[ $COSTS_OWNER-$COSTS_STATE == test-c* ]] && awk -v wall="$wall" -v speed="$speed" 'BEGIN {exit wall * speed <= 1500}'; then
		printf 'warning: that is more than 25 min of wall time at speed 1.0; CONTRIBUTING.md says how to stay within it\n' >&2
	fi
}

# reference TICKS SPEED: in reference seconds.
reference() {
	awk -v ticks="$1" -v hertz="$(getconf CLK_TCK)" -v speed="$2" 'BEGIN {printf "%.0f", ticks / hertz * speed}'
}

described() {
	case $1 in
	nothing) echo 'nothing there' ;;
	own) echo 'a cluster of your own, whose work is not counted' ;;
	dependencies) echo 'caches there, but for the dependencies of this Cargo.lock, profile and toolchain' ;;
	caches) echo 'caches there' ;;
	cluster) echo 'the cluster there' ;;
	compiled) echo 'the former compile there' ;;
	esac
}

# stages TICKS SPEED: the share of each step in all of it.
stages() {
	printf '\nwhat each stage took (reference s, share, wall s):\n'
	awk -F '\t' -v all="$(($1 > 0 ? $1 : 1))" -v hertz="$(getconf CLK_TCK)" -v speed="$2" '
		{printf "  %7.0f %3.0f%% %6d  %s\n", $2 / hertz * speed, 100 * $2 / all, $3, $1; sum += $2}
		END {printf "  %7.0f %3.0f%%         between them\n", (all - sum) / hertz * speed, 100 * (all - sum) / all}' "$KILN_COSTS"
}
