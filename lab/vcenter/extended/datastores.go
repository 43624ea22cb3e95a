package main

import (
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// datastore answers for a local directory or a mounted export.
type datastore struct {
	simulator.Datastore
	lock
	w     *world
	store *store
}

// datastoreSystem mounts and unmounts for one host, through NFS clients that run with its addresses.
type datastoreSystem struct {
	simulator.HostDatastoreSystem
	lock
	w    *world
	host *host
}

func isIPv6(address string) bool {
	parsed := net.ParseIP(address)
	return parsed != nil && parsed.To4() == nil
}

func (w *world) addLocal(center *simulator.Datacenter, spec datastoreSpec) {
	s := &store{name: spec.Name, directory: spec.Directory, capacity: spec.CapacityBytes, datacenter: center}
	info := &types.VmfsDatastoreInfo{Vmfs: &types.HostVmfsVolume{}}
	w.newDatastore(s, "VMFS", info)
	for _, h := range w.hosts {
		wanted := len(spec.Hosts) == 0
		for _, name := range spec.Hosts {
			wanted = wanted || name == h.name
		}
		if wanted && h.datacenter == center {
			w.mount(h, s, "readWrite")
		}
	}
}

func (w *world) newDatastore(s *store, kind string, info types.BaseDatastoreInfo) {
	s.self = ref{Type: "Datastore", Value: w.id("datastore")}
	s.mounts = map[*host]string{}
	d := &datastore{w: w, store: s}
	s.object = d
	d.Self, d.Name, d.Info = s.self, s.name, info
	url := "ds:///vmfs/volumes/" + s.self.Value + "/"
	base := info.GetDatastoreInfo()
	base.Name, base.Url = s.name, url
	d.Host, d.Vm = []types.DatastoreHostMount{}, []ref{}
	d.Summary = types.DatastoreSummary{
		Datastore: &s.self, Name: s.name, Url: url, Type: kind, Accessible: true,
		MultipleHostAccess: types.NewBool(true), MaintenanceMode: "normal",
	}
	d.Capability = types.DatastoreCapability{
		DirectoryHierarchySupported: true, PerFileThinProvisioningSupported: true,
	}
	browser := &simulator.HostDatastoreBrowser{}
	browser.Self = ref{Type: "HostDatastoreBrowser", Value: w.id("browser")}
	browser.Datastore = []ref{s.self}
	d.Browser = simulator.Map.Put(browser).Reference()
	s.measure()
	w.stores[s.self] = s
	folder, holder := folderOf(s.datacenter.DatastoreFolder)
	put(folder, holder, d)
	s.datacenter.Datastore = with(s.datacenter.Datastore, s.self)
}

// measure says how large it is and what is free. What an export has is a guess here: libnfs's
// programs do not say what FSSTAT answers.
func (s *store) measure() {
	capacity, free := int64(1)<<42, int64(1)<<41
	var disk syscall.Statfs_t
	if !s.nas() && syscall.Statfs(s.directory, &disk) == nil {
		capacity, free = int64(disk.Blocks)*disk.Bsize, int64(disk.Bavail)*disk.Bsize
	}
	if s.capacity > 0 {
		free -= capacity - s.capacity
		capacity = s.capacity
	}
	if free < 0 {
		free = 0
	}
	s.object.Summary.Capacity, s.object.Summary.FreeSpace = capacity, free
	s.object.Info.GetDatastoreInfo().FreeSpace = free
}

// mount tells host, cluster and datastore of each other; the caller holds mu.
func (w *world) mount(h *host, s *store, mode string) {
	s.mounts[h] = mode
	path := "/vmfs/volumes/" + s.self.Value
	mounts := append([]types.DatastoreHostMount{}, s.object.Host...)
	mounts = append(mounts, types.DatastoreHostMount{Key: h.self, MountInfo: types.HostMountInfo{
		Path: path, AccessMode: mode, Mounted: types.NewBool(true), Accessible: types.NewBool(true),
	}})
	change(s.object, set("host", mounts))
	change(h.object, set("datastore", with(h.object.Datastore, s.self)))
	if system, ok := simulator.Map.Get(*h.object.ConfigManager.DatastoreSystem).(*datastoreSystem); ok {
		change(system, set("datastore", with(system.Datastore, s.self)))
	}
	w.computeResource(h, func(compute *mo.ComputeResource) {
		compute.Datastore = with(compute.Datastore, s.self)
	})
}

func (w *world) computeResource(h *host, edit func(*mo.ComputeResource)) {
	parent := simulator.Map.Get(*h.object.Parent)
	simulator.Map.WithLock(parent, func() {
		switch compute := parent.(type) {
		case *simulator.ClusterComputeResource:
			edit(&compute.ComputeResource)
		case *mo.ComputeResource:
			edit(compute)
		}
	})
}

func configFault(text string) *problem {
	fault := &types.PlatformConfigFault{Text: text}
	return fail(fault, "An error occurred during host configuration.")
}

// Words of ESXi's, from VMware's knowledge base (1007352, 2239).
const (
	deniedWords = "Operation failed, diagnostics report: Sysinfo error on operation returned status : " +
		"The mount request was denied by the NFS server. Check that the export exists and that the client " +
		"is permitted to mount it. Please see the VMkernel log for detailed error information"
	unreachableWords = "Operation failed, diagnostics report: Sysinfo error on operation returned status : " +
		"Unable to connect to NFS server. Please see the VMkernel log for detailed error information"
	fullWords = "Operation failed, diagnostics report: Sysinfo error on operation returned status : " +
		"NFS has reached the maximum number of supported volumes. " +
		"Please see the VMkernel log for detailed error information"
)

func (d *datastoreSystem) CreateNasDatastore(req *types.CreateNasDatastore) soap.HasFault {
	defer d.free()()
	body := &methods.CreateNasDatastoreBody{}
	made, err := d.create(req.Spec)
	if err != nil {
		body.Fault_ = asProblem(err).soap()
		return body
	}
	body.Res = &types.CreateNasDatastoreResponse{Returnval: made.self}
	return body
}

func (d *datastoreSystem) create(spec types.HostNasVolumeSpec) (*store, error) {
	w, h := d.w, d.host
	if err := h.connected(); err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"remoteHost": spec.RemoteHost, "remotePath": spec.RemotePath, "localPath": spec.LocalPath,
	} {
		if value == "" {
			words := "A specified parameter was not correct: spec." + name
			return nil, fail(&types.InvalidArgument{InvalidProperty: "spec." + name}, "%s", words)
		}
	}
	if spec.AccessMode != "readWrite" && spec.AccessMode != "readOnly" {
		fault := &types.InvalidArgument{InvalidProperty: "spec.accessMode"}
		return nil, fail(fault, "A specified parameter was not correct: spec.accessMode")
	}
	w.mu.Lock()
	err := d.obstacle(spec)
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	// Outside of mu: a server that does not answer holds up nobody else.
	if _, err := w.listExport(h, spec.RemoteHost, spec.RemotePath); err != nil {
		return nil, configFault(mountWords(err))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := d.obstacle(spec); err != nil {
		return nil, err
	}
	s := w.storeCalled(spec.LocalPath, h.datacenter)
	if s == nil {
		s = &store{name: spec.LocalPath, datacenter: h.datacenter}
		s.remoteHost, s.remotePath = spec.RemoteHost, spec.RemotePath
		nas := &types.HostNasVolume{RemoteHost: spec.RemoteHost, RemotePath: spec.RemotePath}
		nas.Name, nas.Type = spec.LocalPath, "NFS"
		nas.RemoteHostNames = []string{spec.RemoteHost}
		w.newDatastore(s, "NFS", &types.NasDatastoreInfo{Nas: nas})
	}
	w.mount(h, s, spec.AccessMode)
	return s, nil
}

// obstacle tells why there is no place for this datastore, if there is none; the caller holds mu.
func (d *datastoreSystem) obstacle(spec types.HostNasVolumeSpec) error {
	volumes := 0
	for _, each := range d.w.stores {
		_, mounted := each.mounts[d.host]
		same := each.nas() && each.remoteHost == spec.RemoteHost && each.remotePath == spec.RemotePath
		if mounted && each.nas() {
			volumes++
		}
		if each.name == spec.LocalPath && each.datacenter == d.host.datacenter && (mounted || !same) {
			fault := &types.DuplicateName{Name: spec.LocalPath, Object: each.self}
			return fail(fault, "The name '%s' already exists.", spec.LocalPath)
		}
		// Under another name: on this host ESXi says so; for another host of the data centre
		// the fault is a guess.
		if same && each.datacenter == d.host.datacenter && each.name != spec.LocalPath {
			fault := &types.AlreadyExists{Name: each.name}
			return fail(fault, "The specified key, name, or identifier '%s' already exists.", each.name)
		}
	}
	if volumes >= d.host.maxVolumes {
		return configFault(fullWords)
	}
	return nil
}

func mountWords(err error) string {
	for _, sign := range []string{"ACCES", "PERM", "NOENT", "denied", "RPC_AUTH", "AUTH_"} {
		if strings.Contains(err.Error(), sign) {
			return deniedWords
		}
	}
	return unreachableWords
}

func (h *host) connected() error {
	if h.object.Runtime.ConnectionState == types.HostSystemConnectionStateConnected {
		return nil
	}
	words := "Unable to communicate with the remote host, since it is disconnected."
	return fail(&types.HostNotConnected{}, "%s", words)
}

func (d *datastoreSystem) RemoveDatastore(req *types.RemoveDatastore) soap.HasFault {
	defer d.free()()
	body := &methods.RemoveDatastoreBody{}
	if err := d.remove(req.Datastore); err != nil {
		body.Fault_ = asProblem(err).soap()
		return body
	}
	body.Res = &types.RemoveDatastoreResponse{}
	return body
}

func (d *datastoreSystem) remove(self ref) error {
	w, h := d.w, d.host
	if err := h.connected(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stores[self]
	if s == nil || s.mounts[h] == "" {
		return fail(&types.NotFound{}, "The object or item referred to could not be found.")
	}
	for _, m := range w.machines {
		uses := m.host == h && m.uses(s)
		if uses && !(s.nas() && w.script.behaves().NasRemoveAnyway) {
			fault := &types.ResourceInUse{Type: "Datastore", Name: s.name}
			return fail(fault, "The resource '%s' is in use.", s.name)
		}
	}
	w.unmount(h, s)
	return nil
}

// unmount is mount's opposite; a datastore that no host has is gone. The caller holds mu.
func (w *world) unmount(h *host, s *store) {
	delete(s.mounts, h)
	left := []types.DatastoreHostMount{}
	for _, each := range s.object.Host {
		if each.Key != h.self {
			left = append(left, each)
		}
	}
	change(s.object, set("host", left))
	change(h.object, set("datastore", without(h.object.Datastore, s.self)))
	if system, ok := simulator.Map.Get(*h.object.ConfigManager.DatastoreSystem).(*datastoreSystem); ok {
		change(system, set("datastore", without(system.Datastore, s.self)))
	}
	elsewhere := false
	for other := range s.mounts {
		elsewhere = elsewhere || *other.object.Parent == *h.object.Parent
	}
	if !elsewhere {
		w.computeResource(h, func(compute *mo.ComputeResource) {
			compute.Datastore = without(compute.Datastore, s.self)
		})
	}
	if len(s.mounts) > 0 {
		return
	}
	delete(w.stores, s.self)
	folder, holder := folderOf(s.datacenter.DatastoreFolder)
	change(holder, set("childEntity", without(folder.ChildEntity, s.self)))
	s.datacenter.Datastore = without(s.datacenter.Datastore, s.self)
	simulator.Map.Remove(s.self)
}

func (d *datastore) RefreshDatastore(*types.RefreshDatastore) soap.HasFault {
	// The caller holds the lock that measure needs.
	d.store.measure()
	return &methods.RefreshDatastoreBody{Res: &types.RefreshDatastoreResponse{}}
}

// DestroyTask would delete what is on the datastore: nothing in the lab may ask for that.
func (d *datastore) DestroyTask(req *types.Destroy_Task) soap.HasFault {
	defer d.free()()
	words := "The lab does not destroy datastores: remove them from each host"
	return &methods.Destroy_TaskBody{Fault_: fail(&types.NotSupported{}, "%s", words).soap()}
}

// exists tells whether a path is there, for messages at the start.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
