// kiln-build carries out one build on buildkitd for Kiln's agent.
//
// It reads a description of the build from standard input, and writes what happens to standard error, a line of JSON each:
// BuildKit's own progress as it is, and events of its own, {"kiln": …}. It asks and tells; what follows from it is the
// agent's to decide: before anything is done, the agent is shown what that is, and says whether it may be; before an image is
// exported, it is shown the configuration, may read files of it, and says whether it is to be exported. A line that is no JSON
// is Go's runtime breaking down.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/frontend"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	sourcepolicy "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/util/apicaps"
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto"
	"github.com/moby/buildkit/util/progress/progresswriter"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

// job is what is to be built.
type job struct {
	// Address is buildkitd's, such as unix:///run/buildkit.sock.
	Address string `json:"address"`
	// Options are those of the Dockerfile frontend.
	Options map[string]string `json:"options"`
	// Directories are what the frontend may read, by name.
	Directories map[string]string `json:"directories"`
	// Secrets and SSH are files, by the id that steps mount them with.
	Secrets map[string]string `json:"secrets"`
	SSH     map[string]string `json:"ssh"`
	// Policy says which registries are asked, and which images are taken for names.
	Policy *sourcepolicy.Policy `json:"policy"`
	// Imports and Exports are caches.
	Imports []entry `json:"imports"`
	Exports []entry `json:"exports"`
	// Output is what becomes of the image.
	Output output `json:"output"`
	// Look has the agent look into the image before that.
	Look bool `json:"look"`
	// Authorities are files with the CA of a registry's token realm, by the registry's host.
	Authorities map[string]string `json:"authorities"`
	// Hosts has the login for registries that ask for user and password themselves, which are shown one, by host.
	Hosts map[string]string `json:"hosts"`
	// Logins are the keys of all, in their order.
	Logins []string `json:"logins"`
	// Mirrors are hosts that stand for other registries.
	Mirrors []string `json:"mirrors"`
	// Plain are hosts that are spoken to without TLS, whose realms may be, too.
	Plain []string `json:"plain"`
}

type entry struct {
	Type       string            `json:"type"`
	Attributes map[string]string `json:"attributes"`
}

type output struct {
	entry
	// File is written by types that make one.
	File string `json:"file"`
}

// event is what kiln-build itself tells. Result or Failure ends the output; the others want an answer.
type event struct {
	// Definition is what is about to be done.
	Definition *definition `json:"definition,omitempty"`
	// Config is the configuration of an image that is not exported yet.
	Config json.RawMessage `json:"config,omitempty"`
	// Files are the beginnings of files that were asked for; of one that is not there, or is no regular file, null.
	Files map[string][]byte `json:"files,omitempty"`
	// Result holds what the exporter says of the image.
	Result map[string]string `json:"result,omitempty"`
	// Failure is why there is none.
	Failure *failure `json:"failure,omitempty"`
}

func main() {
	apicaps.ExportedProduct = "kiln"
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Stdin, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "kiln-build:", err)
		os.Exit(1)
	}
}

// run builds, and tells of it. Its error is that nothing could be told.
func run(ctx context.Context, in io.Reader, out io.Writer) error {
	var wanted job
	asked := json.NewDecoder(in)
	if err := asked.Decode(&wanted); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	agent := &conversation{asked: asked, lines: json.NewEncoder(out)}
	// What is shown is not made longer than it is.
	agent.lines.SetEscapeHTML(false)
	ctx, end := traced(ctx)
	defer end()
	told, err := build(ctx, &wanted, agent)
	last := event{Result: told}
	if err != nil {
		last = event{Failure: failureOf(err)}
	}
	return agent.tell(last)
}

