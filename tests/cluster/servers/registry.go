package main

import (
	"crypto/subtle"
	"flag"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

// serveRegistry is a registry with the referrers of OCI 1.1, which Debian's does not have. Its blobs are on disk.
func serveRegistry(arguments []string) error {
	flags := flag.NewFlagSet("registry", flag.ExitOnError)
	address := flags.String("listen", "", "address and port")
	certificate := flags.String("certificate", "", "file of the certificate")
	key := flags.String("key", "", "file of its key")
	root := flags.String("root", "", "directory for the blobs")
	credential := flags.String("credential", "", "file of the credential of the one user, USER:PASSWORD")
	_ = flags.Parse(arguments)
	known, err := os.ReadFile(*credential)
	if err != nil {
		return err
	}
	wanted := basic(strings.TrimSpace(string(known)))
	inner := registry.New(
		registry.Logger(log.Default()),
		registry.WithReferrersSupport(true),
		registry.WithBlobHandler(registry.NewDiskBlobHandler(*root)),
	)
	handler := http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		if subtle.ConstantTimeCompare([]byte(request.Header.Get("Authorization")), []byte(wanted)) != 1 {
			writer.Header().Set("Www-Authenticate", `Basic realm="kiln"`)
			writer.Header().Set("Content-Type", "application/json")
			writer.WriteHeader(http.StatusUnauthorized)
			_, _ = writer.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`))
			return
		}
		inner.ServeHTTP(writer, request)
	})
	return http.ListenAndServeTLS(*address, *certificate, *key, handler)
}
