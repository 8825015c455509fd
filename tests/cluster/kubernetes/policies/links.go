package policies

// The pods' links: CNI tells of each before any container of its pod starts, and waits until its rules are there.

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/klog/v2"
)

// link is what is kept of a pod's link, in a file of the sandbox's name: it outlives this process.
type link struct {
	Namespace, Name, UID string
	Link                 string
	Address              netip.Addr
}

// network is the part of CNI's configuration and result that matters here.
// https://www.cni.dev/docs/spec/#section-2-execution-protocol
type network struct {
	CNIVersion string          `json:"cniVersion"`
	Result     json.RawMessage `json:"prevResult"`
}

type result struct {
	Interfaces []struct {
		Name    string `json:"name"`
		Sandbox string `json:"sandbox"`
	} `json:"interfaces"`
	IPs []struct {
		Address netip.Prefix `json:"address"`
	} `json:"ips"`
}

// ServeHTTP answers CNI's plugin: the path is its command, the headers have its variables, the body its input.
func (e *enforcer) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	answer, err := e.cni(request)
	if err != nil {
		klog.ErrorS(err, "CNI", "command", request.URL.Path, "arguments", request.Header.Get("Cni-Args"))
		writer.WriteHeader(http.StatusInternalServerError)
		// 11: try again later.
		answer, _ = json.Marshal(map[string]any{"cniVersion": "1.0.0", "code": 11, "msg": err.Error()})
	}
	_, _ = writer.Write(answer)
}

func (e *enforcer) cni(request *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(request.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	sandbox := request.Header.Get("Cni-Containerid")
	switch command := strings.TrimPrefix(request.URL.Path, "/"); command {
	case "VERSION":
		return []byte(`{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}`), nil
	case "ADD":
		var input network
		if err := json.Unmarshal(body, &input); err != nil {
			return nil, err
		}
		added, err := newLink(request.Header.Get("Cni-Args"), input.Result)
		if err != nil {
			return nil, err
		}
		return input.Result, e.add(request.Context(), sandbox, added)
	case "DEL":
		return nil, e.remove(sandbox)
	case "CHECK", "STATUS", "GC":
		return nil, nil
	default:
		return nil, fmt.Errorf("%q is no command of CNI", command)
	}
}

func newLink(arguments string, raw json.RawMessage) (link, error) {
	var added link
	for pair := range strings.SplitSeq(arguments, ";") {
		switch name, value, _ := strings.Cut(pair, "="); name {
		case "K8S_POD_NAMESPACE":
			added.Namespace = value
		case "K8S_POD_NAME":
			added.Name = value
		case "K8S_POD_UID":
			added.UID = value
		}
	}
	var result result
	if err := json.Unmarshal(raw, &result); err != nil {
		return added, fmt.Errorf("the result of the plugin before: %w", err)
	}
	for _, one := range result.Interfaces {
		if one.Sandbox == "" {
			added.Link = one.Name
		}
	}
	if len(result.IPs) != 1 || added.Link == "" || added.Name == "" {
		return added, fmt.Errorf("CNI names no pod, link or address: %s %s", arguments, raw)
	}
	added.Address = result.IPs[0].Address.Addr()
	return added, nil
}

// add returns when the rules for the pod are in force.
func (e *enforcer) add(ctx context.Context, sandbox string, added link) error {
	if err := e.await(ctx, added); err != nil {
		return err
	}
	text, err := json.Marshal(added)
	if err != nil {
		return err
	}
	if err := os.WriteFile(e.file(sandbox), text, 0o600); err != nil {
		return err
	}
	e.mutex.Lock()
	e.links[sandbox] = added
	e.mutex.Unlock()
	return e.apply(ctx)
}

func (e *enforcer) remove(sandbox string) error {
	if err := os.Remove(e.file(sandbox)); err != nil && !os.IsNotExist(err) {
		return err
	}
	e.mutex.Lock()
	delete(e.links, sandbox)
	e.mutex.Unlock()
	e.changed()
	return nil
}

func (e *enforcer) file(sandbox string) string {
	return filepath.Join(e.root, filepath.Base(sandbox))
}

func (e *enforcer) load() error {
	files, err := filepath.Glob(filepath.Join(e.root, "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		var kept link
		if text, err := os.ReadFile(file); err != nil {
			return err
		} else if err := json.Unmarshal(text, &kept); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		e.links[filepath.Base(file)] = kept
	}
	return nil
}
