package main

import (
	"context"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/session/auth"
)

func TestACACountsForItsOwnRegistry(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	realm := httptest.NewTLSServer(http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		_, _ = answer.Write([]byte(`{"token": "secret"}`))
	}))
	defer realm.Close()
	provider, err := newTokens(trusted(t, realm, "own.example"), testLogins())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"other.example", "own.example", "other.example"} {
		got, err := provider.FetchToken(context.Background(), &auth.FetchTokenRequest{Host: host, Realm: realm.URL})
		if is, trusted := host == "own.example", err == nil && got.Token == "secret"; is != trusted {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// As Kiln's own client has it (registry/src/auth.rs): a login goes to the realm by TLS, and stays there.
func TestALoginIsShownToTheRealmAlone(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	var shown []string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		if _, password, _ := request.BasicAuth(); password != "" || strings.Contains(string(body), "password=") {
			shown = append(shown, request.Method+" "+request.URL.Path)
		}
		_, _ = answer.Write([]byte(`{"token": "t", "access_token": "t"}`))
	}))
	defer elsewhere.Close()
	realm := httptest.NewTLSServer(http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		if request.URL.Path == "/get" && request.Method == http.MethodPost {
			answer.WriteHeader(http.StatusNotFound)
			return
		}
		http.Redirect(answer, request, elsewhere.URL+request.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer realm.Close()
	provider, err := newTokens(trusted(t, realm, "r.example"), testLogins("r.example"))
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{realm.URL + "/post", realm.URL + "/get", elsewhere.URL + "/plain"} {
		_, err := provider.FetchToken(context.Background(), &auth.FetchTokenRequest{
			Host: "r.example", Realm: address, Scopes: []string{"repository:x:pull"},
		})
		if err == nil {
			t.Errorf("%s: a token", address)
		}
	}
	if len(shown) > 0 {
		t.Errorf("the password was shown elsewhere, without TLS: %s", strings.Join(shown, ", "))
	}
}

// A realm's answer is held in memory.
func TestATokenIsShort(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	realm := httptest.NewTLSServer(http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		long := strings.Repeat("t", 1<<20)
		_, _ = answer.Write([]byte(`{"token": "` + long + `", "access_token": "` + long + `"}`))
	}))
	defer realm.Close()
	for _, keys := range [][]string{nil, {"r.example"}} {
		provider, err := newTokens(trusted(t, realm, "r.example"), testLogins(keys...))
		if err != nil {
			t.Fatal(err)
		}
		got, err := provider.FetchToken(context.Background(), &auth.FetchTokenRequest{
			Host: "r.example", Realm: realm.URL, Scopes: []string{"repository:x:pull"},
		})
		if err == nil {
			t.Errorf("%v: a token of %d bytes", keys, len(got.Token))
		}
	}
}

// trusted has the realm's certificate count for a registry.
func trusted(t *testing.T, realm *httptest.Server, host string) map[string]string {
	file := filepath.Join(t.TempDir(), "ca.pem")
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: realm.Certificate().Raw})
	if err := os.WriteFile(file, bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{host: file}
}
