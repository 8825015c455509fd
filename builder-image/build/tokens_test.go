package main

import (
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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

// trusted has the realm's certificate count for a registry.
func trusted(t *testing.T, realm *httptest.Server, host string) map[string]string {
	file := filepath.Join(t.TempDir(), "ca.pem")
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: realm.Certificate().Raw})
	if err := os.WriteFile(file, bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{host: file}
}
