package main

import (
	"context"
	"errors"
	"os"
	"path"
	"strings"

	googleuuid "github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// vmFolder is a folder of machines: it reads the .vmx of what it registers.
type vmFolder struct {
	simulator.Folder
	lock
	w *world
}

func dirOf(file string) string { return path.Dir(file) }

func (f *vmFolder) add(name string) *vmFolder {
	child := &vmFolder{w: f.w}
	child.Self = ref{Type: "Folder", Value: f.w.id("group-v")}
	child.Name, child.ChildType = name, f.ChildType
	put(&f.Folder.Folder, f, child)
	return child
}

func (f *vmFolder) CreateFolder(req *types.CreateFolder) soap.HasFault {
	defer f.free()()
	if found := simulator.Map.FindByName(req.Name, f.ChildEntity); found != nil {
		p := fail(&types.DuplicateName{Name: req.Name, Object: found.Reference()},
			"The name '%s' already exists.", req.Name)
		return &methods.CreateFolderBody{Fault_: p.soap()}
	}
	child := f.add(req.Name)
	return &methods.CreateFolderBody{Res: &types.CreateFolderResponse{Returnval: child.Self}}
}

func (f *vmFolder) RegisterVMTask(req *types.RegisterVM_Task) soap.HasFault {
	defer f.free()()
	task := f.w.start(f, "RegisterVM_Task", false, func(context.Context, *task) (types.AnyType, error) {
		m, err := f.w.register(f, req)
		if err != nil {
			return nil, err
		}
		return m.Self, nil
	})
	return &methods.RegisterVM_TaskBody{Res: &types.RegisterVM_TaskResponse{Returnval: task}}
}

func invalid(property string) *problem {
	fault := &types.InvalidArgument{InvalidProperty: property}
	return fail(fault, "A specified parameter was not correct: %s", property)
}

func (w *world) register(f *vmFolder, req *types.RegisterVM_Task) (*machine, error) {
	if req.AsTemplate || req.Pool == nil {
		return nil, invalid("pool")
	}
	center := datacenterOf(f)
	name, file, ok := storePath(req.Path)
	if !ok || file == "" {
		fault := &types.InvalidDatastorePath{DatastorePath: req.Path}
		return nil, fail(fault, "Invalid datastore path '%s'.", req.Path)
	}
	w.mu.Lock()
	s := w.storeCalled(name, center)
	h, err := w.placeFor(req, s)
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := h.connected(); err != nil {
		return nil, err
	}
	text, err := w.readText(h, s, file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fail(&types.NotFound{}, "The object or item referred to could not be found.")
	}
	if err != nil {
		fault := &types.CannotAccessFile{FileFault: types.FileFault{File: req.Path}}
		return nil, fail(fault, "Unable to access file %s", req.Path)
	}
	v, err := parseVmx(text)
	if err == nil && (v.get("config.version") == "" || v.get("virtualHW.version") == "") {
		err = errors.New("config.version or virtualHW.version is missing")
	}
	if err != nil {
		// The words are a guess: an ESXi says no more than that the file is invalid.
		return nil, fail(&types.InvalidVmConfig{Property: "config"},
			"The virtual machine configuration file %s is invalid: %v", req.Path, err)
	}
	disks, err := w.readDisks(h, s, dirOf(file), v)
	if err != nil {
		// ESXi registers a machine whose disks are missing, and fails to power it on.
		disks = nil
	}
	m := &machine{w: w, host: h, store: s, file: file, vmx: v, disks: disks, missing: err}
	m.name = req.Name
	if m.name == "" {
		m.name = v.get("displayName")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return m, w.enter(f, m, *req.Pool)
}

// placeFor finds the host that a machine is registered on; the caller holds mu.
func (w *world) placeFor(req *types.RegisterVM_Task, s *store) (*host, error) {
	name, _, _ := storePath(req.Path)
	if s == nil {
		fault := &types.InvalidDatastore{Name: name}
		return nil, fail(fault, "Datastore '%s' is not accessible, or does not exist.", name)
	}
	owner := ownerOf(*req.Pool)
	if owner == nil {
		return nil, invalid("pool")
	}
	if req.Host != nil {
		h := w.hosts[*req.Host]
		if h == nil || *h.object.Parent != *owner {
			return nil, invalid("host")
		}
		if s.mounts[h] == "" {
			fault := &types.InaccessibleDatastore{}
			fault.Datastore, fault.Name = &s.self, s.name
			return nil, fail(fault, "Unable to access the virtual machine configuration: "+
				"Unable to access datastore '%s' from the host.", s.name)
		}
		return h, nil
	}
	for h := range s.mounts {
		if *h.object.Parent == *owner && h.connected() == nil {
			return h, nil
		}
	}
	return nil, fail(&types.InvalidDatastore{Datastore: &s.self, Name: s.name},
		"No host of the pool can reach datastore '%s'.", s.name)
}

// ownerOf is the cluster, or the compute resource of a standalone host, that a pool belongs to.
func ownerOf(pool ref) *ref {
	if found, ok := simulator.Map.Get(pool).(*simulator.ResourcePool); ok {
		owner := found.Owner
		return &owner
	}
	return nil
}

func datacenterOf(e mo.Entity) *simulator.Datacenter {
	for {
		if center, ok := e.(*simulator.Datacenter); ok {
			return center
		}
		parent := e.Entity().Parent
		if parent == nil {
			return nil
		}
		next, ok := simulator.Map.Get(*parent).(mo.Entity)
		if !ok {
			return nil
		}
		e = next
	}
}

// enter makes a machine one of the inventory; the caller holds mu.
func (w *world) enter(f *vmFolder, m *machine, pool ref) error {
	for _, other := range w.machines {
		if other.name == m.name && *other.Parent == f.Self {
			fault := &types.DuplicateName{Name: m.name, Object: other.Self}
			return fail(fault, "The name '%s' already exists.", m.name)
		}
		if other.store == m.store && other.file == m.file {
			fault := &types.AlreadyExists{Name: other.Self.Value}
			return fail(fault, "The specified key, name, or identifier '%s' already exists.", other.Self.Value)
		}
	}
	m.vmx.set("displayName", m.name)
	if uuid(m.vmx.get("uuid.bios")) == "" {
		m.vmx.set("uuid.bios", spaced(googleuuid.New().String()))
	}
	instance := uuid(m.vmx.get("vc.uuid"))
	for _, other := range w.machines {
		// vCenter gives another instance id to the second machine that has one.
		if instance != "" && uuid(other.vmx.get("vc.uuid")) == instance {
			instance = ""
		}
	}
	if instance == "" {
		m.vmx.set("vc.uuid", spaced(googleuuid.New().String()))
	}
	m.Self = ref{Type: "VirtualMachine", Value: w.id("vm")}
	m.prepare(pool)
	w.machines[m.Self] = m
	m.publish()
	put(&f.Folder.Folder, f, m)
	change(m.host.object, set("vm", with(m.host.object.Vm, m.Self)))
	if parent, ok := simulator.Map.Get(pool).(*simulator.ResourcePool); ok {
		change(parent, set("vm", with(parent.Vm, m.Self)))
	}
	return nil
}

// searchIndex finds what the simulator's own does not look for in folders of ours.
type searchIndex struct {
	simulator.SearchIndex
	lock
}

func (s *searchIndex) FindChild(req *types.FindChild) soap.HasFault {
	defer s.free()()
	if folder, ok := simulator.Map.Get(req.Entity).(*vmFolder); ok {
		res := &types.FindChildResponse{}
		if found := simulator.Map.FindByName(req.Name, folder.ChildEntity); found != nil {
			reference := found.Reference()
			res.Returnval = &reference
		}
		return &methods.FindChildBody{Res: res}
	}
	return s.SearchIndex.FindChild(req)
}

func (s *searchIndex) FindByInventoryPath(req *types.FindByInventoryPath) soap.HasFault {
	defer s.free()()
	res := &types.FindByInventoryPathResponse{}
	content := simulator.Map.Get(serviceInstance).(*simulator.ServiceInstance).Content
	at := &content.RootFolder
	for _, name := range strings.FieldsFunc(req.InventoryPath, func(c rune) bool { return c == '/' }) {
		s.Lock() // FindChild lets go of it
		found, ok := s.FindChild(&types.FindChild{Entity: *at, Name: name}).(*methods.FindChildBody)
		s.Unlock()
		if !ok || found.Res == nil || found.Res.Returnval == nil {
			return &methods.FindByInventoryPathBody{Res: res}
		}
		at = found.Res.Returnval
	}
	res.Returnval = at
	return &methods.FindByInventoryPathBody{Res: res}
}
