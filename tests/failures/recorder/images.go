package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
)

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// The beginning of a program for SPARC, which no machine here runs.
var foreign = append([]byte("\x7fELF\x01\x02\x01"+strings.Repeat("\x00", 9)+"\x00\x02\x00\x02\x00\x00\x00\x01"), make([]byte, 40)...)

// The beginning of a program for this machine that is loaded by /lib/zzloader.so, which no image has.
var linked = func() []byte {
	loader := "/lib/zzloader.so\x00"
	var program bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:    uint16(elf.ET_EXEC),
			Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{Type: uint32(elf.PT_INTERP), Flags: uint32(elf.PF_R), Off: 120, Filesz: uint64(len(loader)), Memsz: uint64(len(loader))},
		[]byte(loader),
	} {
		// A buffer takes all.
		_ = binary.Write(&program, binary.LittleEndian, part)
	}
	// Kernels read as much of a program before they look at it.
	return append(program.Bytes(), make([]byte, 256)...)
}()

// fill puts base images into a registry: one with busybox, and such as are only good for a failure.
func fill(images http.Handler) error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return err
	}
	files := []file{
		{tar.Header{Name: "bin/", Mode: 0o755, Typeflag: tar.TypeDir}, nil},
		{tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil},
		{tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\n")},
		{tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox},
		{tar.Header{Name: "bin/zzforeign", Mode: 0o755}, foreign},
		{tar.Header{Name: "bin/zzlinked", Mode: 0o755}, linked},
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			files = append(files, file{tar.Header{Name: "bin/" + applet, Linkname: "busybox", Typeflag: tar.TypeSymlink}, nil})
		}
	}
	base := layer(files)
	for repository, layers := range map[string][][]byte{
		"library/busybox":  {base},
		"zzteam/zzbase":    {base},
		"zzteam/zzids":     {base, layer([]file{{tar.Header{Name: "zzfile", Mode: 0o644, Uid: 1407182137, Gid: 1407182137}, nil}})},
		"zzteam/zznolayer": {[]byte("this is no layer")},
	} {
		for _, tag := range []string{"latest", "1"} {
			if err := put(images, repository, tag, "amd64", layers); err != nil {
				return err
			}
		}
	}
	for repository, trigger := range map[string]string{
		"zzteam/zzonbuildrun": "RUN false", "zzteam/zzonbuildcopy": "COPY zzfile.txt /",
		"zzteam/zzonbuildfrom": "COPY --from=registry.zzhost.example/zzteam/zznone:1 /zzfile /",
	} {
		if err := put(images, repository, "1", "amd64", [][]byte{base}, trigger); err != nil {
			return err
		}
	}
	return put(images, "zzteam/zzarm", "1", "arm64", [][]byte{base})
}

type file struct {
	header tar.Header
	text   []byte
}

func layer(files []file) []byte {
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	archive := tar.NewWriter(packed)
	for _, file := range files {
		file.header.Size = int64(len(file.text))
		// A buffer takes all.
		_ = archive.WriteHeader(&file.header)
		_, _ = archive.Write(file.text)
	}
	_ = archive.Close()
	_ = packed.Close()
	return out.Bytes()
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

func described(kind string, blob []byte) descriptor {
	return descriptor{kind, digest(blob), len(blob)}
}

func digest(blob []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(blob)) }

// put pushes an image, which may hold instructions back (ONBUILD).
func put(images http.Handler, repository, tag, architecture string, layers [][]byte, heldBack ...string) error {
	var contents []string
	var descriptors []descriptor
	for _, blob := range layers {
		content := blob
		if reader, err := gzip.NewReader(bytes.NewReader(blob)); err == nil {
			var out bytes.Buffer
			if _, err := out.ReadFrom(reader); err != nil {
				return err
			}
			content = out.Bytes()
		}
		contents = append(contents, digest(content))
		descriptors = append(descriptors, described(layerType, blob))
	}
	config, err := json.Marshal(map[string]any{
		"architecture": architecture, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"sh"}, "OnBuild": heldBack},
		"rootfs": map[string]any{"type": "layers", "diff_ids": contents},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": described(configType, config), "layers": descriptors,
	})
	if err != nil {
		return err
	}
	send := func(method, path, kind string, body []byte) error {
		request := httptest.NewRequest(method, "/v2/"+repository+path, bytes.NewReader(body))
		request.Header.Set("Content-Type", kind)
		answer := httptest.NewRecorder()
		images.ServeHTTP(answer, request)
		if answer.Code != http.StatusCreated {
			return fmt.Errorf("pushing %s%s: %d %s", repository, path, answer.Code, answer.Body)
		}
		return nil
	}
	for _, blob := range append(layers, config) {
		if err := send("POST", "/blobs/uploads/?digest="+digest(blob), "application/octet-stream", blob); err != nil {
			return err
		}
	}
	return send("PUT", "/manifests/"+tag, manifestType, manifest)
}
