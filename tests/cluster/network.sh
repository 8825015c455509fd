# shellcheck shell=bash
# The machine's side of the cluster's network: a bridge that carries its addresses, forwarding, packet rules.
# Sourced by up and down. Pods hang on links of their own (CNI's ptp), so each packet passes the machine's rules.

# keep_sysctl NAME VALUE: sets it, and notes the former value for down.
keep_sysctl() {
	local file=/proc/sys/${1//.//}
	[[ -e $file ]] || return 0
	printf '%s %s\n' "$file" "$(<"$file")" >>"$STATE/sysctls"
	printf '%s\n' "$2" >"$file"
}

make_network() {
	local node
	# A bridge device: not every kernel has dummy links.
	ip link add "$BRIDGE" type bridge
	ip address add "$HOST_IP/24" dev "$BRIDGE"
	for node in "${NODES[@]}"; do
		ip address add "${NODE_IP[$node]}/32" dev "$BRIDGE"
	done
	ip address add "$PACKAGES_IP/32" dev "$BRIDGE"
	ip address add "$API_IP/32" dev "$BRIDGE"
	ip link set "$BRIDGE" up
	# The machine reaches Services by this source, whether or not it has a default route.
	ip route add "$SERVICE_CIDR" dev "$BRIDGE" src "$HOST_IP"
	keep_sysctl net.ipv4.ip_forward 1
	keep_sysctl net.ipv4.conf.all.rp_filter 0
	# Within the cluster everything may pass; no packet of it leaves the machine: an answer at once, not a timeout.
	iptables -w -N KILN-FORWARD
	iptables -w -A KILN-FORWARD -s "$CLUSTER_CIDR" -d "$CLUSTER_CIDR" -j ACCEPT
	iptables -w -A KILN-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
	iptables -w -A KILN-FORWARD -s "$CLUSTER_CIDR" -j REJECT --reject-with icmp-net-unreachable
	iptables -w -A FORWARD -s "$CLUSTER_CIDR" -j KILN-FORWARD
	iptables -w -A FORWARD -d "$CLUSTER_CIDR" -j KILN-FORWARD
	make_forbidden_addresses
}

in_recorder() {
	nsenter --net="$STATE/recorder.netns" "$@"
}

# Hostile tests aim at addresses on this link and at nothing beyond it. The machine's own processes keep the metadata
# service that it may have: only the cluster's packets take the route to the recorder's.
make_forbidden_addresses() {
	local namespace=$STATE/recorder.netns
	touch "$namespace"
	unshare --net="$namespace" true
	ip link add "$RECORDER" type veth peer name eth0 netns "$namespace"
	in_recorder ip link set lo up
	in_recorder ip address add "$METADATA_IP/32" dev eth0
	in_recorder ip address add "$FORBIDDEN_IP/32" dev eth0
	in_recorder ip link set eth0 up
	in_recorder ip route add default via "$HOST_IP" dev eth0 onlink
	ip link set "$RECORDER" up
	ip route add "$FORBIDDEN_IP" dev "$RECORDER" src "$HOST_IP"
	ip route add "$METADATA_IP" dev "$RECORDER" table "$ROUTES"
	ip rule add from "$CLUSTER_CIDR" to "$METADATA_IP" lookup "$ROUTES"
	iptables -w -I KILN-FORWARD -s "$CLUSTER_CIDR" -d "$METADATA_IP" -o "$RECORDER" -j ACCEPT
}

# Removes the rules of KILN, kube-proxy, kubelet and CNI from one family, and leaves all others.
clean_rules() {
	local save=$1-save restore=$1-restore rules
	command -v "$save" >/dev/null || return 0
	rules=$("$save" -c 2>/dev/null) || return 0
	grep -qE 'KILN-|KUBE-|CNI-' <<<"$rules" || return 0
	grep -vE 'KILN-|KUBE-|CNI-' <<<"$rules" | "$restore" -w -c
}

# Also without the cluster's directory, which somebody may have removed by hand.
is_network_left() {
	ip link show "$BRIDGE" >/dev/null 2>&1 || ip link show "$RECORDER" >/dev/null 2>&1
}

clean_network() {
	local link file value
	clean_rules iptables
	clean_rules ip6tables
	nft delete table inet kiln-policies 2>/dev/null || true
	while ip rule delete lookup "$ROUTES" 2>/dev/null; do :; done
	ip link delete "$RECORDER" 2>/dev/null || true
	# The pods' links carry the gateway's address of a node's range.
	while read -r link; do
		ip link delete "${link%%@*}" 2>/dev/null || true
	done < <(ip -4 -o address show | awk '$2 ~ /^veth/ && $4 ~ /^10\.217\./ {print $2}')
	ip link delete "$BRIDGE" 2>/dev/null || true
	if [[ -e $STATE/sysctls ]]; then
		while read -r file value; do
			printf '%s\n' "$value" >"$file"
		done < <(tac "$STATE/sysctls")
		rm "$STATE/sysctls"
	fi
}
