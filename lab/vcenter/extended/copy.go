package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// copySparse copies a disk and leaves out its zeros.
func copySparse(from, to string) error {
	said, err := exec.Command("cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(said))
	}
	return nil
}

// eachBlock reads a file in blocks; the last one may be short.
func eachBlock(file string, size int, visit func(index int64, block []byte)) error {
	disk, err := os.Open(file)
	if err != nil {
		return err
	}
	defer disk.Close()
	buffer := make([]byte, size)
	for index := int64(0); ; index++ {
		n, err := io.ReadFull(disk, buffer)
		if n > 0 {
			visit(index, buffer[:n])
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
