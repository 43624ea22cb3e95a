package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// modelled are the methods that our types answer. What the simulator's types below them would
// answer knows nothing of real disks, so everything else is refused by name.
var modelled = map[string]map[string]bool{
	"VirtualMachine": names("PowerOnVM_Task", "PowerOffVM_Task", "ShutdownGuest", "AnswerVM",
		"CreateScreenshot_Task", "UnregisterVM", "Rename_Task", "Destroy_Task", "RelocateVM_Task",
		"ReconfigVM_Task", "CreateSnapshot_Task", "RemoveAllSnapshots_Task", "ConsolidateVMDisks_Task",
		"QueryChangedDiskAreas", "ExportVm"),
	"VirtualMachineSnapshot": names("RemoveSnapshot_Task", "ExportSnapshot"),
	"HttpNfcLease":           names("HttpNfcLeaseProgress", "HttpNfcLeaseComplete", "HttpNfcLeaseAbort"),
	"FileManager":            names("DeleteDatastoreFile_Task"),
	"Datastore":              names("RefreshDatastore", "Destroy_Task"),
	"HostDatastoreSystem":    names("CreateNasDatastore", "RemoveDatastore"),
}

func names(list ...string) map[string]bool {
	set := map[string]bool{}
	for _, each := range list {
		set[each] = true
	}
	return set
}

func unmodelled(method *simulator.Method) *problem {
	known, ours := modelled[method.This.Type]
	if !ours || known[method.Name] || simulator.Map.Get(method.This) == nil {
		return nil
	}
	words := method.Name + " is not modelled by the lab"
	return fail(&types.NotSupported{}, "%s", words)
}
