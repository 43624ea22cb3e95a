package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// problem is a fault of vSphere's with the words that go with it.
type problem struct {
	fault types.BaseMethodFault
	words string
}

func (p *problem) Error() string { return p.words }

func fail(fault types.BaseMethodFault, words string, args ...interface{}) *problem {
	return &problem{fault, fmt.Sprintf(words, args...)}
}

// asProblem makes something else that went wrong here a fault that names it.
func asProblem(err error) *problem {
	if known, ok := err.(*problem); ok {
		return known
	}
	fault := &types.GenericVmConfigFault{Reason: err.Error()}
	return fail(fault, "%s", err.Error())
}

func (p *problem) soap() *soap.Fault { return simulator.Fault(p.words, p.fault) }

// task runs beside the call that started it, unlike the simulator's own, which are done when the
// call answers.
type task struct {
	simulator.Task
	lock
	cancel   context.CancelFunc
	scripted *scriptedFault
}

// start runs a task; method is the one that was called (`RelocateVM_Task`).
func (w *world) start(
	entity mo.Reference,
	method string,
	cancelable bool,
	body func(ctx context.Context, t *task) (types.AnyType, error),
) ref {
	ctx, cancel := context.WithCancel(context.Background())
	t := &task{cancel: cancel, scripted: w.script.forTask(method, entity.Reference())}
	about := entity.Reference()
	id := strings.TrimSuffix(method, "_Task")
	t.Self = ref{Type: "Task", Value: w.id("task")}
	t.Info = types.TaskInfo{
		Key:           t.Self.Value,
		Task:          t.Self,
		Name:          method,
		DescriptionId: about.Type + "." + strings.ToLower(id[:1]) + id[1:],
		Entity:        &about,
		EntityName:    about.Value,
		State:         types.TaskInfoStateRunning,
		Cancelable:    cancelable,
		Reason:        &types.TaskReasonUser{UserName: "lab"},
		QueueTime:     time.Now(),
	}
	started := time.Now()
	t.Info.StartTime = &started
	simulator.Map.Put(t)
	if m, ok := entity.(*machine); ok {
		change(m, set("recentTask", with(m.RecentTask, t.Self)))
	}
	go func() {
		defer cancel()
		err := t.progress(0)
		var result types.AnyType
		if err == nil {
			result, err = body(ctx, t)
		}
		if err == nil {
			err = t.progress(100)
		}
		t.end(result, err)
	}()
	return t.Self
}

func (t *task) end(result types.AnyType, err error) {
	now := time.Now()
	change(t, t.outcome(now, result, err)...)
	// The simulator listens for changes only after it has answered a first wait for updates:
	// what falls between is said again.
	for _, pause := range []time.Duration{400 * time.Millisecond, 2 * time.Second} {
		time.Sleep(pause)
		change(t, t.outcome(now, result, err)...)
	}
}

// outcome is made anew each time: who waits for updates keeps the list that was given.
func (t *task) outcome(now time.Time, result types.AnyType, err error) []types.PropertyChange {
	done := []types.PropertyChange{set("info.completeTime", now)}
	if err == nil {
		if result != nil {
			done = append(done, set("info.result", result))
		}
		return append(done, set("info.state", types.TaskInfoStateSuccess))
	}
	known := asProblem(err)
	_, cancelled := known.fault.(*types.RequestCanceled)
	failed := types.LocalizedMethodFault{Fault: known.fault, LocalizedMessage: known.words}
	return append(done, set("info.cancelled", cancelled), set("info.error", failed),
		set("info.state", types.TaskInfoStateError))
}

// progress says how far it is, and fails where a script says so.
func (t *task) progress(percent int32) error {
	if s := t.scripted; s != nil && percent >= s.AtProgress {
		t.scripted = nil
		return s.problem()
	}
	if percent > 0 && percent < 100 {
		change(t, set("info.progress", percent))
	}
	return nil
}

func (t *task) CancelTask(req *types.CancelTask) soap.HasFault {
	defer t.free()()
	body := &methods.CancelTaskBody{}
	switch {
	case !t.Info.Cancelable:
		body.Fault_ = simulator.Fault("The task cannot be canceled.", &types.NotSupported{})
	case t.Info.State != types.TaskInfoStateRunning:
		words := "The operation is not allowed in the current state."
		body.Fault_ = simulator.Fault(words, &types.InvalidState{})
	default:
		t.cancel()
		body.Res = &types.CancelTaskResponse{}
	}
	return body
}

func canceled() *problem {
	return fail(&types.RequestCanceled{}, "The task was canceled by a user.")
}
