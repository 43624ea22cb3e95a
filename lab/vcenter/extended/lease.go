package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// lease lets a client download disks as streamOptimized VMDK, for as long as it says that it goes
// on. Its id is the key to its downloads: they ask for no session, as on ESXi.
type lease struct {
	simulator.HttpNfcLease
	lock
	w     *world
	disks []*frozenDisk
	timer *time.Timer
	// Copies of its own, of a machine that is off; gone with the lease.
	own bool
}

func (s *snapshot) ExportSnapshot(req *types.ExportSnapshot) soap.HasFault {
	defer s.free()()
	l := s.machine.w.newLease(s.machine, s.frozen, false)
	return &methods.ExportSnapshotBody{Res: &types.ExportSnapshotResponse{Returnval: l.Self}}
}

func (m *machine) ExportVm(req *types.ExportVm) soap.HasFault {
	defer m.free()()
	body := &methods.ExportVmBody{}
	if m.running() != nil {
		on, off := types.VirtualMachinePowerStatePoweredOn, types.VirtualMachinePowerStatePoweredOff
		body.Fault_ = wrongState(on, off).soap()
		return body
	}
	copied := &snapshot{machine: m}
	copied.Self = ref{Value: m.w.id("export")}
	if err := m.freeze(copied); err != nil {
		body.Fault_ = asProblem(err).soap()
		return body
	}
	l := m.w.newLease(m, copied.frozen, true)
	body.Res = &types.ExportVmResponse{Returnval: l.Self}
	return body
}

func (w *world) newLease(m *machine, disks []*frozenDisk, own bool) *lease {
	seconds := w.script.behaves().LeaseTimeoutSeconds
	if seconds == 0 {
		seconds = 300
	}
	l := &lease{w: w, disks: disks, own: own}
	l.Self = ref{Type: "HttpNfcLease", Value: w.id("session[lease]")}
	l.HttpNfcLease.HttpNfcLease = mo.HttpNfcLease{
		Self: l.Self, State: types.HttpNfcLeaseStateInitializing, Mode: "pushOrGet",
	}
	info := types.HttpNfcLeaseInfo{Lease: l.Self, Entity: m.Self, LeaseTimeout: seconds}
	for index, each := range disks {
		name := fmt.Sprintf("disk-%d.vmdk", index)
		info.TotalDiskCapacityInKB += each.disk.sizeBytes / 1024
		info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
			Key:       fmt.Sprintf("/%s/%s", m.Self.Value, m.place(each.disk)),
			ImportKey: fmt.Sprintf("/%s/%s", m.Self.Value, m.place(each.disk)),
			Url:       fmt.Sprintf("https://%s/nfc/%s/%s", w.address, l.token(), name),
			Disk:      types.NewBool(true), TargetId: name, SslThumbprint: w.thumbprint,
			DatastoreKey: each.disk.store.self.Value, FileSize: each.disk.sizeBytes,
		})
	}
	simulator.Map.Put(l)
	// It is ready a little later, as on ESXi: clients wait for it. Said again, as ends of tasks are.
	for _, pause := range []time.Duration{100, 500, 2500} {
		time.AfterFunc(pause*time.Millisecond, func() { l.open(info) })
	}
	l.timer = time.AfterFunc(time.Duration(seconds)*time.Second, func() {
		words := "The lease has timed out."
		l.end(types.HttpNfcLeaseStateError, fail(&types.Timedout{}, "%s", words))
	})
	return l
}

// place names a disk as keys of leases do: its controller's type and number, and its unit.
func (m *machine) place(d *disk) string {
	b, number, _ := busOf(d.controller)
	model := m.vmx.get(fmt.Sprintf("%s%d.virtualDev", b.name, number))
	kind := reflect.TypeOf(controllerOf(b.name, model, types.VirtualController{})).Elem().Name()
	return fmt.Sprintf("%s%d:%d", kind, number, d.unit)
}

func (l *lease) token() string { return strings.NewReplacer("[", "", "]", "").Replace(l.Self.Value) }

func (l *lease) end(state types.HttpNfcLeaseState, reason *problem) {
	l.timer.Stop()
	changes := []types.PropertyChange{set("state", state)}
	if reason != nil {
		failed := types.LocalizedMethodFault{Fault: reason.fault, LocalizedMessage: reason.words}
		changes = append(changes, set("error", failed))
	}
	change(l, changes...)
	if l.own {
		for _, each := range l.disks {
			_ = os.Remove(each.file)
		}
	}
}

