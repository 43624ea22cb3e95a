package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
)

// serveFiles answers what is not SOAP: pictures of screens, and files of datastores. Both take the
// cookie of a session, or the user's name and password. A lease's downloads ask for neither.
func (f *front) serveFiles(out http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/nfc/") {
		f.w.serveLease(out, r)
		return
	}
	user, password, _ := r.BasicAuth()
	if !f.loggedIn(r) && (!f.users[user] || password != f.password) {
		out.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(out, "log in first", http.StatusUnauthorized)
		return
	}
	query := r.URL.Query()
	seen := call{Method: r.Method + " " + r.URL.Path, Type: "http", Object: r.URL.RawQuery}
	if asked := r.Header.Get("Range"); asked != "" {
		seen.Args = asked
	}
	f.w.script.record(seen)
	switch {
	case r.URL.Path == "/screen" && r.Method == http.MethodGet:
		f.serveScreen(out, r, query.Get("id"))
	case strings.HasPrefix(r.URL.Path, "/folder/"):
		f.w.serveFolder(out, r)
	default:
		http.NotFound(out, r)
	}
}

func (f *front) serveScreen(out http.ResponseWriter, r *http.Request, id string) {
	m, ok := simulator.Map.Get(ref{Type: "VirtualMachine", Value: id}).(*machine)
	if !ok {
		http.NotFound(out, r)
		return
	}
	picture := filepath.Join(m.directory(), f.w.id("screen")+".png")
	defer os.Remove(picture)
	if err := m.screen(picture); err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	out.Header().Set("Content-Type", "image/png")
	http.ServeFile(out, r, picture)
}

// serveFolder reads and writes files of a datastore, with ranges. Reading over NFS fetches the
// whole file first; a disk of which there is a snapshot shows the snapshot's content in its flat
// file, as ESXi's base disk does.
func (w *world) serveFolder(out http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	center := strings.TrimPrefix(query.Get("dcPath"), "/")
	file := strings.TrimPrefix(path.Clean("/"+strings.TrimPrefix(r.URL.Path, "/folder/")), "/")
	w.mu.Lock()
	var s *store
	for _, each := range w.stores {
		if each.name == query.Get("dsName") && each.datacenter.Name == path.Base(center) {
			s = each
		}
	}
	w.mu.Unlock()
	privilege := "Datastore.Browse"
	if r.Method == http.MethodPut {
		privilege = "Datastore.FileManagement"
	}
	switch {
	case s == nil:
		http.NotFound(out, r)
	case w.script.lacks(privilege, s.name):
		http.Error(out, privilege+" is missing", http.StatusForbidden)
	case r.Method == http.MethodPut:
		w.putFile(out, r, s, file)
	default:
		w.getFile(out, r, s, file)
	}
}

func (w *world) putFile(out http.ResponseWriter, r *http.Request, s *store, file string) {
	if s.nas() {
		http.Error(out, "the lab writes to local datastores only", http.StatusForbidden)
		return
	}
	target := filepath.Join(s.directory, file)
	made, err := os.Create(target)
	if err == nil {
		_, err = io.Copy(made, r.Body)
		_ = made.Close()
	}
	if err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	out.WriteHeader(http.StatusCreated)
}

func (w *world) getFile(out http.ResponseWriter, r *http.Request, s *store, file string) {
	w.mu.Lock()
	local := w.frozen(s, file)
	var h *host
	for each := range s.mounts {
		h = each
	}
	w.mu.Unlock()
	if local == "" && !s.nas() {
		local = filepath.Join(s.directory, file)
	}
	if local == "" {
		local = filepath.Join(w.directory, w.id("fetched"))
		defer os.Remove(local)
		if err := w.fetch(h, s, file, local); err != nil {
			http.NotFound(out, r)
			return
		}
	}
	opened, err := os.Open(local)
	if err != nil {
		http.NotFound(out, r)
		return
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil || info.IsDir() {
		http.Error(out, fmt.Sprintf("%s is a directory", file), http.StatusForbidden)
		return
	}
	if r.Header.Get("Range") != "" {
		switch fault := w.script.next("GET /folder"); {
		case fault != nil && fault.How == "refuse":
			http.Error(out, "Datastore.Browse is missing", http.StatusForbidden)
			return
		case fault != nil && fault.How == "whole":
			r.Header.Del("Range")
		case fault != nil && fault.How == "cut":
			panic(http.ErrAbortHandler)
		}
	}
	http.ServeContent(out, r, "", time.Time{}, opened)
}
