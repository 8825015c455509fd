package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
)

// image has one file.
type image struct{ gateway.Reference }

func (image) Evaluate(context.Context) error { return nil }
func (image) ReadFile(_ context.Context, asked gateway.ReadRequest) ([]byte, error) {
	if asked.Filename != "/app" {
		return nil, errors.New("open: no such file or directory")
	}
	return []byte("program")[:asked.Range.Length], nil
}

func TestAnImageIsShownUntilTheAgentHasItsWord(t *testing.T) {
	for said, want := range map[string]error{
		`{"read":{},"proceed":true}`:  nil,
		`{"read":{},"proceed":false}`: errRefused,
		``:                            context.Canceled,
	} {
		var out bytes.Buffer
		asked := json.NewDecoder(strings.NewReader(`{"read":{"/app":4,"/none":9},"proceed":false}` + said))
		agent := &conversation{asked: asked, lines: json.NewEncoder(&out)}
		result := gateway.NewResult()
		result.SetRef(image{})
		result.AddMeta(exptypes.ExporterImageConfigKey, []byte(`{"os":"linux"}`))
		if err := agent.look(context.Background(), result); !errors.Is(err, want) {
			t.Errorf("after %q: %v", said, err)
		}
		const shown = `{"kiln":{"config":{"os":"linux"}}}` + "\n" + `{"kiln":{"files":{"/app":"cHJvZw==","/none":null}}}` + "\n"
		if out.String() != shown {
			t.Errorf("shown %s\nwant %s", out.String(), shown)
		}
	}
}

func TestAMapOfOneIsAnImage(t *testing.T) {
	result := gateway.NewResult()
	result.AddRef("linux/amd64", image{})
	result.AddMeta(exptypes.ExporterPlatformsKey, []byte(`{}`))
	result.AddMeta(exptypes.ExporterImageConfigKey+"/linux/amd64", []byte(`{"os":"linux"}`))
	if err := oneImage(result); err != nil {
		t.Fatal(err)
	}
	if result.Ref == nil || len(result.Refs) != 0 || len(result.Metadata) != 1 ||
		string(result.Metadata[exptypes.ExporterImageConfigKey]) != `{"os":"linux"}` {
		t.Errorf("made %+v", result)
	}
	result = gateway.NewResult()
	result.AddRef("linux/amd64", image{})
	result.AddRef("linux/arm64", image{})
	if err := oneImage(result); !errors.Is(err, errSeveral) {
		t.Errorf("of two: %v", err)
	}
}

func TestAConfigurationThatCannotBeJudgedIsRefused(t *testing.T) {
	for _, config := range []string{`{"a":`, `[]`, ` `, `{"a":"` + strings.Repeat("a", largestConfig) + `"}`} {
		result := gateway.NewResult()
		result.SetRef(image{})
		result.AddMeta(exptypes.ExporterImageConfigKey, []byte(config))
		agent := &conversation{asked: json.NewDecoder(strings.NewReader("")), lines: json.NewEncoder(&bytes.Buffer{})}
		if err := agent.look(context.Background(), result); !errors.Is(err, errConfig) {
			t.Errorf("%.20s: %v", config, err)
		}
	}
}
