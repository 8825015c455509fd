package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// daemon is a buildkitd with an empty state.
type daemon struct {
	address string
	state   string
	process *exec.Cmd
}

const configuration = `
[worker.oci]
  enabled = true
  gc = false
[worker.containerd]
  enabled = false
[history]
  maxEntries = 0
`

// mappedIDs is how many users a builder's buildkitd knows.
const mappedIDs = 65535

func startDaemon(wanted *wantedCase, run string) (*daemon, error) {
	state := filepath.Join(run, "buildkitd")
	made := &daemon{address: "unix://" + filepath.Join(state, "buildkitd.sock"), state: state}
	if err := os.MkdirAll(state, 0o755); err != nil {
		return nil, err
	}
	size := "1g"
	if wanted.Disk > 0 {
		size = strconv.Itoa(wanted.Disk) + "m"
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size="+size+",mode=0755"); err != nil {
		return nil, fmt.Errorf("mounting buildkitd's state: %w", err)
	}
	if wanted.NoDaemon {
		return made, nil
	}
	config := filepath.Join(run, "buildkitd.toml")
	if err := os.WriteFile(config, []byte(configuration), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(run, "buildkitd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	made.process = exec.Command("buildkitd", "--config", config, "--root", state, "--addr", made.address)
	if wanted.FewIDs {
		ids := []syscall.SysProcIDMap{{Size: mappedIDs}}
		made.process.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids,
		}
	}
	made.process.Env = append(os.Environ(), "TMPDIR="+run)
	made.process.Stderr = log
	if err := made.process.Start(); err != nil {
		return nil, err
	}
	for range 200 {
		if exec.Command("buildctl", "--addr", made.address, "debug", "workers").Run() == nil {
			return made, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	made.end()
	said, _ := os.ReadFile(log.Name())
	return nil, fmt.Errorf("buildkitd does not answer: %s", said)
}

// end ends it, where that has not been done.
func (of *daemon) end() {
	if of.process != nil {
		_ = of.process.Process.Kill()
		_ = of.process.Wait()
		of.process = nil
	}
	// What runc still holds goes with the last process.
	_ = syscall.Unmount(of.state, syscall.MNT_DETACH)
}
