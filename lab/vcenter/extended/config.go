package main

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// parts are the settings that the API shows as something of their own: all others are extraConfig.
var parts = map[string]bool{
	"displayname": true, "guestos": true, "memsize": true, "numvcpus": true, "uuid.bios": true,
	"vc.uuid": true, "virtualhw.version": true, "firmware": true, "annotation": true,
	".encoding": true, "config.version": true, "ctkenabled": true, "nvram": true,
	"cpuid.corespersocket": true,
}

// publish makes the properties of a machine what its .vmx and disks say. The caller holds mu.
func (m *machine) publish() {
	v := m.vmx
	config := &types.VirtualMachineConfigInfo{
		ChangeVersion: time.Now().UTC().Format(time.RFC3339Nano), Modified: time.Now(), Name: m.name,
		GuestFullName: v.get("guestOS"), Version: "vmx-" + v.get("virtualHW.version"),
		Uuid: uuid(v.get("uuid.bios")), InstanceUuid: uuid(v.get("vc.uuid")),
		GuestId: guestID(v.get("guestOS")), AlternateGuestName: "", Annotation: v.get("annotation"),
		Firmware: v.get("firmware"), ChangeTrackingEnabled: types.NewBool(v.is("ctkEnabled")),
		Tools: &types.ToolsConfigInfo{}, BootOptions: &types.VirtualMachineBootOptions{},
	}
	if config.Firmware == "" {
		config.Firmware = "bios"
	}
	directory := m.store.path(dirOf(m.file)) + "/"
	config.Files = types.VirtualMachineFileInfo{
		VmPathName: m.store.path(m.file), SnapshotDirectory: directory,
		SuspendDirectory: directory, LogDirectory: directory,
	}
	config.Hardware.NumCPU = int32(v.number("numvcpus", 1))
	config.Hardware.NumCoresPerSocket = int32(v.number("cpuid.coresPerSocket", 1))
	config.Hardware.MemoryMB = int32(v.number("memsize", 32))
	config.Hardware.Device = m.devices()
	config.ExtraConfig = extraConfig(v)
	changes := []types.PropertyChange{
		set("config", *config), set("name", m.name),
		set("summary.config.name", m.name), set("summary.config.vmPathName", config.Files.VmPathName),
		set("summary.config.uuid", config.Uuid), set("summary.config.instanceUuid", config.InstanceUuid),
		set("summary.config.guestId", config.GuestId), set("summary.config.template", false),
		set("summary.config.numCpu", config.Hardware.NumCPU),
		set("summary.config.memorySizeMB", config.Hardware.MemoryMB),
		set("summary.config.numVirtualDisks", int32(len(m.disks))),
	}
	change(m, append(changes, m.places()...)...)
}

// places are the datastores and networks of a machine.
func (m *machine) places() []types.PropertyChange {
	stores := []ref{m.store.self}
	for _, d := range m.disks {
		stores = with(stores, d.store.self)
	}
	for _, s := range m.w.stores {
		uses := false
		for _, each := range stores {
			uses = uses || each == s.self
		}
		if uses {
			change(s.object, set("vm", with(s.object.Vm, m.Self)))
		} else {
			change(s.object, set("vm", without(s.object.Vm, m.Self)))
		}
	}
	networks := []ref{}
	for _, device := range m.devices() {
		if card, ok := device.(types.BaseVirtualEthernetCard); ok {
			backing, ok := card.GetVirtualEthernetCard().Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
			if ok && backing.Network != nil {
				networks = with(networks, *backing.Network)
			}
		}
	}
	return []types.PropertyChange{set("datastore", stores), set("network", networks)}
}

func (m *machine) devices() []types.BaseVirtualDevice {
	list := controllers(m.vmx)
	for _, device := range list {
		controller := device.(types.BaseVirtualController).GetVirtualController()
		for _, d := range m.disks {
			if d.controller == controller.Key {
				controller.Device = append(controller.Device, d.key)
			}
		}
	}
	for _, d := range m.disks {
		list = append(list, d.device(len(m.snapshots)))
	}
	return append(list, m.cards()...)
}

func (m *machine) cards() []types.BaseVirtualDevice {
	list := []types.BaseVirtualDevice{}
	v := m.vmx
	for number := 0; number < 10; number++ {
		name := fmt.Sprintf("ethernet%d.", number)
		if !v.is(name + "present") {
			continue
		}
		card := types.VirtualEthernetCard{MacAddress: v.get(name + "address"), AddressType: "assigned"}
		if card.MacAddress == "" {
			card.MacAddress, card.AddressType = v.get(name+"generatedAddress"), "generated"
		} else {
			card.AddressType = "manual"
		}
		card.Key = 4000 + int32(number)
		unit := int32(7 + number)
		card.ControllerKey, card.UnitNumber = 100, &unit
		network := v.get(name + "networkName")
		card.DeviceInfo = &types.Description{Label: fmt.Sprintf("Network adapter %d", number+1), Summary: network}
		start := !strings.EqualFold(v.get(name+"startConnected"), "FALSE")
		card.Connectable = &types.VirtualDeviceConnectInfo{
			StartConnected: start, Connected: start && m.qemu != nil, AllowGuestControl: true, Status: "ok",
		}
		backing := &types.VirtualEthernetCardNetworkBackingInfo{Network: m.networkCalled(network)}
		backing.DeviceName = network
		card.Backing = backing
		switch strings.ToLower(v.get(name + "virtualDev")) {
		case "vmxnet3":
			adapter := &types.VirtualVmxnet3{}
			adapter.VirtualEthernetCard = card
			list = append(list, adapter)
		case "e1000e":
			list = append(list, &types.VirtualE1000e{VirtualEthernetCard: card})
		default:
			list = append(list, &types.VirtualE1000{VirtualEthernetCard: card})
		}
	}
	return list
}

func (m *machine) networkCalled(name string) *ref {
	for _, each := range m.store.datacenter.Network {
		if network, ok := simulator.Map.Get(each).(*mo.Network); ok && network.Name == name {
			found := each
			return &found
		}
	}
	return nil
}

func extraConfig(v *vmx) []types.BaseOptionValue {
	list := []types.BaseOptionValue{}
	keys := append([]string{}, v.keys...)
	sort.Strings(keys)
	for _, key := range keys {
		lower := strings.ToLower(key)
		device := strings.HasPrefix(lower, "ethernet")
		for _, b := range buses {
			device = device || strings.HasPrefix(lower, b.name)
		}
		if !parts[lower] && !device {
			list = append(list, &types.OptionValue{Key: key, Value: v.get(key)})
		}
	}
	return list
}

// guestID is the API's word for the .vmx's; most differ in "Guest" at the end only.
func guestID(word string) string {
	if word == "" {
		return "otherGuest"
	}
	if strings.HasSuffix(word, "Guest") {
		return word
	}
	if short := strings.TrimSuffix(word, "-64"); short != word {
		return short + "_64Guest"
	}
	return word + "Guest"
}
