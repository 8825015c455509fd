// recorder has kiln-build carry out builds that fail, and keeps what it writes: one directory a case, in which case.json says
// what is built and what registries answer. Started by ../record, in namespaces of its own whose network is loopback alone.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// patience is the longest that a build may take: BuildKit asks a registry in trouble again for half a minute.
const patience = 90 * time.Second

// recorded is what is kept of a recording beside its output.
type recorded struct {
	// BuildKit is its version.
	BuildKit string `json:"buildkit"`
	// Exit is kiln-build's own exit code: 0 where it could tell how the build ended.
	Exit int `json:"exit"`
}

func main() {
	log.SetFlags(0)
	cases := flag.String("cases", "", "directory of the cases")
	run := flag.String("run", "", "empty directory to work in")
	version := flag.String("version", "", "BuildKit's version")
	nameserver := flag.String("nameserver", "", "address to answer for names at")
	flag.Parse()
	if err := serveNames(*nameserver + ":53"); err != nil {
		log.Fatalln("recorder:", err)
	}
	if err := record(*cases, *run, *version, flag.Args()); err != nil {
		log.Fatalln("recorder:", err)
	}
}

// record records the named cases, or all.
func record(directory, run, version string, names []string) error {
	if len(names) == 0 {
		entries, err := os.ReadDir(directory)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
	}
	servers, err := serve(run)
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range names {
		wanted, err := readCase(filepath.Join(directory, name))
		if err == nil && wanted.From == recordedHere {
			began := time.Now()
			if err = wanted.record(servers, run, version); err == nil {
				fmt.Printf("%s (%.1f s)\n", name, time.Since(began).Seconds())
			}
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(failed...)
}

func (wanted *wantedCase) record(servers *servers, run, version string) error {
	work := filepath.Join(run, "job")
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	servers.answer(wanted.Faults)
	daemon, err := startDaemon(wanted, run)
	if err != nil {
		return err
	}
	defer daemon.end()
	request, err := wanted.request(work, daemon.address)
	if err != nil {
		return err
	}
	written, exit, err := converse(request, filepath.Join(work, "docker"), func(line []byte) {
		if wanted.KillAt != "" && bytes.Contains(line, []byte(wanted.KillAt)) {
			daemon.end()
		}
	})
	if err != nil {
		return err
	}
	output, failed := steady(written)
	if !failed && exit == 0 {
		return fmt.Errorf("the build did not fail: %s", output)
	}
	about, err := json.Marshal(recorded{BuildKit: version, Exit: exit})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(wanted.directory, "output"), output, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(wanted.directory, "recorded.json"), append(about, '\n'), 0o644)
}

// converse runs kiln-build as the agent does, which takes any image.
func converse(request []byte, login string, seen func([]byte)) ([]byte, int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, "kiln-build")
	command.Env = append(os.Environ(), "DOCKER_CONFIG="+login)
	command.Dir = filepath.Dir(login)
	asks, err := command.StdinPipe()
	if err != nil {
		return nil, 0, err
	}
	tells, err := command.StderrPipe()
	if err != nil {
		return nil, 0, err
	}
	if err := command.Start(); err != nil {
		return nil, 0, err
	}
	if _, err := asks.Write(request); err != nil {
		return nil, 0, err
	}
	var all bytes.Buffer
	lines := json.NewDecoder(io.TeeReader(tells, &all))
	for {
		var line json.RawMessage
		if lines.Decode(&line) != nil {
			break
		}
		seen(line)
		if bytes.HasPrefix(line, []byte(`{"kiln":{"config"`)) || bytes.HasPrefix(line, []byte(`{"kiln":{"definition"`)) {
			if _, err := asks.Write([]byte(`{"proceed":true}`)); err != nil {
				return nil, 0, err
			}
		}
	}
	_, _ = io.Copy(&all, tells)
	ended := command.Wait()
	if ctx.Err() != nil {
		return nil, 0, fmt.Errorf("not within %s: %s", patience, all.Bytes())
	}
	var exit *exec.ExitError
	if ended != nil && !errors.As(ended, &exit) {
		return nil, 0, ended
	}
	return all.Bytes(), command.ProcessState.ExitCode(), nil
}

// sorted are the keys of a map.
func sorted[K cmp.Ordered, V any](of map[K]V) []K {
	var keys []K
	for key := range of {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
