package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// front stands before the simulator's own dispatcher: it knows the sessions, writes down every
// call, and does what the script says. A vCenter that is gone is a front that does not listen.
type front struct {
	w       *world
	service *simulator.Service
	files   http.Handler
	mu      sync.Mutex
	// Who may log in, and with what.
	users    map[string]bool
	password string
	// Cookies of those who have logged in and are still known, with their names.
	sessions map[string]string
	// Tickets that open a session, once, with whose they are.
	tickets map[string]string
	address string
	server  *http.Server
	listen  func() (net.Listener, error)
}

// Calls of someone who has not logged in. RetrieveProperties is one of them in the simulator; a
// vCenter answers it for the ServiceInstance only.
var open = map[string]bool{
	"RetrieveServiceContent": true, "Login": true, "LoginByToken": true,
	"LoginExtensionByCertificate": true, "CloneSession": true,
}

func (f *front) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/sdk") || r.Method != http.MethodPost {
		f.files.ServeHTTP(out, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(out, r.Body, 16<<20))
	if err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	method, err := simulator.UnmarshalBody(faultTypes, body)
	if err != nil {
		writeFault(out, fail(&types.InvalidRequest{}, "%s", err.Error()))
		return
	}
	f.record(method)
	if refused := f.refuse(r, method); refused != nil {
		writeFault(out, refused)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.URL.Path = "/sdk"
	f.scripted(out, r, method)
}

func (f *front) scripted(out http.ResponseWriter, r *http.Request, method *simulator.Method) {
	fault := f.w.script.next(method.Name)
	if fault != nil {
		time.Sleep(time.Duration(fault.DelayMs) * time.Millisecond)
		if fault.Fault != "" {
			if !strings.HasSuffix(method.Name, "_Task") || fault.InCall {
				writeFault(out, fault.problem())
				return
			}
			f.w.script.keepForTask(method.Name, method.This, fault)
		}
	}
	if strings.HasSuffix(method.Name, "_Task") {
		f.w.script.callsFor(method.Name, method.This, f.userOf(r))
	}
	user := ""
	switch method.Name {
	case "AcquireCloneTicket":
		f.giveTicket(out, f.userOf(r))
	case "CloneSession":
		user = f.cloneSession(out, r, method)
	case "Login":
		user = method.Body.(*types.Login).UserName
		f.service.ServeSDK(out, r)
	default:
		f.service.ServeSDK(out, r)
	}
	switch method.Name {
	case "Login", "CloneSession":
		for _, cookie := range (&http.Response{Header: out.Header()}).Cookies() {
			f.remember(cookie.Value, user)
		}
	case "Logout":
		if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
			f.remember(cookie.Value, "")
		}
	}
	if fault != nil && fault.DropAnswer {
		panic(http.ErrAbortHandler)
	}
}

// remember keeps a session with its user; without one it is forgotten.
func (f *front) remember(session string, user string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if user != "" {
		f.sessions[session] = user
	} else {
		delete(f.sessions, session)
	}
}

func (f *front) dropSessions() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions = map[string]string{}
}

func (f *front) loggedIn(r *http.Request) bool { return f.userOf(r) != "" }

func (f *front) userOf(r *http.Request) string {
	cookie, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[cookie.Value]
}

// refuse is for who has no session, or not the privileges.
func (f *front) refuse(r *http.Request, method *simulator.Method) *problem {
	if login, ok := method.Body.(*types.Login); ok {
		if !f.users[login.UserName] || login.Password != f.password {
			words := "Cannot complete login due to an incorrect user name or password."
			return fail(&types.InvalidLogin{}, "%s", words)
		}
	}
	if !f.loggedIn(r) {
		// Whatever session the cookie names is not one any more.
		r.Header.Del("Cookie")
		anyone := strings.HasPrefix(method.Name, "RetrieveProperties") && asksServiceInstance(method)
		if open[method.Name] || anyone {
			return nil
		}
		lost := types.NoPermission{Object: method.This, PrivilegeId: "System.View"}
		return fail(&types.NotAuthenticated{NoPermission: lost}, "The session is not authenticated.")
	}
	if refused := unmodelled(method); refused != nil {
		return refused
	}
	for _, need := range f.w.needs(method) {
		if f.w.script.lacks(need.privilege, nameOf(need.entity)) {
			fault := &types.NoPermission{Object: need.entity, PrivilegeId: need.privilege}
			return fail(fault, "Permission to perform this operation was denied.")
		}
	}
	return nil
}

func asksServiceInstance(method *simulator.Method) bool {
	var specs []types.PropertyFilterSpec
	switch body := method.Body.(type) {
	case *types.RetrieveProperties:
		specs = body.SpecSet
	case *types.RetrievePropertiesEx:
		specs = body.SpecSet
	}
	for _, spec := range specs {
		for _, object := range spec.ObjectSet {
			if object.Obj.Type != "ServiceInstance" {
				return false
			}
		}
	}
	return true
}

func (f *front) record(method *simulator.Method) {
	entry := call{Method: method.Name, Type: method.This.Type, Object: method.This.Value}
	if method.Name != "Login" {
		entry.Args = method.Body
	}
	f.w.script.record(entry)
}

func nameOf(reference ref) string {
	if e, ok := simulator.Map.Get(reference).(mo.Entity); ok {
		return e.Entity().Name
	}
	return reference.Value
}

// goAway does not listen for a while; connections that were open are cut.
func (f *front) goAway(pause time.Duration) {
	f.mu.Lock()
	old := f.server
	f.mu.Unlock()
	_ = old.Close()
	time.AfterFunc(pause, func() {
		if err := f.start(); err != nil {
			fmt.Println(err)
		}
	})
}

func (f *front) start() error {
	listener, err := f.listen()
	if err != nil {
		return err
	}
	server := &http.Server{Handler: f}
	f.mu.Lock()
	f.server = server
	f.address = listener.Addr().String()
	f.mu.Unlock()
	go func() { _ = server.Serve(listener) }()
	return nil
}

const envelope = xml.Header + `<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"` +
	` xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema"` +
	` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>` +
	`<faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>%s</detail>` +
	`</soapenv:Fault></soapenv:Body></soapenv:Envelope>`

// writeFault answers as the simulator does, without its dispatcher.
func writeFault(out http.ResponseWriter, p *problem) {
	kind := reflect.TypeOf(p.fault).Elem().Name()
	start := xml.StartElement{Name: xml.Name{Local: kind + "Fault"}, Attr: []xml.Attr{
		{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		{Name: xml.Name{Local: "xsi:type"}, Value: kind},
	}}
	var detail, words bytes.Buffer
	_ = xml.NewEncoder(&detail).EncodeElement(p.fault, start)
	_ = xml.EscapeText(&words, []byte(p.words))
	out.Header().Set("Content-Type", "text/xml; charset=utf-8")
	out.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(out, envelope, words.String(), detail.String())
}
