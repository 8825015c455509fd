package main

import (
	"errors"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
)

// failure is why a build made nothing, as data: buildkitd tells it beside its text.
type failure struct {
	// Message is the whole text.
	Message string `json:"message"`
	// Code is the gRPC status' name, such as Canceled.
	Code string `json:"code"`
	// Vertex is the digest of the step that failed, as the progress has it. Empty: it was none.
	Vertex string `json:"vertex,omitempty"`
	// Operation is what that step does.
	Operation *operation `json:"operation,omitempty"`
	// ExitCode is that of the step's command.
	ExitCode *uint32 `json:"exitCode,omitempty"`
	// Sources are the places that brought the step, the innermost first.
	Sources []source `json:"sources,omitempty"`
}

// operation is a kind of step: exec, source, file, build, merge, diff.
type operation struct {
	Kind string `json:"kind"`
	// Identifier is what a source is fetched from, such as docker-image://….
	Identifier string `json:"identifier,omitempty"`
}

// source is a place in a Dockerfile.
type source struct {
	File  string `json:"file"`
	Lines []span `json:"lines"`
}

// span is some lines, counted from 1, the last included.
type span struct {
	First int32 `json:"first"`
	Last  int32 `json:"last"`
}

// What is told of a failure at most, in bytes and in places: it is a line, and the Dockerfile may be a megabyte.
const (
	longestMessage = 64 << 10
	longestName    = 4 << 10
	mostPlaces     = 16
	mostSpans      = 64
)

func failureOf(err error) *failure {
	told := &failure{Message: short(err.Error(), longestMessage), Code: grpcerrors.Code(err).String()}
	var vertex *errdefs.VertexError
	if errors.As(err, &vertex) {
		told.Vertex = vertex.Digest
	}
	var solve *errdefs.SolveError
	if errors.As(err, &solve) {
		told.Operation = operationOf(solve.Op)
	}
	var exit *gateway.ExitError
	if errors.As(err, &exit) {
		told.ExitCode = &exit.ExitCode
	}
	for _, place := range errdefs.Sources(err) {
		if len(told.Sources) == mostPlaces {
			break
		}
		told.Sources = append(told.Sources, sourceOf(place))
	}
	return told
}

func operationOf(op *pb.Op) *operation {
	switch op := op.GetOp().(type) {
	case *pb.Op_Exec:
		return &operation{Kind: "exec"}
	case *pb.Op_Source:
		return &operation{Kind: "source", Identifier: short(op.Source.GetIdentifier(), longestName)}
	case *pb.Op_File:
		return &operation{Kind: "file"}
	case *pb.Op_Build:
		return &operation{Kind: "build"}
	case *pb.Op_Merge:
		return &operation{Kind: "merge"}
	case *pb.Op_Diff:
		return &operation{Kind: "diff"}
	default:
		return nil
	}
}

// sourceOf joins lines that follow each other: of a syntax error BuildKit names each by itself.
func sourceOf(place *errdefs.Source) source {
	// A mount has a file and no lines.
	told := source{File: short(place.GetInfo().GetFilename(), longestName), Lines: []span{}}
	for _, lines := range place.Ranges {
		first := lines.GetStart().GetLine()
		last := max(first, lines.GetEnd().GetLine())
		if count := len(told.Lines); count > 0 && first >= told.Lines[count-1].First && first-1 <= told.Lines[count-1].Last {
			told.Lines[count-1].Last = max(last, told.Lines[count-1].Last)
		} else if count < mostSpans {
			told.Lines = append(told.Lines, span{first, last})
		}
	}
	return told
}

// short is the beginning of a text.
func short(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
