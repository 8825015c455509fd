package main

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// defined is an image that was not made yet.
type defined struct {
	gateway.Reference
	state llb.State
}

func (of defined) ToState() (llb.State, error) { return of.state, nil }

func TestWhatIsAboutToBeDone(t *testing.T) {
	arm, amd := llb.Platform(ocispecs.Platform{OS: "linux", Architecture: "arm64"}), llb.LinuxAmd64
	file := llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", []byte("FROM a"))
	at := func(line int) llb.ConstraintsOpt {
		place := &pb.Position{Line: int32(line)}
		return file.Location([]*pb.Range{{Start: place, End: place}})
	}
	tools := llb.Image("r.example/tools:1@sha256:0000000000000000000000000000000000000000000000000000000000000000", amd)
	tools = tools.Run(llb.Shlex("make"), amd, llb.WithCustomName("[tools 2/2] RUN make"), at(2)).Root()
	base := llb.Image("r.example/base:1", arm)
	base = base.Run(llb.Shlex("held"), arm, llb.WithCustomName("[2/4] RUN held")).Root()
	base = base.Run(llb.Shlex("late"), arm, llb.WithCustomName("[4/4] RUN late"), at(7)).Root()
	base = base.Run(llb.Shlex("own"), arm, llb.WithCustomName("[3/4] RUN own"), at(5)).Root()
	made := base.File(llb.Copy(tools, "/a", "/a"))
	written, err := made.Marshal(context.Background(), arm)
	if err != nil {
		t.Fatal(err)
	}
	op, err := llb.NewDefinitionOp(written.ToPB())
	if err != nil {
		t.Fatal(err)
	}
	for name, each := range map[string]struct {
		image gateway.Reference
		want  string
	}{
		"nothing": {nil, `{"steps":{},"images":[]}`},
		"both": {
			defined{state: llb.NewState(op)},
			`{"steps":{"linux/amd64":{"name":"[tools 2/2] RUN make","line":2},"linux/arm64":{"name":"[3/4] RUN own","line":5}},` +
				`"images":["r.example/base:1","r.example/tools:1@sha256:0000000000000000000000000000000000000000000000000000000000000000"]}`,
		},
	} {
		read, err := definitionOf(context.Background(), each.image)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if told, _ := json.Marshal(read); string(told) != each.want {
			t.Errorf("%s: %s", name, told)
		}
	}
}
