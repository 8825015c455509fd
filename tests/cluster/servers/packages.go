package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"
)

// gateway passes connections on to the hosts of its list and to no other, TLS as it comes: who connects talks with the
// host itself. The host's name is that of TLS's first message or, in clear text, of the first request.
type gateway struct {
	hosts map[string]bool
}

// servePackages is the way out to package registries: the cluster's DNS gives their names this address.
func servePackages(arguments []string) error {
	flags := flag.NewFlagSet("packages", flag.ExitOnError)
	address := flags.String("listen", "", "address; its ports 80 and 443 are taken")
	hosts := flags.String("hosts", "", "who may be reached, parted by commas")
	_ = flags.Parse(arguments)
	gateway := &gateway{hosts: map[string]bool{}}
	for host := range strings.SplitSeq(*hosts, ",") {
		gateway.hosts[host] = true
	}
	failed := make(chan error)
	for port, name := range map[string]func(net.Conn) (string, []byte, error){"80": requestedHost, "443": serverName} {
		listener, err := net.Listen("tcp4", net.JoinHostPort(*address, port))
		if err != nil {
			return err
		}
		go func() {
			for {
				connection, err := listener.Accept()
				if err != nil {
					failed <- err
					return
				}
				go gateway.pass(connection, port, name)
			}
		}()
	}
	return <-failed
}

func (g *gateway) pass(from net.Conn, port string, name func(net.Conn) (string, []byte, error)) {
	defer from.Close()
	_ = from.SetReadDeadline(time.Now().Add(10 * time.Second))
	host, first, err := name(from)
	if err != nil || !g.hosts[host] {
		log.Printf("%s: %q is not on the list (%v)", from.RemoteAddr(), host, err)
		return
	}
	_ = from.SetReadDeadline(time.Time{})
	to, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), 20*time.Second)
	if err != nil {
		log.Printf("%s: %v", host, err)
		return
	}
	defer to.Close()
	if _, err := to.Write(first); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(to, from)
		if half, ok := to.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
	}()
	_, _ = io.Copy(from, to)
}

// replay keeps what is read, and lets nothing be written.
type replay struct {
	net.Conn
	read bytes.Buffer
}

func (r *replay) Read(buffer []byte) (int, error) {
	read, err := r.Conn.Read(buffer)
	r.read.Write(buffer[:read])
	return read, err
}

func (r *replay) Write([]byte) (int, error) { return 0, errors.New("only listening") }

var errHeard = errors.New("heard enough")

// serverName reads TLS's first message, and gives it back with the name in it.
func serverName(connection net.Conn) (string, []byte, error) {
	replay := &replay{Conn: connection}
	var name string
	err := tls.Server(replay, &tls.Config{
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name = hello.ServerName
			return nil, errHeard
		},
	}).Handshake()
	if !errors.Is(err, errHeard) {
		return "", nil, err
	}
	return name, replay.read.Bytes(), nil
}

// requestedHost reads the head of the first request, and gives all that was read back with its host. The others of the
// connection are for the same host, or that host refuses them.
func requestedHost(connection net.Conn) (string, []byte, error) {
	replay := &replay{Conn: connection}
	request, err := http.ReadRequest(bufio.NewReader(replay))
	if err != nil {
		return "", nil, err
	}
	return request.Host, replay.read.Bytes(), nil
}
