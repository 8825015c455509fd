// Package policies enforces NetworkPolicies in the local cluster with nftables.
//
// This file is the pure part: from the pods with their links, and the policies, to the text of one nftables table.
package policies

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Pod is a pod that hangs on a link of its own.
type Pod struct {
	Namespace, Name string
	Labels          map[string]string
	// Ports are the named ones of its containers.
	Ports []core.ContainerPort
	// Link is the machine's end of the pod's link.
	Link    string
	Address netip.Addr
}

// State is all that the rules follow from.
type State struct {
	Pods       []Pod
	Namespaces map[string]map[string]string
	Policies   []*networking.NetworkPolicy
}

// Table is the name of the nftables table, in the family inet.
const Table = "kiln-policies"

// What passes an egress chain has the receiver's ingress chain still before it.
const (
	passEgress  = "goto ingress"
	passIngress = "accept"
)

// Render gives the table that enforces the policies, as one transaction for `nft -f`.
//
// A pod's outgoing packets are known by its link, which it cannot forge; incoming ones by its address. The hook input
// has those to the machine's own addresses, where the API server is. What the machine itself sends to pods is free, as
// with most enforcers: probes are.
func Render(state State) string {
	chains := map[string][]string{}
	var egress, ingress, links, sources []string
	for _, pod := range state.Pods {
		links = append(links, fmt.Sprintf("%q", pod.Link))
		sources = append(sources, fmt.Sprintf("%q . %s", pod.Link, pod.Address))
		if chain, rules := state.chain(pod, networking.PolicyTypeEgress); chain != "" {
			chains[chain] = rules
			egress = append(egress, fmt.Sprintf("%q : jump %s", pod.Link, chain))
		}
		if chain, rules := state.chain(pod, networking.PolicyTypeIngress); chain != "" {
			chains[chain] = rules
			ingress = append(ingress, fmt.Sprintf("%s : jump %s", pod.Address, chain))
		}
	}
	var text strings.Builder
	// Made, removed and made again in one transaction: packets see the former rules or these.
	fmt.Fprintf(&text, "table inet %s\ndelete table inet %s\ntable inet %s {\n", Table, Table, Table)
	set := func(kind, name, kinds string, elements []string) {
		slices.Sort(elements)
		fmt.Fprintf(&text, "\t%s %s {\n\t\ttype %s\n", kind, name, kinds)
		if elements = slices.Compact(elements); len(elements) > 0 {
			fmt.Fprintf(&text, "\t\telements = { %s }\n", strings.Join(elements, ", "))
		}
		text.WriteString("\t}\n")
	}
	chain := func(name string, rules ...string) {
		fmt.Fprintf(&text, "\tchain %s {\n\t\t%s\n\t}\n", name, strings.Join(rules, "\n\t\t"))
	}
	set("set", "links", "ifname", links)
	set("set", "sources", "ifname . ipv4_addr", sources)
	// A chain is there before what jumps to it.
	chain("ingress")
	names := make([]string, 0, len(chains))
	for name := range chains {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		chain(name, append(chains[name], "reject with icmpx type admin-prohibited")...)
	}
	set("map", "to", "ipv4_addr : verdict", ingress)
	set("map", "from", "ifname : verdict", egress)
	chain("ingress", "ip daddr vmap @to", "accept")
	for _, hook := range []string{"forward", "input"} {
		chain(hook,
			"type filter hook "+hook+" priority -5; policy accept;",
			// Links have IPv6 addresses of their own accord; the cluster has none, so policies say nothing of them.
			"iifname @links meta nfproto ipv6 drop",
			"iifname @links iifname . ip saddr != @sources drop",
			"ct state established,related accept",
			"iifname vmap @from",
			passEgress)
	}
	text.WriteString("}\n")
	return text.String()
}

