package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// fault is what a server answers in the place of what it should.
type fault struct {
	// On is a regular expression for "METHOD host/path?query".
	On string `json:"on"`
	// Skip requests pass before it, and Times get it; 0: all.
	Skip  int `json:"skip,omitempty"`
	Times int `json:"times,omitempty"`
	// Status is that of the answer.
	Status  int               `json:"status,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
	// Cut closes the connection instead: before any answer, or where there is a status in the middle of the body.
	Cut bool `json:"cut,omitempty"`

	on  *regexp.Regexp
	met int
}

// faulty answers with faults, and else as the next one.
type faulty struct {
	next   http.Handler
	lock   sync.Mutex
	faults []*fault
}

func (of *faulty) set(faults []*fault) {
	of.lock.Lock()
	defer of.lock.Unlock()
	of.faults = faults
	for _, fault := range faults {
		fault.on = regexp.MustCompile(fault.On)
	}
}

func (of *faulty) find(asked string) *fault {
	of.lock.Lock()
	defer of.lock.Unlock()
	for _, fault := range of.faults {
		if fault.on.MatchString(asked) {
			if fault.met++; fault.met > fault.Skip && (fault.Times == 0 || fault.met <= fault.Skip+fault.Times) {
				return fault
			}
		}
	}
	return nil
}

func (of *faulty) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	fault := of.find(request.Method + " " + request.Host + request.URL.RequestURI())
	if fault == nil {
		of.next.ServeHTTP(writer, request)
		return
	}
	if fault.Cut && fault.Status == 0 {
		panic(http.ErrAbortHandler)
	}
	// What is sent is read first: who hears an answer in the middle of it may take it for a broken connection.
	_, _ = io.Copy(io.Discard, request.Body)
	body := []byte(fault.Body)
	header := writer.Header()
	if strings.Contains(request.URL.Path, "/manifests/") && fault.Status == http.StatusOK {
		header.Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256(body)))
	}
	length := len(body)
	if fault.Cut {
		length += 1000
	}
	header.Set("Content-Length", strconv.Itoa(length))
	header.Set("Content-Type", "text/html")
	if strings.HasPrefix(fault.Body, "{") {
		header.Set("Content-Type", "application/json")
	}
	for name, value := range fault.Headers {
		header.Set(name, value)
	}
	writer.WriteHeader(fault.Status)
	if request.Method != http.MethodHead {
		_, _ = writer.Write(body)
	}
	if fault.Cut {
		panic(http.ErrAbortHandler)
	}
}
