package main

import (
	"context"
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// inventory is what a test asks for; vcenter.ts documents it.
type inventory struct {
	Version     string             `json:"version"`
	Datacenters []datacenterSpec   `json:"datacenters"`
	Missing     []missingPrivilege `json:"missingPrivileges"`
	Behaviour   behaviour          `json:"behaviour"`
	// Beside the one who may log in in any case, with the same password.
	Users []string `json:"users"`
}

type datacenterSpec struct {
	Name       string          `json:"name"`
	Clusters   []clusterSpec   `json:"clusters"`
	Hosts      []hostSpec      `json:"hosts"`
	Datastores []datastoreSpec `json:"datastores"`
	Networks   []string        `json:"networks"`
	Folders    []string        `json:"folders"`
	Machines   []machineSpec   `json:"machines"`
}

type clusterSpec struct {
	Name  string     `json:"name"`
	Hosts []hostSpec `json:"hosts"`
	Pools []string   `json:"pools"`
}

type hostSpec struct {
	Name        string   `json:"name"`
	Netns       string   `json:"netns"`
	Addresses   []string `json:"addresses"`
	MaxVolumes  int      `json:"maxVolumes"`
	Maintenance bool     `json:"maintenance"`
	Connection  string   `json:"connection"`
}

type datastoreSpec struct {
	Name          string   `json:"name"`
	Directory     string   `json:"directory"`
	Hosts         []string `json:"hosts"`
	CapacityBytes int64    `json:"capacityBytes"`
}

type machineSpec struct {
	Vmx       string `json:"vmx"`
	Name      string `json:"name"`
	Host      string `json:"host"`
	PoweredOn bool   `json:"poweredOn"`
}

// build makes the inventory through the simulator's own methods, and then puts our types over them.
func (w *world) build(client *vim25.Client, spec *inventory) error {
	w.script.missing, w.script.behaviour = spec.Missing, spec.Behaviour
	ctx := context.Background()
	for _, each := range spec.Datacenters {
		made, err := object.NewRootFolder(client).CreateDatacenter(ctx, each.Name)
		if err != nil {
			return err
		}
		center := simulator.Map.Get(made.Reference()).(*simulator.Datacenter)
		w.addFolders(center, &each)
		folders, err := made.Folders(ctx)
		if err != nil {
			return err
		}
		if err := w.addHosts(ctx, folders.HostFolder, center, &each); err != nil {
			return err
		}
		for _, store := range each.Datastores {
			w.addLocal(center, store)
		}
		for _, machine := range each.Machines {
			if err := w.addMachine(center, machine); err != nil {
				return fmt.Errorf("%s: %w", machine.Vmx, err)
			}
		}
	}
	return nil
}

func (w *world) addFolders(center *simulator.Datacenter, spec *datacenterSpec) {
	old := simulator.Map.Get(center.VmFolder).(*simulator.Folder)
	top := &vmFolder{Folder: *old, w: w}
	simulator.Map.Put(top)
	for _, name := range spec.Folders {
		top.add(name)
	}
	networks, holder := folderOf(center.NetworkFolder)
	for _, name := range spec.Networks {
		if name == "VM Network" {
			continue // every data centre has it
		}
		network := &mo.Network{}
		network.Self = ref{Type: "Network", Value: w.id("network")}
		network.Name = name
		network.Entity().Name = name
		network.Summary = &types.NetworkSummary{Network: &network.Self, Name: name, Accessible: true}
		put(networks, holder, network)
		center.Network = append(center.Network, network.Self)
	}
}

func (w *world) addHosts(
	ctx context.Context,
	folder *object.Folder,
	center *simulator.Datacenter,
	spec *datacenterSpec,
) error {
	for _, cluster := range spec.Clusters {
		made, err := folder.CreateCluster(ctx, cluster.Name, types.ClusterConfigSpecEx{})
		if err != nil {
			return err
		}
		for _, each := range cluster.Hosts {
			connect := types.HostConnectSpec{HostName: each.Name}
			task, err := made.AddHost(ctx, connect, true, nil, nil)
			if err := w.addHost(ctx, task, err, center, each); err != nil {
				return err
			}
		}
		pool, err := made.ResourcePool(ctx)
		if err != nil {
			return err
		}
		for _, name := range cluster.Pools {
			if _, err := pool.Create(ctx, name, types.DefaultResourceConfigSpec()); err != nil {
				return err
			}
		}
		parent := simulator.Map.Get(made.Reference()).(*simulator.ClusterComputeResource)
		parent.Network = center.Network
	}
	for _, each := range spec.Hosts {
		connect := types.HostConnectSpec{HostName: each.Name}
		task, err := folder.AddStandaloneHost(ctx, connect, true, nil, nil)
		if err := w.addHost(ctx, task, err, center, each); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) addHost(
	ctx context.Context,
	task *object.Task,
	err error,
	center *simulator.Datacenter,
	spec hostSpec,
) error {
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	entity := info.Result
	if compute, ok := simulator.Map.Get(entity.(ref)).(*mo.ComputeResource); ok {
		entity = compute.Host[0]
	}
	object := simulator.Map.Get(entity.(ref)).(*simulator.HostSystem)
	h := &host{self: object.Self, name: spec.Name, netns: spec.Netns, object: object}
	h.datacenter, h.maxVolumes = center, spec.MaxVolumes
	if h.maxVolumes == 0 {
		h.maxVolumes = 32
	}
	w.hosts[h.self] = h
	object.Network = center.Network
	object.Config.Network.Vnic = vnics(spec.Addresses)
	object.Runtime.InMaintenanceMode = spec.Maintenance
	if spec.Connection != "" {
		object.Runtime.ConnectionState = types.HostSystemConnectionState(spec.Connection)
	}
	object.Datastore = []ref{}
	options := simulator.Map.Get(*object.ConfigManager.AdvancedOption).(*simulator.OptionManager)
	settings := append([]types.BaseOptionValue{}, options.Setting...)
	options.Setting = append(settings, &types.OptionValue{Key: "NFS.MaxVolumes", Value: int64(h.maxVolumes)})
	system := simulator.Map.Get(*object.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem)
	simulator.Map.Put(&datastoreSystem{HostDatastoreSystem: *system, w: w, host: h})
	return nil
}

// vnics gives the host its vmkernel addresses: each IPv4 one an interface, IPv6 ones on the first.
func vnics(addresses []string) []types.HostVirtualNic {
	list := []types.HostVirtualNic{}
	six := &types.HostIpConfigIpV6AddressConfiguration{}
	for _, address := range addresses {
		if isIPv6(address) {
			six.IpV6Address = append(six.IpV6Address, types.HostIpConfigIpV6Address{
				IpAddress: address, PrefixLength: 64, Origin: "manual", DadState: "preferred",
			})
			continue
		}
		name := fmt.Sprintf("vmk%d", len(list))
		list = append(list, types.HostVirtualNic{
			Device: name, Key: "key-vim.host.VirtualNic-" + name, Portgroup: "Management Network",
			Spec: types.HostVirtualNicSpec{
				Ip:  &types.HostIpConfig{IpAddress: address, SubnetMask: "255.255.255.0"},
				Mac: fmt.Sprintf("00:50:56:60:00:%02x", len(list)), Mtu: 1500,
				NetStackInstanceKey: "defaultTcpipStack",
			},
		})
	}
	if len(list) == 0 {
		ip := &types.HostIpConfig{}
		nic := types.HostVirtualNic{Device: "vmk0", Key: "key-vim.host.VirtualNic-vmk0"}
		nic.Spec.Ip = ip
		list = append(list, nic)
	}
	if len(six.IpV6Address) > 0 {
		list[0].Spec.Ip.IpV6Config = six
	}
	return list
}

// addMachine registers a machine whose files lie on a local datastore already.
func (w *world) addMachine(center *simulator.Datacenter, spec machineSpec) error {
	h := w.hostCalled(spec.Host)
	if h == nil {
		return fmt.Errorf("there is no host %s", spec.Host)
	}
	var pool *ref
	w.computeResource(h, func(compute *mo.ComputeResource) { pool = compute.ResourcePool })
	folder := simulator.Map.Get(center.VmFolder).(*vmFolder)
	req := &types.RegisterVM_Task{Path: spec.Vmx, Name: spec.Name, Pool: pool, Host: &h.self}
	m, err := w.register(folder, req)
	if err != nil {
		return err
	}
	if m.missing != nil {
		return m.missing
	}
	if spec.PoweredOn {
		return m.powerOn(&job{ctx: context.Background()})
	}
	return nil
}
