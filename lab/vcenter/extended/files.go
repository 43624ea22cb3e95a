package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// entry is a file of a datastore.
type entry struct {
	name      string
	size      int64
	directory bool
}

// list reads a directory of a datastore as this host sees it.
func (w *world) list(h *host, s *store, directory string) ([]entry, error) {
	if !s.nas() {
		found, err := os.ReadDir(filepath.Join(s.directory, directory))
		entries := []entry{}
		for _, each := range found {
			if info, err := each.Info(); err == nil {
				entries = append(entries, entry{each.Name(), info.Size(), each.IsDir()})
			}
		}
		return entries, err
	}
	return w.listExport(h, s.remoteHost, path.Join(s.remotePath, directory))
}

func (w *world) listExport(h *host, server, directory string) ([]entry, error) {
	url, err := w.commands.url(server, directory)
	if err != nil {
		return nil, err
	}
	said, err := w.commands.nfs(h, "nfs-ls", url)
	if err != nil {
		return nil, err
	}
	entries := []entry{}
	for _, line := range strings.Split(string(said), "\n") {
		// -rw-r--r--  1     0     0         1234 name with spaces
		parts := strings.Fields(line)
		if len(parts) < 6 {
			continue
		}
		size, err := strconv.ParseInt(parts[4], 10, 64)
		if err != nil {
			continue
		}
		name := strings.Join(parts[5:], " ")
		entries = append(entries, entry{name, size, strings.HasPrefix(line, "d")})
	}
	return entries, nil
}

// find looks a file up; an error is not its absence.
func (w *world) find(h *host, s *store, file string) (*entry, error) {
	entries, err := w.list(h, s, path.Dir(file))
	if errors.Is(err, os.ErrNotExist) || (err != nil && strings.Contains(err.Error(), "NOENT")) {
		return nil, nil
	}
	for _, each := range entries {
		if each.name == path.Base(file) {
			return &each, nil
		}
	}
	return nil, err
}

// textLimit is more than any .vmx or descriptor has.
const textLimit = 1 << 20

// readText reads a small file of a datastore, over NFS from the host's address.
func (w *world) readText(h *host, s *store, file string) (string, error) {
	found, err := w.find(h, s, file)
	if err != nil {
		return "", err
	}
	if found == nil || found.directory {
		return "", os.ErrNotExist
	}
	if found.size > textLimit {
		return "", fmt.Errorf("%s is too large", s.path(file))
	}
	if !s.nas() {
		text, err := os.ReadFile(filepath.Join(s.directory, file))
		return string(text), err
	}
	url, err := w.commands.url(s.remoteHost, path.Join(s.remotePath, file))
	if err != nil {
		return "", err
	}
	text, err := w.commands.nfs(h, "nfs-cat", url)
	return string(text), err
}

// fetch copies a whole file of a datastore to a path of this machine.
func (w *world) fetch(h *host, s *store, file, target string) error {
	if !s.nas() {
		return copySparse(filepath.Join(s.directory, file), target)
	}
	url, err := w.commands.url(s.remoteHost, path.Join(s.remotePath, file))
	if err != nil {
		return err
	}
	whole := target + ".whole"
	defer os.Remove(whole)
	// nfs-cp writes zeros as they are.
	if _, err := w.commands.nfs(h, "nfs-cp", url, whole); err != nil {
		return err
	}
	return copySparse(whole, target)
}
