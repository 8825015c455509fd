package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/go-chi/chi/v5"
	"github.com/rs/xid"
)

// store keeps links in memory.
type store struct {
	mutex sync.RWMutex
	links map[string]string
}

type link struct {
	ID  string `json:"id"`
	URL string `json:"url"`
}

func newStore() *store {
	return &store{links: map[string]string{}}
}

func (s *store) create(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2048))
	target, parseErr := url.ParseRequestURI(strings.TrimSpace(string(body)))
	if err != nil || parseErr != nil || target.Host == "" {
		http.Error(w, "the body is to be a URL of at most 2048 characters", http.StatusBadRequest)
		return
	}
	made := link{ID: xid.New().String(), URL: target.String()}
	s.mutex.Lock()
	s.links[made.ID] = made.URL
	s.mutex.Unlock()
	answer(w, http.StatusCreated, made)
}

func (s *store) show(w http.ResponseWriter, r *http.Request) {
	if found, ok := s.find(r); ok {
		answer(w, http.StatusOK, found)
	} else {
		http.NotFound(w, r)
	}
}

func (s *store) follow(w http.ResponseWriter, r *http.Request) {
	if found, ok := s.find(r); ok {
		http.Redirect(w, r, found.URL, http.StatusFound)
	} else {
		http.NotFound(w, r)
	}
}

func (s *store) find(r *http.Request) (link, bool) {
	id := chi.URLParam(r, "id")
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	target, ok := s.links[id]
	return link{ID: id, URL: target}, ok
}

func answer(w http.ResponseWriter, status int, body link) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
