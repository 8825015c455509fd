package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// recordedHere is where a case is from that this program records.
const recordedHere = "kiln-build"

// wantedCase is what case.json says. The agent's tests read it too.
type wantedCase struct {
	// From tells how the case was made: recordedHere, or where it was transcribed from.
	From string `json:"from"`
	// Note is for people.
	Note string `json:"note,omitempty"`
	// Filename is the Dockerfile's in the context, Dockerfile where it is empty. Its text is beside case.json.
	Filename string `json:"filename,omitempty"`
	// Files are what else is in the context.
	Files    map[string]string `json:"files,omitempty"`
	Target   string            `json:"target,omitempty"`
	Platform string            `json:"platform,omitempty"`
	Args     map[string]string `json:"args,omitempty"`
	Secrets  map[string]string `json:"secrets,omitempty"`
	SSH      map[string]string `json:"ssh,omitempty"`
	// Options are more of the Dockerfile frontend's.
	Options map[string]string `json:"options,omitempty"`
	// NoNetwork is that of spec.network: None.
	NoNetwork bool `json:"noNetwork,omitempty"`
	// Permitted are the registries that may be asked; none: all.
	Permitted []string `json:"permitted,omitempty"`
	// Image is where the image goes, a repository that takes it where it is empty. CheckOnly: nowhere.
	Image     string `json:"image,omitempty"`
	CheckOnly bool   `json:"checkOnly,omitempty"`
	// Output are more attributes of the output.
	Output map[string]string `json:"output,omitempty"`
	// CacheFrom and CacheTo are caches in registries.
	CacheFrom string `json:"cacheFrom,omitempty"`
	CacheTo   string `json:"cacheTo,omitempty"`
	// Logins are USER:PASSWORD by registry.
	Logins map[string]string `json:"logins,omitempty"`
	// Faults are what servers answer, the first that matches.
	Faults []*fault `json:"faults,omitempty"`
	// Disk is how many MiB buildkitd has.
	Disk int `json:"disk,omitempty"`
	// KillAt ends buildkitd when a line of the output holds it.
	KillAt string `json:"killAt,omitempty"`
	// NoDaemon has no buildkitd started.
	NoDaemon bool `json:"noDaemon,omitempty"`
	// FewIDs starts buildkitd with the ids that a builder has.
	FewIDs bool `json:"fewIds,omitempty"`

	directory  string
	dockerfile []byte
}

func readCase(directory string) (*wantedCase, error) {
	text, err := os.ReadFile(filepath.Join(directory, "case.json"))
	if err != nil {
		return nil, err
	}
	wanted := &wantedCase{
		directory: directory, Filename: "Dockerfile", Platform: "linux/amd64", Image: "registry.zzhost.example/zzteam/zzapp",
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(wanted); err != nil {
		return nil, fmt.Errorf("case.json: %w", err)
	}
	if wanted.dockerfile, err = os.ReadFile(filepath.Join(directory, "Dockerfile")); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return wanted, nil
}

type entry struct {
	Type       string            `json:"type"`
	Attributes map[string]string `json:"attributes"`
}

// request is what kiln-build reads: builder-image/agent/src/job/request.rs writes the same.
func (wanted *wantedCase) request(work, address string) ([]byte, error) {
	context := filepath.Join(work, "context")
	files := map[string]string{filepath.Join("context", wanted.Filename): string(wanted.dockerfile)}
	for name, text := range wanted.Files {
		files[filepath.Join("context", name)] = text
	}
	logins := map[string]map[string][]byte{}
	for host, login := range wanted.Logins {
		logins[host] = map[string][]byte{"auth": []byte(login)}
	}
	login, err := json.Marshal(map[string]any{"auths": logins})
	if err != nil {
		return nil, err
	}
	files["docker/config.json"] = string(login)
	// As the agent calls them.
	numbered := func(kind string, values map[string]string) map[string]string {
		paths := map[string]string{}
		for number, id := range sorted(values) {
			name := filepath.Join(kind, strconv.Itoa(number))
			files[name], paths[id] = values[id], filepath.Join(work, name)
		}
		return paths
	}
	secrets, ssh := numbered("secrets", wanted.Secrets), numbered("ssh", wanted.SSH)
	for name, text := range files {
		path := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	options := map[string]string{
		"cmdline": "dockerfile.v0", "filename": filepath.Base(wanted.Filename), "platform": wanted.Platform,
	}
	if wanted.Target != "" {
		options["target"] = wanted.Target
	}
	if wanted.NoNetwork {
		options["force-network-mode"] = "none"
	}
	for name, value := range wanted.Args {
		options["build-arg:"+name] = value
	}
	for name, value := range wanted.Options {
		options[name] = value
	}
	output := entry{"image", map[string]string{"oci-mediatypes": "true"}}
	if !wanted.CheckOnly {
		output.Attributes["name"] = wanted.Image
		for _, key := range []string{"push", "push-by-digest", "name-canonical"} {
			output.Attributes[key] = "true"
		}
	}
	for name, value := range wanted.Output {
		output.Attributes[name] = value
	}
	var imports, exports []entry
	if wanted.CacheFrom != "" {
		imports = append(imports, entry{"registry", map[string]string{"ref": wanted.CacheFrom}})
	}
	if wanted.CacheTo != "" {
		exports = append(exports, entry{"registry", map[string]string{
			"ref": wanted.CacheTo, "mode": "min", "image-manifest": "true", "oci-mediatypes": "true", "ignore-error": "true",
		}})
	}
	return json.Marshal(map[string]any{
		"address": address,
		"options": options,
		"directories": map[string]string{
			"context": context, "dockerfile": filepath.Join(context, filepath.Dir(wanted.Filename)),
		},
		"secrets": secrets, "ssh": ssh, "policy": wanted.policy(), "imports": imports, "exports": exports,
		"output": output, "look": !wanted.CheckOnly,
	})
}

func (wanted *wantedCase) policy() any {
	if len(wanted.Permitted) == 0 {
		return nil
	}
	rule := func(action, of string) map[string]any {
		selector := map[string]any{"identifier": `^docker-image(\+blob)?://` + of, "match_type": "REGEX"}
		return map[string]any{"action": action, "selector": selector}
	}
	rules := []any{rule("DENY", "")}
	for _, registry := range wanted.Permitted {
		rules = append(rules, rule("ALLOW", registry+"/"))
	}
	return map[string]any{"version": 1, "rules": rules}
}
