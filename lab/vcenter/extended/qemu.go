package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// qemu is a machine that is on: QEMU in software emulation, in its host's network.
type qemu struct {
	*qmp
	process *os.Process
	gone    chan struct{}
	nodes   int
}

// directory is where a machine's serial port, sockets and pictures lie.
func (m *machine) directory() string {
	return filepath.Join(m.w.directory, "machines", m.Self.Value)
}

// memoryMax keeps small test machines small whatever the .vmx asks for, in MiB.
const memoryMax = 256

func (m *machine) boot() error {
	directory := m.directory()
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	memory := m.vmx.number("memsize", 192)
	if memory > memoryMax {
		memory = memoryMax
	}
	at := func(name string) string { return filepath.Join(directory, name) }
	_ = os.Remove(at("qmp.sock"))
	args := []string{
		// /dev/kvm may exist and be useless.
		"qemu-system-x86_64", "-accel", "tcg", "-M", "pc", "-m", fmt.Sprint(memory),
		"-nodefaults", "-display", "none", "-vga", "std",
		"-chardev", "file,id=log,append=on,path=" + at("serial.log"), "-serial", "chardev:log",
		"-serial", "unix:" + at("command.sock") + ",server=on,wait=off",
		"-qmp", "unix:" + at("qmp.sock") + ",server=on,wait=off",
		"-device", "virtio-scsi-pci,id=scsi",
		"-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
	}
	for index, d := range m.disks {
		node := fmt.Sprintf("disk%d", index)
		layers, err := m.layers(d, node)
		if err != nil {
			return err
		}
		for _, layer := range layers {
			args = append(args, "-blockdev", asJSON(layer))
		}
		args = append(args, "-device", scsiDevice(d, node, index))
		d.node = node
	}
	line := on(m.host, args...)
	command := exec.Command(line[0], line[1:]...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	command.Stderr = &said
	if err := command.Start(); err != nil {
		return err
	}
	q := &qemu{process: command.Process, gone: make(chan struct{}), nodes: len(m.disks)}
	go func() {
		_ = command.Wait()
		m.off(q)
	}()
	return m.connect(q, at("qmp.sock"), &said)
}

// connect waits for QEMU's monitor, or for QEMU's end.
func (m *machine) connect(q *qemu, socket string, said *bytes.Buffer) error {
	for tries := 0; tries < 600; tries++ {
		select {
		case <-q.gone:
			words := fmt.Sprintf("Cannot open the disks of %s: %s", m.name, strings.TrimSpace(said.String()))
			return fail(&types.GenericVmConfigFault{Reason: words}, "%s", words)
		case <-time.After(50 * time.Millisecond):
		}
		if connected, err := dialQMP(socket); err == nil {
			m.w.mu.Lock()
			q.qmp = connected
			m.qemu = q
			m.w.mu.Unlock()
			select {
			case <-q.gone:
				m.off(q)
			default:
			}
			return nil
		}
	}
	_ = q.process.Kill()
	return fail(&types.GenericVmConfigFault{Reason: "QEMU does not answer"}, "The machine did not start.")
}

// off says that a machine has ended, by itself or not.
func (m *machine) off(q *qemu) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	select {
	case <-q.gone:
	default:
		close(q.gone)
	}
	if m.qemu != q {
		return
	}
	m.qemu = nil
	for _, d := range m.disks {
		d.node = ""
	}
	if m.w.machines[m.Self] == m {
		m.showOff()
	}
}

// showOff says that a machine is off, once its host can say so; the caller holds mu.
func (m *machine) showOff() {
	if m.host.connected() != nil {
		return
	}
	m.showPower(types.VirtualMachinePowerStatePoweredOff, "guestToolsNotRunning")
	m.publish()
}

// end pulls the plug and waits until nothing is open any more.
func (q *qemu) end() {
	_ = q.process.Kill()
	<-q.gone
}

func scsiDevice(d *disk, node string, index int) string {
	return fmt.Sprintf("scsi-hd,bus=scsi.0,scsi-id=%d,drive=%s,id=%s,serial=%s,bootindex=%d",
		index, node, deviceID(d), strings.ReplaceAll(d.slot, ":", "-"), index)
}

func deviceID(d *disk) string { return "dev-" + strings.ReplaceAll(d.slot, ":", "-") }

type options map[string]interface{}

// fileNode describes a disk's flat file to QEMU: over NFS by the server and path of the mount.
func fileNode(d *disk) options {
	if d.store.nas() {
		return options{
			"driver": "nfs", "path": path.Join(d.store.remotePath, d.flat),
			"server": options{"type": "inet", "host": d.store.remoteHost},
		}
	}
	return options{
		"driver": "file", "filename": filepath.Join(d.store.directory, d.flat), "discard": "unmap",
	}
}

// layers are the nodes of a disk, lowest first; the top is called node. What is written to a
// non-persistent disk goes to a file that is gone with the machine's power.
func (m *machine) layers(d *disk, node string) ([]options, error) {
	raw := options{"driver": "raw", "node-name": node, "file": fileNode(d), "discard": "unmap"}
	if d.mode != "independent_nonpersistent" {
		return []options{raw}, nil
	}
	raw["node-name"] = node + "-base"
	raw["read-only"] = true
	overlay := filepath.Join(m.directory(), node+".qcow2")
	size := fmt.Sprint(d.sizeBytes)
	if said, err := exec.Command("qemu-img", "create", "-f", "qcow2", overlay, size).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w", said, err)
	}
	top := options{
		"driver": "qcow2", "node-name": node, "backing": node + "-base",
		"file": options{"driver": "file", "filename": overlay},
	}
	return []options{raw, top}, nil
}
