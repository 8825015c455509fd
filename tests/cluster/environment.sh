# shellcheck shell=bash
# Writes .cluster/env of this checkout: what anyone needs to use the cluster. Sourced by up.

# test_environment: of what runs for tests only; Kiln is not to send traces where nobody listens.
test_environment() {
	if alive otel-collector; then
		printf 'export KILN_OTLP=%s\n' "http://$HOST_IP:4317"
		printf 'export KILN_TRACES=%s\n' "$STATE/traces.jsonl"
	fi
	if alive recorder; then printf 'export KILN_RECORDER_LOG=%s\n' "$STATE/recorder.jsonl"; fi
}

write_environment() {
	local dir=$CHECKOUT/.cluster
	mkdir -p "$dir"
	ln -sfn "$STATE/git" "$dir/git"
	ln -sfn "$STATE/web" "$dir/web"
	cat >"$dir/env.tmp" <<-END
		# How to reach the local cluster; written by tests/cluster/up. For bash or sh: . .cluster/env
		export KILN_LOCAL_CLUSTER=1
		export KUBECONFIG=$CONF/admin.kubeconfig
		export KILN_REGISTRY=$REGISTRY
		export KILN_REGISTRY_CA=$PKI/private-ca.crt
		export KILN_REGISTRY_USER=kiln
		export KILN_REGISTRY_PASSWORD=$(<"$PKI/registry.password")
		export KILN_GIT=$GIT_URL
		export KILN_GIT_CA=$PKI/private-ca.crt
		export KILN_GIT_USER=kiln
		export KILN_GIT_PASSWORD=$(<"$PKI/git.password")
		# The same repositories over ssh: ssh://git@HOST:PORT/NAME.git
		export KILN_GIT_SSH=ssh://git@$GIT_SSH
		export KILN_GIT_SSH_KEY=$PKI/ssh-client
		export KILN_GIT_KNOWN_HOSTS=$PKI/ssh-known-hosts
		export KILN_WEB=$WEB_URL
		export KILN_WEB_USER=kiln
		export KILN_WEB_PASSWORD=$(<"$PKI/web.password")
		export KILN_REFERRERS_REGISTRY=$REFERRERS_REGISTRY
		export KILN_REFERRERS_REGISTRY_USER=kiln
		export KILN_REFERRERS_REGISTRY_PASSWORD=$(<"$PKI/referrers-registry.password")
		export KILN_TOKEN_REGISTRY=$TOKEN_REGISTRY
		export KILN_TOKEN_REGISTRY_USER=kiln
		export KILN_TOKEN_REGISTRY_PASSWORD=$(<"$PKI/token-registry.password")
		export KILN_TOKEN_REGISTRY_READER=reader
		export KILN_TOKEN_REGISTRY_READER_PASSWORD=$(<"$PKI/token-reader.password")
		export KILN_CA_KEY=$PKI/private-ca.key
		export KILN_METADATA_ADDRESS=$METADATA_IP
		export KILN_FORBIDDEN_HOST=$FORBIDDEN_IP
		export KILN_TEST_ZONE=kiln.test
		export KILN_REBINDING_NAME=rebind.kiln.test
		$(test_environment)
		export KILN_AUDIT_LOG=$STATE/audit.log
		export KILN_CONTAINERD_AMD64=$STATE/nodes/amd64/containerd.sock
		export KILN_CONTAINERD_ARM64=$STATE/nodes/arm64/containerd.sock
		case ":\$PATH:" in
		*:$BIN:*) ;;
		*) export PATH="$BIN:\$PATH" ;;
		esac
	END
	chmod 600 "$dir/env.tmp"
	mv "$dir/env.tmp" "$dir/env"
}
