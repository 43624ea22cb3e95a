package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// snapshot is a point in time of a machine's disks. Where ESXi freezes the base and writes to a
// delta, the lab copies the whole disks as they were at that moment (QEMU's backup jobs, started in
// one transaction) and lets the base go on: what clients can read is the same.
type snapshot struct {
	simulator.VirtualMachineSnapshot
	lock
	machine     *machine
	name        string
	description string
	number      int32
	made        time.Time
	quiesced    bool
	state       types.VirtualMachinePowerState
	frozen      []*frozenDisk
}

type frozenDisk struct {
	disk *disk
	file string
	// Of change tracking; empty without it.
	changeID string
}

func (s *snapshot) discard() {
	for _, each := range s.frozen {
		_ = os.Remove(each.file)
	}
}

// ofSnapshot is the machine that a snapshot belongs to.
func ofSnapshot(self ref) ref {
	if found, ok := simulator.Map.Get(self).(*snapshot); ok {
		return found.machine.Self
	}
	return self
}

func (m *machine) CreateSnapshotTask(req *types.CreateSnapshot_Task) soap.HasFault {
	defer m.free()()
	asked := *req
	task := m.task("CreateSnapshot_Task", false, func(*job) (types.AnyType, error) {
		if asked.Memory {
			return nil, fail(&types.NotSupported{}, "The lab makes snapshots without memory only.")
		}
		if err := m.host.connected(); err != nil {
			return nil, err
		}
		s := &snapshot{machine: m, name: asked.Name, description: asked.Description}
		s.Self = ref{Type: "VirtualMachineSnapshot", Value: m.w.id("snapshot")}
		s.quiesced, s.made = asked.Quiesce, time.Now()
		if err := m.freeze(s); err != nil {
			s.discard()
			return nil, err
		}
		return s.Self, m.keep(s)
	})
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: task}}
}

// freeze copies all disks as they are at one moment; independent ones are not part of snapshots.
func (m *machine) freeze(s *snapshot) error {
	directory := filepath.Join(m.w.directory, "snapshots")
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	for _, d := range m.disks {
		if d.mode == "persistent" {
			file := filepath.Join(directory, fmt.Sprintf("%s-%d.raw", s.Self.Value, d.key))
			s.frozen = append(s.frozen, &frozenDisk{disk: d, file: file})
		}
	}
	q := m.running()
	s.state = types.VirtualMachinePowerStatePoweredOff
	if q != nil {
		s.state = types.VirtualMachinePowerStatePoweredOn
		return q.backUp(s)
	}
	for _, each := range s.frozen {
		if err := m.w.fetch(m.host, each.disk.store, each.disk.flat, each.file); err != nil {
			return err
		}
	}
	return nil
}

// backUp lets QEMU copy all disks of a snapshot from one moment on.
func (q *qemu) backUp(s *snapshot) error {
	actions := []options{}
	defer func() {
		for _, each := range s.frozen {
			_, _ = q.run("blockdev-del", options{"node-name": nodeOf(s, each)})
		}
	}()
	for _, each := range s.frozen {
		made, err := os.Create(each.file)
		if err == nil {
			err = made.Truncate(each.disk.sizeBytes)
			_ = made.Close()
		}
		if err != nil {
			return err
		}
		node := options{
			"driver": "raw", "node-name": nodeOf(s, each), "discard": "unmap", "detect-zeroes": "unmap",
			"file": options{"driver": "file", "filename": each.file, "discard": "unmap"},
		}
		if _, err := q.run("blockdev-add", node); err != nil {
			return err
		}
		actions = append(actions, options{"type": "blockdev-backup", "data": options{
			"job-id": nodeOf(s, each), "device": each.disk.node, "target": nodeOf(s, each),
			"sync": "full", "auto-dismiss": false,
		}})
	}
	if len(actions) == 0 {
		return nil
	}
	if _, err := q.run("transaction", options{"actions": actions}); err != nil {
		return err
	}
	return q.concluded(s)
}

func nodeOf(s *snapshot, each *frozenDisk) string {
	return fmt.Sprintf("%s-%d", s.Self.Value, each.disk.key)
}

