// Judges health.lua as Argo CD does: by what it says of each status in testdata, in an interpreter with the libraries that
// Argo CD opens for a check of argocd-cm. One that is compiled into Argo CD has all of them.
package argocd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	lua "github.com/yuin/gopher-lua"
	"sigs.k8s.io/yaml"
)

const folder = "kiln.build/ImageBuild"

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type entry struct {
	InputPath    string `json:"inputPath"`
	HealthStatus health `json:"healthStatus"`
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func entries(t *testing.T) []entry {
	t.Helper()
	var file struct {
		Tests []entry `json:"tests"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, filepath.Join(folder, "health_test.yaml"))), &file); err != nil {
		t.Fatal(err)
	}
	return file.Tests
}

// value gives a part of an object to Lua.
func value(state *lua.LState, part any) lua.LValue {
	switch part := part.(type) {
	case bool:
		return lua.LBool(part)
	case float64:
		return lua.LNumber(part)
	case string:
		return lua.LString(part)
	case []any:
		table := state.NewTable()
		for _, element := range part {
			table.Append(value(state, element))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, field := range part {
			table.RawSetString(key, value(state, field))
		}
		return table
	}
	return lua.LNil
}

// judge runs the script on an object.
func judge(t *testing.T, script string, object map[string]any) health {
	t.Helper()
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		t.Fatal(err)
	}
	result, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("health.lua returns a %s, not a table", state.Get(-1).Type())
	}
	return health{lua.LVAsString(result.RawGetString("status")), lua.LVAsString(result.RawGetString("message"))}
}

func TestHealth(t *testing.T) {
	script := read(t, filepath.Join(folder, "health.lua"))
	for _, entry := range entries(t) {
		t.Run(strings.TrimSuffix(filepath.Base(entry.InputPath), ".yaml"), func(t *testing.T) {
			var object map[string]any
			if err := yaml.Unmarshal([]byte(read(t, filepath.Join(folder, entry.InputPath))), &object); err != nil {
				t.Fatal(err)
			}
			if found := judge(t, script, object); found != entry.HealthStatus {
				t.Errorf("health.lua says\n%q, not\n%q", found, entry.HealthStatus)
			}
		})
	}
}

// What none of the recorded statuses has.
func TestUnusual(t *testing.T) {
	script := read(t, filepath.Join(folder, "health.lua"))
	for text, want := range map[string]string{
		`{metadata: {generation: 1}, status: {}}`:                                                               "Progressing",
		`{metadata: {generation: 1}, status: {observedGeneration: 1, conditions: []}}`:                          "Progressing",
		`{metadata: {generation: 1}, status: {conditions: [{type: Ready, status: "True", message: m}]}}`:        "Progressing",
		`{metadata: {}, status: {conditions: [{type: Ready, status: "True", message: m}]}}`:                     "Healthy",
		`{metadata: {}, status: {conditions: [{type: Ready, status: "False", reason: Other, message: m}]}}`:     "Progressing",
		`{metadata: {}, status: {conditions: [{type: Ready, status: "False", reason: Suspended, message: m}]}}`: "Suspended",
		`{metadata: {}, status: {conditions: [{type: Stalled, status: "False", message: m}]}}`:                  "Progressing",
	} {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		if found := judge(t, script, object); found.Status != want || found.Message == "" {
			t.Errorf("health.lua says %q of %s", found, text)
		}
	}
}

// Every recorded status is judged, and its file is named after what it has to be.
func TestEveryStatusIsJudged(t *testing.T) {
	var judged []string
	statuses := map[string]bool{}
	for _, entry := range entries(t) {
		judged = append(judged, filepath.Join(folder, entry.InputPath))
		status := entry.HealthStatus.Status
		statuses[status] = true
		if !strings.HasPrefix(filepath.Base(entry.InputPath), strings.ToLower(status)+"_") {
			t.Errorf("%s is to be %s", entry.InputPath, status)
		}
	}
	there, err := filepath.Glob(filepath.Join(folder, "testdata", "*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(judged)
	if !slices.Equal(judged, there) {
		t.Errorf("health_test.yaml judges\n%q, and there are\n%q", judged, there)
	}
	for _, status := range []string{"Progressing", "Healthy", "Degraded", "Suspended"} {
		if !statuses[status] {
			t.Errorf("none is to be %s", status)
		}
	}
}

// What docs/gitops.md has people put into argocd-cm, once for the chart and once for kustomize, is health.lua.
func TestThePageShowsTheScript(t *testing.T) {
	const key = "resource.customizations.health.kiln.build_ImageBuild"
	script := read(t, filepath.Join(folder, "health.lua"))
	var shown int
	for _, part := range strings.Split(read(t, "../../docs/gitops.md"), "\n```yaml\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```")
		if !strings.Contains(block, key+":") {
			continue
		}
		var values struct {
			Configs struct {
				CM map[string]any `json:"cm"`
			} `json:"configs"`
			Data map[string]any `json:"data"`
		}
		if err := yaml.Unmarshal([]byte(block+"\n"), &values); err != nil {
			t.Fatal(err)
		}
		for _, place := range []map[string]any{values.Configs.CM, values.Data} {
			if text, ok := place[key]; ok {
				shown++
				if text != script {
					t.Errorf("docs/gitops.md has another script than health.lua:\n%s", text)
				}
			}
		}
	}
	if shown != 2 {
		t.Errorf("docs/gitops.md shows the script %d times, not twice", shown)
	}
}
