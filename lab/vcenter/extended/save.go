package main

import (
	"encoding/json"
	"os"
	"path/filepath"
)

func asJSON(value interface{}) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // maps of strings are always JSON
	}
	return string(text)
}

// saveVmx writes the configuration back, as ESXi does with each change. On NFS it stays here:
// libnfs's programs overwrite nothing. The caller holds mu.
func (m *machine) saveVmx() {
	if m.store.nas() {
		return
	}
	file := filepath.Join(m.store.directory, m.file)
	if err := os.WriteFile(file+".new", []byte(m.vmx.text()), 0o644); err == nil {
		_ = os.Rename(file+".new", file)
	}
}