// build gives what the exporter says of the image.
func build(ctx context.Context, wanted *job, agent *conversation) (map[string]string, error) {
	opt, err := options(wanted)
	if err != nil {
		return nil, err
	}
	daemon, err := client.New(ctx, wanted.Address, tracing(ctx)...)
	if err != nil {
		return nil, err
	}
	// It stays open until the process ends: the last spans go this way too.

	all := make(chan *client.SolveStatus)
	telling, _ := errgroup.WithContext(context.Background())
	telling.Go(func() error {
		var failed error
		for status := range all {
			// Who does not listen any more is no reason to leave the build hanging.
			if failed == nil {
				failed = agent.write(status)
			}
		}
		return failed
	})

	// Tokens of registries are fetched in this process: it tells of them beside what buildkitd tells.
	writer := progresswriter.NewMultiWriter(&channel{all, make(chan struct{})})
	var ends []func()
	for _, attachable := range opt.Session {
		if logs, ok := attachable.(interface{ SetLogger(progresswriter.Logger) }); ok {
			beside := &closable{to: writer.WithPrefix("", false).Status()}
			logs.SetLogger(beside.send)
			ends = append(ends, beside.close)
		}
	}
	request := gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: wanted.Options}
	for _, cache := range wanted.Imports {
		request.CacheImports = append(request.CacheImports, frontend.CacheOptionsEntry{Type: cache.Type, Attrs: cache.Attributes})
	}
	answer, err := daemon.Build(ctx, *opt, "kiln", func(ctx context.Context, asking gateway.Client) (*gateway.Result, error) {
		result, err := asking.Solve(ctx, request)
		if err == nil {
			err = oneImage(result)
		}
		if err == nil {
			err = agent.define(ctx, result)
		}
		if err == nil && wanted.Look {
			err = agent.look(ctx, result)
		}
		if err != nil {
			return nil, err
		}
		return result, nil
	}, writer.WithPrefix("", false).Status())
	for _, end := range ends {
		end()
	}
	if told := telling.Wait(); err == nil {
		err = told
	}
	if err != nil {
		return nil, err
	}
	return answer.ExporterResponse, nil
}

// closable passes on what comes until it is closed: a token may be asked for when the build has ended.
type closable struct {
	to     chan *client.SolveStatus
	lock   sync.Mutex
	closed bool
}

func (of *closable) send(status *client.SolveStatus) {
	of.lock.Lock()
	defer of.lock.Unlock()
	if !of.closed {
		of.to <- status
	}
}

func (of *closable) close() {
	of.lock.Lock()
	defer of.lock.Unlock()
	of.closed = true
	close(of.to)
}

// channel is a progresswriter.Writer that has no display.
type channel struct {
	status chan *client.SolveStatus
	done   chan struct{}
}

func (to *channel) Status() chan *client.SolveStatus { return to.status }
func (to *channel) Done() <-chan struct{}            { return to.done }
func (to *channel) Err() error                       { return nil }

func options(wanted *job) (*client.SolveOpt, error) {
	logins, err := readLogins(wanted)
	if err != nil {
		return nil, err
	}
	provider, err := newTokens(wanted.Authorities, logins)
	if err != nil {
		return nil, err
	}
	attached := []session.Attachable{provider}
	if len(wanted.SSH) > 0 {
		var keys []sshprovider.AgentConfig
		for id, file := range wanted.SSH {
			keys = append(keys, sshprovider.AgentConfig{ID: id, Paths: []string{file}})
		}
		provider, err := sshprovider.NewSSHAgentProvider(keys)
		if err != nil {
			return nil, err
		}
		attached = append(attached, provider)
	}
	if len(wanted.Secrets) > 0 {
		var files []secretsprovider.Source
		for id, file := range wanted.Secrets {
			files = append(files, secretsprovider.Source{ID: id, FilePath: file})
		}
		store, err := secretsprovider.NewStore(files)
		if err != nil {
			return nil, err
		}
		attached = append(attached, secretsprovider.NewSecretProvider(store))
	}
	export := client.ExportEntry{Type: wanted.Output.Type, Attrs: wanted.Output.Attributes}
	if file := wanted.Output.File; file != "" {
		export.Output = func(map[string]string) (io.WriteCloser, error) { return os.Create(file) }
	}
	directories := map[string]fsutil.FS{}
	for name, path := range wanted.Directories {
		directory, err := fsutil.NewFS(path)
		if err != nil {
			return nil, err
		}
		directories[name] = directory
	}
	return &client.SolveOpt{
		Exports:     []client.ExportEntry{export},
		LocalMounts: directories,
		// BuildKit's client writes what it makes of caches to this.
		FrontendAttrs: map[string]string{},
		CacheExports:  caches(wanted.Exports),
		CacheImports:  caches(wanted.Imports),
		Session:       attached,
		SourcePolicy:  wanted.Policy,
	}, nil
}

func caches(of []entry) []client.CacheOptionsEntry {
	var all []client.CacheOptionsEntry
	for _, cache := range of {
		all = append(all, client.CacheOptionsEntry{Type: cache.Type, Attrs: cache.Attributes})
	}
	return all
}
