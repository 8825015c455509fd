// Servers that the local cluster's users bring along, each a subcommand: Git over ssh, Git LFS, a registry with
// referrers, the token server of a registry, and the way out to package registries.
package main

import (
	"log"
	"os"
)

func main() {
	servers := map[string]func([]string) error{
		"ssh":      serveSSH,
		"lfs":      serveLFS,
		"registry": serveRegistry,
		"token":    serveTokens,
		"packages": servePackages,
	}
	if len(os.Args) < 2 || servers[os.Args[1]] == nil {
		log.Fatal("servers ssh | lfs | registry | token | packages")
	}
	log.Fatal(servers[os.Args[1]](os.Args[2:]))
}
