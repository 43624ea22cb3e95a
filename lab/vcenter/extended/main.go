// A vCenter with hosts behind it that do things: see ../README.md. Prints one line of JSON when it
// is ready, and ends, with everything it started, when its standard input does.
package main

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"../certificate"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25"
)

type settings struct {
	address, user, password, directory, inventory string
}

var serviceInstance = vim25.ServiceInstance

func main() {
	var o settings
	flag.StringVar(&o.address, "address", "127.0.0.1:0", "where to listen")
	flag.StringVar(&o.user, "user", "", "the one who may log in")
	flag.StringVar(&o.password, "password", "", "and how")
	flag.StringVar(&o.directory, "directory", "", "where machines keep what is theirs")
	flag.StringVar(&o.inventory, "inventory", "", "the inventory, as JSON")
	flag.Parse()
	if err := run(o); err != nil {
		log.Fatal(err)
	}
}

func run(o settings) error {
	text, err := os.ReadFile(o.inventory)
	if err != nil {
		return err
	}
	var spec inventory
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	w := newWorld(o.directory)
	defer w.end()
	f, pem, err := serve(w, o, &spec)
	if err != nil {
		return err
	}
	control := filepath.Join(o.directory, "control.sock")
	if err := listenControl(f, control); err != nil {
		return err
	}
	ready := map[string]string{"url": "https://" + f.address + "/sdk", "certificate": pem, "control": control}
	if err := json.NewEncoder(os.Stdout).Encode(ready); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func serve(w *world, o settings, spec *inventory) (*front, string, error) {
	content := vpx.ServiceContent
	if spec.Version != "" {
		content.About.Version, content.About.ApiVersion = spec.Version, spec.Version
		content.About.FullName = "VMware vCenter Server " + spec.Version + " (a stand-in of the lab)"
	}
	model := &simulator.Model{ServiceContent: content, RootFolder: vpx.RootFolder}
	if err := model.Create(); err != nil {
		return nil, "", err
	}
	service := model.Service
	// The front knows who may log in: the simulator knows one user only.
	service.Listen = &url.URL{Host: o.address, User: simulator.DefaultLogin}
	service.RegisterSDK(simulator.Map)
	client, err := vim25.NewClient(context.Background(), service)
	if err != nil {
		return nil, "", err
	}
	extendServices(w)
	if err := w.build(client, spec); err != nil {
		return nil, "", err
	}
	own, pem, err := certificate.New(o.address, o.directory)
	if err != nil {
		return nil, "", err
	}
	f := &front{w: w, service: service, sessions: map[string]string{}, tickets: map[string]string{}, address: o.address}
	f.users, f.password = map[string]bool{o.user: true}, o.password
	for _, each := range spec.Users {
		f.users[each] = true
	}
	f.files = http.HandlerFunc(f.serveFiles)
	f.listen = func() (net.Listener, error) {
		return tls.Listen("tcp", f.address, &tls.Config{Certificates: []tls.Certificate{own}})
	}
	sum := sha1.Sum(own.Certificate[0])
	w.thumbprint = strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
	err = f.start()
	w.address = f.address
	return f, pem, err
}

func extendServices(w *world) {
	content := simulator.Map.Get(serviceInstance).(*simulator.ServiceInstance).Content
	if old, ok := simulator.Map.Get(*content.AuthorizationManager).(*simulator.AuthorizationManager); ok {
		simulator.Map.Put(&authorization{AuthorizationManager: *old, w: w})
	}
	if old, ok := simulator.Map.Get(*content.FileManager).(*simulator.FileManager); ok {
		simulator.Map.Put(&fileManager{FileManager: *old, w: w})
	}
	if old, ok := simulator.Map.Get(*content.SearchIndex).(*simulator.SearchIndex); ok {
		simulator.Map.Put(&searchIndex{SearchIndex: *old})
	}
}

// end pulls every plug.
func (w *world) end() {
	w.mu.Lock()
	on := []*qemu{}
	for _, m := range w.machines {
		if m.qemu != nil {
			on = append(on, m.qemu)
		}
	}
	w.mu.Unlock()
	for _, q := range on {
		q.end()
	}
}
