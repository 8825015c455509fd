package main

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Git LFS: an object of NAME.git is the file NAME.git/lfs/objects/ab/cd/abcd…, where git-lfs itself keeps it.
type lfsServer struct {
	root string
	url  string
}

type lfsObject struct {
	OID     string               `json:"oid"`
	Size    int64                `json:"size"`
	Actions map[string]lfsAction `json:"actions,omitempty"`
	Error   *lfsError            `json:"error,omitempty"`
}

type lfsAction struct {
	Href   string            `json:"href"`
	Header map[string]string `json:"header,omitempty"`
}

type lfsError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

var (
	lfsBatch    = regexp.MustCompile(`^/(.+\.git)/info/lfs/objects/batch$`)
	lfsDownload = regexp.MustCompile(`^/(.+\.git)/lfs/objects/([0-9a-f]{64})$`)
)

// serveLFS answers behind the web server, which asks for the password, on a unix socket.
func serveLFS(arguments []string) error {
	flags := flag.NewFlagSet("lfs", flag.ExitOnError)
	socket := flags.String("socket", "", "unix socket to listen on")
	root := flags.String("root", "", "directory with the repositories")
	url := flags.String("url", "", "URL of the repositories")
	_ = flags.Parse(arguments)
	_ = os.Remove(*socket)
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		return err
	}
	return http.Serve(listener, &lfsServer{root: *root, url: *url})
}

func (s *lfsServer) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	// What the multiplexer of net/http would do: no path leads out of the root.
	path := filepath.Clean(request.URL.Path)
	if match := lfsBatch.FindStringSubmatch(path); match != nil && request.Method == http.MethodPost {
		s.batch(writer, request, match[1])
	} else if match := lfsDownload.FindStringSubmatch(path); match != nil && request.Method == http.MethodGet {
		http.ServeFile(writer, request, s.file(match[1], match[2]))
	} else {
		http.NotFound(writer, request)
	}
}

// batch is https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md, for downloads by basic transfer.
func (s *lfsServer) batch(writer http.ResponseWriter, request *http.Request, repository string) {
	var asked struct {
		Operation string      `json:"operation"`
		Objects   []lfsObject `json:"objects"`
	}
	writer.Header().Set("Content-Type", "application/vnd.git-lfs+json")
	if err := json.NewDecoder(request.Body).Decode(&asked); err != nil || asked.Operation != "download" {
		writer.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(writer).Encode(map[string]string{"message": "only downloads"})
		return
	}
	for i := range asked.Objects {
		object := &asked.Objects[i]
		if info, err := os.Stat(s.file(repository, object.OID)); err != nil || !lfsID.MatchString(object.OID) {
			object.Error = &lfsError{http.StatusNotFound, "Object does not exist"}
		} else {
			object.Size = info.Size()
			action := lfsAction{Href: s.url + "/" + repository + "/lfs/objects/" + object.OID}
			if authorization := request.Header.Get("Authorization"); authorization != "" {
				action.Header = map[string]string{"Authorization": authorization}
			}
			object.Actions = map[string]lfsAction{"download": action}
		}
	}
	_ = json.NewEncoder(writer).Encode(map[string]any{"transfer": "basic", "objects": asked.Objects})
}

var lfsID = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (s *lfsServer) file(repository, oid string) string {
	return filepath.Join(s.root, repository, "lfs", "objects", oid[:min(2, len(oid))], oid[min(2, len(oid)):min(4, len(oid))], oid)
}

// basic is the Authorization header for USER:PASSWORD.
func basic(credential string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(strings.TrimSpace(credential)))
}
