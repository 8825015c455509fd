# shellcheck shell=bash
# What only tests need: an OpenTelemetry collector, and the recorder of those who come where nobody should. Both join a
# cluster that runs already, for a demo may have started it. Sourced by up.

TEST_PROCESSES=(otel-collector recorder)

# Received spans are in $STATE/traces.jsonl, a request a line, in OTLP's JSON.
start_collector() {
	cat >"$CONF/collector.yaml" <<-END
		receivers: {otlp: {protocols: {grpc: {endpoint: $HOST_IP:4317}, http: {endpoint: $HOST_IP:4318}}}}
		exporters: {file: {path: $STATE/traces.jsonl, flush_interval: 100ms}}
		service:
		  pipelines: {traces: {receivers: [otlp], exporters: [file]}}
		  telemetry: {logs: {level: warn}, metrics: {level: none}}
	END
	start otel-collector "$BIN/otel-collector" --config "$CONF/collector.yaml"
	wait_for 20 'OpenTelemetry collector' collector_answers
}

collector_answers() {
	[[ $(curl -sS -m 2 -o /dev/null -w '%{http_code}' "http://$HOST_IP:4318/v1/traces") == 405 ]]
}

start_recorder() {
	start recorder nsenter --net="$STATE/recorder.netns" "$BIN/recorder" --file "$STATE/recorder.jsonl" --ports 22,80,443,5000,6443,8443
	wait_for 10 recorder curl -fsS -m 2 "http://$FORBIDDEN_IP/"
}

# test_processes_run: all of them, from what would be compiled now.
test_processes_run() {
	[[ -e $STATE/complete-for-tests && $(<"$STATE/complete-for-tests") == "${COMPILED[*]}" ]] && all_alive "${TEST_PROCESSES[@]}"
}

start_test_processes() {
	stop 3 "${TEST_PROCESSES[@]}"
	link_binaries
	start_collector
	start_recorder
	printf '%s\n' "${COMPILED[*]}" >"$STATE/complete-for-tests"
}

ensure_test_processes() {
	test_processes_run ||
		step 'starting OpenTelemetry collector and recorder' "$LOGS/start-for-tests.log" start_test_processes
}
