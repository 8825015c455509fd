package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
)

// As it comes from buildkitd: through gRPC, each part a detail of the status.
func TestAFailureIsToldAsData(t *testing.T) {
	err := error(&gateway.ExitError{ExitCode: 3, Err: errors.New("did not complete")})
	err = errdefs.WithOp(err, &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{}}}, nil)
	err = errdefs.WithSolveError(err, nil, nil, nil)
	err = errdefs.WrapVertex(err, "sha256:1")
	place := &errdefs.Source{
		Info:   &pb.SourceInfo{Filename: "Dockerfile"},
		Ranges: []*pb.Range{{Start: &pb.Position{Line: 2}, End: &pb.Position{Line: 4}}, {Start: &pb.Position{Line: 7}}},
	}
	err = grpcerrors.FromGRPC(grpcerrors.ToGRPC(context.Background(), errdefs.WithSource(err, place)))
	told, _ := json.Marshal(failureOf(err))
	want := `{"message":"did not complete","code":"Unknown","vertex":"sha256:1","operation":{"kind":"exec"},"exitCode":3,` +
		`"sources":[{"file":"Dockerfile","lines":[{"first":2,"last":4},{"first":7,"last":7}]}]}`
	if string(told) != want {
		t.Errorf("told %s\nwant %s", told, want)
	}
}

// An image that a mount is from has no place of its own: the agent reads a list, though it is empty.
func TestAPlaceWithoutLines(t *testing.T) {
	place := &errdefs.Source{Info: &pb.SourceInfo{Filename: "Dockerfile"}}
	told, _ := json.Marshal(failureOf(errdefs.WithSource(errors.New("not found"), place)))
	want := `{"message":"not found","code":"Unknown","sources":[{"file":"Dockerfile","lines":[]}]}`
	if string(told) != want {
		t.Errorf("told %s\nwant %s", told, want)
	}
}

func TestCachesHaveAPlaceForTheirAttributes(t *testing.T) {
	cache := entry{Type: "registry", Attributes: map[string]string{"ref": "r.example/app:cache"}}
	opt, err := options(&job{Imports: []entry{cache}, Exports: []entry{cache}})
	if err != nil || opt.FrontendAttrs == nil || len(opt.CacheImports) != 1 || len(opt.CacheExports) != 1 {
		t.Errorf("options are %+v (%v)", opt, err)
	}
}

func TestABuildkitdThatIsNotThereIsAFailureToo(t *testing.T) {
	var out bytes.Buffer
	wanted := `{"address": "unix:///nowhere/buildkitd.sock", "output": {"type": "image"}}`
	if err := run(context.Background(), strings.NewReader(wanted), &out); err != nil {
		t.Fatal(err)
	}
	var told struct{ Kiln struct{ Failure failure } }
	if err := json.Unmarshal(out.Bytes(), &told); err != nil || told.Kiln.Failure.Code != "Unavailable" {
		t.Errorf("told %s (%v)", out.String(), err)
	}
	if err := run(context.Background(), strings.NewReader("no job"), &out); err == nil {
		t.Error("no job was read as one")
	}
}

// A syntax error's instruction may have as many lines as a megabyte has.
func TestAFailureIsAShortLine(t *testing.T) {
	place := &errdefs.Source{Info: &pb.SourceInfo{Filename: strings.Repeat("a", 1<<20)}}
	for line := range int32(1 << 20) {
		place.Ranges = append(place.Ranges, &pb.Range{Start: &pb.Position{Line: line + 1}, End: &pb.Position{Line: line + 1}})
	}
	told := failureOf(errdefs.WithSource(errors.New(strings.Repeat("\x00", 1<<20)), place))
	if len(told.Sources) != 1 || len(told.Sources[0].Lines) != 1 || told.Sources[0].Lines[0] != (span{1, 1 << 20}) {
		t.Errorf("%d places", len(told.Sources))
	}
	if line, _ := json.Marshal(told); len(line) > 1<<19 {
		t.Errorf("%d bytes", len(line))
	}
}
