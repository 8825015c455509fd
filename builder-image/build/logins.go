package main

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/session/auth/authprovider"
)

// dockerHub is what Kiln calls the registry that BuildKit asks as authprovider.DockerHubRegistryHost.
const dockerHub = "docker.io"

// logins are what registries are shown: for each repository that with the longest path, then that which names the whole
// host, as the kubelet chooses.
type logins struct {
	// all has them by host[/path], in which * stands for any part of a host's name between two dots.
	all map[string]types.AuthConfig
	// hosts has the keys of those that registries are shown which tell no scope.
	hosts map[string]string
	lock  sync.Mutex
	// always has the rights that all requests for tokens of a host were for. BuildKit asks for those of one repository
	// together with what the host's first challenge was for, whichever that was (resolver/authorizer.go, doBearerAuth), so
	// these tell nothing of the request at hand.
	always map[string]map[right]bool
}

// readLogins reads Docker's configuration.
func readLogins(hosts map[string]string) (*logins, error) {
	file, err := config.Load("")
	if err != nil {
		return nil, fmt.Errorf("reading the logins: %w", err)
	}
	return &logins{all: file.AuthConfigs, hosts: hosts, always: map[string]map[right]bool{}}, nil
}

// chosen is the key of the login that a request is made with, in a context.
type chosen struct{}

// provide gives BuildKit's provider of tokens the login that was chosen; without one, that of the host: for registries that
// ask for user and password themselves, and as proof that there is any.
func (of *logins) provide(ctx context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
	if key, ok := ctx.Value(chosen{}).(string); ok {
		return of.all[key], nil
	}
	host = called(host)
	if key, ok := of.hosts[host]; ok {
		return of.all[key], nil
	}
	if keys := of.fitting(host, func(string) bool { return true }); len(keys) > 0 {
		return of.all[keys[len(keys)-1]], nil
	}
	return types.AuthConfig{}, nil
}

// forRepository gives the key of the login for a repository; empty: there is none.
func (of *logins) forRepository(host, repository string) string {
	keys := of.fitting(called(host), func(prefix string) bool {
		return prefix == "" || repository == prefix || strings.HasPrefix(repository, prefix+"/")
	})
	if len(keys) == 0 {
		return ""
	}
	return keys[0]
}

// fitting has the keys of a host's logins for such paths, the best first.
func (of *logins) fitting(host string, fits func(path string) bool) []string {
	var keys []string
	for key := range of.all {
		if pattern, prefix, _ := strings.Cut(key, "/"); isOfHost(pattern, host) && fits(prefix) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		hostA, pathA, _ := strings.Cut(a, "/")
		hostB, pathB, _ := strings.Cut(b, "/")
		return cmp.Or(
			cmp.Compare(len(pathB), len(pathA)),
			cmp.Compare(strings.Count(hostA, "*"), strings.Count(hostB, "*")),
			cmp.Compare(a, b),
		)
	})
	return keys
}

// about gives the repository that a request for a token is about: what not all requests of the host were for, rather one
// that is pushed to than one that a layer is taken from. Empty: it names none.
func (of *logins) about(host string, scopes []string) string {
	rights := rightsOf(scopes)
	if len(rights) == 0 {
		return ""
	}
	of.lock.Lock()
	defer of.lock.Unlock()
	always, ok := of.always[host]
	if !ok {
		always = map[right]bool{}
		for _, each := range rights {
			always[each] = true
		}
		of.always[host] = always
	}
	for each := range always {
		if !slices.Contains(rights, each) {
			delete(always, each)
		}
	}
	rank := func(of right) int {
		rank := 0
		if always[of] {
			rank += 2
		}
		if of.action != "push" {
			rank++
		}
		return rank
	}
	return slices.MinFunc(rights, func(a, b right) int { return cmp.Compare(rank(a), rank(b)) }).repository
}

func isOfHost(pattern, host string) bool {
	if pattern == host {
		return true
	}
	parts, names := strings.Split(pattern, "."), strings.Split(host, ".")
	if !strings.Contains(pattern, "*") || len(parts) != len(names) {
		return false
	}
	for i, part := range parts {
		if ok, err := path.Match(part, names[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

func called(host string) string {
	if host == authprovider.DockerHubRegistryHost {
		return dockerHub
	}
	return host
}

// right is one action on one repository.
type right struct{ repository, action string }

// rightsOf reads scopes such as repository:team/app:pull,push, as
// https://distribution.github.io/distribution/spec/auth/scope/ has them.
func rightsOf(scopes []string) []right {
	var rights []right
	for _, scope := range strings.Fields(strings.Join(scopes, " ")) {
		if named, ok := strings.CutPrefix(scope, "repository:"); ok {
			if end := strings.LastIndex(named, ":"); end >= 0 {
				for action := range strings.SplitSeq(named[end+1:], ",") {
					rights = append(rights, right{named[:end], action})
				}
			}
		}
	}
	return rights
}
