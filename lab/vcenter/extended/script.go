package main

import (
	"reflect"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

// script is what a test has asked for: faults, delays, missing privileges, answers to come.
type script struct {
	mu     sync.Mutex
	faults []*scriptedFault
	// Faults of tasks, by method and object, between the call and its task.
	due map[string]*scriptedFault
	// Who has called for a task, the same way.
	callers map[string]string
	// Asked at each power-on, until it is taken away.
	question  *scriptedQuestion
	missing   []missingPrivilege
	calls     []call
	behaviour behaviour
}

// scriptedFault happens to the nth call of a method (counted from when it was scripted), or to
// every one when nth is 0. A fault of a task's method fails the task, not the call.
type scriptedFault struct {
	Method     string `json:"method"`
	Nth        int    `json:"nth"`
	Fault      string `json:"fault"`
	Message    string `json:"message"`
	DelayMs    int    `json:"delayMs"`
	AtProgress int32  `json:"atProgress"`
	// The call is carried out, and its answer is lost with the connection.
	DropAnswer bool `json:"dropAnswer"`
	// The call itself fails, also where it would have made a task.
	InCall bool `json:"inCall"`
	// Of a download ("GET /nfc") or of a file ("GET /folder"): what becomes of it, and from which
	// byte on. "cut" ends the connection, "stall" sends nothing more, "flip" turns one byte around,
	// "whole" sends all of a file where a range was asked for, "refuse" answers 403.
	How    string `json:"how"`
	AtByte int64  `json:"atByte"`
	seen   int
}

// scriptedQuestion keeps a machine from starting until it is answered. A choice whose label says
// cancel ends the power-on; any other lets it go on.
type scriptedQuestion struct {
	ID      string `json:"id"`
	Text    string `json:"text"`
	Choices []struct {
		Key   string `json:"key"`
		Label string `json:"label"`
	} `json:"choices"`
	// The task cannot be canceled while it is asked.
	Stubborn bool `json:"stubborn"`
}

type missingPrivilege struct {
	Privilege string `json:"privilege"`
	// The name of an object; none means everywhere.
	Entity string `json:"entity"`
}

type call struct {
	Method string      `json:"method"`
	Type   string      `json:"type"`
	Object string      `json:"object"`
	Args   interface{} `json:"args,omitempty"`
}

// behaviour is where versions of ESXi differ, or where a test has to slow something down.
type behaviour struct {
	// RemoveDatastore of a NAS datastore does not look for machines on it (the API promises
	// ResourceInUse only for VMFS).
	NasRemoveAnyway bool `json:"nasRemoveAnyway"`
	// Bytes per second of a relocation; 0 is as fast as it goes.
	RelocateBytesPerSecond int64 `json:"relocateBytesPerSecond"`
	// Seconds without progress after which a lease ends; vCenter's default is 300.
	LeaseTimeoutSeconds int32 `json:"leaseTimeoutSeconds"`
	// What guest.toolsRunningStatus says of a machine that is on; guestToolsRunning if empty.
	ToolsRunningStatus string `json:"toolsRunningStatus"`
	// A removed snapshot leaves files behind, as when something else held them: the machine says that
	// its disks need consolidation.
	RemovalLeavesFiles bool `json:"removalLeavesFiles"`
	// CreateScreenshot_Task answers with a path on the datastore instead of doing it.
	NoScreenshots bool `json:"noScreenshots"`
}

func newScript() *script {
	return &script{due: map[string]*scriptedFault{}, callers: map[string]string{}}
}

func (s *script) behaves() behaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.behaviour
}

// next gives what is scripted for a call, if anything.
func (s *script) next(method string) *scriptedFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found *scriptedFault
	for _, each := range s.faults {
		if each.Method != method {
			continue
		}
		each.seen++
		if found == nil && (each.Nth == 0 || each.Nth == each.seen) {
			found = each
		}
	}
	return found
}

func (s *script) keepForTask(method string, object ref, fault *scriptedFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due[method+" "+object.String()] = fault
}

func (s *script) forTask(method string, object ref) *scriptedFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := method + " " + object.String()
	fault := s.due[key]
	delete(s.due, key)
	return fault
}

func (s *script) callsFor(method string, object ref, user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.callers[method+" "+object.String()] = user
}

func (s *script) callerOf(method string, object ref) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := method + " " + object.String()
	user := s.callers[key]
	delete(s.callers, key)
	return user
}

// passOn is for calls on an object whose task is another's: what is scripted and who called go along.
func (s *script) passOn(method string, from, to ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, now := method+" "+from.String(), method+" "+to.String()
	if fault := s.due[old]; fault != nil {
		s.due[now] = fault
	}
	s.callers[now] = s.callers[old]
	delete(s.due, old)
	delete(s.callers, old)
}

func (s *script) asks() *scriptedQuestion {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.question
}

func (s *script) record(c call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, c)
}

// lacks tells whether the one user of this vCenter lacks a privilege on an object of this name.
func (s *script) lacks(privilege, entity string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, each := range s.missing {
		if each.Privilege == privilege && (each.Entity == "" || each.Entity == entity) {
			return true
		}
	}
	return false
}

var faultTypes = types.TypeFunc()

// problem makes the fault by its name in the API, such as `ResourceInUse`.
func (f *scriptedFault) problem() *problem {
	kind, known := faultTypes(f.Fault)
	if known {
		if fault, ok := reflect.New(kind).Interface().(types.BaseMethodFault); ok {
			return fail(fault, "%s", f.Message)
		}
	}
	return fail(&types.SystemError{Reason: f.Message}, "%s", f.Message)
}
