package policies

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

// Each policy with the lines that its pod's chain must have, all of them.
func TestRules(t *testing.T) {
	const head = "metadata: {name: p, namespace: a}\nspec:\n  podSelector: {matchLabels: {app: one}}\n"
	for name, test := range map[string]struct {
		policy string
		lines  []string
	}{
		"closed":     {"  policyTypes: [Egress]\n", nil},
		"everything": {"  policyTypes: [Egress]\n  egress: [{}]\n", []string{"goto ingress"}},
		"block with exceptions and a range": {
			"  policyTypes: [Egress]\n  egress:\n  - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 10.1.2.3/32]}}, {ipBlock: {cidr: '::/0'}}]\n" +
				"    ports: [{port: 1, endPort: 6442}, {port: 53, protocol: UDP}]\n",
			[]string{
				"ip daddr 0.0.0.0/0 ip daddr != 10.0.0.0/8 ip daddr != 10.1.2.3/32 tcp dport 1-6442 goto ingress",
				"ip daddr 0.0.0.0/0 ip daddr != 10.0.0.0/8 ip daddr != 10.1.2.3/32 udp dport 53 goto ingress",
			},
		},
		"pods of all namespaces": {
			"  policyTypes: [Egress]\n  egress: [{to: [{namespaceSelector: {}}]}]\n",
			[]string{"ip daddr { 10.0.0.1, 10.0.0.2, 10.0.0.3 } goto ingress"},
		},
		"pods of this namespace": {
			"  policyTypes: [Ingress]\n  ingress: [{from: [{podSelector: {}}]}]\n",
			[]string{"ip saddr { 10.0.0.1, 10.0.0.2 } accept"},
		},
		"pods of one namespace with a named port": {
			"  policyTypes: [Ingress]\n  ingress: [{from: [{namespaceSelector: {matchLabels: {name: b}}, podSelector: {}}], ports: [{port: web}]}]\n",
			[]string{"ip saddr { 10.0.0.3 } tcp dport 8080 accept"},
		},
		"a named port of others": {
			"  policyTypes: [Egress]\n  egress: [{to: [{namespaceSelector: {matchLabels: {name: b}}}], ports: [{port: web}]}]\n",
			[]string{"ip daddr { 10.0.0.3 } tcp dport 9090 goto ingress"},
		},
		"nobody there": {"  policyTypes: [Ingress]\n  ingress: [{from: [{podSelector: {matchLabels: {app: none}}}]}]\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			var policy networking.NetworkPolicy
			if err := yaml.UnmarshalStrict([]byte(head+test.policy), &policy); err != nil {
				t.Fatal(err)
			}
			state := example(&policy)
			chain, rules := state.chain(state.Pods[0], policy.Spec.PolicyTypes[0])
			if chain == "" || strings.Join(rules, "\n") != strings.Join(test.lines, "\n") {
				t.Errorf("%s: %q", chain, rules)
			}
			if other, _ := state.chain(state.Pods[1], policy.Spec.PolicyTypes[0]); other != "" {
				t.Errorf("another pod has %s", other)
			}
			if os.Geteuid() == 0 {
				command := exec.Command("nft", "--check", "-f", "-")
				command.Stdin = strings.NewReader(Render(state))
				if said, err := command.CombinedOutput(); err != nil {
					t.Errorf("nft: %v: %s\n%s", err, said, Render(state))
				}
			}
		})
	}
}

func example(policies ...*networking.NetworkPolicy) State {
	port := func(number int32) []core.ContainerPort {
		return []core.ContainerPort{{Name: "web", ContainerPort: number}}
	}
	return State{
		Pods: []Pod{
			{Namespace: "a", Name: "one", Labels: map[string]string{"app": "one"}, Ports: port(8080), Link: "v1", Address: netip.MustParseAddr("10.0.0.1")},
			{Namespace: "a", Name: "two", Link: "v2", Address: netip.MustParseAddr("10.0.0.2")},
			{Namespace: "b", Name: "three", Ports: port(9090), Link: "v3", Address: netip.MustParseAddr("10.0.0.3")},
		},
		Namespaces: map[string]map[string]string{"a": {"name": "a"}, "b": {"name": "b"}},
		Policies:   policies,
	}
}
