package main

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/session/auth"
)

func testLogins(keys ...string) *logins {
	of := &logins{all: map[string]types.AuthConfig{}, hosts: map[string]string{}, always: map[string]map[right]bool{}}
	of.order = keys
	for _, key := range keys {
		of.all[key] = types.AuthConfig{Username: key, Password: "p"}
	}
	return of
}

func TestTheLoginOfARepository(t *testing.T) {
	of := testLogins("a.r.example", "a.r.example/team", "*.r.example", "*.r.example/team/app", "docker.io/team")
	for _, each := range [][3]string{
		{"a.r.example", "other", "a.r.example"},
		{"a.r.example", "teams", "a.r.example"},
		{"a.r.example", "team", "a.r.example/team"},
		{"a.r.example", "team/app/sub", "*.r.example/team/app"},
		{"b.r.example", "x", "*.r.example"},
		{"r.example", "x", ""},
		{"a.b.r.example", "x", ""},
		{"registry-1.docker.io", "team/x", "docker.io/team"},
		{"registry-1.docker.io", "library/x", ""},
	} {
		if got := of.forRepository(each[0], each[1]); got != each[2] {
			t.Errorf("%s/%s: %q instead of %q", each[0], each[1], got, each[2])
		}
	}
	of.hosts["a.r.example"] = "a.r.example/team"
	for host, user := range map[string]string{
		"a.r.example": "a.r.example/team", "b.r.example": "*.r.example", "registry-1.docker.io": "docker.io/team", "c.example": "",
	} {
		if got, err := of.provide(context.Background(), host, nil, nil); err != nil || got.Username != user {
			t.Errorf("%s: %q, %v", host, got.Username, err)
		}
	}
}

// As BuildKit asks: with what the first challenge was for, whatever it wants.
func TestWhatATokenIsAskedFor(t *testing.T) {
	const a, b, c = "repository:a:pull", "repository:b:pull", "repository:c:pull,push"
	for name, asked := range map[string][][2]string{
		"two bases, then a push with a layer of the first": {{a, "a"}, {a + " " + b, "b"}, {a, "a"}, {a + " " + c, "c"}},
		"a cache that is pushed to first":                  {{c, "c"}, {c + " repository:d:pull,push", "d"}, {c, "c"}},
		"a push, then one with a layer of another":         {{c, "c"}, {a + " " + c, "c"}},
		"a cache in the repository that is pushed to":      {{"repository:c:pull", "c"}, {a + " repository:c:pull", "a"}, {a + " " + c, "c"}},
		"nothing that is a repository":                     {{"", ""}, {"registry:catalog:*", ""}},
	} {
		of := testLogins()
		for i, each := range asked {
			if got, _ := of.forScopes("r.example", []string{each[0]}); got != each[1] {
				t.Errorf("%s, %d: %q", name, i, got)
			}
		}
	}
}

func TestAMirrorsLoginIsKnownByAnyOfItsNames(t *testing.T) {
	const scopes = "repository:library/debian:pull repository:proxy/library/debian:pull"
	for want, keys := range map[string][]string{
		"r.example/proxy": {"r.example", "r.example/proxy"},
		"r.example":       {"r.example"},
		"":                {"r.example/other"},
	} {
		of := testLogins(keys...)
		of.mirrors = []string{"r.example"}
		if _, key := of.forScopes("r.example", strings.Fields(scopes)); key != want {
			t.Errorf("%v: %q", keys, key)
		}
	}
}

// What names no registry is shown to none.
func TestNoLoginIsNone(t *testing.T) {
	of := testLogins("", "prod-*.r.example", "*.r.example", "*.r.example/team")
	if key := of.forRepository("evil.example", "x"); key != "" {
		t.Errorf("%q", key)
	}
	ctx := context.WithValue(context.Background(), chosen{}, "")
	if got, err := of.provide(ctx, "evil.example", nil, nil); err != nil || got.Username != "" || got.Password != "" {
		t.Errorf("%q, %v", got.Username, err)
	}
	if key := of.forRepository("prod-1.r.example", "x"); key != "prod-*.r.example" {
		t.Errorf("%q, and the first of those that fit as well counts", key)
	}
}

