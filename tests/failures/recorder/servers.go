package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	stdlog "log"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Who stands at which address; the beginning of a name leads to one of them. All other names under .example lead to the
// front, and so do Docker Hub's.
var addresses = map[string]string{
	"plain":      "127.0.0.2",
	"broken":     "127.0.0.3",
	"silent":     "127.0.0.4",
	"refused":    "127.0.0.9",
	"unroutable": "10.9.9.9",
}

const front = "127.0.0.1"

// servers are what a build meets: a registry, a Git server and a web server in one, and such as do not work.
type servers struct {
	faulty   *faulty
	own      *authority
	stranger *authority
}

func (of *servers) answer(faults []*fault) { of.faulty.set(faults) }

// serve starts them.
func serve(run string) (*servers, error) {
	own, err := newAuthority()
	if err != nil {
		return nil, err
	}
	stranger, err := newAuthority()
	if err != nil {
		return nil, err
	}
	// All programs here trust it, and no other.
	bundle := filepath.Join(run, "ca.crt")
	if err := os.WriteFile(bundle, own.bundle(), 0o644); err != nil {
		return nil, err
	}
	if err := syscall.Mount(bundle, "/etc/ssl/certs/ca-certificates.crt", "", syscall.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("trusting the CA: %w", err)
	}
	images := registry.New(registry.Logger(stdlog.New(io.Discard, "", 0)))
	if err := fill(images); err != nil {
		return nil, err
	}
	repositories := filepath.Join(run, "git")
	if err := makeRepository(filepath.Join(repositories, "zzteam/zzrepo.git")); err != nil {
		return nil, err
	}
	git := &cgi.Handler{Path: "/usr/lib/git-core/git-http-backend", Env: []string{"GIT_PROJECT_ROOT=" + repositories, "GIT_HTTP_EXPORT_ALL=1"}}
	made := &servers{own: own, stranger: stranger}
	made.faulty = &faulty{next: http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		switch {
		case strings.HasPrefix(request.URL.Path, "/v2/"):
			images.ServeHTTP(writer, request)
		case strings.Contains(request.URL.Path, ".git/"):
			git.ServeHTTP(writer, request)
		default:
			http.NotFound(writer, request)
		}
	})}
	quiet := stdlog.New(io.Discard, "", 0)
	secure := &http.Server{Addr: front + ":443", Handler: made.faulty, ErrorLog: quiet,
		TLSConfig: &tls.Config{GetCertificate: made.certificate, NextProtos: []string{"http/1.1"}}}
	plain := &http.Server{Addr: addresses["plain"] + ":443", Handler: made.faulty, ErrorLog: quiet}
	go func() { stdlog.Fatal(secure.ListenAndServeTLS("", "")) }()
	go func() { stdlog.Fatal(plain.ListenAndServe()) }()
	for name, then := range map[string]func(net.Conn){
		"broken": func(connection net.Conn) { _ = connection.Close() },
		"silent": func(net.Conn) {},
	} {
		listener, err := net.Listen("tcp", addresses[name]+":443")
		if err != nil {
			return nil, err
		}
		go func() {
			for {
				if connection, err := listener.Accept(); err == nil {
					then(connection)
				}
			}
		}()
	}
	return made, nil
}

// certificate is that of the name that is asked for, good or bad as the name begins.
func (of *servers) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	kind, _, _ := strings.Cut(hello.ServerName, ".")
	switch kind {
	case "untrusted":
		return of.stranger.sign(hello.ServerName, time.Hour)
	case "expired":
		return of.own.sign(hello.ServerName, -time.Hour)
	case "othername":
		return of.own.sign("somebody.else", time.Hour)
	default:
		return of.own.sign(hello.ServerName, time.Hour)
	}
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{certificate, key}, err
}

func (of *authority) bundle() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: of.certificate.Raw})
}

func (of *authority) sign(name string, lives time.Duration) (*tls.Certificate, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name},
		NotBefore: time.Now().Add(-12 * time.Hour), NotAfter: time.Now().Add(lives)}
	der, err := x509.CreateCertificate(rand.Reader, template, of.certificate, of.key.Public(), of.key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: of.key}, err
}

// makeRepository makes one with a commit on the branch main.
func makeRepository(path string) error {
	script := `git init --quiet --bare --initial-branch main "$1" && cd "$1" &&
		commit=$(git -c user.name=a -c user.email=a@example.com commit-tree -m one "$(git mktree </dev/null)") &&
		git update-ref refs/heads/main "$commit"`
	if said, err := exec.Command("sh", "-c", script, "sh", path).CombinedOutput(); err != nil {
		return fmt.Errorf("making a repository: %w: %s", err, said)
	}
	return nil
}
