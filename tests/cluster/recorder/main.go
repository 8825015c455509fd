// Stands at addresses that nobody is to reach, and writes down who came: a JSON object a line.
//
//	{"time": "…", "source": "10.217.16.5:40112", "destination": "169.254.169.254:80", "bytes": "GET / HTTP/1.1\r\n…"}
//
// Each connection has a line as soon as it is there, without bytes, and another with what it sent first.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

type visit struct {
	Time        time.Time `json:"time"`
	Source      string    `json:"source"`
	Destination string    `json:"destination"`
	Bytes       string    `json:"bytes"`
}

// book is the file. Each line is one write, so a reader sees whole lines only.
type book struct {
	mutex sync.Mutex
	file  *os.File
}

func (b *book) write(connection net.Conn, bytes []byte) {
	line, err := json.Marshal(visit{time.Now(), connection.RemoteAddr().String(), connection.LocalAddr().String(), string(bytes)})
	if err != nil {
		log.Fatal(err)
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if _, err := b.file.Write(append(line, '\n')); err != nil {
		log.Fatal(err)
	}
}

func (b *book) receive(connection net.Conn) {
	defer connection.Close()
	b.write(connection, nil)
	_ = connection.SetDeadline(time.Now().Add(10 * time.Second))
	first := make([]byte, 512)
	read, _ := connection.Read(first)
	if read > 0 {
		b.write(connection, first[:read])
	}
	const body = "you have reached the recorder\n"
	_, _ = connection.Write([]byte("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body))
}

func main() {
	file := flag.String("file", "", "where to write")
	ports := flag.String("ports", "", "TCP ports to listen on, parted by commas, at all addresses")
	flag.Parse()
	opened, err := os.OpenFile(*file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	book := &book{file: opened}
	for port := range strings.SplitSeq(*ports, ",") {
		listener, err := net.Listen("tcp4", ":"+port)
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			for {
				connection, err := listener.Accept()
				if err != nil {
					log.Fatal(err)
				}
				go book.receive(connection)
			}
		}()
	}
	select {}
}
