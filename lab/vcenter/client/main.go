// A client of vCenter's that is not Rouse's: a few calls through govmomi's own library, as a judge
// of what the stand-in answers. Prints JSON; what vCenter refused goes to standard error.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type client struct {
	*vim25.Client
	ctx    context.Context
	finder *find.Finder
}

var verbs = map[string]func(*client, []string) (interface{}, error){
	"mount": (*client).mount, "unmount": (*client).unmount, "datastore": (*client).datastore,
	"register": (*client).register, "unregister": (*client).unregister, "on": (*client).on,
	"off": (*client).off, "machine": (*client).machine, "relocate": (*client).relocate,
	"host": (*client).host, "cancel": (*client).cancel, "attach": (*client).attach,
	"detach": (*client).detach, "answer": (*client).answer,
}

func main() {
	address := flag.String("url", "", "")
	user := flag.String("user", "", "")
	password := flag.String("password", "", "")
	certificate := flag.String("certificate", "", "")
	center := flag.String("datacenter", "", "")
	flag.Parse()
	verb, known := verbs[flag.Arg(0)]
	if !known {
		log.Fatalf("unknown: %s", flag.Arg(0))
	}
	c, err := login(*address, *certificate, url.UserPassword(*user, *password), *center)
	if err != nil {
		log.Fatal(err)
	}
	answer, err := verb(c, flag.Args()[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, describe(err))
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(answer)
}

// describe names the fault's type and its words.
func describe(err error) string {
	if soap.IsSoapFault(err) {
		fault := soap.ToSoapFault(err)
		detail, _ := json.Marshal(fault.VimFault())
		return fmt.Sprintf("%T %s %s", fault.VimFault(), fault.String, detail)
	}
	if known, ok := err.(interface{ Fault() types.BaseMethodFault }); ok {
		return fmt.Sprintf("%T %s", known.Fault(), err)
	}
	return err.Error()
}

func login(address, certificate string, user *url.Userinfo, center string) (*client, error) {
	at, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	transport := soap.NewClient(at, false)
	if err := transport.SetRootCAs(certificate); err != nil {
		return nil, err
	}
	vim, err := vim25.NewClient(ctx, transport)
	if err != nil {
		return nil, err
	}
	if err := session.NewManager(vim).Login(ctx, user); err != nil {
		return nil, err
	}
	finder := find.NewFinder(vim)
	found, err := finder.Datacenter(ctx, center)
	if err != nil {
		return nil, err
	}
	return &client{vim, ctx, finder.SetDatacenter(found)}, nil
}

func (c *client) system(host string) (*object.HostDatastoreSystem, error) {
	found, err := c.finder.HostSystem(c.ctx, "*/"+host)
	if err != nil {
		return nil, err
	}
	return found.ConfigManager().DatastoreSystem(c.ctx)
}

// mount HOST SERVER PATH NAME MODE
func (c *client) mount(args []string) (interface{}, error) {
	system, err := c.system(args[0])
	if err != nil {
		return nil, err
	}
	spec := types.HostNasVolumeSpec{
		RemoteHost: args[1], RemotePath: args[2], LocalPath: args[3], AccessMode: args[4], Type: "NFS",
	}
	made, err := system.CreateNasDatastore(c.ctx, spec)
	if err != nil {
		return nil, err
	}
	return made.Reference(), nil
}

// unmount HOST NAME
func (c *client) unmount(args []string) (interface{}, error) {
	system, err := c.system(args[0])
	if err != nil {
		return nil, err
	}
	store, err := c.finder.Datastore(c.ctx, args[1])
	if err != nil {
		return nil, err
	}
	_, err = methods.RemoveDatastore(c.ctx, c, &types.RemoveDatastore{
		This: system.Reference(), Datastore: store.Reference(),
	})
	return nil, err
}

// properties reads some of an object into a struct of govmomi's.
func (c *client) properties(object ref, names []string, into interface{}) (interface{}, error) {
	err := property.DefaultCollector(c.Client).RetrieveOne(c.ctx, object, names, into)
	return into, err
}

type ref = types.ManagedObjectReference

// datastore NAME
func (c *client) datastore(args []string) (interface{}, error) {
	store, err := c.finder.Datastore(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	return c.properties(store.Reference(), []string{"summary", "host", "vm"}, &mo.Datastore{})
}

// host NAME
func (c *client) host(args []string) (interface{}, error) {
	found, err := c.finder.HostSystem(c.ctx, "*/"+args[0])
	if err != nil {
		return nil, err
	}
	names := []string{"config.network.vnic", "runtime.connectionState", "datastore", "vm"}
	return c.properties(found.Reference(), names, &mo.HostSystem{})
}

// machine NAME
func (c *client) machine(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	names := []string{"name", "config", "runtime.powerState", "guest.toolsRunningStatus", "datastore"}
	return c.properties(found.Reference(), names, &mo.VirtualMachine{})
}

// register PATH NAME HOST
func (c *client) register(args []string) (interface{}, error) {
	folder, err := c.finder.DefaultFolder(c.ctx)
	if err != nil {
		return nil, err
	}
	host, err := c.finder.HostSystem(c.ctx, "*/"+args[2])
	if err != nil {
		return nil, err
	}
	pool, err := host.ResourcePool(c.ctx)
	if err != nil {
		return nil, err
	}
	task, err := folder.RegisterVM(c.ctx, args[0], args[1], false, pool, host)
	return c.await(task, err)
}

func (c *client) await(task *object.Task, err error) (interface{}, error) {
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(c.ctx, nil)
	if err != nil {
		return nil, err
	}
	return info.Result, nil
}

// unregister NAME
func (c *client) unregister(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	return nil, found.Unregister(c.ctx)
}

// on NAME
func (c *client) on(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	return c.await(found.PowerOn(c.ctx))
}

// answer NAME CHOICE: waits for a question, and gives its text
func (c *client) answer(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	var asked *types.VirtualMachineQuestionInfo
	names := []string{"runtime.question"}
	err = property.Wait(c.ctx, property.DefaultCollector(c.Client), found.Reference(), names,
		func(changes []types.PropertyChange) bool {
			for _, change := range changes {
				if question, ok := change.Val.(types.VirtualMachineQuestionInfo); ok {
					asked = &question
				}
			}
			return asked != nil
		})
	if err != nil {
		return nil, err
	}
	return asked, found.Answer(c.ctx, asked.Id, args[1])
}

// off NAME
func (c *client) off(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	return c.await(found.PowerOff(c.ctx))
}

func (c *client) reconfigure(name string, operation types.VirtualDeviceConfigSpecOperation, disk *types.VirtualDisk) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, name)
	if err != nil {
		return nil, err
	}
	change := &types.VirtualDeviceConfigSpec{Operation: operation, Device: disk}
	spec := types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{change}}
	return c.await(found.Reconfigure(c.ctx, spec))
}

