package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	googleuuid "github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// Sessions are cloned here and not by the simulator: its clones share what they hold (collectors,
// filters) with the session that they came from, and take it along when they log out.

const answered = xml.Header + `<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">` +
	`<soapenv:Body><%[1]s xmlns="urn:vim25"><returnval>%[2]s</returnval></%[1]s></soapenv:Body></soapenv:Envelope>`

const loginCall = xml.Header + `<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">` +
	`<soapenv:Body><Login xmlns="urn:vim25"><_this type="SessionManager">%s</_this>` +
	`<userName>%s</userName><password>%s</password></Login></soapenv:Body></soapenv:Envelope>`

// giveTicket makes one that opens a session of that user, once.
func (f *front) giveTicket(out http.ResponseWriter, user string) {
	ticket := googleuuid.New().String()
	f.mu.Lock()
	f.tickets[ticket] = user
	f.mu.Unlock()
	out.Header().Set("Content-Type", "text/xml; charset=utf-8")
	fmt.Fprintf(out, answered, "AcquireCloneTicketResponse", ticket)
}

// cloneSession logs in for who shows a ticket, and tells whose it is.
func (f *front) cloneSession(
	out http.ResponseWriter,
	r *http.Request,
	method *simulator.Method,
) string {
	ticket := method.Body.(*types.CloneSession).CloneTicket
	f.mu.Lock()
	owner := f.tickets[ticket]
	delete(f.tickets, ticket)
	f.mu.Unlock()
	if owner == "" {
		writeFault(out, fail(&types.InvalidLogin{}, "The ticket is not valid, or was used before."))
		return ""
	}
	var user, password strings.Builder
	_ = xml.EscapeText(&user, []byte(owner))
	_ = xml.EscapeText(&password, []byte(f.password))
	r.Header.Del("Cookie")
	call := fmt.Sprintf(loginCall, method.This.Value, user.String(), password.String())
	r.Body = io.NopCloser(strings.NewReader(call))
	made := httptest.NewRecorder()
	f.service.ServeSDK(made, r)
	for name, values := range made.Header() {
		out.Header()[name] = values
	}
	out.Header().Del("Content-Length")
	out.WriteHeader(made.Code)
	_, _ = io.WriteString(out, strings.ReplaceAll(made.Body.String(), "LoginResponse", "CloneSessionResponse"))
	return owner
}