// chain gives the chain for one direction of a pod; none where no policy selects it. Pods that the same policies
// select share one.
func (state State) chain(pod Pod, direction networking.PolicyType) (string, []string) {
	var names, rules []string
	for _, policy := range state.Policies {
		if policy.Namespace != pod.Namespace || !slices.Contains(policy.Spec.PolicyTypes, direction) ||
			!matches(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		names = append(names, policy.Name)
		if direction == networking.PolicyTypeEgress {
			for _, rule := range policy.Spec.Egress {
				rules = append(rules, state.rules(policy.Namespace, "daddr", rule.To, rule.Ports, nil, passEgress)...)
			}
		} else {
			for _, rule := range policy.Spec.Ingress {
				rules = append(rules, state.rules(policy.Namespace, "saddr", rule.From, rule.Ports, &pod, passIngress)...)
			}
		}
	}
	if len(names) == 0 {
		return "", nil
	}
	slices.Sort(rules)
	rules = slices.Compact(rules)
	hash := sha256.Sum256([]byte(strings.Join(append(names, rules...), "\n")))
	return fmt.Sprintf("%s-%s-%x", strings.ToLower(string(direction)), pod.Namespace, hash[:4]), rules
}

// rules gives a line for each pair of peer and port. The pod receives, where that is known (ingress).
func (state State) rules(namespace, field string, peers []networking.NetworkPolicyPeer, ports []networking.NetworkPolicyPort, pod *Pod, verdict string) []string {
	type peer struct {
		match string
		pods  []Pod
	}
	var found []peer
	if len(peers) == 0 {
		found = append(found, peer{pods: state.Pods})
	}
	for _, one := range peers {
		if one.IPBlock != nil {
			if match, ok := block(field, one.IPBlock); ok {
				found = append(found, peer{match: match, pods: nil})
			}
			continue
		}
		pods := state.selected(namespace, one)
		if match := addresses(field, pods); match != "" {
			found = append(found, peer{match: match, pods: pods})
		}
	}
	var lines []string
	for _, one := range found {
		if len(ports) == 0 {
			lines = append(lines, join(one.match, verdict))
		}
		for _, port := range ports {
			protocol := core.ProtocolTCP
			if port.Protocol != nil {
				protocol = *port.Protocol
			}
			lower := strings.ToLower(string(protocol))
			switch {
			case port.Port == nil:
				lines = append(lines, join(one.match, "meta l4proto "+lower, verdict))
			case port.Port.Type == intstr.Int && port.EndPort != nil:
				lines = append(lines, join(one.match, fmt.Sprintf("%s dport %d-%d", lower, port.Port.IntVal, *port.EndPort), verdict))
			case port.Port.Type == intstr.Int:
				lines = append(lines, join(one.match, fmt.Sprintf("%s dport %d", lower, port.Port.IntVal), verdict))
			case pod != nil:
				for _, number := range named(*pod, port.Port.StrVal, protocol) {
					lines = append(lines, join(one.match, fmt.Sprintf("%s dport %d", lower, number), verdict))
				}
			default:
				// Each receiver has its own numbers for a name.
				for _, receiver := range one.pods {
					for _, number := range named(receiver, port.Port.StrVal, protocol) {
						lines = append(lines, join(addresses(field, []Pod{receiver}), fmt.Sprintf("%s dport %d", lower, number), verdict))
					}
				}
			}
		}
	}
	return lines
}

// selected gives the pods that a peer's selectors match.
func (state State) selected(namespace string, peer networking.NetworkPolicyPeer) []Pod {
	var pods []Pod
	for _, pod := range state.Pods {
		inside := pod.Namespace == namespace
		if peer.NamespaceSelector != nil {
			inside = matches(peer.NamespaceSelector, state.Namespaces[pod.Namespace])
		}
		if inside && (peer.PodSelector == nil || matches(peer.PodSelector, pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	return pods
}

// matches: a selector that cannot be parsed, which the API server does not let in, selects nothing.
func matches(selector *meta.LabelSelector, set map[string]string) bool {
	parsed, err := meta.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(labels.Set(set))
}

// block is false for IPv6, which the cluster does not have.
func block(field string, block *networking.IPBlock) (string, bool) {
	prefix, err := netip.ParsePrefix(block.CIDR)
	if err != nil || !prefix.Addr().Is4() {
		return "", false
	}
	match := fmt.Sprintf("ip %s %s", field, prefix.Masked())
	for _, except := range block.Except {
		if prefix, err := netip.ParsePrefix(except); err == nil && prefix.Addr().Is4() {
			match += fmt.Sprintf(" ip %s != %s", field, prefix.Masked())
		}
	}
	return match, true
}

func addresses(field string, pods []Pod) string {
	if len(pods) == 0 {
		return ""
	}
	list := make([]string, 0, len(pods))
	for _, pod := range pods {
		list = append(list, pod.Address.String())
	}
	slices.Sort(list)
	return fmt.Sprintf("ip %s { %s }", field, strings.Join(slices.Compact(list), ", "))
}

func named(pod Pod, name string, protocol core.Protocol) []int32 {
	var numbers []int32
	for _, port := range pod.Ports {
		if port.Name == name && (port.Protocol == protocol || port.Protocol == "" && protocol == core.ProtocolTCP) {
			numbers = append(numbers, port.ContainerPort)
		}
	}
	return numbers
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), " ")
}
