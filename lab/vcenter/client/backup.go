package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/vmware/govmomi/nfc"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func init() {
	for name, verb := range map[string]func(*client, []string) (interface{}, error){
		"track": (*client).track, "snapshot": (*client).snapshot, "drop": (*client).drop,
		"export": (*client).export, "changes": (*client).changes, "expire": (*client).expire,
	} {
		verbs[name] = verb
	}
}

// track NAME: switches change tracking on
func (c *client) track(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	on := types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)}
	return c.await(found.Reconfigure(c.ctx, on))
}

type diskView struct {
	Key      int32
	File     string
	ChangeID string
}

// snapshot NAME SNAPSHOT: makes one, and tells what its disks are
func (c *client) snapshot(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	made, err := c.await(found.CreateSnapshot(c.ctx, args[1], "", false, false))
	if err != nil {
		return nil, err
	}
	var view mo.VirtualMachineSnapshot
	self := made.(ref)
	if _, err := c.properties(self, []string{"config"}, &view); err != nil {
		return nil, err
	}
	disks := []diskView{}
	for _, device := range view.Config.Hardware.Device {
		if disk, ok := device.(*types.VirtualDisk); ok {
			backing := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			disks = append(disks, diskView{disk.Key, backing.FileName, backing.ChangeId})
		}
	}
	return map[string]interface{}{"snapshot": self.Value, "disks": disks}, nil
}

// drop NAME: removes all its snapshots
func (c *client) drop(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	return c.await(found.RemoveAllSnapshot(c.ctx, nil))
}

func (c *client) lease(snapshot string) (*nfc.Lease, error) {
	this := ref{Type: "VirtualMachineSnapshot", Value: snapshot}
	res, err := methods.ExportSnapshot(c.ctx, c, &types.ExportSnapshot{This: this})
	if err != nil {
		return nil, err
	}
	return nfc.NewLease(c.Client, res.Returnval), nil
}

// export SNAPSHOT FILE: downloads its first disk as streamOptimized VMDK
func (c *client) export(args []string) (interface{}, error) {
	lease, err := c.lease(args[0])
	if err != nil {
		return nil, err
	}
	info, err := lease.Wait(c.ctx, nil)
	if err != nil {
		return nil, err
	}
	updater := lease.StartUpdater(c.ctx, info)
	defer updater.Done()
	if err := lease.DownloadFile(c.ctx, args[1], info.Items[0], soap.DefaultDownload); err != nil {
		return nil, err
	}
	return len(info.Items), lease.Complete(c.ctx)
}

// expire SNAPSHOT: a lease that nobody keeps alive
func (c *client) expire(args []string) (interface{}, error) {
	lease, err := c.lease(args[0])
	if err != nil {
		return nil, err
	}
	if _, err := lease.Wait(c.ctx, nil); err != nil {
		return nil, err
	}
	for {
		var view mo.HttpNfcLease
		if _, err := c.properties(lease.Reference(), []string{"state"}, &view); err != nil {
			return nil, err
		}
		if view.State != types.HttpNfcLeaseStateReady {
			return view.State, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// changes NAME SNAPSHOT KEY CHANGEID: all changed areas
func (c *client) changes(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	key, err := strconv.Atoi(args[2])
	if err != nil {
		return nil, err
	}
	snapshot := ref{Type: "VirtualMachineSnapshot", Value: args[1]}
	devices, err := found.Device(c.ctx)
	if err != nil {
		return nil, err
	}
	disk, ok := devices.FindByKey(int32(key)).(*types.VirtualDisk)
	if !ok {
		return nil, fmt.Errorf("%s has no disk %d", args[0], key)
	}
	areas := []types.DiskChangeExtent{}
	for offset := int64(0); offset < disk.CapacityInBytes; {
		res, err := methods.QueryChangedDiskAreas(c.ctx, c, &types.QueryChangedDiskAreas{
			This: found.Reference(), Snapshot: &snapshot, DeviceKey: int32(key),
			StartOffset: offset, ChangeId: args[3],
		})
		if err != nil {
			return nil, err
		}
		areas = append(areas, res.Returnval.ChangedArea...)
		offset = res.Returnval.StartOffset + res.Returnval.Length
	}
	return areas, nil
}
