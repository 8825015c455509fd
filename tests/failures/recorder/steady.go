package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// What differs from one recording to the next: it is numbered instead.
var (
	aTime   = regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	aDigest = regexp.MustCompile(`[0-9a-f]{64}`)
	aName   = regexp.MustCompile(`\b[0-9a-z]{25}\b`)
	aPort   = regexp.MustCompile(`\b127\.0\.0\.1:\d{5}\b`)
	aUpload = regexp.MustCompile(`\buploads/\d{9,}`)
	aMount  = regexp.MustCompile(`\bcontainerd-mount\d+`)
	aLogin  = regexp.MustCompile(`\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`)
)

// longestLog is how many bytes of what a step prints are kept, as base64.
const longestLog = 4 << 10

// steady is what is kept of an output: without what no failure is told by, and the same for each recording. And whether it
// tells a failure.
func steady(written []byte) ([]byte, bool) {
	var kept []map[string]any
	ended := map[string]int{}
	failed := false
	var out bytes.Buffer
	write := func() {
		for _, line := range kept {
			if line != nil {
				out.Write(encoded(line))
			}
		}
		kept, ended = nil, map[string]int{}
	}
	for _, line := range bytes.SplitAfter(written, []byte("\n")) {
		var told map[string]any
		if json.Unmarshal(line, &told) != nil {
			write()
			out.Write(line)
			continue
		}
		if own, ok := told["kiln"].(map[string]any); ok {
			_, is := own["failure"]
			failed = failed || is
			write()
			out.Write(line)
			continue
		}
		for _, vertex := range list(told["vertexes"]) {
			digest, _ := vertex["digest"].(string)
			name, _ := vertex["name"].(string)
			if vertex["started"] == nil || strings.HasPrefix(name, "[internal] load ") && vertex["error"] == nil {
				continue
			}
			// Only the last word on each.
			if earlier, ok := ended[digest]; ok {
				kept[earlier] = nil
			}
			ended[digest] = len(kept)
			kept = append(kept, map[string]any{"vertexes": []any{vertex}})
		}
		for _, log := range list(told["logs"]) {
			if data, _ := log["data"].(string); len(data) > longestLog {
				log["data"] = data[len(data)-longestLog:]
			}
			delete(log, "timestamp")
			kept = append(kept, map[string]any{"logs": []any{log}})
		}
		for _, warning := range list(told["warnings"]) {
			file := ""
			if source, ok := warning["sourceInfo"].(map[string]any); ok {
				file, _ = source["filename"].(string)
			}
			short := map[string]any{"vertex": warning["vertex"], "short": warning["short"], "range": warning["range"],
				"sourceInfo": map[string]any{"filename": file}}
			kept = append(kept, map[string]any{"warnings": []any{short}})
		}
	}
	write()
	text := out.String()
	text = numbered(aTime, inOrder(aTime.FindAllString(text, -1))+text, func(number int) string {
		return fmt.Sprintf("2026-01-01T00:%02d:%02dZ", number/60, number%60)
	})
	// Without the list.
	text = text[strings.Index(text, "\n")+1:]
	text = numbered(aDigest, text, func(number int) string { return fmt.Sprintf("%064x", number) })
	text = numbered(aName, text, func(number int) string { return fmt.Sprintf("ref%022d", number) })
	text = numbered(aLogin, text, func(number int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", number) })
	text = numbered(aPort, text, func(number int) string { return fmt.Sprintf("127.0.0.1:%d", 30000+number) })
	text = numbered(aUpload, text, func(number int) string { return fmt.Sprintf("uploads/%d", number) })
	text = numbered(aMount, text, func(number int) string { return fmt.Sprintf("containerd-mount%d", number) })
	return []byte(text), failed
}

func encoded(line any) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	// What was read from JSON can be written as JSON.
	_ = encoder.Encode(line)
	return out.Bytes()
}

func list(of any) []map[string]any {
	var all []map[string]any
	several, _ := of.([]any)
	for _, one := range several {
		if one, ok := one.(map[string]any); ok {
			all = append(all, one)
		}
	}
	return all
}

// numbered puts the same in the place of the same, counted from 1.
func numbered(what *regexp.Regexp, text string, with func(int) string) string {
	known := map[string]string{}
	return what.ReplaceAllStringFunc(text, func(found string) string {
		if strings.Trim(found, "0") == "" {
			return found
		}
		if _, ok := known[found]; !ok {
			known[found] = with(len(known) + 1)
		}
		return known[found]
	})
}

// inOrder are times in a line, from the first.
func inOrder(times []string) string {
	slices.SortFunc(times, func(one, other string) int {
		first, _ := time.Parse(time.RFC3339Nano, one)
		second, _ := time.Parse(time.RFC3339Nano, other)
		return first.Compare(second)
	})
	return strings.Join(times, " ") + "\n"
}
