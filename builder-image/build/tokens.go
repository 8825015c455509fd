package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remotes "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/util/progress/progresswriter"
	httptrace "github.com/moby/buildkit/util/tracing"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// tokens fetches the tokens of registries with the job's logins. A CA counts for the realm of its own registry alone:
// BuildKit's provider, told of it, would trust it for all that is fetched later.
type tokens struct {
	auth.AuthServer
	logins *logins
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
	// plain are registries that are spoken to without TLS.
	plain []string
}

// longestAnswer of a realm is in bytes.
const longestAnswer = 256 << 10

var (
	errPlain     = errors.New("the registry names a token service without https, to which Kiln sends no credential")
	errElsewhere = errors.New("the registry's token service redirects to another one, to which Kiln sends no credential")
)

func (of *transports) RoundTrip(request *http.Request) (*http.Response, error) {
	host, _ := request.Context().Value(registry{}).(string)
	if request.URL.Scheme != "https" && !slices.Contains(of.plain, called(host)) {
		return nil, errPlain
	}
	to := of.others
	if own, ok := of.own[called(host)]; ok {
		to = own
	}
	answer, err := to.RoundTrip(request)
	if err == nil {
		answer.Body = http.MaxBytesReader(nil, answer.Body, longestAnswer)
	}
	return answer, err
}

// stay has a request follow redirects within the realm alone: Go would take the body, and at times the login, along.
func stay(request *http.Request, via []*http.Request) error {
	first := via[0].URL
	if request.URL.Scheme != first.Scheme || request.URL.Host != first.Host || len(via) > 5 {
		return errElsewhere
	}
	return nil
}

// newTokens takes files with the CAs of realms, by the registry's host, and what registries are shown.
func newTokens(authorities map[string]string, logins *logins) (*tokens, error) {
	all := &transports{own: map[string]http.RoundTripper{}, others: http.DefaultTransport, plain: logins.plain}
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
		all.own[called(host)] = own
	}
	// BuildKit's provider takes this one.
	httptrace.DefaultClient.Transport = httptrace.NewTransport(all)
	httptrace.DefaultClient.CheckRedirect = stay
	provider := authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: logins.provide,
	})
	made := &tokens{logins: logins}
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

// FetchToken asks the realm of a registry, with the login of the repository that the request is about. Where the realm
// refuses what is asked for other repositories beside, as for taking a layer from one, it is asked for that one alone.
func (of *tokens) FetchToken(ctx context.Context, asked *auth.FetchTokenRequest) (*auth.FetchTokenResponse, error) {
	ctx = context.WithValue(ctx, registry{}, asked.Host)
	repository, key := of.logins.forScopes(asked.Host, asked.Scopes)
	if repository != "" {
		ctx = context.WithValue(ctx, chosen{}, key)
	}
	answer, err := of.AuthServer.FetchToken(ctx, asked)
	if own := ofRepository(asked.Scopes, repository); isRefusal(err) && 0 < len(own) && len(own) < len(asked.Scopes) {
		alone := proto.CloneOf(asked)
		alone.Scopes = own
		return of.AuthServer.FetchToken(ctx, alone)
	}
	return answer, err
}

func ofRepository(scopes []string, repository string) []string {
	var own []string
	for _, scope := range scopes {
		if strings.HasPrefix(scope, "repository:"+repository+":") {
			own = append(own, scope)
		}
	}
	return own
}

func isRefusal(err error) bool {
	var status remotes.ErrUnexpectedStatus
	if errors.As(err, &status) {
		return status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden
	}
	// As the provider has it where the realm told codes.
	var told docker.Errors
	return errors.As(err, &told) && slices.ContainsFunc(told, func(each error) bool {
		var code docker.Error
		return errors.As(each, &code) && (code.Code == docker.ErrorCodeDenied || code.Code == docker.ErrorCodeUnauthorized)
	})
}
