# shellcheck shell=bash
# The registries beside the first: one with the referrers of OCI 1.1, and one that wants tokens, with its token server.
# Each over TLS from the private CA, with passwords of its own. Sourced by up.

start_referrers_registry() {
	mkdir -p "$STATE/referrers-registry"
	start referrers-registry "$BIN/servers" registry --listen "$REFERRERS_REGISTRY" --root "$STATE/referrers-registry" \
		--certificate "$PKI/web.crt" --key "$PKI/web.key" --credential "$CONF/referrers-registry.credential"
}

# As Docker Hub, GitHub, Quay and Harbor do it: a Bearer challenge that names a realm and a scope.
start_token_registry() {
	mkdir -p "$STATE/token-registry"
	cat >"$CONF/token-registry.yaml" <<-END
		version: 0.1
		log: {level: info, accesslog: {disabled: false}}
		storage:
		  filesystem: {rootdirectory: $STATE/token-registry}
		  delete: {enabled: true}
		auth:
		  token:
		    realm: https://$TOKEN_SERVER/token
		    service: $TOKEN_REGISTRY
		    issuer: kiln
		    rootcertbundle: $PKI/private-ca.crt
		http:
		  addr: $TOKEN_REGISTRY
		  secret: $(openssl rand -hex 16)
		  tls: {certificate: $PKI/web.crt, key: $PKI/web.key}
	END
	start token-server "$BIN/servers" token --listen "$TOKEN_SERVER" --service "$TOKEN_REGISTRY" \
		--certificate "$PKI/web.crt" --key "$PKI/web.key" --users "$CONF/token-users.json"
	start token-registry docker-registry serve "$CONF/token-registry.yaml"
}

start_other_registries() {
	start_referrers_registry
	start_token_registry
	wait_for 10 'registry with referrers' wants_login "$REFERRERS_REGISTRY"
	wait_for 10 'registry with tokens' wants_login "$TOKEN_REGISTRY"
}

# wants_login HOST:PORT: it answers, and nobody comes in without a credential.
wants_login() {
	[[ $(curl -sS -m 2 -o /dev/null -w '%{http_code}' --cacert "$PKI/private-ca.crt" "https://$1/v2/") == 401 ]]
}
