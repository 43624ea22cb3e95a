package main

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func (m *machine) ReconfigVMTask(req *types.ReconfigVM_Task) soap.HasFault {
	defer m.free()()
	spec := req.Spec
	task := m.task("ReconfigVM_Task", false, func(*job) (types.AnyType, error) {
		return nil, m.reconfigure(&spec)
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: task}}
}

// reconfigure does the changes in their order. One that is refused undoes none of those before it,
// other than on ESXi: the lab's clients are expected to ask for one thing at a time.
func (m *machine) reconfigure(spec *types.VirtualMachineConfigSpec) error {
	if err := m.host.connected(); err != nil {
		return err
	}
	added := map[int32]int32{}
	for index, each := range spec.DeviceChange {
		if err := m.changeDevice(index, each.GetVirtualDeviceConfigSpec(), added); err != nil {
			return err
		}
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if spec.Name != "" && spec.Name != m.name {
		if err := m.rename(spec.Name); err != nil {
			return err
		}
	}
	if spec.Annotation != "" {
		m.vmx.set("annotation", spec.Annotation)
	}
	if spec.MemoryMB != 0 {
		m.vmx.set("memsize", fmt.Sprint(spec.MemoryMB))
	}
	if spec.ChangeTrackingEnabled != nil {
		m.vmx.set("ctkEnabled", strings.ToUpper(fmt.Sprint(*spec.ChangeTrackingEnabled)))
	}
	for _, each := range spec.ExtraConfig {
		option := each.GetOptionValue()
		if value := fmt.Sprint(option.Value); value != "" {
			m.vmx.set(option.Key, value)
		} else {
			m.vmx.remove(option.Key)
		}
	}
	m.saveVmx()
	m.publish()
	return nil
}

func badDevice(index int, property string, words string, args ...interface{}) *problem {
	fault := &types.InvalidDeviceSpec{DeviceIndex: int32(index)}
	fault.Property = fmt.Sprintf("virtualDeviceSpec.%s", property)
	said := fmt.Sprintf(words, args...)
	return fail(fault, "Invalid configuration for device '%d': %s", index, said)
}

func (m *machine) changeDevice(
	index int,
	spec *types.VirtualDeviceConfigSpec,
	added map[int32]int32,
) error {
	if spec.FileOperation != "" {
		return fail(&types.NotSupported{}, "The lab neither makes nor destroys files of disks.")
	}
	switch device := spec.Device.(type) {
	case *types.VirtualDisk:
		switch spec.Operation {
		case types.VirtualDeviceConfigSpecOperationAdd:
			return m.attach(index, device, added)
		case types.VirtualDeviceConfigSpecOperationRemove:
			return m.detach(index, device.Key)
		}
	case types.BaseVirtualController:
		return m.changeController(index, spec, added)
	case types.BaseVirtualEthernetCard:
		return m.changeCard(index, spec.Operation, device.GetVirtualEthernetCard())
	}
	return badDevice(index, "operation", "the lab does not do that")
}

// changeController adds or removes one; a new one has a negative key that disks of the same call
// may name.
func (m *machine) changeController(
	index int,
	spec *types.VirtualDeviceConfigSpec,
	added map[int32]int32,
) error {
	models := map[string]string{
		"*types.ParaVirtualSCSIController": "pvscsi", "*types.VirtualLsiLogicController": "lsilogic",
		"*types.VirtualLsiLogicSASController": "lsisas1068",
	}
	device := spec.Device.(types.BaseVirtualController).GetVirtualController()
	model, scsi := models[fmt.Sprintf("%T", spec.Device)]
	if !scsi {
		return badDevice(index, "device", "the lab adds and removes SCSI controllers only")
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if spec.Operation == types.VirtualDeviceConfigSpecOperationAdd {
		name := fmt.Sprintf("scsi%d", device.BusNumber)
		if device.BusNumber < 0 || device.BusNumber > 3 || m.vmx.is(name+".present") {
			return badDevice(index, "device.busNumber", "bus %d is taken, or there is none", device.BusNumber)
		}
		m.vmx.set(name+".present", "TRUE")
		m.vmx.set(name+".virtualDev", model)
		added[device.Key] = 1000 + device.BusNumber
		return nil
	}
	for _, d := range m.disks {
		if d.controller == device.Key {
			return badDevice(index, "device", "the controller has disks")
		}
	}
	name := fmt.Sprintf("scsi%d", device.Key-1000)
	m.vmx.remove(name + ".present")
	m.vmx.remove(name + ".virtualDev")
	return nil
}

func (m *machine) changeCard(
	index int,
	operation types.VirtualDeviceConfigSpecOperation,
	card *types.VirtualEthernetCard,
) error {
	name := fmt.Sprintf("ethernet%d.", card.Key-4000)
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if operation != types.VirtualDeviceConfigSpecOperationEdit || !m.vmx.is(name+"present") {
		return badDevice(index, "operation", "the lab edits the network cards that there are")
	}
	if c := card.Connectable; c != nil {
		m.vmx.set(name+"startConnected", strings.ToUpper(fmt.Sprint(c.StartConnected)))
	}
	if b, ok := card.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
		if m.networkCalled(b.DeviceName) == nil {
			return badDevice(index, "device.backing", "there is no network '%s'", b.DeviceName)
		}
		m.vmx.set(name+"networkName", b.DeviceName)
	}
	return nil
}

// attach adds a disk that exists, also while the machine is on.
func (m *machine) attach(index int, device *types.VirtualDisk, added map[int32]int32) error {
	backing, ok := device.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok {
		return badDevice(index, "device.backing", "it is no flat disk")
	}
	place, err := m.slotFor(index, device, added)
	if err != nil {
		return err
	}
	name, file, ok := storePath(backing.FileName)
	if !ok {
		return badDevice(index, "device.backing.fileName", "it is no path of a datastore")
	}
	m.w.mu.Lock()
	s := m.w.storeCalled(name, m.host.datacenter)
	reachable := s != nil && s.mounts[m.host] != ""
	readOnly := reachable && s.mounts[m.host] == "readOnly"
	m.w.mu.Unlock()
	if !reachable {
		return fail(&types.InvalidDatastore{Name: name},
			"Datastore '%s' is not accessible from host '%s'.", name, m.host.name)
	}
	d, err := m.w.readDisk(m.host, s, file)
	if err != nil {
		return err
	}
	d.slot, d.controller, d.unit, d.key = place.slot, place.controller, place.unit, place.key
	d.mode = backing.DiskMode
	if d.mode == "" {
		d.mode = "persistent"
	}
	if readOnly && d.mode != "independent_nonpersistent" {
		fault := &types.FileLocked{FileFault: types.FileFault{File: backing.FileName}}
		return fail(fault, "Unable to write to file %s", backing.FileName)
	}
	if err := m.w.lockedByOthers(m, d); err != nil {
		return err
	}
	if q := m.running(); q != nil {
		if err := m.plug(q, d); err != nil {
			return err
		}
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.disks = append(m.disks, d)
	m.vmx.set(d.slot+".present", "TRUE")
	m.vmx.set(d.slot+".deviceType", "scsi-hardDisk")
	m.vmx.set(d.slot+".fileName", vmxName(m, d))
	if d.mode != "persistent" {
		m.vmx.set(d.slot+".mode", strings.ReplaceAll(d.mode, "_", "-"))
	}
	return nil
}

// vmxName is how the .vmx names a disk: beside it, or by the whole path below /vmfs/volumes.
func vmxName(m *machine, d *disk) string {
	if d.store == m.store && dirOf(d.file) == dirOf(m.file) {
		return path.Base(d.file)
	}
	return path.Join("/vmfs/volumes", d.store.self.Value, d.file)
}

// lockedByOthers keeps two machines that are on from writing to one disk.
func (w *world) lockedByOthers(m *machine, d *disk) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range w.machines {
		for _, each := range other.disks {
			same := each.store == d.store && each.file == d.file
			if same && (other == m || other.qemu != nil) {
				fault := &types.FileLocked{FileFault: types.FileFault{File: d.store.path(d.file)}}
				return fail(fault, "Unable to access file %s since it is locked", d.store.path(d.file))
			}
		}
	}
	return nil
}

// slotFor finds the place that a disk asks for, or the first free one of its controller.
func (m *machine) slotFor(index int, device *types.VirtualDisk, added map[int32]int32) (*disk, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	controller := device.ControllerKey
	if real, ok := added[controller]; ok {
		controller = real
	}
	b, number, ok := busOf(controller)
	if !ok || (b.name != "ide" && !m.vmx.is(fmt.Sprintf("%s%d.present", b.name, number))) {
		return nil, badDevice(index, "device.controllerKey", "there is no controller %d", controller)
	}
	taken := map[int32]bool{b.reserved: true}
	for _, d := range m.disks {
		if d.controller == controller {
			taken[d.unit] = true
		}
	}
	unit := int32(-1)
	if device.UnitNumber != nil {
		unit = *device.UnitNumber
	}
	for free := int32(0); unit < 0 && free < int32(b.units); free++ {
		if !taken[free] {
			unit = free
		}
	}
	if unit < 0 || unit >= int32(b.units) || taken[unit] {
		return nil, badDevice(index, "device.unitNumber", "unit %d is taken, or there is none", unit)
	}
	slot := b.slot(int(number), int(unit))
	return &disk{slot: slot, controller: controller, unit: unit, key: b.diskKey(number, unit)}, nil
}

// plug shows a disk to a guest that runs.
func (m *machine) plug(q *qemu, d *disk) error {
	number := q.nodes
	q.nodes++
	d.node = fmt.Sprintf("disk%d", number)
	layers, err := m.layers(d, d.node)
	if err != nil {
		return err
	}
	for _, layer := range layers {
		if _, err := q.run("blockdev-add", layer); err != nil {
			return fail(&types.GenericVmConfigFault{Reason: err.Error()},
				"Cannot open the disk '%s' or one of the snapshot disks it depends on.", d.store.path(d.file))
		}
	}
	device := options{
		"driver": "scsi-hd", "bus": "scsi.0", "scsi-id": number, "drive": d.node,
		"id": deviceID(d), "serial": strings.ReplaceAll(d.slot, ":", "-"),
	}
	_, err = q.run("device_add", device)
	return err
}

func (m *machine) unplug(q *qemu, d *disk) error {
	if _, err := q.run("device_del", options{"id": deviceID(d)}); err != nil {
		return err
	}
	if err := q.await("DEVICE_DELETED", deviceID(d), 30*time.Second); err != nil {
		return err
	}
	_, err := q.run("blockdev-del", options{"node-name": d.node})
	if err == nil && d.mode == "independent_nonpersistent" {
		_, err = q.run("blockdev-del", options{"node-name": d.node + "-base"})
	}
	return err
}

func (m *machine) detach(index int, key int32) error {
	m.w.mu.Lock()
	var found *disk
	for _, d := range m.disks {
		if d.key == key {
			found = d
		}
	}
	m.w.mu.Unlock()
	if found == nil {
		return badDevice(index, "device.key", "there is no disk %d", key)
	}
	if q := m.running(); q != nil {
		if err := m.unplug(q, found); err != nil {
			return err
		}
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	left := []*disk{}
	for _, d := range m.disks {
		if d != found {
			left = append(left, d)
		}
	}
	m.disks = left
	for _, each := range []string{"present", "deviceType", "fileName", "mode"} {
		m.vmx.remove(found.slot + "." + each)
	}
	return nil
}
