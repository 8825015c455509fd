package main

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// How long a token is good for: what Docker Hub's are not shorter than.
const tokenLifetime = time.Minute

// access is what a token allows on one thing: https://distribution.github.io/distribution/spec/auth/jwt/
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// user is who may ask for tokens.
type user struct {
	Password string `json:"password"`
	// What the user may do with repositories: pull, push, delete.
	Actions []string `json:"actions"`
}

type tokenServer struct {
	certificate tls.Certificate
	key         *ecdsa.PrivateKey
	service     string
	users       map[string]user
}

// serveTokens gives tokens for a registry with token authentication to its users, and none to anybody else:
// https://distribution.github.io/distribution/spec/auth/token/ and, by POST, /spec/auth/oauth/.
func serveTokens(arguments []string) error {
	flags := flag.NewFlagSet("token", flag.ExitOnError)
	address := flags.String("listen", "", "address and port")
	certificate := flags.String("certificate", "", "file of the certificate, which signs tokens too")
	key := flags.String("key", "", "file of its key")
	service := flags.String("service", "", "the registry's name")
	users := flags.String("users", "", "file of the users, as JSON")
	_ = flags.Parse(arguments)
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		return err
	}
	private, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("%s: the key is not an ECDSA key", *key)
	}
	server := &tokenServer{certificate: pair, key: private, service: *service}
	text, err := os.ReadFile(*users)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &server.users); err != nil {
		return fmt.Errorf("%s: %w", *users, err)
	}
	http.Handle("/token", server)
	return http.ListenAndServeTLS(*address, *certificate, *key, nil)
}

func (s *tokenServer) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	name, password, _ := request.BasicAuth()
	switch request.Method {
	case http.MethodGet:
	case http.MethodPost:
		if request.PostFormValue("grant_type") != "password" {
			refuse(writer, http.StatusBadRequest, "unsupported_grant_type")
			return
		}
		name, password = request.PostFormValue("username"), request.PostFormValue("password")
	default:
		refuse(writer, http.StatusMethodNotAllowed, "method not allowed")
		return
	}
	known, there := s.users[name]
	if !there || subtle.ConstantTimeCompare([]byte(known.Password), []byte(password)) != 1 {
		log.Printf("%s %s: refused", request.RemoteAddr, name)
		writer.Header().Set("Www-Authenticate", `Basic realm="kiln"`)
		refuse(writer, http.StatusUnauthorized, "incorrect username or password")
		return
	}
	if service := request.FormValue("service"); service != s.service {
		refuse(writer, http.StatusBadRequest, "no such service: "+service)
		return
	}
	// More than a user may do is left out, and no error: it is the registry that refuses.
	granted := []access{}
	for _, value := range request.Form["scope"] {
		for scope := range strings.FieldsSeq(value) {
			if allowed := allow(scope, known.Actions); allowed != nil {
				granted = append(granted, *allowed)
			}
		}
	}
	token, err := s.sign(name, granted)
	if err != nil {
		refuse(writer, http.StatusInternalServerError, err.Error())
		return
	}
	log.Printf("%s %s: %s %v", request.RemoteAddr, name, request.Form["scope"], granted)
	answer := map[string]any{
		"access_token": token,
		"expires_in":   int(tokenLifetime.Seconds()),
		"issued_at":    time.Now().UTC().Format(time.RFC3339),
	}
	if request.Method == http.MethodGet {
		answer["token"] = token
	}
	writer.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(writer).Encode(answer)
}

// allow is the part of a scope, as repository:NAME:pull,push, that a user with these actions may have.
func allow(scope string, actions []string) *access {
	kind, rest, _ := strings.Cut(scope, ":")
	colon := strings.LastIndex(rest, ":")
	if kind != "repository" || colon < 0 {
		return nil
	}
	allowed := &access{Type: kind, Name: rest[:colon], Actions: []string{}}
	for action := range strings.SplitSeq(rest[colon+1:], ",") {
		if slices.Contains(actions, action) {
			allowed.Actions = append(allowed.Actions, action)
		}
	}
	return allowed
}

func (s *tokenServer) sign(subject string, granted []access) (string, error) {
	var identity [16]byte
	_, _ = rand.Read(identity[:])
	now := time.Now()
	header := map[string]any{
		"typ": "JWT",
		"alg": "ES256",
		"x5c": []string{base64.StdEncoding.EncodeToString(s.certificate.Certificate[0])},
	}
	claims := map[string]any{
		"iss": "kiln", "sub": subject, "aud": s.service, "jti": hex.EncodeToString(identity[:]), "access": granted,
		"iat": now.Unix(), "nbf": now.Add(-10 * time.Second).Unix(), "exp": now.Add(tokenLifetime).Unix(),
	}
	var text string
	for _, part := range []any{header, claims} {
		bytes, err := json.Marshal(part)
		if err != nil {
			return "", err
		}
		if text != "" {
			text += "."
		}
		text += base64.RawURLEncoding.EncodeToString(bytes)
	}
	hash := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, hash[:])
	if err != nil {
		return "", err
	}
	signature := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func refuse(writer http.ResponseWriter, status int, message string) {
	writer.Header().Set("Content-Type", "application/json")
	writer.WriteHeader(status)
	_ = json.NewEncoder(writer).Encode(map[string]any{"errors": []map[string]string{{"code": "UNAUTHORIZED", "message": message}}})
}
