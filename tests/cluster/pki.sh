# shellcheck shell=bash
# Certificates and passwords, made anew for each cluster. Sourced by up.
# Two authorities: the cluster's own, and the private one behind the registry and the Git server.

make_ca() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
		-subj "/CN=$2" -addext keyUsage=critical,keyCertSign,cRLSign \
		-keyout "$PKI/$1.key" -out "$PKI/$1.crt"
}

# make_certificate NAME CA SUBJECT [ALTERNATIVE_NAMES]
make_certificate() {
	local usage=clientAuth names=
	if [[ -n ${4:-} ]]; then
		usage=serverAuth,clientAuth
		names="subjectAltName=$4"
	fi
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" \
		-keyout "$PKI/$1.key" -out "$PKI/$1.csr"
	openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/$2.crt" -CAkey "$PKI/$2.key" -CAcreateserial -days 3650 \
		-extfile <(printf '%s\n' basicConstraints=critical,CA:FALSE keyUsage=critical,digitalSignature \
			"extendedKeyUsage=$usage" "$names") \
		-out "$PKI/$1.crt"
	rm "$PKI/$1.csr"
}

# make_kubeconfig FILE CERTIFICATE
make_kubeconfig() {
	cat >"$1" <<-END
		apiVersion: v1
		kind: Config
		current-context: kiln-local
		contexts:
		- {name: kiln-local, context: {cluster: kiln-local, user: $2}}
		clusters:
		- name: kiln-local
		  cluster:
		    server: https://$API_IP:6443
		    certificate-authority-data: $(base64 -w0 "$PKI/cluster-ca.crt")
		users:
		- name: $2
		  user:
		    client-certificate-data: $(base64 -w0 "$PKI/$2.crt")
		    client-key-data: $(base64 -w0 "$PKI/$2.key")
	END
	chmod 600 "$1"
}

# make_client NAME SUBJECT: a certificate and a kubeconfig for a client of the API server.
make_client() {
	make_certificate "$1" cluster-ca "$2"
	make_kubeconfig "$CONF/$1.kubeconfig" "$1"
}

make_passwords() {
	local what
	for what in registry git web referrers-registry token-registry token-reader; do
		openssl rand -hex 16 >"$PKI/$what.password"
	done
	# The registry wants bcrypt and checks it at each request: the least cost. nginx's own format is quicker still.
	htpasswd -niBC 4 kiln <"$PKI/registry.password" >"$CONF/registry.htpasswd"
	htpasswd -nim kiln <"$PKI/git.password" >"$CONF/git.htpasswd"
	htpasswd -nim kiln <"$PKI/web.password" >"$CONF/web.htpasswd"
	for what in git referrers-registry; do
		printf 'kiln:%s\n' "$(<"$PKI/$what.password")" >"$CONF/$what.credential"
	done
	cat >"$CONF/token-users.json" <<-END
		{
		  "kiln": {"password": "$(<"$PKI/token-registry.password")", "actions": ["pull", "push", "delete"]},
		  "reader": {"password": "$(<"$PKI/token-reader.password")", "actions": ["pull"]}
		}
	END
	mkdir -p "$CONF/docker"
	printf '{"auths":{"%s":{"auth":"%s"}}}\n' "$REGISTRY" \
		"$(printf 'kiln:%s' "$(<"$PKI/registry.password")" | base64 -w0)" >"$CONF/docker/config.json"
}

# Git over ssh: the server's key and the client's, and the server's line for known_hosts.
make_ssh_keys() {
	ssh-keygen -q -t ed25519 -N '' -C '' -f "$PKI/ssh-host"
	ssh-keygen -q -t ed25519 -N '' -C kiln -f "$PKI/ssh-client"
	# As ssh-keyscan prints it.
	printf '[%s]:%s %s\n' "${GIT_SSH%:*}" "${GIT_SSH#*:}" "$(cut -d ' ' -f 1,2 "$PKI/ssh-host.pub")" >"$PKI/ssh-known-hosts"
}

make_pki() {
	local node
	umask 077
	mkdir -p "$PKI" "$CONF"
	make_ca cluster-ca 'Kiln local cluster'
	make_ca private-ca 'Kiln local private CA'
	openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/service-account.key"
	openssl pkey -in "$PKI/service-account.key" -pubout -out "$PKI/service-account.pub"
	make_certificate apiserver cluster-ca /CN=kube-apiserver \
		"IP:$API_IP,IP:$HOST_IP,IP:$API_SERVICE_IP,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
	make_certificate kubelet-client cluster-ca /O=system:masters/CN=kube-apiserver-kubelet-client
	make_client admin /O=system:masters/CN=admin
	make_client controller-manager /CN=system:kube-controller-manager
	make_client scheduler /CN=system:kube-scheduler
	make_client proxy /CN=system:kube-proxy
	make_client coredns /CN=system:coredns
	make_client network-policies /CN=system:network-policies
	make_client volume-provisioner /CN=system:volume-provisioner
	for node in "${NODES[@]}"; do
		make_certificate "node-$node" cluster-ca "/O=system:nodes/CN=system:node:kiln-$node" "IP:${NODE_IP[$node]},DNS:kiln-$node"
		make_kubeconfig "$CONF/node-$node.kubeconfig" "node-$node"
	done
	# The names are CoreDNS's for hostile tests.
	make_certificate web private-ca "/CN=$HOST_IP" \
		"IP:$HOST_IP,DNS:*.kiln.test,DNS:*.metadata.rebind.kiln.test,DNS:*.private.rebind.kiln.test,DNS:*.loopback.rebind.kiln.test"
	make_passwords
	make_ssh_keys
}
