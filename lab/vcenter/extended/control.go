package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// listenControl opens the socket through which a test scripts what happens. Each path takes a JSON
// object by POST and answers with JSON.
func listenControl(f *front, path string) error {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	handle := func(name string, answer func(*json.Decoder) (interface{}, error)) {
		mux.HandleFunc("/"+name, func(out http.ResponseWriter, r *http.Request) {
			result, err := answer(json.NewDecoder(r.Body))
			if err != nil {
				http.Error(out, err.Error(), http.StatusBadRequest)
				return
			}
			_ = json.NewEncoder(out).Encode(result)
		})
	}
	w := f.w
	handle("fault", w.addFault)
	handle("clearFaults", func(*json.Decoder) (interface{}, error) {
		w.script.mu.Lock()
		defer w.script.mu.Unlock()
		w.script.faults, w.script.question = nil, nil
		return nil, nil
	})
	handle("question", func(body *json.Decoder) (interface{}, error) {
		asked := &scriptedQuestion{}
		err := body.Decode(asked)
		w.script.mu.Lock()
		defer w.script.mu.Unlock()
		w.script.question = asked
		return nil, err
	})
	handle("calls", func(*json.Decoder) (interface{}, error) {
		w.script.mu.Lock()
		defer w.script.mu.Unlock()
		return append([]call{}, w.script.calls...), nil
	})
	handle("nfsLog", func(*json.Decoder) (interface{}, error) { return w.commands.nfsLog(), nil })
	handle("dropSessions", func(*json.Decoder) (interface{}, error) {
		f.dropSessions()
		return nil, nil
	})
	handle("goAway", func(body *json.Decoder) (interface{}, error) {
		var asked struct{ Ms int }
		err := body.Decode(&asked)
		if err == nil {
			f.goAway(time.Duration(asked.Ms) * time.Millisecond)
		}
		return nil, err
	})
	handle("privileges", w.setPrivileges)
	handle("behaviour", w.setBehaviour)
	handle("host", w.setHost)
	handle("tools", w.setTools)
	handle("machines", w.listMachines)
	handle("datastores", w.listStores)
	handle("resetChangeTracking", w.resetTracking)
	go func() { _ = http.Serve(listener, mux) }()
	return nil
}

func (w *world) addFault(body *json.Decoder) (interface{}, error) {
	fault := &scriptedFault{}
	if err := body.Decode(fault); err != nil {
		return nil, err
	}
	w.script.mu.Lock()
	defer w.script.mu.Unlock()
	w.script.faults = append(w.script.faults, fault)
	return nil, nil
}

func (w *world) setPrivileges(body *json.Decoder) (interface{}, error) {
	var missing []missingPrivilege
	if err := body.Decode(&missing); err != nil {
		return nil, err
	}
	w.script.mu.Lock()
	defer w.script.mu.Unlock()
	w.script.missing = missing
	return nil, nil
}

func (w *world) setBehaviour(body *json.Decoder) (interface{}, error) {
	var asked behaviour
	if err := body.Decode(&asked); err != nil {
		return nil, err
	}
	w.script.mu.Lock()
	defer w.script.mu.Unlock()
	w.script.behaviour = asked
	return nil, nil
}

// setHost changes a host's state: maintenance mode, connection; a host that dies takes its
// machines with it.
func (w *world) setHost(body *json.Decoder) (interface{}, error) {
	var asked struct {
		Name, Connection  string
		Maintenance, Dies *bool
	}
	if err := body.Decode(&asked); err != nil {
		return nil, err
	}
	h := w.hostCalled(asked.Name)
	if h == nil {
		return nil, fail(&types.NotFound{}, "there is no host %s", asked.Name)
	}
	dies := asked.Dies != nil && *asked.Dies
	if dies {
		asked.Connection = "notResponding"
	}
	if asked.Maintenance != nil {
		change(h.object, set("runtime.inMaintenanceMode", *asked.Maintenance),
			set("summary.runtime.inMaintenanceMode", *asked.Maintenance))
	}
	if asked.Connection != "" {
		state := types.HostSystemConnectionState(asked.Connection)
		change(h.object, set("runtime.connectionState", state),
			set("summary.runtime.connectionState", state))
	}
	if dies {
		for _, q := range w.runningOn(h) {
			q.end()
		}
	}
	w.showMachines(h)
	return nil, nil
}

// showMachines says of a host's machines what vCenter can know of them: what was last seen, while
// the host does not answer.
func (w *world) showMachines(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	state := types.VirtualMachineConnectionStateConnected
	if h.connected() != nil {
		state = types.VirtualMachineConnectionStateDisconnected
	}
	for _, m := range w.machines {
		if m.host != h || m.Runtime.ConnectionState == state {
			continue
		}
		change(m, set("runtime.connectionState", state), set("summary.runtime.connectionState", state))
		if m.qemu == nil && m.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			m.showOff()
		}
	}
}

func (w *world) runningOn(h *host) []*qemu {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := []*qemu{}
	for _, m := range w.machines {
		if m.host == h && m.qemu != nil {
			list = append(list, m.qemu)
		}
	}
	return list
}

func (w *world) setTools(body *json.Decoder) (interface{}, error) {
	var asked struct {
		Machine, Status string
		Mounts          []struct{ Slot, Path string }
	}
	if err := body.Decode(&asked); err != nil {
		return nil, err
	}
	m := w.machineCalled(asked.Machine)
	if m == nil {
		return nil, fail(&types.NotFound{}, "there is no machine %s", asked.Machine)
	}
	volumes := []types.GuestDiskInfo{}
	w.mu.Lock()
	for _, each := range asked.Mounts {
		for _, d := range m.disks {
			if d.slot == each.Slot {
				mapping := types.GuestInfoVirtualDiskMapping{Key: d.key}
				volumes = append(volumes, types.GuestDiskInfo{
					DiskPath: each.Path, Mappings: []types.GuestInfoVirtualDiskMapping{mapping},
				})
			}
		}
	}
	w.mu.Unlock()
	change(m, set("guest.toolsRunningStatus", asked.Status), set("guest.disk", volumes))
	return nil, nil
}

// listMachines tells what vCenter has no words for: serial ports, and files where they are.
func (w *world) listMachines(*json.Decoder) (interface{}, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := []map[string]interface{}{}
	for self, m := range w.machines {
		disks := []map[string]interface{}{}
		for _, d := range m.disks {
			disks = append(disks, map[string]interface{}{
				"slot": d.slot, "file": d.store.path(d.file), "sizeBytes": d.sizeBytes,
			})
		}
		scsi := 0
		for bus := 0; bus < 4; bus++ {
			if m.vmx.is(fmt.Sprintf("scsi%d.present", bus)) {
				scsi++
			}
		}
		list = append(list, map[string]interface{}{
			"scsiControllers": scsi,
			"id":              self.Value, "name": m.name, "host": m.host.name, "vmx": m.store.path(m.file),
			"poweredOn": m.qemu != nil, "disks": disks,
			"serialLog": m.directory() + "/serial.log", "commandSocket": m.directory() + "/command.sock",
		})
	}
	return list, nil
}

// listStores tells what is mounted where, as the hosts have it.
func (w *world) listStores(*json.Decoder) (interface{}, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := []map[string]interface{}{}
	for self, s := range w.stores {
		hosts := []string{}
		for h := range s.mounts {
			hosts = append(hosts, h.name)
		}
		remote := ""
		if s.nas() {
			remote = s.remoteHost + ":" + s.remotePath
		}
		list = append(list, map[string]interface{}{
			"id": self.Value, "name": s.name, "remote": remote, "hosts": hosts,
		})
	}
	return list, nil
}
