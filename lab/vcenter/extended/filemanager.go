package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// fileManager deletes files of datastores, and does nothing else.
type fileManager struct {
	simulator.FileManager
	lock
	w *world
}

func (f *fileManager) DeleteDatastoreFileTask(req *types.DeleteDatastoreFile_Task) soap.HasFault {
	defer f.free()()
	asked := *req
	task := f.w.start(f, "DeleteDatastoreFile_Task", false, func(context.Context, *task) (types.AnyType, error) {
		return nil, f.w.deleteFile(asked.Datacenter, asked.Name)
	})
	res := &types.DeleteDatastoreFile_TaskResponse{Returnval: task}
	return &methods.DeleteDatastoreFile_TaskBody{Res: res}
}

// deleteFile refuses what a machine uses, folders, and files of an export (other than pictures,
// which are not really there: see CreateScreenshotTask).
func (w *world) deleteFile(center *ref, whole string) error {
	name, file, ok := storePath(whole)
	if !ok || center == nil {
		return invalid("datacenter")
	}
	datacenter, _ := simulator.Map.Get(*center).(*simulator.Datacenter)
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.storeCalled(name, datacenter)
	if s == nil {
		return fail(&types.InvalidDatastore{Name: name}, "Invalid datastore '%s'.", name)
	}
	fault := types.FileFault{File: whole}
	if picture := w.pictures[s.path(file)]; picture != "" {
		delete(w.pictures, s.path(file))
		return os.Remove(picture)
	}
	for _, m := range w.machines {
		used := m.store == s && m.file == file
		for _, d := range m.disks {
			used = used || (d.store == s && (d.file == file || d.flat == file))
		}
		if used {
			return fail(&types.FileLocked{FileFault: fault}, "Unable to access file %s since it is locked", whole)
		}
	}
	if s.nas() {
		return fail(&types.NotSupported{}, "The lab deletes nothing from exports.")
	}
	target := filepath.Join(s.directory, file)
	info, err := os.Stat(target)
	if err != nil || info.IsDir() {
		return fail(&types.FileNotFound{FileFault: fault}, "File %s was not found", whole)
	}
	return os.Remove(target)
}
