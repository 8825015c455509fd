package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// gitServer serves the repositories below a directory, to be read only, to whoever has the one key.
type gitServer struct {
	root string
	lfs  string
	// What a client of LFS is given, for it comes over https then.
	authorization string
}

// serveSSH is a Git server over ssh, for the user git.
func serveSSH(arguments []string) error {
	flags := flag.NewFlagSet("ssh", flag.ExitOnError)
	address := flags.String("listen", "", "address and port")
	hostKey := flags.String("host-key", "", "file of the server's private key")
	authorized := flags.String("authorized-key", "", "file of the client's public key")
	root := flags.String("root", "", "directory with the repositories")
	lfs := flags.String("lfs", "", "URL of the same repositories over https")
	authorization := flags.String("lfs-authorization", "", "file of the credential for it, USER:PASSWORD")
	_ = flags.Parse(arguments)

	key, err := os.ReadFile(*hostKey)
	if err != nil {
		return err
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return err
	}
	line, err := os.ReadFile(*authorized)
	if err != nil {
		return err
	}
	client, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return err
	}
	credential, err := os.ReadFile(*authorization)
	if err != nil {
		return err
	}
	server := &gitServer{root: *root, lfs: *lfs, authorization: basic(strings.TrimSpace(string(credential)))}
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(connection ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if connection.User() != "git" || !bytes.Equal(key.Marshal(), client.Marshal()) {
				return nil, errors.New("this user and key may not come in")
			}
			return &ssh.Permissions{}, nil
		},
	}
	config.AddHostKey(signer)
	listener, err := net.Listen("tcp4", *address)
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go server.connection(connection, config)
	}
}

func (s *gitServer) connection(raw net.Conn, config *ssh.ServerConfig) {
	defer raw.Close()
	connection, channels, requests, err := ssh.NewServerConn(raw, config)
	if err != nil {
		log.Printf("%s: %v", raw.RemoteAddr(), err)
		return
	}
	log.Printf("%s: %s comes in with %s", raw.RemoteAddr(), connection.User(), connection.ClientVersion())
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		if offered.ChannelType() != "session" {
			_ = offered.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go s.session(channel, requests)
	}
}

// session runs the one command of a session, as git-shell does.
func (s *gitServer) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	var protocol string
	for request := range requests {
		switch request.Type {
		case "env":
			var variable struct{ Name, Value string }
			if ssh.Unmarshal(request.Payload, &variable) == nil && variable.Name == "GIT_PROTOCOL" {
				protocol = variable.Value
			}
			_ = request.Reply(true, nil)
		case "exec":
			var command struct{ Line string }
			if ssh.Unmarshal(request.Payload, &command) != nil {
				_ = request.Reply(false, nil)
				return
			}
			_ = request.Reply(true, nil)
			status := s.run(channel, command.Line, protocol)
			_, _ = channel.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, status))
			return
		default:
			_ = request.Reply(false, nil)
		}
	}
}

// run is a command such as: git-upload-pack '/app.git'. The result is its exit status.
func (s *gitServer) run(channel ssh.Channel, line, protocol string) uint32 {
	log.Printf("%s", line)
	name, argument, _ := strings.Cut(line, " ")
	argument = strings.TrimPrefix(argument, " ")
	if name == "git-lfs-authenticate" {
		argument, _, _ = strings.Cut(argument, " ")
	}
	path := filepath.Clean("/" + strings.Trim(argument, "'\""))
	if info, err := os.Stat(filepath.Join(s.root, path)); err != nil || !info.IsDir() {
		_, _ = fmt.Fprintf(channel.Stderr(), "fatal: '%s' does not appear to be a git repository\n", path)
		return 128
	}
	switch name {
	case "git-upload-pack":
		return s.upload(channel, path, protocol)
	case "git-lfs-authenticate":
		// https://github.com/git-lfs/git-lfs/blob/main/docs/api/server-discovery.md
		answer := map[string]any{
			"href":   s.lfs + path + "/info/lfs",
			"header": map[string]string{"Authorization": s.authorization},
		}
		_ = json.NewEncoder(channel).Encode(answer)
		return 0
	default:
		_, _ = fmt.Fprintf(channel.Stderr(), "fatal: unrecognized command '%s'\n", name)
		return 128
	}
}

func (s *gitServer) upload(channel ssh.Channel, path, protocol string) uint32 {
	command := exec.Command("git", "upload-pack", "--strict", filepath.Join(s.root, path))
	// Whoever put the repository there.
	command.Env = append(os.Environ(), "GIT_PROTOCOL="+protocol, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	command.Stdout, command.Stderr = channel, channel.Stderr()
	// A pipe: with Stdin, Wait would wait for a client that keeps its side open.
	input, err := command.StdinPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		_, _ = fmt.Fprintln(channel.Stderr(), err)
		return 128
	}
	go func() {
		_, _ = io.Copy(input, channel)
		_ = input.Close()
	}()
	if err := command.Wait(); err != nil {
		return 128
	}
	return 0
}
