package main

import (
	"encoding/binary"
	"net"
	"strings"
)

// Answers of a name server (https://www.rfc-editor.org/rfc/rfc1035#section-4.1.1).
const (
	nameKnown    = 0
	nameFailed   = 2
	nameUnknown  = 3
	typeA        = 1
	headerLength = 12
)

// serveNames answers for the names that cases use; there are no others.
func serveNames(address string) error {
	server, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	go func() {
		buffer := make([]byte, 1500)
		for {
			length, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer := answerTo(buffer[:length]); answer != nil {
				_, _ = server.WriteTo(answer, from)
			}
		}
	}()
	return nil
}

// answerTo answers one question.
func answerTo(query []byte) []byte {
	at, labels := headerLength, []string{}
	for at < len(query) && query[at] != 0 {
		end := at + 1 + int(query[at])
		if end >= len(query) {
			return nil
		}
		labels = append(labels, string(query[at+1:end]))
		at = end
	}
	// The end of the name, type and class.
	end := at + 5
	if end > len(query) {
		return nil
	}
	code, address := look(strings.ToLower(strings.Join(labels, ".")))
	answer := append([]byte{}, query[:end]...)
	answer[2], answer[3] = 0x81, 0x80|code
	// One question, no authority, nothing more.
	copy(answer[4:headerLength], []byte{0, 1, 0, 0, 0, 0, 0, 0})
	if kind := binary.BigEndian.Uint16(query[at+1:]); code == nameKnown && kind == typeA {
		answer[7] = 1
		answer = append(answer, 0xc0, headerLength, 0, typeA, 0, 1, 0, 0, 0, 1, 0, net.IPv4len)
		answer = append(answer, net.ParseIP(address).To4()...)
	}
	return answer
}

func look(name string) (byte, string) {
	kind, _, _ := strings.Cut(name, ".")
	switch {
	case name == "docker.io" || strings.HasSuffix(name, ".docker.io"):
		return nameKnown, front
	case kind == "unknown" || !strings.HasSuffix(name, ".example"):
		return nameUnknown, ""
	case kind == "unanswered":
		return nameFailed, ""
	case addresses[kind] != "":
		return nameKnown, addresses[kind]
	default:
		return nameKnown, front
	}
}