// attach NAME PATH MODE UNIT: a disk that exists, to the first SCSI controller
func (c *client) attach(args []string) (interface{}, error) {
	backing := &types.VirtualDiskFlatVer2BackingInfo{DiskMode: args[2]}
	backing.FileName = args[1]
	unit, err := strconv.Atoi(args[3])
	if err != nil {
		return nil, err
	}
	number := int32(unit)
	disk := &types.VirtualDisk{}
	disk.Key, disk.ControllerKey, disk.UnitNumber, disk.Backing = -1, 1000, &number, backing
	return c.reconfigure(args[0], types.VirtualDeviceConfigSpecOperationAdd, disk)
}

// detach NAME PATH
func (c *client) detach(args []string) (interface{}, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	devices, err := found.Device(c.ctx)
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		if disk, ok := device.(*types.VirtualDisk); ok {
			if backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && backing.FileName == args[1] {
				return c.reconfigure(args[0], types.VirtualDeviceConfigSpecOperationRemove, disk)
			}
		}
	}
	return nil, fmt.Errorf("%s has no disk %s", args[0], args[1])
}

// relocate NAME DATASTORE
func (c *client) relocate(args []string) (interface{}, error) {
	return c.await(c.startRelocation(args))
}

// cancel NAME DATASTORE: a relocation that is canceled once it has come somewhere
func (c *client) cancel(args []string) (interface{}, error) {
	task, err := c.startRelocation(args)
	if err != nil {
		return nil, err
	}
	for {
		var now mo.Task
		if _, err := c.properties(task.Reference(), []string{"info"}, &now); err != nil {
			return nil, err
		}
		if now.Info.State != types.TaskInfoStateRunning || now.Info.Progress > 1 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := task.Cancel(c.ctx); err != nil {
		return nil, err
	}
	return c.await(task, nil)
}

func (c *client) startRelocation(args []string) (*object.Task, error) {
	found, err := c.finder.VirtualMachine(c.ctx, args[0])
	if err != nil {
		return nil, err
	}
	store, err := c.finder.Datastore(c.ctx, args[1])
	if err != nil {
		return nil, err
	}
	target := store.Reference()
	spec := types.VirtualMachineRelocateSpec{Datastore: &target}
	return found.Relocate(c.ctx, spec, types.VirtualMachineMovePriorityDefaultPriority)
}
