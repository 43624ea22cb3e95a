// Starts govmomi's simulator as Debian packages it, and nothing else: what answers here is a third
// party's word. Prints one line of JSON when it is ready, and ends when its standard input does.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"io"
	"log"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

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
	certificate, err := newCertificate(o.address)
	if err != nil {
		return err
	}
	pemPath := filepath.Join(o.directory, "vcenter.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}
	if err := os.WriteFile(pemPath, pem.EncodeToMemory(block), 0o644); err != nil {
		return err
	}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
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

// newCertificate signs itself, for the address that is listened on.
func newCertificate(address string) (tls.Certificate, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: "vcenter.test"},
		DNSNames:              []string{"vcenter.test", "localhost"},
		IPAddresses:           []net.IP{net.ParseIP(host)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(30 * 24 * time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
