package main

import (
	"errors"
	"io"
	"net/http"
)

var errStalled = errors.New("nothing more comes")

// marred is a transfer to which something happens on its way.
type marred struct {
	out   io.Writer
	fault *scriptedFault
	sent  int64
}

// mar gives the writer that a test asked for: the plain one, or one that spoils what goes through.
func (s *script) mar(method string, out http.ResponseWriter) io.Writer {
	fault := s.next(method)
	if fault == nil || fault.How == "" {
		return out
	}
	return &marred{out: out, fault: fault}
}

func (m *marred) Write(bytes []byte) (int, error) {
	left := m.fault.AtByte - m.sent
	if left < 0 || left >= int64(len(bytes)) {
		n, err := m.out.Write(bytes)
		m.sent += int64(n)
		return n, err
	}
	if m.fault.How == "flip" {
		changed := append([]byte{}, bytes...)
		changed[left] ^= 0x55
		n, err := m.out.Write(changed)
		m.sent += int64(n)
		return n, err
	}
	n, err := m.out.Write(bytes[:left])
	m.sent += int64(n)
	if flusher, ok := m.out.(http.Flusher); ok {
		flusher.Flush()
	}
	if err == nil && m.fault.How == "stall" {
		return n, errStalled
	}
	if err == nil {
		panic(http.ErrAbortHandler)
	}
	return n, err
}
