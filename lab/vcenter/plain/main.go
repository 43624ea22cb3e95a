// Starts govmomi's simulator as Debian packages it, and nothing else: what answers here is a third
// party's word. Prints one line of JSON when it is ready, and ends when its standard input does.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/url"
	"os"

	"../certificate"
	"github.com/vmware/govmomi/simulator"
)

type options struct {
	clusters, hosts, standalone, machines int
	esx                                   bool
	address, user, password, directory    string
}

func main() {
	var o options
	flag.BoolVar(&o.esx, "esx", false, "one ESX host without a vCenter")
	flag.IntVar(&o.clusters, "clusters", 1, "clusters")
	flag.IntVar(&o.hosts, "hosts", 3, "hosts of each cluster")
	flag.IntVar(&o.standalone, "standalone", 1, "hosts outside of clusters")
	flag.IntVar(&o.machines, "machines", 2, "machines of each resource pool")
	flag.StringVar(&o.address, "address", "127.0.0.1:0", "where to listen")
	flag.StringVar(&o.user, "user", "", "the one who may log in")
	flag.StringVar(&o.password, "password", "", "and how")
	flag.StringVar(&o.directory, "directory", "", "where local paths of datastores are looked for")
	flag.Parse()
	if err := run(o); err != nil {
		log.Fatal(err)
	}
}

func run(o options) error {
	if err := os.Chdir(o.directory); err != nil {
		return err
	}
	model := simulator.VPX()
	if o.esx {
		model = simulator.ESX()
	} else {
		model.Cluster, model.ClusterHost, model.Host = o.clusters, o.hosts, o.standalone
	}
	model.Machine = o.machines
	// It removes the directories of its datastores.
	defer model.Remove()
	if err := model.Create(); err != nil {
		return err
	}
	own, pemPath, err := certificate.New(o.address, o.directory)
	if err != nil {
		return err
	}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{own}}
	model.Service.Listen = &url.URL{Host: o.address, User: url.UserPassword(o.user, o.password)}
	server := model.Service.NewServer()
	address := *server.URL
	address.User = nil
	ready := map[string]string{"url": address.String(), "certificate": pemPath}
	if err := json.NewEncoder(os.Stdout).Encode(ready); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
