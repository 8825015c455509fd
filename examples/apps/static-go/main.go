// Command digest prints the SHA-256 of its standard input or of the files that it is given, as sha256sum does.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime"
)

func main() {
	names := os.Args[1:]
	if len(names) == 1 && names[0] == "--version" {
		fmt.Printf("digest 1.0 %s/%s\n", runtime.GOOS, runtime.GOARCH)
		return
	}
	if len(names) == 0 {
		names = []string{"-"}
	}
	status := 0
	for _, name := range names {
		sum, err := digest(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "digest:", err)
			status = 1
			continue
		}
		fmt.Printf("%x  %s\n", sum, name)
	}
	os.Exit(status)
}

func digest(name string) ([]byte, error) {
	file := os.Stdin
	if name != "-" {
		opened, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		file = opened
	}
	hash := sha256.New()
	_, err := io.Copy(hash, file)
	return hash.Sum(nil), err
}
