package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	// Export says whether the image is to be exported.
	Export bool `json:"export"`
}

// largestConfig is in bytes: no registry's client reads a larger one.
const largestConfig = 4 << 20

// errSeveral says what a build of one platform must not give.
var errSeveral = errors.New("the build gives several images, and one platform's was asked for; leave out BUILDKIT_MULTI_PLATFORM")

// errRefused ends a build whose image the agent does not want.
var errRefused = errors.New("the image is not wanted")

func (agent *conversation) write(line any) error {
	agent.writing.Lock()
	defer agent.writing.Unlock()
	return agent.lines.Encode(line)
}

func (agent *conversation) tell(told event) error {
	return agent.write(map[string]event{"kiln": told})
}

// look shows the agent what the image is, and what is in it, until it says what becomes of it.
func (agent *conversation) look(ctx context.Context, result *gateway.Result) error {
	image, config := result.Ref, result.Metadata[exptypes.ExporterImageConfigKey]
	for platform, of := range result.Refs {
		// A frontend may give one platform's image as a map; of several none is the one that was asked for.
		if len(result.Refs) > 1 {
			return errSeveral
		}
		image, config = of, result.Metadata[exptypes.ExporterImageConfigKey+"/"+platform]
	}
	// What fails from here on is about a file, not about the image. One without anything in it has no reference.
	if image != nil {
		if err := image.Evaluate(ctx); err != nil {
			return err
		}
	}
	told := event{Config: config}
	if len(config) > largestConfig || !json.Valid(config) || config[0] != '{' {
		told.Config = json.RawMessage("{}")
	}
	for {
		if err := agent.tell(told); err != nil {
			return err
		}
		var said answer
		if err := agent.asked.Decode(&said); err != nil {
			if errors.Is(err, io.EOF) {
				return context.Canceled
			}
			return fmt.Errorf("reading what the agent wants of the image: %w", err)
		}
		if len(said.Read) == 0 {
			if said.Export {
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
