package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// nfsTimeout is how long one of libnfs's programs may take; ESXi gives up after about 30 s.
const nfsTimeout = 30 * time.Second

// commands runs programs on hosts, and keeps a log of those that talk NFS.
type commands struct {
	directory string
	mu        sync.Mutex
	names     map[string]string
	log       []nfsCall
}

type nfsCall struct {
	Host    string   `json:"host"`
	Command []string `json:"command"`
	Code    int      `json:"code"`
	Stderr  string   `json:"stderr"`
}

// on gives the command line with which a program runs on a host.
func on(h *host, args ...string) []string {
	if h.netns == "" {
		return args
	}
	return append([]string{"ip", "netns", "exec", h.netns}, args...)
}

// nfs runs one of libnfs's programs from a host's addresses.
func (c *commands) nfs(h *host, program string, args ...string) ([]byte, error) {
	hosts := filepath.Join(c.directory, "nfs-hosts")
	// libnfs takes no IPv6 address in a URL: a private /etc/hosts gives it a name.
	named := []string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts, program}
	line := on(h, append(named, args...)...)
	ctx, cancel := context.WithTimeout(context.Background(), nfsTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, line[0], line[1:]...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	err := command.Run()
	c.mu.Lock()
	defer c.mu.Unlock()
	entry := nfsCall{Host: h.name, Command: append([]string{program}, args...), Stderr: said.String()}
	if command.ProcessState != nil {
		entry.Code = command.ProcessState.ExitCode()
	}
	c.log = append(c.log, entry)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return out.Bytes(), nil
}

// url names a file of an export to libnfs.
func (c *commands) url(server, path string) (string, error) {
	if address := net.ParseIP(server); address != nil && address.To4() == nil {
		name, err := c.nameOf(server)
		if err != nil {
			return "", err
		}
		server = name
	} else if err := c.writeNames(); err != nil {
		return "", err
	}
	return "nfs://" + server + strings.ReplaceAll(path, "?", "%3f") + "?version=3", nil
}

func (c *commands) nameOf(address string) (string, error) {
	c.mu.Lock()
	if c.names == nil {
		c.names = map[string]string{}
	}
	name, known := c.names[address]
	if !known {
		name = "nfs-server-" + strconv.Itoa(len(c.names)+1)
		c.names[address] = name
	}
	c.mu.Unlock()
	return name, c.writeNames()
}

func (c *commands) writeNames() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := "127.0.0.1 localhost\n::1 localhost\n"
	for address, name := range c.names {
		text += address + " " + name + "\n"
	}
	path := filepath.Join(c.directory, "nfs-hosts")
	return os.WriteFile(path, []byte(text), 0o644)
}

func (c *commands) nfsLog() []nfsCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]nfsCall{}, c.log...)
}

func trimSpace(text string) string { return strings.TrimSpace(text) }
