package main

import (
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// machine is a virtual machine: a .vmx and its disks on datastores, and QEMU while it is on. What
// changes more than a property of it takes turns (busy).
type machine struct {
	simulator.VirtualMachine
	lock
	w       *world
	name    string
	host    *host
	store   *store
	file    string
	vmx     *vmx
	disks   []*disk
	missing error
	qemu    *qemu
	busy    sync.Mutex
	answers chan string
	// Snapshots, oldest first, and what is known of changes between them.
	snapshots []*snapshot
	tracking  tracking
	counted   int32
}

func (m *machine) prepare(pool ref) {
	host := m.host.self
	m.ResourcePool = &pool
	m.Config = &types.VirtualMachineConfigInfo{}
	m.Guest = &types.GuestInfo{
		ToolsStatus:        types.VirtualMachineToolsStatusToolsNotRunning,
		ToolsRunningStatus: "guestToolsNotRunning", GuestState: "notRunning",
	}
	m.Runtime = types.VirtualMachineRuntimeInfo{
		Host: &host, PowerState: types.VirtualMachinePowerStatePoweredOff,
		ConnectionState: types.VirtualMachineConnectionStateConnected,
	}
	m.Summary = types.VirtualMachineSummary{
		Vm: &m.Self, Runtime: m.Runtime, OverallStatus: types.ManagedEntityStatusGreen,
		Guest: &types.VirtualMachineGuestSummary{ToolsRunningStatus: "guestToolsNotRunning"},
	}
	m.LayoutEx = &types.VirtualMachineFileLayoutEx{Timestamp: time.Now()}
}

// uses tells whether this machine lies on a datastore, or has a disk there; the caller holds mu.
func (m *machine) uses(s *store) bool {
	if m.store == s {
		return true
	}
	for _, d := range m.disks {
		if d.store == s {
			return true
		}
	}
	return false
}

func (m *machine) running() *qemu {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.qemu
}

// exclusive waits its turn, and refuses when the machine has gone meanwhile, or its host does not
// answer (that nothing at all can be done with such a machine is a guess).
func (m *machine) exclusive() (func(), error) {
	m.busy.Lock()
	m.w.mu.Lock()
	known := m.w.machines[m.Self] == m
	m.w.mu.Unlock()
	if err := m.host.connected(); known && err != nil {
		m.busy.Unlock()
		return nil, err
	}
	if !known {
		m.busy.Unlock()
		words := "The object has already been deleted or has not been completely created"
		return nil, fail(&types.ManagedObjectNotFound{Obj: m.Self}, "%s", words)
	}
	return m.busy.Unlock, nil
}

func wrongState(existing types.VirtualMachinePowerState, wanted types.VirtualMachinePowerState) *problem {
	return fail(&types.InvalidPowerState{RequestedState: wanted, ExistingState: existing},
		"The attempted operation cannot be performed in the current state (%s).", stateWords(existing))
}

func stateWords(state types.VirtualMachinePowerState) string {
	if state == types.VirtualMachinePowerStatePoweredOn {
		return "Powered on"
	}
	return "Powered off"
}

func (m *machine) UnregisterVM(req *types.UnregisterVM) soap.HasFault {
	defer m.free()()
	body := &methods.UnregisterVMBody{}
	done, err := m.exclusive()
	if err == nil {
		defer done()
		if m.running() != nil {
			err = wrongState(types.VirtualMachinePowerStatePoweredOn, types.VirtualMachinePowerStatePoweredOff)
		}
	}
	if err != nil {
		body.Fault_ = asProblem(err).soap()
		return body
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.leave()
	body.Res = &types.UnregisterVMResponse{}
	return body
}

// leave takes a machine out of the inventory; its files stay. The caller holds mu.
func (m *machine) leave() {
	delete(m.w.machines, m.Self)
	for _, s := range m.w.stores {
		change(s.object, set("vm", without(s.object.Vm, m.Self)))
	}
	change(m.host.object, set("vm", without(m.host.object.Vm, m.Self)))
	if pool, ok := simulator.Map.Get(*m.ResourcePool).(*simulator.ResourcePool); ok {
		change(pool, set("vm", without(pool.Vm, m.Self)))
	}
	folder, holder := folderOf(*m.Parent)
	change(holder, set("childEntity", without(folder.ChildEntity, m.Self)))
	for _, each := range m.snapshots {
		each.discard()
	}
	simulator.Map.Remove(m.Self)
}

// RenameTask gives it another name; the name of its folder and files stays, as on ESXi.
func (m *machine) RenameTask(req *types.Rename_Task) soap.HasFault {
	defer m.free()()
	task := m.task("Rename_Task", false, func(*job) (types.AnyType, error) {
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		return nil, m.rename(req.NewName)
	})
	return &methods.Rename_TaskBody{Res: &types.Rename_TaskResponse{Returnval: task}}
}

// rename refuses a name that another machine of the folder has; the caller holds mu.
func (m *machine) rename(name string) error {
	for _, other := range m.w.machines {
		if other != m && other.name == name && *other.Parent == *m.Parent {
			fault := &types.DuplicateName{Name: name, Object: other.Self}
			return fail(fault, "The name '%s' already exists.", name)
		}
	}
	m.name = name
	m.vmx.set("displayName", name)
	m.saveVmx()
	m.publish()
	return nil
}

// DestroyTask would delete production: the lab shows whoever calls it.
func (m *machine) DestroyTask(req *types.Destroy_Task) soap.HasFault {
	defer m.free()()
	p := fail(&types.NotSupported{}, "The lab destroys no machines: unregister them")
	return &methods.Destroy_TaskBody{Fault_: p.soap()}
}

// entityNamed is for the control connection: names are easier to script than references.
func entityNamed(kind, name string) mo.Entity {
	for _, each := range simulator.Map.All(kind) {
		if each.Entity().Name == name {
			return each
		}
	}
	return nil
}
