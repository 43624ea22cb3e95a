package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// move is a disk on its way to another datastore.
type move struct {
	disk   *disk
	target *store
	file   string
	flat   string
	node   string
}

func (v *move) path() string { return filepath.Join(v.target.directory, v.flat) }

func (m *machine) RelocateVMTask(req *types.RelocateVM_Task) soap.HasFault {
	defer m.free()()
	spec := req.Spec
	task := m.task("RelocateVM_Task", true, func(j *job) (types.AnyType, error) {
		if spec.Datastore == nil && spec.Host != nil {
			return nil, m.migrate(m.w.hosts[*spec.Host])
		}
		return nil, m.relocate(j, &spec)
	})
	return &methods.RelocateVM_TaskBody{Res: &types.RelocateVM_TaskResponse{Returnval: task}}
}

// migrate gives a machine to another host that has its datastores. QEMU stays in the namespace where
// it was started: with files of a directory that makes no difference.
func (m *machine) migrate(to *host) error {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if to == nil {
		return invalid("spec.host")
	}
	if err := to.connected(); err != nil {
		return err
	}
	for _, s := range append([]*store{m.store}, storesOf(m.disks)...) {
		if s.nas() || s.mounts[to] == "" {
			fault := &types.InaccessibleDatastore{}
			fault.Datastore, fault.Name = &s.self, s.name
			return fail(fault, "Unable to access the virtual machine configuration: "+
				"Unable to access datastore '%s' from the host.", s.name)
		}
	}
	change(m.host.object, set("vm", without(m.host.object.Vm, m.Self)))
	m.host = to
	change(to.object, set("vm", with(to.object.Vm, m.Self)))
	change(m, set("runtime.host", &to.self), set("summary.runtime.host", &to.self))
	return nil
}

func storesOf(disks []*disk) []*store {
	list := []*store{}
	for _, d := range disks {
		list = append(list, d.store)
	}
	return list
}

func (m *machine) relocate(j *job, spec *types.VirtualMachineRelocateSpec) error {
	target, err := m.relocationTarget(spec)
	if err != nil {
		return err
	}
	folder, err := target.newFolder(m)
	if err != nil {
		return err
	}
	moves := []*move{}
	for index, d := range m.disks {
		name := path.Base(folder)
		if index > 0 {
			name = fmt.Sprintf("%s_%d", name, index)
		}
		v := &move{disk: d, target: target, file: path.Join(folder, name+".vmdk")}
		v.flat, v.node = path.Join(folder, name+"-flat.vmdk"), m.w.id("moved")
		moves = append(moves, v)
	}
	if err := m.copyDisks(j, moves); err != nil {
		_ = os.RemoveAll(filepath.Join(target.directory, folder))
		return err
	}
	return m.arrive(target, folder, moves)
}

// relocationTarget refuses what vCenter would, and what the lab cannot do.
func (m *machine) relocationTarget(spec *types.VirtualMachineRelocateSpec) (*store, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if spec.Host != nil && *spec.Host != m.host.self {
		return nil, fail(&types.NotSupported{}, "The lab moves machines between datastores, not hosts.")
	}
	if spec.Datastore == nil {
		return nil, invalid("spec.datastore")
	}
	s := m.w.stores[*spec.Datastore]
	if s == nil {
		return nil, fail(&types.ManagedObjectNotFound{Obj: *spec.Datastore},
			"The object '%s' has already been deleted or has not been completely created", spec.Datastore)
	}
	if err := m.host.connected(); err != nil {
		return nil, err
	}
	if s.mounts[m.host] != "readWrite" {
		return nil, fail(&types.InvalidDatastore{Datastore: &s.self, Name: s.name},
			"Datastore '%s' is not accessible from host '%s'.", s.name, m.host.name)
	}
	if s.nas() || len(m.snapshots) > 0 {
		return nil, fail(&types.NotSupported{}, "The lab moves machines without snapshots to local datastores.")
	}
	needed := int64(0)
	for _, d := range m.disks {
		if d.mode == "independent_nonpersistent" {
			return nil, fail(&types.NotSupported{}, "The lab moves persistent disks only.")
		}
		needed += d.sizeBytes
	}
	s.measure()
	if free := s.object.Summary.FreeSpace; needed > free {
		fault := &types.NoDiskSpace{Datastore: s.name, FileFault: types.FileFault{File: s.path("")}}
		return nil, fail(fault, "Insufficient disk space on datastore '%s'.", s.name)
	}
	return s, nil
}

// newFolder makes a folder of the machine's own: its name, and a number if that is taken.
func (s *store) newFolder(m *machine) (string, error) {
	name := m.name
	if base := dirOf(m.file); base != "." {
		name = path.Base(base)
	}
	for number := 0; ; number++ {
		folder := name
		if number > 0 {
			folder = fmt.Sprintf("%s_%d", name, number)
		}
		err := os.Mkdir(filepath.Join(s.directory, folder), 0o755)
		if err == nil || !os.IsExist(err) {
			return folder, err
		}
	}
}

func (m *machine) copyDisks(j *job, moves []*move) error {
	for _, v := range moves {
		text, err := m.w.readText(m.host, v.disk.store, v.disk.file)
		if err != nil {
			return err
		}
		parsed, err := parseDescriptor(text)
		if err != nil {
			return err
		}
		descriptor := []byte(parsed.renamed(path.Base(v.flat)))
		if err := os.WriteFile(filepath.Join(v.target.directory, v.file), descriptor, 0o600); err != nil {
			return err
		}
	}
	if q := m.running(); q != nil {
		return m.mirror(j, q, moves)
	}
	for index, v := range moves {
		if j.ctx.Err() != nil {
			return canceled()
		}
		if err := m.w.fetch(m.host, v.disk.store, v.disk.flat, v.path()); err != nil {
			return err
		}
		if err := m.pace(j, v, index, len(moves)); err != nil {
			return err
		}
		if err := j.progress(int32(95 * (index + 1) / len(moves))); err != nil {
			return err
		}
	}
	return nil
}

