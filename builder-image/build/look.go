package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
)

// conversation is with the agent.
type conversation struct {
	// asked is what it says.
	asked *json.Decoder
	// lines are what it is told, each whole: progress comes beside the rest.
	lines   *json.Encoder
	writing sync.Mutex
}

// answer is what the agent says to an event: the files that it wants, or its word on the image.
type answer struct {
	// Read are paths, and how much is read of each, from its beginning.
	Read map[string]int `json:"read"`
	// Proceed says whether what was shown is wanted.
	Proceed bool `json:"proceed"`
}

// largestConfig is in bytes: no registry's client reads a larger one.
const largestConfig = 4 << 20

// errSeveral says what a build of one platform must not give.
var errSeveral = errors.New("the build gives several images, and one platform's was asked for; leave out BUILDKIT_MULTI_PLATFORM")

// errConfig says what the agent could not judge.
var errConfig = errors.New("the image's configuration is larger than 4 MiB, or is no JSON object: build from another base image, or with less in ENV and LABEL")

// errRefused ends a build that the agent does not want.
var errRefused = errors.New("the build is not wanted")

func (agent *conversation) write(line any) error {
	agent.writing.Lock()
	defer agent.writing.Unlock()
	return agent.lines.Encode(line)
}

func (agent *conversation) tell(told event) error {
	return agent.write(map[string]event{"kiln": told})
}

// oneImage makes of a map with one platform's image that image alone: as a map it would be exported as an index.
func oneImage(result *gateway.Result) error {
	if len(result.Refs) > 1 {
		return errSeveral
	}
	for platform, image := range result.Refs {
		result.Refs, result.Ref = nil, image
		for key, value := range result.Metadata {
			if plain, ok := strings.CutSuffix(key, "/"+platform); ok {
				result.Metadata[plain] = value
				delete(result.Metadata, key)
			}
		}
		delete(result.Metadata, exptypes.ExporterPlatformsKey)
		result.Attestations = nil
	}
	return nil
}

// ask tells something that is answered.
func (agent *conversation) ask(told event) (said answer, err error) {
	if err := agent.tell(told); err != nil {
		return said, err
	}
	if err := agent.asked.Decode(&said); err != nil {
		if errors.Is(err, io.EOF) {
			return said, context.Canceled
		}
		return said, fmt.Errorf("reading what the agent says: %w", err)
	}
	return said, nil
}

// define shows the agent what is about to be done.
func (agent *conversation) define(ctx context.Context, result *gateway.Result) error {
	read, err := definitionOf(ctx, result.Ref)
	if err != nil {
		return err
	}
	said, err := agent.ask(event{Definition: read})
	if err == nil && !said.Proceed {
		err = errRefused
	}
	return err
}

// look shows the agent what the image is, and what is in it, until it says what becomes of it.
func (agent *conversation) look(ctx context.Context, result *gateway.Result) error {
	image, config := result.Ref, result.Metadata[exptypes.ExporterImageConfigKey]
	// What fails from here on is about a file, not about the image. One without anything in it has no reference.
	if image != nil {
		if err := image.Evaluate(ctx); err != nil {
			return err
		}
	}
	if len(config) == 0 {
		config = []byte("{}")
	}
	if len(config) > largestConfig || !json.Valid(config) || bytes.TrimSpace(config)[0] != '{' {
		return errConfig
	}
	told := event{Config: config}
	for {
		said, err := agent.ask(told)
		if err != nil {
			return err
		}
		if len(said.Read) == 0 {
			if said.Proceed {
				return nil
			}
			return errRefused
		}
		told = event{Files: map[string][]byte{}}
		for path, length := range said.Read {
			read, err := beginning(ctx, image, path, length)
			if err != nil {
				return err
			}
			told.Files[path] = read
		}
	}
}

// beginning reads a file beneath the image's root, links followed there. None: it is not there.
func beginning(ctx context.Context, image gateway.Reference, path string, length int) ([]byte, error) {
	if image == nil {
		return nil, nil
	}
	read, err := image.ReadFile(ctx, gateway.ReadRequest{Filename: path, Range: &gateway.FileRange{Length: length}})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, nil
	}
	// Of an empty one there is something: nothing.
	return append([]byte{}, read...), nil
}
