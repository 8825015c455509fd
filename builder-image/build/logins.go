package main

import (
	"cmp"
	"context"
	"errors"
	"maps"
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
	// order has their keys: of those that fit as well, the first counts.
	order []string
	// hosts has the keys of those that registries are shown which tell no scope.
	hosts map[string]string
	// mirrors are hosts whose scopes may name what they mirror in the place of what is theirs.
	mirrors []string
	// plain are hosts that are spoken to without TLS.
	plain []string
	lock  sync.Mutex
	// always has the rights that all requests for tokens of a host were for. BuildKit asks for those of one repository
	// together with what the host's first challenge was for, whichever that was (resolver/authorizer.go, doBearerAuth), so
	// these tell nothing of the request at hand.
	always map[string]map[right]bool
}

// readLogins reads Docker's configuration.
func readLogins(wanted *job) (*logins, error) {
	file, err := config.Load("")
	if err != nil {
		return nil, errors.New("the logins for registries cannot be read")
	}
	of := &logins{
		all: file.AuthConfigs, order: wanted.Logins, hosts: wanted.Hosts, mirrors: wanted.Mirrors, plain: wanted.Plain,
		always: map[string]map[right]bool{},
	}
	return of, nil
}

// chosen is the key of the login that a request is made with, in a context.
type chosen struct{}

// provide gives BuildKit's provider of tokens the login that was chosen; without one, that of the host: for registries that
// ask for user and password themselves, and as proof that there is any.
func (of *logins) provide(ctx context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
	key, ok := ctx.Value(chosen{}).(string)
	if !ok {
		host = called(host)
		if key, ok = of.hosts[host]; !ok {
			if keys := of.fitting(host, func(string) bool { return true }); len(keys) > 0 {
				key = keys[len(keys)-1]
			}
		}
	}
	if key == "" {
		return types.AuthConfig{}, nil
	}
	return of.all[key], nil
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
	for _, key := range of.order {
		if pattern, prefix, _ := strings.Cut(key, "/"); isOfHost(pattern, host) && fits(prefix) {
			keys = append(keys, key)
		}
	}
	slices.SortStableFunc(keys, func(a, b string) int {
		hostA, pathA, _ := strings.Cut(a, "/")
		hostB, pathB, _ := strings.Cut(b, "/")
		return cmp.Or(
			cmp.Compare(len(pathB), len(pathA)),
			cmp.Compare(min(strings.Count(hostA, "*"), 1), min(strings.Count(hostB, "*"), 1)),
		)
	})
	return keys
}

// forScopes gives the repository that a request for a token is about, and the key of its login, which is empty where there is
// none. Of a mirror's the login may be known by another of the names, or by the host alone.
func (of *logins) forScopes(host string, scopes []string) (repository, key string) {
	rights := rightsOf(scopes)
	if len(rights) == 0 {
		return "", ""
	}
	repository = of.about(host, rights)
	key = of.forRepository(host, repository)
	if slices.Contains(of.mirrors, called(host)) && !strings.Contains(key, "/") {
		for _, each := range rights {
			if other := of.forRepository(host, each.repository); strings.Contains(other, "/") {
				return repository, other
			}
		}
		if key == "" {
			key = of.hosts[called(host)]
		}
	}
	return repository, key
}

// about gives the repository that a request for a token is about: one that is pushed to rather than one that a layer is taken
// from, then what not all requests of the host were for, and then that with a login of its own: a registry behind a proxy may
// call one repository by another name.
func (of *logins) about(host string, rights []right) string {
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
	maps.DeleteFunc(always, func(each right, _ bool) bool { return !slices.Contains(rights, each) })
	rank := func(of right) int {
		rank := 0
		if of.action != "push" {
			rank += 2
		}
		if always[of] {
			rank++
		}
		return rank
	}
	path := func(each right) int {
		_, path, _ := strings.Cut(of.forRepository(host, each.repository), "/")
		return len(path)
	}
	return slices.MinFunc(rights, func(a, b right) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(path(b), path(a)))
	}).repository
}

// isOfHost compares as the agent does (registry/src/login.rs).
func isOfHost(pattern, host string) bool {
	if pattern == host {
		return true
	}
	pattern, port, _ := strings.Cut(pattern, ":")
	host, itsPort, _ := strings.Cut(host, ":")
	parts, names := strings.Split(pattern, "."), strings.Split(host, ".")
	if port != itsPort || !strings.Contains(pattern, "*") || len(parts) != len(names) {
		return false
	}
	for i, part := range parts {
		before, after, any := strings.Cut(part, "*")
		rest, ok := strings.CutPrefix(names[i], before)
		if !any && part != names[i] || any && (!ok || !strings.HasSuffix(rest, after)) {
			return false
		}
	}
	return true
}

// called is Kiln's name of a host, which BuildKit asks for as it is written in a Dockerfile or the pool.
func called(host string) string {
	host = strings.ToLower(host)
	if slices.Contains([]string{authprovider.DockerHubRegistryHost, "index.docker.io", "registry.hub.docker.com"}, host) {
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