// concluded waits for the jobs of a snapshot, and fails if one of them did.
func (q *qemu) concluded(s *snapshot) error {
	var failed error
	for _, each := range s.frozen {
		id := nodeOf(s, each)
		for {
			said, err := q.run("query-jobs", nil)
			if err != nil {
				return err
			}
			var jobs []struct{ ID, Status, Error string }
			if err := json.Unmarshal(said, &jobs); err != nil {
				return err
			}
			status, problem := "gone", "it is gone"
			for _, job := range jobs {
				if job.ID == id {
					status, problem = job.Status, job.Error
				}
			}
			if status == "concluded" || status == "gone" {
				if problem != "" {
					failed = fmt.Errorf("%s could not be copied: %s", each.disk.file, problem)
				}
				_, _ = q.run("job-dismiss", options{"id": id})
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return failed
}

// keep makes a snapshot one of the machine's.
func (m *machine) keep(s *snapshot) error {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.vmx.is("ctkEnabled") {
		for _, each := range s.frozen {
			id, err := m.tracking.mark(each)
			if err != nil {
				return err
			}
			each.changeID = id
		}
	}
	m.counted++
	s.number, s.Vm = m.counted, m.Self
	config := *m.Config
	config.Hardware.Device = controllers(m.vmx)
	for _, each := range s.frozen {
		device := each.disk.device(len(m.snapshots))
		device.Backing.(*types.VirtualDiskFlatVer2BackingInfo).ChangeId = each.changeID
		config.Hardware.Device = append(config.Hardware.Device, device)
	}
	config.Hardware.Device = append(config.Hardware.Device, m.cards()...)
	s.Config = config
	simulator.Map.Put(s)
	m.snapshots = append(m.snapshots, s)
	m.showSnapshots()
	m.publish()
	return nil
}

// showSnapshots publishes them as a chain: each is the child of the one before. The caller holds mu.
func (m *machine) showSnapshots() {
	if len(m.snapshots) == 0 {
		change(m, set("snapshot", nil), set("rootSnapshot", []ref{}))
		return
	}
	var tree []types.VirtualMachineSnapshotTree
	for index := len(m.snapshots) - 1; index >= 0; index-- {
		s := m.snapshots[index]
		tree = []types.VirtualMachineSnapshotTree{{
			Snapshot: s.Self, Vm: m.Self, Name: s.name, Description: s.description, Id: s.number,
			CreateTime: s.made, State: s.state, Quiesced: s.quiesced, ChildSnapshotList: tree,
		}}
		children := []ref{}
		if index+1 < len(m.snapshots) {
			children = append(children, m.snapshots[index+1].Self)
		}
		change(s, set("childSnapshot", children))
	}
	last := m.snapshots[len(m.snapshots)-1].Self
	info := types.VirtualMachineSnapshotInfo{CurrentSnapshot: &last, RootSnapshotList: tree}
	change(m, set("snapshot", info), set("rootSnapshot", []ref{m.snapshots[0].Self}))
}

func (s *snapshot) RemoveSnapshotTask(req *types.RemoveSnapshot_Task) soap.HasFault {
	defer s.free()()
	children := req.RemoveChildren
	s.machine.w.script.passOn("RemoveSnapshot_Task", s.Self, s.machine.Self)
	task := s.machine.task("RemoveSnapshot_Task", false, func(*job) (types.AnyType, error) {
		return nil, s.machine.forget(s, children)
	})
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{Returnval: task}}
}

func (m *machine) RemoveAllSnapshotsTask(req *types.RemoveAllSnapshots_Task) soap.HasFault {
	defer m.free()()
	task := m.task("RemoveAllSnapshots_Task", false, func(*job) (types.AnyType, error) {
		m.w.mu.Lock()
		var first *snapshot
		if len(m.snapshots) > 0 {
			first = m.snapshots[0]
		}
		m.w.mu.Unlock()
		if first == nil {
			return nil, nil
		}
		return nil, m.forget(first, true)
	})
	res := &types.RemoveAllSnapshots_TaskResponse{Returnval: task}
	return &methods.RemoveAllSnapshots_TaskBody{Res: res}
}

// forget removes a snapshot, and those that came after it if asked.
func (m *machine) forget(s *snapshot, children bool) error {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	left := []*snapshot{}
	found := false
	for _, each := range m.snapshots {
		gone := each == s || (found && children)
		found = found || each == s
		if !gone {
			left = append(left, each)
			continue
		}
		each.discard()
		simulator.Map.Remove(each.Self)
	}
	if !found {
		return fail(&types.ManagedObjectNotFound{Obj: s.Self},
			"The object has already been deleted or has not been completely created")
	}
	m.snapshots = left
	m.showSnapshots()
	m.publish()
	if m.w.script.behaves().RemovalLeavesFiles {
		m.needsConsolidation(true)
	}
	return nil
}

func (m *machine) needsConsolidation(needed bool) {
	change(m, set("runtime.consolidationNeeded", needed))
}

// ConsolidateVMDisksTask merges what removed snapshots have left; here there is nothing to merge.
func (m *machine) ConsolidateVMDisksTask(req *types.ConsolidateVMDisks_Task) soap.HasFault {
	defer m.free()()
	task := m.task("ConsolidateVMDisks_Task", false, func(*job) (types.AnyType, error) {
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		m.needsConsolidation(false)
		return nil, nil
	})
	res := &types.ConsolidateVMDisks_TaskResponse{Returnval: task}
	return &methods.ConsolidateVMDisks_TaskBody{Res: res}
}

// frozen finds a picture that was promised, and the copy that stands for a flat file while there are snapshots: the base is what it
// was at the first of them. The caller holds mu.
func (w *world) frozen(s *store, file string) string {
	if picture := w.pictures[s.path(file)]; picture != "" {
		return picture
	}
	for _, m := range w.machines {
		if len(m.snapshots) == 0 {
			continue
		}
		for _, each := range m.snapshots[0].frozen {
			if each.disk.store == s && each.disk.flat == file {
				return each.file
			}
		}
	}
	return ""
}

// backing is a disk's file below so many snapshots: the base, or deltas upon it. Deltas have names
// here and no files.
func (d *disk) backing(depth int) *types.VirtualDiskFlatVer2BackingInfo {
	backing := &types.VirtualDiskFlatVer2BackingInfo{
		DiskMode: d.mode, ThinProvisioned: types.NewBool(true), Uuid: d.uuid,
		Split: types.NewBool(false), WriteThrough: types.NewBool(false),
	}
	backing.FileName = d.store.path(d.file)
	store := d.store.self
	backing.Datastore = &store
	if depth > 0 && d.mode == "persistent" {
		base := strings.TrimSuffix(d.file, ".vmdk")
		backing.FileName = d.store.path(fmt.Sprintf("%s-%06d.vmdk", base, depth))
		backing.Parent = d.backing(depth - 1)
	}
	return backing
}
