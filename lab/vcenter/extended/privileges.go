package main

import (
	"sort"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// need is a privilege that a call asks for, and where.
type need struct {
	privilege string
	entity    ref
}

// simple are the methods that need one privilege on their own object (API reference, "Required
// Privileges" of each method).
var simple = map[string]string{
	"UnregisterVM":              "VirtualMachine.Inventory.Unregister",
	"PowerOnVM_Task":            "VirtualMachine.Interact.PowerOn",
	"PowerOffVM_Task":           "VirtualMachine.Interact.PowerOff",
	"ShutdownGuest":             "VirtualMachine.Interact.PowerOff",
	"AnswerVM":                  "VirtualMachine.Interact.AnswerQuestion",
	"CreateScreenshot_Task":     "VirtualMachine.Interact.CreateScreenshot",
	"CreateSnapshot_Task":       "VirtualMachine.State.CreateSnapshot",
	"RemoveAllSnapshots_Task":   "VirtualMachine.State.RemoveSnapshot",
	"ConsolidateVMDisks_Task":   "VirtualMachine.State.RemoveSnapshot",
	"QueryChangedDiskAreas":     "VirtualMachine.Provisioning.DiskRandomRead",
	"Rename_Task":               "VirtualMachine.Config.Rename",
	"Destroy_Task":              "VirtualMachine.Inventory.Delete",
	"ExportVm":                  "VApp.Export",
	"EnterMaintenanceMode_Task": "Host.Config.Maintenance",
}

// needs gives what a call asks for; what it does not know needs nothing but a session.
func (w *world) needs(method *simulator.Method) []need {
	if privilege, ok := simple[method.Name]; ok {
		return []need{{privilege, method.This}}
	}
	switch body := method.Body.(type) {
	case *types.CreateNasDatastore, *types.RemoveDatastore:
		if system, ok := simulator.Map.Get(method.This).(*datastoreSystem); ok {
			return []need{{"Host.Config.Storage", system.host.self}}
		}
	case *types.RegisterVM_Task:
		needs := []need{{"VirtualMachine.Inventory.Register", method.This}}
		if body.Pool != nil {
			needs = append(needs, need{"Resource.AssignVMToPool", *body.Pool})
		}
		return needs
	case *types.RemoveSnapshot_Task:
		return []need{{"VirtualMachine.State.RemoveSnapshot", ofSnapshot(method.This)}}
	case *types.ExportSnapshot:
		return []need{{"VApp.Export", ofSnapshot(method.This)}}
	case *types.RelocateVM_Task:
		needs := []need{{"Resource.ColdMigrate", method.This}}
		if m, ok := simulator.Map.Get(method.This).(*machine); ok && m.running() != nil {
			needs[0].privilege = "Resource.HotMigrate"
		}
		if body.Spec.Datastore != nil {
			needs = append(needs, need{"Datastore.AllocateSpace", *body.Spec.Datastore})
		}
		return needs
	case *types.ReconfigVM_Task:
		return reconfigureNeeds(method.This, &body.Spec)
	}
	return nil
}

func reconfigureNeeds(self ref, spec *types.VirtualMachineConfigSpec) []need {
	needs := []need{}
	for _, device := range spec.DeviceChange {
		change := device.GetVirtualDeviceConfigSpec()
		_, disk := change.Device.(*types.VirtualDisk)
		privilege := "VirtualMachine.Config.EditDevice"
		if change.Operation == types.VirtualDeviceConfigSpecOperationAdd {
			privilege = "VirtualMachine.Config.AddRemoveDevice"
			if disk {
				privilege = "VirtualMachine.Config.AddExistingDisk"
			}
		} else if change.Operation == types.VirtualDeviceConfigSpecOperationRemove {
			privilege = "VirtualMachine.Config.AddRemoveDevice"
			if disk {
				privilege = "VirtualMachine.Config.RemoveDisk"
			}
		}
		needs = append(needs, need{privilege, self})
	}
	if spec.Name != "" {
		needs = append(needs, need{"VirtualMachine.Config.Rename", self})
	}
	if spec.ChangeTrackingEnabled != nil {
		needs = append(needs, need{"VirtualMachine.Config.ChangeTracking", self})
	}
	if len(spec.ExtraConfig) > 0 {
		needs = append(needs, need{"VirtualMachine.Config.AdvancedConfig", self})
	}
	return needs
}

// others are privileges that Rouse may ask about and that no method above names.
var others = []string{
	"Network.Assign", "Datastore.Browse", "Datastore.FileManagement", "Datastore.AllocateSpace",
	"Host.Config.Storage", "Resource.AssignVMToPool", "Resource.ColdMigrate", "Resource.HotMigrate",
	"VirtualMachine.Config.AddExistingDisk", "VirtualMachine.Config.RemoveDisk",
	"VirtualMachine.Config.EditDevice", "VirtualMachine.Config.Settings",
	"VirtualMachine.Config.AddRemoveDevice", "VirtualMachine.Config.ChangeTracking",
	"VirtualMachine.Config.AdvancedConfig", "VirtualMachine.Config.AddNewDisk",
	"VirtualMachine.Inventory.Register", "VirtualMachine.State.RemoveSnapshot", "VApp.Export",
	"VirtualMachine.Provisioning.GetVmFiles", "System.Anonymous", "System.View", "System.Read",
}

// authorization answers from the script who may do what.
type authorization struct {
	simulator.AuthorizationManager
	lock
	w *world
}

func (a *authorization) known() []string {
	names := map[string]bool{}
	for _, role := range esx.RoleList {
		if role.Name == "Admin" {
			for _, each := range role.Privilege {
				names[each] = true
			}
		}
	}
	for _, each := range simple {
		names[each] = true
	}
	for _, each := range others {
		names[each] = true
	}
	list := []string{}
	for each := range names {
		list = append(list, each)
	}
	sort.Strings(list)
	return list
}

func (a *authorization) HasPrivilegeOnEntities(req *types.HasPrivilegeOnEntities) soap.HasFault {
	defer a.free()()
	known := map[string]bool{}
	for _, each := range a.known() {
		known[each] = true
	}
	res := &types.HasPrivilegeOnEntitiesResponse{}
	for _, entity := range req.Entity {
		answer := types.EntityPrivilege{Entity: entity}
		for _, id := range req.PrivId {
			if !known[id] {
				p := fail(&types.InvalidArgument{InvalidProperty: "privId"}, "A specified parameter was not correct: privId")
				return &methods.HasPrivilegeOnEntitiesBody{Fault_: p.soap()}
			}
			granted := !a.w.script.lacks(id, nameOf(entity))
			answer.PrivAvailability = append(answer.PrivAvailability,
				types.PrivilegeAvailability{PrivId: id, IsGranted: granted})
		}
		res.Returnval = append(res.Returnval, answer)
	}
	return &methods.HasPrivilegeOnEntitiesBody{Res: res}
}

func (a *authorization) HasPrivilegeOnEntity(req *types.HasPrivilegeOnEntity) soap.HasFault {
	defer a.free()()
	res := &types.HasPrivilegeOnEntityResponse{}
	for _, id := range req.PrivId {
		res.Returnval = append(res.Returnval, !a.w.script.lacks(id, nameOf(req.Entity)))
	}
	return &methods.HasPrivilegeOnEntityBody{Res: res}
}

func (a *authorization) FetchUserPrivilegeOnEntities(
	req *types.FetchUserPrivilegeOnEntities,
) soap.HasFault {
	defer a.free()()
	res := &types.FetchUserPrivilegeOnEntitiesResponse{}
	for _, entity := range req.Entities {
		result := types.UserPrivilegeResult{Entity: entity}
		for _, id := range a.known() {
			if !a.w.script.lacks(id, nameOf(entity)) {
				result.Privileges = append(result.Privileges, id)
			}
		}
		res.Returnval = append(res.Returnval, result)
	}
	return &methods.FetchUserPrivilegeOnEntitiesBody{Res: res}
}
