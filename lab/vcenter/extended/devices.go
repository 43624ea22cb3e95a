package main

import (
	"fmt"
	"path"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// disk is a disk of a machine and the flat file behind it.
type disk struct {
	// Its place in the .vmx, such as `scsi0:1`.
	slot       string
	key        int32
	controller int32
	unit       int32
	store      *store
	// Descriptor and flat file, from the datastore's root.
	file      string
	flat      string
	sizeBytes int64
	uuid      string
	mode      string
	// The node of QEMU's that is its top, while the machine is on.
	node string
	// What is known of changes: see changes.go.
	changeID string
}

// bus is a kind of controller: how .vmx files name it, how many fit, how keys are made (as vCenter
// makes them for scsi and ide; a guess for the others).
type bus struct {
	name       string
	buses      int
	units      int
	controller int32
	disks      int32
	stride     int32
	reserved   int32
}

var buses = []bus{
	{"scsi", 4, 16, 1000, 2000, 16, 7},
	{"sata", 4, 30, 15000, 16000, 30, -1},
	{"nvme", 4, 15, 31000, 32000, 15, -1},
	{"ide", 2, 2, 200, 3000, 2, -1},
}

func (b bus) slot(number, unit int) string { return fmt.Sprintf("%s%d:%d", b.name, number, unit) }

func (b bus) diskKey(number, unit int32) int32 { return b.disks + number*b.stride + unit }

// busOf finds the bus that a controller's key belongs to, and its number.
func busOf(controller int32) (bus, int32, bool) {
	for _, b := range buses {
		if controller >= b.controller && controller < b.controller+int32(b.buses) {
			return b, controller - b.controller, true
		}
	}
	return bus{}, 0, false
}

// controllers lists those that the .vmx has; ide ones are always there.
func controllers(v *vmx) []types.BaseVirtualDevice {
	list := []types.BaseVirtualDevice{}
	for _, b := range buses {
		for number := int32(0); number < int32(b.buses); number++ {
			name := fmt.Sprintf("%s%d", b.name, number)
			if b.name != "ide" && !v.is(name+".present") {
				continue
			}
			base := types.VirtualController{BusNumber: number}
			base.Key = b.controller + number
			base.DeviceInfo = &types.Description{Label: name, Summary: name}
			base.ControllerKey = 100
			list = append(list, controllerOf(b.name, v.get(name+".virtualDev"), base))
		}
	}
	return list
}

func controllerOf(kind, model string, base types.VirtualController) types.BaseVirtualDevice {
	switch kind {
	case "ide":
		return &types.VirtualIDEController{VirtualController: base}
	case "sata":
		ahci := &types.VirtualAHCIController{}
		ahci.VirtualController = base
		return ahci
	case "nvme":
		return &types.VirtualNVMEController{VirtualController: base}
	}
	scsi := types.VirtualSCSIController{VirtualController: base, SharedBus: "noSharing", ScsiCtlrUnitNumber: 7}
	switch strings.ToLower(model) {
	case "pvscsi":
		return &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}
	case "lsisas1068":
		return &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}
	case "buslogic":
		return &types.VirtualBusLogicController{VirtualSCSIController: scsi}
	}
	return &types.VirtualLsiLogicController{VirtualSCSIController: scsi}
}

// device shows a disk that lies below so many snapshots.
func (d *disk) device(depth int) *types.VirtualDisk {
	unit := d.unit
	backing := d.backing(depth)
	backing.ChangeId = d.changeID
	device := &types.VirtualDisk{CapacityInKB: d.sizeBytes / 1024, CapacityInBytes: d.sizeBytes}
	device.Key, device.ControllerKey, device.UnitNumber = d.key, d.controller, &unit
	label := fmt.Sprintf("Hard disk %s", d.slot)
	device.DeviceInfo = &types.Description{Label: label, Summary: fmt.Sprintf("%d KB", device.CapacityInKB)}
	device.Backing = backing
	return device
}

// readDisk looks a disk's files up on its datastore, from the host that will use it.
func (w *world) readDisk(h *host, s *store, file string) (*disk, error) {
	text, err := w.readText(h, s, file)
	if err != nil {
		fault := &types.FileNotFound{FileFault: types.FileFault{File: s.path(file)}}
		return nil, fail(fault, "File %s was not found", s.path(file))
	}
	parsed, err := parseDescriptor(text)
	if err != nil {
		words := fmt.Sprintf("Unsupported and/or invalid disk type: %s: %v", s.path(file), err)
		return nil, fail(&types.InvalidDiskFormat{}, "%s", words)
	}
	flat := path.Join(path.Dir(file), parsed.extent)
	found, err := w.find(h, s, flat)
	if err != nil || found == nil {
		fault := &types.FileNotFound{FileFault: types.FileFault{File: s.path(flat)}}
		return nil, fail(fault, "File %s was not found", s.path(flat))
	}
	if found.size != parsed.sectors*512 {
		words := fmt.Sprintf("The capacity of the disk %s does not match its extent.", s.path(file))
		return nil, fail(&types.InvalidDiskFormat{}, "%s", words)
	}
	return &disk{store: s, file: file, flat: flat, sizeBytes: found.size, uuid: parsed.uuid}, nil
}

// readDisks reads those that the .vmx names, in the order of their slots.
func (w *world) readDisks(h *host, s *store, directory string, v *vmx) ([]*disk, error) {
	list := []*disk{}
	for _, b := range buses {
		for number := 0; number < b.buses; number++ {
			for unit := 0; unit < b.units; unit++ {
				slot := b.slot(number, unit)
				kind := strings.ToLower(v.get(slot + ".deviceType"))
				if !v.is(slot+".present") || strings.Contains(kind, "cdrom") {
					continue
				}
				name := v.get(slot + ".fileName")
				if !strings.HasSuffix(name, ".vmdk") {
					continue
				}
				on, file := s, path.Join(directory, name)
				if strings.HasPrefix(name, "/") {
					on, file = w.absolute(s, name)
				}
				d, err := w.readDisk(h, on, file)
				if err != nil {
					return nil, err
				}
				d.slot, d.controller, d.unit = slot, b.controller+int32(number), int32(unit)
				d.key = b.diskKey(int32(number), int32(unit))
				d.mode = mode(v.get(slot + ".mode"))
				list = append(list, d)
			}
		}
	}
	return list, nil
}

// absolute finds the datastore of a path such as `/vmfs/volumes/NAME/folder/disk.vmdk`, where the
// name may be the datastore's id as well; what is no such path is looked for beside the .vmx.
func (w *world) absolute(s *store, name string) (*store, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	parts := strings.SplitN(strings.TrimPrefix(name, "/vmfs/volumes/"), "/", 2)
	for _, each := range w.stores {
		known := each.name == parts[0] || each.self.Value == parts[0]
		if len(parts) == 2 && known && each.datacenter == s.datacenter {
			return each, parts[1]
		}
	}
	return s, name
}

// mode turns a .vmx's word into the API's.
func mode(word string) string {
	switch word {
	case "independent-persistent":
		return "independent_persistent"
	case "independent-nonpersistent":
		return "independent_nonpersistent"
	}
	return "persistent"
}