// pace makes the copy of a machine that is off take as long as it is told.
func (m *machine) pace(j *job, v *move, index, count int) error {
	speed := m.w.script.behaves().RelocateBytesPerSecond
	if speed <= 0 {
		return nil
	}
	const tick = 100 * time.Millisecond
	ticks := v.disk.sizeBytes * int64(time.Second/tick) / speed
	for at := int64(0); at < ticks; at++ {
		select {
		case <-j.ctx.Done():
			return canceled()
		case <-time.After(tick):
		}
		done := (float64(index) + float64(at)/float64(ticks)) / float64(count)
		if err := j.progress(int32(95 * done)); err != nil {
			return err
		}
	}
	return nil
}

// mirror copies while the guest goes on: what it writes goes to both sides, until both are alike.
func (m *machine) mirror(j *job, q *qemu, moves []*move) error {
	started := []*move{}
	var err error
	for _, v := range moves {
		if err = m.startMirror(q, v); err != nil {
			break
		}
		started = append(started, v)
	}
	if err == nil {
		err = awaitReady(j, q, started)
	}
	if err != nil {
		for _, v := range started {
			_, _ = q.run("block-job-cancel", options{"device": v.node, "force": true})
		}
		awaitGone(q)
		for _, v := range started {
			_, _ = q.run("blockdev-del", options{"node-name": v.node})
		}
		return err
	}
	for _, v := range moves {
		if _, err := q.run("block-job-complete", options{"device": v.node}); err != nil {
			return err
		}
	}
	awaitGone(q)
	for _, v := range moves {
		_, _ = q.run("blockdev-del", options{"node-name": v.disk.node})
		v.disk.node = v.node
	}
	return nil
}

func (m *machine) startMirror(q *qemu, v *move) error {
	made, err := os.Create(v.path())
	if err == nil {
		err = made.Truncate(v.disk.sizeBytes)
		_ = made.Close()
	}
	if err != nil {
		return err
	}
	node := options{
		"driver": "raw", "node-name": v.node, "discard": "unmap", "detect-zeroes": "unmap",
		"file": options{"driver": "file", "filename": v.path(), "discard": "unmap"},
	}
	if _, err := q.run("blockdev-add", node); err != nil {
		return err
	}
	job := options{
		"job-id": v.node, "device": v.disk.node, "target": v.node,
		"sync": "full", "copy-mode": "write-blocking",
	}
	if speed := m.w.script.behaves().RelocateBytesPerSecond; speed > 0 {
		job["speed"] = speed
	}
	_, err = q.run("blockdev-mirror", job)
	return err
}

type blockJob struct {
	Device string `json:"device"`
	Len    int64  `json:"len"`
	Offset int64  `json:"offset"`
	Ready  bool   `json:"ready"`
}

func (q *qemu) jobs() ([]blockJob, error) {
	said, err := q.run("query-block-jobs", nil)
	list := []blockJob{}
	if err == nil {
		err = json.Unmarshal(said, &list)
	}
	return list, err
}

func awaitReady(j *job, q *qemu, moves []*move) error {
	for {
		select {
		case <-j.ctx.Done():
			return canceled()
		case <-q.gone:
			return fail(&types.GenericVmConfigFault{Reason: "The machine ended."},
				"The operation failed because the virtual machine was powered off.")
		case <-time.After(100 * time.Millisecond):
		}
		jobs, err := q.jobs()
		if err != nil {
			return err
		}
		if len(jobs) < len(moves) {
			return fail(&types.GenericVmConfigFault{Reason: "A disk could not be copied."},
				"A general system error occurred: a disk could not be copied.")
		}
		ready, done, all := true, int64(0), int64(1)
		for _, each := range jobs {
			ready, done, all = ready && each.Ready, done+each.Offset, all+each.Len
		}
		if err := j.progress(int32(1 + 94*done/all)); err != nil {
			return err
		}
		if ready {
			return nil
		}
	}
}

func awaitGone(q *qemu) {
	for {
		jobs, err := q.jobs()
		if err != nil || len(jobs) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// arrive writes the .vmx in its new place and leaves the old one. ESXi deletes what it moved; on an
// export it stays here, because libnfs's programs delete nothing.
func (m *machine) arrive(target *store, folder string, moves []*move) error {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	old, from := m.file, m.store
	left := []string{}
	for _, v := range moves {
		if !v.disk.store.nas() {
			root := v.disk.store.directory
			left = append(left, filepath.Join(root, v.disk.file), filepath.Join(root, v.disk.flat))
		}
		v.disk.store, v.disk.file, v.disk.flat = v.target, v.file, v.flat
		m.vmx.set(v.disk.slot+".fileName", path.Base(v.file))
	}
	m.store, m.file = target, path.Join(folder, path.Base(old))
	m.vmx.set("uuid.location", spaced(m.location()))
	m.saveVmx()
	if !from.nas() {
		left = append(left, filepath.Join(from.directory, old))
	}
	for _, each := range left {
		_ = os.Remove(each)
	}
	if !from.nas() && dirOf(old) != "." {
		_ = os.Remove(filepath.Join(from.directory, dirOf(old)))
	}
	m.publish()
	return nil
}
