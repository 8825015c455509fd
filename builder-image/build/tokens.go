package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/util/progress/progresswriter"
	httptrace "github.com/moby/buildkit/util/tracing"
	"google.golang.org/grpc"
)

// tokens fetches the tokens of registries with the job's logins. A CA counts for the realm of its own registry alone:
// BuildKit's provider, told of it, would trust it for all that is fetched later.
type tokens struct {
	auth.AuthServer
	logged interface {
		SetLogger(progresswriter.Logger)
	}
}

// registry is the key of the host whose token is fetched, in a context.
type registry struct{}

// transports has one for each registry with a CA of its own, and one for all others.
type transports struct {
	own    map[string]http.RoundTripper
	others http.RoundTripper
}

func (of *transports) RoundTrip(request *http.Request) (*http.Response, error) {
	host, _ := request.Context().Value(registry{}).(string)
	if own, ok := of.own[host]; ok {
		return own.RoundTrip(request)
	}
	return of.others.RoundTrip(request)
}

// newTokens takes files with the CAs of realms, by the registry's host.
func newTokens(authorities map[string]string) (*tokens, error) {
	all := &transports{own: map[string]http.RoundTripper{}, others: http.DefaultTransport}
	for host, file := range authorities {
		bundle, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the CA of %s: %w", host, err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("reading the system's CAs: %w", err)
		}
		pool.AppendCertsFromPEM(bundle)
		own := http.DefaultTransport.(*http.Transport).Clone()
		own.TLSClientConfig = &tls.Config{RootCAs: pool}
		all.own[host] = own
	}
	// BuildKit's provider takes this one.
	httptrace.DefaultClient.Transport = httptrace.NewTransport(all)
	provider := authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: authprovider.LoadAuthConfig(config.LoadDefaultConfigFile(io.Discard)),
	})
	made := &tokens{}
	var ok bool
	if made.AuthServer, ok = provider.(auth.AuthServer); !ok {
		return nil, fmt.Errorf("BuildKit's provider of tokens is another: %T", provider)
	}
	if made.logged, ok = provider.(interface {
		SetLogger(progresswriter.Logger)
	}); !ok {
		return nil, fmt.Errorf("BuildKit's provider of tokens takes no logger: %T", provider)
	}
	return made, nil
}

// Register offers it to buildkitd.
func (of *tokens) Register(server *grpc.Server) { auth.RegisterAuthServer(server, of) }

// SetLogger has it tell what it fetches.
func (of *tokens) SetLogger(logger progresswriter.Logger) { of.logged.SetLogger(logger) }

// FetchToken asks the realm of a registry.
func (of *tokens) FetchToken(ctx context.Context, asked *auth.FetchTokenRequest) (*auth.FetchTokenResponse, error) {
	return of.AuthServer.FetchToken(context.WithValue(ctx, registry{}, asked.Host), asked)
}
