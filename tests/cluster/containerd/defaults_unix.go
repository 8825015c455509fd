//go:build !windows && !darwin && !freebsd

// Replaces the file of this name in github.com/containerd/platforms, when containerd is compiled for the nodes:
// the arm64 node is this machine too, and is to run arm64 images, through qemu, where an image has them.

package platforms

import (
	"os"
	"runtime"

	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// DefaultSpec returns the current platform's default platform specification.
func DefaultSpec() specs.Platform {
	return specs.Platform{
		OS:           runtime.GOOS,
		Architecture: runtime.GOARCH,
		// The Variant field will be empty if arch != ARM.
		Variant: cpuVariant(),
	}
}

// Default matches the platform named by NODE_PLATFORM first, then the machine's own.
func Default() MatchComparer {
	if node, err := Parse(os.Getenv("NODE_PLATFORM")); err == nil {
		return Ordered(node, DefaultSpec())
	}
	return Only(DefaultSpec())
}
