package main

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	googleuuid "github.com/google/uuid"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// job is what a task of a machine works with.
type job struct {
	*task
	ctx context.Context
}

// task runs something that this machine does alone.
func (m *machine) task(method string, cancelable bool, body func(*job) (types.AnyType, error)) ref {
	return m.w.start(m, method, cancelable, func(ctx context.Context, t *task) (types.AnyType, error) {
		done, err := m.exclusive()
		if err != nil {
			return nil, err
		}
		defer done()
		return body(&job{t, ctx})
	})
}

func (m *machine) PowerOnVMTask(req *types.PowerOnVM_Task) soap.HasFault {
	defer m.free()()
	asked := m.w.script.asks()
	cancelable := asked == nil || !asked.Stubborn
	task := m.task("PowerOnVM_Task", cancelable, func(j *job) (types.AnyType, error) {
		return nil, m.powerOn(j)
	})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: task}}
}

func (m *machine) powerOn(j *job) error {
	if m.running() != nil {
		return wrongState(types.VirtualMachinePowerStatePoweredOn, types.VirtualMachinePowerStatePoweredOn)
	}
	if err := m.host.connected(); err != nil {
		return err
	}
	if m.host.object.Runtime.InMaintenanceMode {
		return fail(&types.InvalidState{}, "The operation is not allowed in the current state of the host.")
	}
	m.w.mu.Lock()
	mode := m.store.mounts[m.host]
	m.w.mu.Unlock()
	if mode != "readWrite" {
		fault := &types.FileLocked{FileFault: types.FileFault{File: m.store.path(m.file)}}
		return fail(fault, "Unable to write to file %s", m.store.path(m.file))
	}
	if err := m.settleIdentity(j.ctx); err != nil {
		return err
	}
	if asked := m.w.script.asks(); asked != nil {
		if err := m.askScripted(j.ctx, asked); err != nil {
			return err
		}
	}
	disks, err := m.w.readDisks(m.host, m.store, dirOf(m.file), m.vmx)
	if err != nil {
		return err
	}
	m.adopt(disks)
	if err := m.boot(); err != nil {
		return err
	}
	now := time.Now()
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	tools := m.w.script.behaves().ToolsRunningStatus
	if tools == "" {
		tools = "guestToolsRunning"
	}
	m.showPower(types.VirtualMachinePowerStatePoweredOn, tools)
	change(m, set("runtime.bootTime", now))
	m.publish()
	return nil
}

// adopt takes over what the datastore says now, and keeps disks of other datastores.
func (m *machine) adopt(disks []*disk) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	known := map[string]*disk{}
	for _, d := range m.disks {
		known[d.slot] = d
	}
	for _, d := range disks {
		if old := known[d.slot]; old != nil {
			d.changeID = old.changeID
		}
		known[d.slot] = d
	}
	m.disks = nil
	for _, b := range buses {
		for number := 0; number < b.buses; number++ {
			for unit := 0; unit < b.units; unit++ {
				if d := known[b.slot(number, unit)]; d != nil {
					m.disks = append(m.disks, d)
				}
			}
		}
	}
}

// showPower publishes a power state; the caller holds mu.
func (m *machine) showPower(state types.VirtualMachinePowerState, tools string) {
	guest, status := "notRunning", types.VirtualMachineToolsStatusToolsNotRunning
	if tools == "guestToolsRunning" {
		guest, status = "running", types.VirtualMachineToolsStatusToolsOk
	}
	change(m, set("runtime.powerState", state), set("summary.runtime.powerState", state),
		set("guest.toolsRunningStatus", tools), set("guest.guestState", guest),
		set("guest.toolsStatus", status), set("summary.guest.toolsRunningStatus", tools))
}

const movedWords = "msg.uuid.altered:This virtual machine might have been moved or copied.\n" +
	"In order to configure certain management and networking features, VMware ESX needs to know " +
	"if this virtual machine was moved or copied.\n\n" +
	"If you don't know, answer \"button.uuid.copiedTheVM\".\n"

func (m *machine) location() string {
	place := []byte(m.host.name + m.store.path(m.file))
	return googleuuid.NewSHA1(googleuuid.NameSpaceOID, place).String()
}

// settleIdentity asks whether a machine was moved or copied when its place has changed and its
// .vmx does not say. ESXi derives uuid.location from the host and the path; so do we, our own way.
func (m *machine) settleIdentity(ctx context.Context) error {
	here := m.location()
	before := uuid(m.vmx.get("uuid.location"))
	answer := map[string]string{"create": "2", "keep": "1"}[m.vmx.get("uuid.action")]
	if before != "" && before != here && answer == "" {
		given, err := m.askMoved(ctx)
		if err != nil {
			return err
		}
		answer = given
	}
	switch {
	case before == here:
		return nil
	case answer == "0":
		return fail(&types.GenericVmConfigFault{Reason: "msg.uuid.altered"}, "The power-on was canceled.")
	case answer == "2" && before != "":
		m.vmx.set("uuid.bios", spaced(googleuuid.New().String()))
	}
	m.vmx.set("uuid.location", spaced(here))
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.saveVmx()
	m.publish()
	return nil
}

func choice(key, label string) types.BaseElementDescription {
	description := types.Description{Label: label, Summary: label}
	return &types.ElementDescription{Description: description, Key: key}
}

