# shellcheck shell=bash
# Starts the cluster's processes so that they outlive the shell, and stops them by pid. Sourced by up and down.
# A record in $STATE/pids is "pid boot starttime": together they name one process for good.

start_time() {
	local stat fields
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	# Counted behind the command's name, which may hold blanks: the first is the state, the 20th the start.
	read -ra fields <<<"${stat##*) }"
	[[ ${fields[0]} != Z ]] || return 1
	printf '%s %s\n' "$(</proc/sys/kernel/random/boot_id)" "${fields[19]}"
}

# start NAME COMMAND...: in a session of its own and in the cluster's directory, its output in $LOGS/NAME.log.
start() {
	local name=$1 pid file
	shift
	mkdir -p "$STATE/pids" "$LOGS"
	(
		cd "$STATE" || exit
		# Nothing else that is open here: it may be a lock that somebody holds while the cluster starts.
		for file in /proc/self/fd/*; do
			file=${file##*/}
			if ((file > 2)); then exec {file}>&-; fi
		done
		# Go's collector runs less often: memory is there, and what runs here counts in each run's costs.
		GOGC=400 PATH=$BIN:$PATH exec setsid "$@"
	) </dev/null >>"$LOGS/$name.log" 2>&1 &
	pid=$!
	disown "$pid"
	printf '%s %s\n' "$pid" "$(start_time "$pid")" >"$STATE/pids/$name"
}

# alive NAME
alive() {
	local pid time
	[[ -e $STATE/pids/$1 ]] || return 1
	read -r pid time <"$STATE/pids/$1"
	[[ -n $pid && $(start_time "$pid") == "$time" ]]
}

all_alive() {
	local name
	for name in "$@"; do
		alive "$name" || return 1
	done
}

# stop SECONDS NAME...: asks them all, waits that long, then kills what is left.
stop() {
	local limit=$1 name pid i left
	shift
	for name in "$@"; do
		if alive "$name"; then
			read -r pid _ <"$STATE/pids/$name"
			kill "$pid" 2>/dev/null || true
		fi
	done
	for ((i = 0; i < limit * 20; i++)); do
		left=
		for name in "$@"; do
			if alive "$name"; then left=yes; fi
		done
		[[ -n $left ]] || break
		sleep 0.05
	done
	for name in "$@"; do
		if alive "$name"; then
			read -r pid _ <"$STATE/pids/$name"
			kill -KILL "$pid" 2>/dev/null || true
			for ((i = 0; i < 100; i++)); do
				alive "$name" || break
				sleep 0.05
			done
		fi
		rm -f "$STATE/pids/$name"
	done
}
