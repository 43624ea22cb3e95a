package main

import (
	"fmt"
	"path"
	"sync"
	"sync/atomic"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type ref = types.ManagedObjectReference

// world is what stands behind the objects that clients see. Its own parts are guarded by mu; the
// objects in the simulator's registry are guarded by a lock each, which is taken inside of mu and
// only for as long as a property is changed.
type world struct {
	directory string
	commands  *commands
	// Where clients reach it, and the SHA-1 thumbprint that they are told.
	address, thumbprint string

	mu       sync.Mutex
	hosts    map[ref]*host
	stores   map[ref]*store
	machines map[ref]*machine
	script   *script
	// Pictures that were promised on an export, by their paths there.
	pictures map[string]string
	counter  int64
}

// host is an ESXi host: programs that act for it run in its network namespace.
type host struct {
	self       ref
	name       string
	netns      string
	object     *simulator.HostSystem
	datacenter *simulator.Datacenter
	maxVolumes int
}

// store is a datastore: a directory of this machine, or an NFS export that its hosts have mounted.
type store struct {
	self       ref
	name       string
	directory  string
	remoteHost string
	remotePath string
	capacity   int64
	object     *datastore
	datacenter *simulator.Datacenter
	// How each host has it: readWrite or readOnly.
	mounts map[*host]string
}

func (s *store) nas() bool { return s.directory == "" }

func newWorld(directory string) *world {
	w := &world{
		directory: directory,
		hosts:     map[ref]*host{},
		stores:    map[ref]*store{},
		machines:  map[ref]*machine{},
		script:    newScript(),
		pictures:  map[string]string{},
		counter:   1000,
	}
	w.commands = &commands{directory: directory}
	return w
}

func (w *world) id(prefix string) string {
	return fmt.Sprintf("%s-%d", prefix, atomic.AddInt64(&w.counter, 1))
}

// lock makes a type of ours one that the simulator locks through us: it holds the lock while it
// calls a method, and a method of ours lets go of it at once (`defer x.free()()`), so that clients
// can read an object while something long is done with it.
type lock struct{ held sync.Mutex }

func (l *lock) Lock()   { l.held.Lock() }
func (l *lock) Unlock() { l.held.Unlock() }

func (l *lock) free() func() {
	l.held.Unlock()
	return l.held.Lock
}

// change sets properties, and tells everyone who waits for updates of them.
func change(object mo.Reference, changes ...types.PropertyChange) {
	simulator.Map.WithLock(object, func() { simulator.Map.Update(object, changes) })
}

func set(name string, value interface{}) types.PropertyChange {
	return types.PropertyChange{Name: name, Val: value}
}

func with(list []ref, item ref) []ref {
	for _, each := range list {
		if each == item {
			return list
		}
	}
	return append(append([]ref{}, list...), item)
}

func without(list []ref, item ref) []ref {
	left := []ref{}
	for _, each := range list {
		if each != item {
			left = append(left, each)
		}
	}
	return left
}

// put adds an object that is whole to a folder.
func put(folder *mo.Folder, holder mo.Reference, item mo.Entity) {
	simulator.Map.WithLock(holder, func() {
		folder.ChildEntity = with(folder.ChildEntity, item.Reference())
	})
	simulator.Map.PutEntity(folder, item)
}

func folderOf(reference ref) (*mo.Folder, mo.Reference) {
	switch folder := simulator.Map.Get(reference).(type) {
	case *simulator.Folder:
		return &folder.Folder, folder
	case *vmFolder:
		return &folder.Folder.Folder, folder
	}
	return nil, nil
}

func (w *world) hostCalled(name string) *host {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, each := range w.hosts {
		if each.name == name {
			return each
		}
	}
	return nil
}

func (w *world) machineCalled(name string) *machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, each := range w.machines {
		if each.Name == name {
			return each
		}
	}
	return nil
}

// storeCalled finds a datastore by its name in a data centre; the caller holds mu.
func (w *world) storeCalled(name string, datacenter *simulator.Datacenter) *store {
	for _, each := range w.stores {
		if each.name == name && each.datacenter == datacenter {
			return each
		}
	}
	return nil
}

// storePath splits `[datastore] folder/file`.
func storePath(text string) (name, file string, ok bool) {
	if len(text) == 0 || text[0] != '[' {
		return "", "", false
	}
	for index := range text {
		if text[index] == ']' {
			file = path.Clean("/" + trimSpace(text[index+1:]))[1:]
			return text[1:index], file, true
		}
	}
	return "", "", false
}

func (s *store) path(file string) string { return fmt.Sprintf("[%s] %s", s.name, file) }