// askMoved is the question that a machine in another place asks.
func (m *machine) askMoved(ctx context.Context) (string, error) {
	return m.ask(ctx, "msg.uuid.altered", movedWords, []types.BaseElementDescription{
		choice("0", "button.uuid.cancel"), choice("1", "button.uuid.movedTheVM"),
		choice("2", "button.uuid.copiedTheVM"),
	})
}

// askScripted is one that a test has thought of.
func (m *machine) askScripted(ctx context.Context, asked *scriptedQuestion) error {
	choices := []types.BaseElementDescription{}
	for _, each := range asked.Choices {
		choices = append(choices, choice(each.Key, each.Label))
	}
	if asked.Stubborn {
		ctx = context.Background()
	}
	given, err := m.ask(ctx, asked.ID, asked.Text, choices)
	if err != nil {
		return err
	}
	for _, each := range asked.Choices {
		if each.Key == given && strings.Contains(strings.ToLower(each.Label), "cancel") {
			return fail(&types.GenericVmConfigFault{Reason: asked.ID}, "The power-on was canceled.")
		}
	}
	return nil
}

// ask shows a question and waits for AnswerVM.
func (m *machine) ask(
	ctx context.Context,
	id, text string,
	choices []types.BaseElementDescription,
) (string, error) {
	question := types.VirtualMachineQuestionInfo{
		Id: m.w.id("_vmx"), Text: text, Choice: types.ChoiceOption{ChoiceInfo: choices},
		Message: []types.VirtualMachineMessage{{Id: id, Text: text}},
	}
	answers := make(chan string, 1)
	m.w.mu.Lock()
	m.answers = answers
	change(m, set("runtime.question", question), set("summary.runtime.question", question))
	m.w.mu.Unlock()
	defer func() {
		m.w.mu.Lock()
		m.answers = nil
		change(m, set("runtime.question", nil), set("summary.runtime.question", nil))
		m.w.mu.Unlock()
	}()
	select {
	case answer := <-answers:
		return answer, nil
	case <-ctx.Done():
		return "", canceled()
	}
}

func (m *machine) AnswerVM(req *types.AnswerVM) soap.HasFault {
	defer m.free()()
	body := &methods.AnswerVMBody{}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	question := m.Runtime.Question
	valid := false
	if question != nil {
		for _, each := range question.Choice.ChoiceInfo {
			valid = valid || each.GetElementDescription().Key == req.AnswerChoice
		}
	}
	if m.answers == nil || question == nil || question.Id != req.QuestionId || !valid {
		body.Fault_ = invalid("questionId").soap()
		return body
	}
	m.answers <- req.AnswerChoice
	m.answers = nil
	body.Res = &types.AnswerVMResponse{}
	return body
}

func (m *machine) PowerOffVMTask(req *types.PowerOffVM_Task) soap.HasFault {
	defer m.free()()
	task := m.task("PowerOffVM_Task", false, func(*job) (types.AnyType, error) {
		q := m.running()
		if q == nil {
			off := types.VirtualMachinePowerStatePoweredOff
			return nil, wrongState(off, off)
		}
		q.end()
		return nil, nil
	})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: task}}
}

func (m *machine) ShutdownGuest(req *types.ShutdownGuest) soap.HasFault {
	defer m.free()()
	body := &methods.ShutdownGuestBody{}
	q := m.running()
	if q == nil {
		off := types.VirtualMachinePowerStatePoweredOff
		body.Fault_ = wrongState(off, off).soap()
		return body
	}
	if m.Guest.ToolsRunningStatus != "guestToolsRunning" {
		words := "Cannot complete operation because VMware Tools is not running in this virtual machine."
		body.Fault_ = fail(&types.ToolsUnavailable{}, "%s", words).soap()
		return body
	}
	if _, err := q.run("system_powerdown", nil); err != nil {
		body.Fault_ = asProblem(err).soap()
		return body
	}
	body.Res = &types.ShutdownGuestResponse{}
	return body
}

// CreateScreenshotTask puts the picture beside the .vmx; on an export it only seems to be there.
func (m *machine) CreateScreenshotTask(req *types.CreateScreenshot_Task) soap.HasFault {
	defer m.free()()
	task := m.task("CreateScreenshot_Task", false, func(*job) (types.AnyType, error) {
		name := fmt.Sprintf("%s-%s.png", path.Base(dirOf(m.file)), m.w.id("1"))
		if m.running() == nil {
			off := types.VirtualMachinePowerStatePoweredOff
			return nil, wrongState(off, types.VirtualMachinePowerStatePoweredOn)
		}
		if m.w.script.behaves().NoScreenshots {
			return nil, fail(&types.NotSupported{}, "The operation is not supported on the object.")
		}
		file := path.Join(dirOf(m.file), name)
		if !m.store.nas() {
			return m.store.path(file), m.screen(filepath.Join(m.store.directory, file))
		}
		picture := filepath.Join(m.directory(), name)
		if err := m.screen(picture); err != nil {
			return nil, err
		}
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		m.w.pictures[m.store.path(file)] = picture
		return m.store.path(file), nil
	})
	return &methods.CreateScreenshot_TaskBody{Res: &types.CreateScreenshot_TaskResponse{Returnval: task}}
}

// screen writes a picture of a running machine's screen.
func (m *machine) screen(png string) error {
	q := m.running()
	if q == nil {
		return fail(&types.InvalidPowerState{}, "The machine is off.")
	}
	_, err := q.run("screendump", map[string]interface{}{"filename": png, "format": "png"})
	return err
}
