# shellcheck shell=bash
# etcd, the API server, controllers and scheduler, and what has to be in the API from the start. Sourced by up.

kubectl_admin() {
	KUBECONFIG=$CONF/admin.kubeconfig "$BIN/kubectl" "$@"
}

start_etcd() {
	start etcd "$BIN/etcd" --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
		--listen-client-urls http://127.0.0.1:23790 --advertise-client-urls http://127.0.0.1:23790 \
		--listen-peer-urls http://127.0.0.1:23800 --initial-advertise-peer-urls http://127.0.0.1:23800 \
		--initial-cluster default=http://127.0.0.1:23800
}

start_apiserver() {
	start kube-apiserver "$BIN/kube-apiserver" \
		--etcd-servers http://127.0.0.1:23790 \
		--bind-address "$API_IP" --advertise-address "$API_IP" --secure-port 6443 \
		--service-cluster-ip-range "$SERVICE_CIDR" \
		--authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
		--client-ca-file "$PKI/cluster-ca.crt" \
		--tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
		--kubelet-certificate-authority "$PKI/cluster-ca.crt" \
		--kubelet-client-certificate "$PKI/kubelet-client.crt" --kubelet-client-key "$PKI/kubelet-client.key" \
		--kubelet-preferred-address-types InternalIP \
		--service-account-issuer https://kubernetes.default.svc.cluster.local \
		--service-account-key-file "$PKI/service-account.pub" \
		--service-account-signing-key-file "$PKI/service-account.key" \
		--audit-policy-file "$CLUSTER_DIR/manifests/audit-policy.yaml" \
		--audit-log-path "$STATE/audit.log" --audit-log-maxsize 1000
}

start_controllers() {
	start kube-controller-manager "$BIN/kube-controller-manager" \
		--kubeconfig "$CONF/controller-manager.kubeconfig" \
		--authentication-kubeconfig "$CONF/controller-manager.kubeconfig" \
		--authorization-kubeconfig "$CONF/controller-manager.kubeconfig" \
		--bind-address "$HOST_IP" --leader-elect=false --use-service-account-credentials --kube-api-qps 100 --kube-api-burst 200 \
		--root-ca-file "$PKI/cluster-ca.crt" --service-account-private-key-file "$PKI/service-account.key" \
		--cluster-signing-cert-file "$PKI/cluster-ca.crt" --cluster-signing-key-file "$PKI/cluster-ca.key"
	start kube-scheduler "$BIN/kube-scheduler" \
		--kubeconfig "$CONF/scheduler.kubeconfig" \
		--authentication-kubeconfig "$CONF/scheduler.kubeconfig" \
		--authorization-kubeconfig "$CONF/scheduler.kubeconfig" \
		--bind-address "$HOST_IP" --leader-elect=false
	mkdir -p "$STATE/volumes"
	# The kubelet looks for what a volume's directory holds, other users for nothing here.
	chmod 711 "$STATE/volumes"
	start volume-provisioner "$BIN/volume-provisioner" \
		--kubeconfig "$CONF/volume-provisioner.kubeconfig" --root "$STATE/volumes"
}

# The cluster's DNS and the machine's part of the network that leads to Services.
start_dns_and_proxy() {
	cat >"$CONF/Corefile" <<-END
		cluster.local in-addr.arpa ip6.arpa {
		  bind $HOST_IP
		  errors
		  kubernetes cluster.local in-addr.arpa ip6.arpa {
		    kubeconfig $CONF/coredns.kubeconfig
		    ttl 5
		  }
		  loadbalance
		}
		# Names for hostile tests: ANYTHING.metadata.rebind.kiln.test is this machine for
		# who asks first, and the metadata address for others.
		kiln.test {
		  bind $HOST_IP
		  errors
		  names {
		    git $HOST_IP
		    private $FORBIDDEN_IP
		    metadata $METADATA_IP
		    loopback 127.0.0.1
		    mixed $HOST_IP $METADATA_IP
		    rebind $HOST_IP
		  }
		}
		# Package registries: the gateway to them.
		${PACKAGE_HOSTS[*]} {
		  bind $HOST_IP
		  errors
		  template IN A {
		    answer "{{ .Name }} 60 IN A $PACKAGES_IP"
		  }
		  template IN ANY {
		    rcode NOERROR
		  }
		}
		# There is no other outside here: an answer at once, not a timeout.
		. {
		  bind $HOST_IP
		  errors
		  template ANY ANY {
		    rcode NXDOMAIN
		  }
		}
	END
	start coredns "$BIN/coredns" -conf "$CONF/Corefile"
	cat >"$CONF/proxy.yaml" <<-END
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: iptables
		clusterCIDR: $CLUSTER_CIDR
		bindAddress: ${NODE_IP[amd64]}
		healthzBindAddress: $HOST_IP:10256
		metricsBindAddress: $HOST_IP:10249
		hostnameOverride: kiln-amd64
		nodePortAddresses: [primary]
		clientConnection: {kubeconfig: $CONF/proxy.kubeconfig}
		conntrack: {maxPerCore: 0}
		iptables: {minSyncPeriod: 100ms, localhostNodePorts: false}
	END
	start kube-proxy "$BIN/kube-proxy" --config "$CONF/proxy.yaml"
}

# What enforces NetworkPolicies. CNI's last plugin asks it for a new pod's rules, and waits until they are in force.
start_network_policies() {
	cat >"$BIN/network-policies-cni" <<-END
		#!/bin/sh
		exec curl -sS --fail-with-body -m 20 --unix-socket $STATE/network-policies.sock -H "CNI-ContainerID: \$CNI_CONTAINERID" \\
			-H "CNI-Args: \$CNI_ARGS" --data-binary @- "http://network-policies/\$CNI_COMMAND"
	END
	chmod 755 "$BIN/network-policies-cni"
	start network-policies "$BIN/network-policies" --kubeconfig "$CONF/network-policies.kubeconfig" \
		--root "$STATE/links" --socket "$STATE/network-policies.sock"
	wait_for 20 'enforcer of NetworkPolicies' test -S "$STATE/network-policies.sock"
}

apply_manifests() {
	kubectl_admin apply -f "$CLUSTER_DIR/manifests/cluster"
}

# controllers_work: what a pod needs to be admitted is made by them.
controllers_work() {
	kubectl_admin get -n default serviceaccount/default configmap/kube-root-ca.crt
}

start_control_plane() {
	start_etcd
	start_apiserver
	wait_for 60 'API server' kubectl_admin get --raw /readyz
	wait_for 20 'first objects' apply_manifests
	start_controllers
	start_dns_and_proxy
	start_network_policies
}
