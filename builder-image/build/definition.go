package main

import (
	"context"
	"fmt"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

const (
	// imageScheme begins what is fetched from a registry.
	imageScheme = "docker-image://"
	// mostImages and mostPlatforms are told; no honest build has so many.
	mostImages, mostPlatforms = 1024, 64
	// longestStep is how much of a step's name is told, in bytes, and longestImage how long the name of an image may be.
	longestStep, longestImage = 256, 1024
)

// definition is what is about to be done, as BuildKit understood the Dockerfile: with what base images hold back, and with
// what names stand for.
type definition struct {
	// Steps has a step that runs something for each platform, such as linux/arm64: that of the lowest line.
	Steps map[string]step `json:"steps"`
	// Images are what is fetched from registries: name, tag and digest.
	Images []string `json:"images"`
}

// step runs something.
type step struct {
	Name string `json:"name"`
	// Line is that of the FROM where a base image holds the step back (ONBUILD), and 0 where it is not known.
	Line int32 `json:"line"`
}

// definitionOf reads what an image is made by. Nothing of it has been done so far.
func definitionOf(ctx context.Context, image gateway.Reference) (*definition, error) {
	read := &definition{Steps: map[string]step{}, Images: []string{}}
	// One without anything in it has no reference.
	if image == nil {
		return read, nil
	}
	state, err := image.ToState()
	if err != nil {
		return nil, fmt.Errorf("reading what is to be done: %w", err)
	}
	if state.Output() == nil {
		return read, nil
	}
	written, err := state.Marshal(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading what is to be done: %w", err)
	}
	seen := map[string]bool{}
	for _, bytes := range written.Def {
		var op pb.Op
		if err := op.UnmarshalVT(bytes); err != nil {
			return nil, fmt.Errorf("reading what is to be done: %w", err)
		}
		if source := op.GetSource(); source != nil {
			name, ok := strings.CutPrefix(source.Identifier, imageScheme)
			if ok && !seen[name] && len(name) <= longestImage && len(read.Images) < mostImages {
				seen[name] = true
				read.Images = append(read.Images, name)
			}
		}
		if op.GetExec() == nil {
			continue
		}
		id := digest.FromBytes(bytes)
		found := step{Name: short(written.Metadata[id].Description["llb.customname"], longestStep), Line: lineOf(written.Source, id)}
		platform := platformOf(op.Platform)
		known, ok := read.Steps[platform]
		if (ok || len(read.Steps) < mostPlatforms) && (!ok || found.Line > 0 && (known.Line == 0 || found.Line < known.Line)) {
			read.Steps[platform] = found
		}
	}
	return read, nil
}

func platformOf(of *pb.Platform) string {
	parts := []string{of.GetOS(), of.GetArchitecture()}
	if variant := of.GetVariant(); variant != "" {
		parts = append(parts, variant)
	}
	return strings.Join(parts, "/")
}

// lineOf gives the first line of the instruction that brought a step.
func lineOf(source *pb.Source, id digest.Digest) (line int32) {
	for _, place := range source.GetLocations()[id.String()].GetLocations() {
		for _, lines := range place.GetRanges() {
			if first := lines.GetStart().GetLine(); line == 0 || first < line {
				line = first
			}
		}
	}
	return line
}