func (l *lease) open(info types.HttpNfcLeaseInfo) {
	simulator.Map.WithLock(l, func() {
		if l.State == types.HttpNfcLeaseStateInitializing || l.State == types.HttpNfcLeaseStateReady {
			ready := []types.PropertyChange{set("info", info), set("state", types.HttpNfcLeaseStateReady)}
			simulator.Map.Update(l, ready)
		}
	})
}

func (l *lease) ready() bool {
	ready := false
	simulator.Map.WithLock(l, func() { ready = l.State == types.HttpNfcLeaseStateReady })
	return ready
}

func leaseGone() *soap.Fault {
	return fail(&types.InvalidState{}, "The lease is not ready any more.").soap()
}

func (l *lease) HttpNfcLeaseProgress(req *types.HttpNfcLeaseProgress) soap.HasFault {
	defer l.free()()
	if !l.ready() {
		return &methods.HttpNfcLeaseProgressBody{Fault_: leaseGone()}
	}
	l.timer.Reset(time.Duration(l.Info.LeaseTimeout) * time.Second)
	change(l, set("transferProgress", req.Percent))
	return &methods.HttpNfcLeaseProgressBody{Res: &types.HttpNfcLeaseProgressResponse{}}
}

func (l *lease) HttpNfcLeaseComplete(req *types.HttpNfcLeaseComplete) soap.HasFault {
	defer l.free()()
	if !l.ready() {
		return &methods.HttpNfcLeaseCompleteBody{Fault_: leaseGone()}
	}
	l.end(types.HttpNfcLeaseStateDone, nil)
	return &methods.HttpNfcLeaseCompleteBody{Res: &types.HttpNfcLeaseCompleteResponse{}}
}

func (l *lease) HttpNfcLeaseAbort(req *types.HttpNfcLeaseAbort) soap.HasFault {
	defer l.free()()
	if !l.ready() {
		return &methods.HttpNfcLeaseAbortBody{Fault_: leaseGone()}
	}
	reason := fail(&types.RequestCanceled{}, "The lease was aborted.")
	if req.Fault != nil {
		reason = fail(req.Fault.Fault, "%s", req.Fault.LocalizedMessage)
	}
	l.end(types.HttpNfcLeaseStateError, reason)
	return &methods.HttpNfcLeaseAbortBody{Res: &types.HttpNfcLeaseAbortResponse{}}
}

// serveLease sends a disk as it is made, and stops when the lease ends.
func (w *world) serveLease(out http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/nfc/"), "/")
	l := w.leaseCalled(parts[0])
	index := -1
	if len(parts) == 2 {
		if n, err := fmt.Sscanf(parts[1], "disk-%d.vmdk", &index); n != 1 || err != nil {
			index = -1
		}
	}
	if l == nil || !l.ready() || index < 0 || index >= len(l.disks) || r.Method != http.MethodGet {
		http.NotFound(out, r)
		return
	}
	w.script.record(call{Method: "GET /nfc", Type: "http", Object: parts[1]})
	made := filepath.Join(w.directory, w.id("stream")+".vmdk")
	defer os.Remove(made)
	convert := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vmdk",
		"-o", "subformat=streamOptimized", l.disks[index].file, made)
	if said, err := convert.CombinedOutput(); err != nil {
		http.Error(out, string(said), http.StatusInternalServerError)
		return
	}
	stream, err := os.Open(made)
	if err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	defer stream.Close()
	out.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	marred := w.script.mar("GET /nfc", out)
	for l.ready() {
		if _, err := io.CopyN(marred, stream, 1<<20); err == errStalled {
			waitForEnd(l, r)
			break
		} else if err != nil {
			return
		}
	}
	panic(http.ErrAbortHandler)
}

// waitForEnd keeps a connection open on which nothing comes any more.
func waitForEnd(l *lease, r *http.Request) {
	for l.ready() && r.Context().Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
}

func (w *world) leaseCalled(token string) *lease {
	id := strings.Replace(token, "sessionlease", "session[lease]", 1)
	l, _ := simulator.Map.Get(ref{Type: "HttpNfcLease", Value: id}).(*lease)
	return l
}