// A realm that gives each account what is its own, and nothing where it is asked for more.
func TestALayerThatMayNotBeTakenIsNotAskedFor(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	realm := httptest.NewTLSServer(http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		_ = request.ParseForm()
		user, _, _ := request.BasicAuth()
		if user == "" {
			user = request.PostForm.Get("username")
		}
		for _, scope := range strings.Fields(strings.Join(request.Form["scope"], " ")) {
			if !strings.HasPrefix(scope, "repository:"+strings.TrimPrefix(user, "r.example/")+"/") {
				answer.WriteHeader(http.StatusForbidden)
				_, _ = answer.Write([]byte(`{"errors": [{"code": "DENIED", "message": "access forbidden"}]}`))
				return
			}
		}
		token := base64.RawURLEncoding.EncodeToString([]byte(user))
		_, _ = answer.Write([]byte(`{"token": "` + token + `", "access_token": "` + token + `"}`))
	}))
	defer realm.Close()
	provider, err := newTokens(trusted(t, realm, "r.example"), testLogins("r.example/a", "r.example/b"))
	if err != nil {
		t.Fatal(err)
	}
	for _, each := range [][2]string{
		{"repository:a/base:pull", "r.example/a"},
		{"repository:a/base:pull repository:b/app:pull,push", "r.example/b"},
		{"repository:b/app:pull,push", "r.example/b"},
	} {
		answer, err := provider.FetchToken(context.Background(), &auth.FetchTokenRequest{
			Host: "r.example", Realm: realm.URL, Scopes: strings.Fields(each[0]),
		})
		if err != nil {
			t.Fatal(err)
		}
		if user, _ := base64.RawURLEncoding.DecodeString(answer.Token); string(user) != each[1] {
			t.Errorf("%s: %s", each[0], user)
		}
	}
	if _, err := provider.FetchToken(context.Background(), &auth.FetchTokenRequest{
		Host: "r.example", Realm: realm.URL, Scopes: []string{"repository:c/x:pull"},
	}); err == nil {
		t.Error("nobody's repository is read")
	}
}

// BuildKit asks for a host as it is written: by any case, and Docker Hub by any of its names.
func TestAHostByWhateverNameItIsAskedFor(t *testing.T) {
	of := testLogins("r.example", "r.example/team", "docker.io/team")
	of.hosts["r.example"] = "r.example"
	of.mirrors = []string{"r.example"}
	for _, each := range [][3]string{
		{"R.Example", "team/app", "r.example/team"},
		{"registry.hub.docker.com", "team/app", "docker.io/team"},
		{"index.docker.io", "team/app", "docker.io/team"},
	} {
		if got := of.forRepository(each[0], each[1]); got != each[2] {
			t.Errorf("%s/%s: %q instead of %q", each[0], each[1], got, each[2])
		}
	}
	if got, err := of.provide(context.Background(), "R.EXAMPLE", nil, nil); err != nil || got.Username != "r.example" {
		t.Errorf("%q, %v", got.Username, err)
	}
	scopes := []string{"repository:library/debian:pull", "repository:team/library/debian:pull"}
	if _, key := of.forScopes("R.Example", scopes); key != "r.example/team" {
		t.Errorf("a mirror: %q", key)
	}
}

// Behind a proxy that has a path of its own, a registry's challenge calls a repository by another name than the image does.
func TestARepositoryThatItsRegistryCallsOtherwise(t *testing.T) {
	for _, scopes := range []string{
		"repository:app:pull,push repository:docker/app:pull,push",
		"repository:docker/app:pull,push repository:team/app:pull,push",
		"repository:app:pull repository:docker/app:pull",
	} {
		of := testLogins("r.example", "r.example/docker")
		if _, key := of.forScopes("r.example", strings.Fields(scopes)); key != "r.example/docker" {
			t.Errorf("%s: %q", scopes, key)
		}
	}
}

// A port is a part of what a key names, as the kubelet has it: another one is another server's.
func TestAnyPartOfANameIsNoPort(t *testing.T) {
	of := testLogins("10.0.0.*", "*", "prod-*.r.example:5000")
	for host, expected := range map[string]string{
		"10.0.0.7": "10.0.0.*", "10.0.0.7:5000": "", "localhost": "*", "localhost:5000": "",
		"prod-1.r.example:5000": "prod-*.r.example:5000", "prod-1.r.example": "",
	} {
		if key := of.forRepository(host, "x"); key != expected {
			t.Errorf("%s: %q instead of %q", host, key, expected)
		}
	}
}
