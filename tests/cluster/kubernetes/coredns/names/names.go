// Package names is a CoreDNS plugin with names for hostile tests: static ones, and ones that change their mind.
//
//	names {
//	  metadata 169.254.169.254
//	  mixed 10.217.0.1 169.254.169.254
//	  rebind 10.217.0.1
//	}
//
// A name of the zone has the addresses of its line. Where the label rebind stands before one, as in
// ANYTHING.metadata.rebind.ZONE, the address that asks first for ANYTHING gets rebind's, however often it asks, and all
// others get metadata's. No answer may be kept (TTL 0). There are no IPv6 addresses.
package names

import (
	"context"
	"net"
	"strings"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

const rebind = "rebind"

func init() {
	// CoreDNS starts plugins that its own list of them names.
	dnsserver.Directives = append(dnsserver.Directives, "names")
	plugin.Register("names", setup)
}

func setup(controller *caddy.Controller) error {
	names := &names{zone: plugin.Host(controller.ServerBlockKeys[0]).NormalizeExact()[0], addresses: map[string][]string{}, first: map[string]string{}}
	for controller.Next() {
		for controller.NextBlock() {
			label := controller.Val()
			names.addresses[label] = controller.RemainingArgs()
			for _, address := range names.addresses[label] {
				if net.ParseIP(address).To4() == nil {
					return plugin.Error("names", controller.ArgErr())
				}
			}
		}
	}
	dnsserver.GetConfig(controller).AddPlugin(func(plugin.Handler) plugin.Handler { return names })
	return nil
}

type names struct {
	zone      string
	addresses map[string][]string
	mutex     sync.Mutex
	// Who asked first, by label.
	first map[string]string
}

// Name is the plugin's.
func (n *names) Name() string { return "names" }

// ServeDNS answers for the whole zone.
func (n *names) ServeDNS(_ context.Context, writer dns.ResponseWriter, request *dns.Msg) (int, error) {
	question := request.Question[0]
	reply := new(dns.Msg)
	reply.SetReply(request)
	reply.Authoritative = true
	addresses, known := n.find(strings.ToLower(question.Name), question.Qtype == dns.TypeA, writer.RemoteAddr())
	if !known {
		reply.Rcode = dns.RcodeNameError
	}
	for _, address := range addresses {
		reply.Answer = append(reply.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
			A:   net.ParseIP(address),
		})
	}
	return dns.RcodeSuccess, writer.WriteMsg(reply)
}

// find gives the addresses for a question of type A, and whether the name is there at all.
func (n *names) find(name string, isA bool, from net.Addr) ([]string, bool) {
	label := strings.TrimSuffix(strings.TrimSuffix(name, n.zone), ".")
	addresses, known := n.addresses[label]
	if unique, found := strings.CutSuffix(label, "."+rebind); found {
		_, target, _ := strings.Cut(unique, ".")
		addresses, known = n.addresses[target]
		if known && isA {
			n.mutex.Lock()
			defer n.mutex.Unlock()
			host, _, _ := net.SplitHostPort(from.String())
			if _, asked := n.first[label]; !asked {
				n.first[label] = host
			}
			if n.first[label] == host {
				addresses = n.addresses[rebind]
			}
		}
	}
	if !isA {
		addresses = nil
	}
	return addresses, known
}
