package main

import (
	"reflect"
	"testing"

	"github.com/vmware/govmomi/vim25/types"
)

func TestVmxKeepsOrderAndEscapes(t *testing.T) {
	text := "# made by hand\nb = \"2\"\r\nA.x = \"say |22hi|22\"\n"
	v, err := parseVmx(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := v.get("a.X"); got != `say "hi"` {
		t.Errorf("unescaped: %s", got)
	}
	v.set("c", "3")
	v.remove("B")
	if got := v.text(); got != "A.x = \"say |22hi|22\"\nc = \"3\"\n" {
		t.Errorf("written: %s", got)
	}
}

func TestVmxRefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{"a = 1", "a \"1\"", "a = \"1\"\nA = \"2\""} {
		if _, err := parseVmx(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestUuidsThereAndBack(t *testing.T) {
	const spacedOut = "56 4d 52 6f 75 73 65 00-11 22 33 44 55 66 77 88"
	if got := uuid(spacedOut); got != "564d526f-7573-6500-1122-334455667788" {
		t.Error(got)
	}
	if got := spaced(uuid(spacedOut)); got != spacedOut {
		t.Error(got)
	}
	if got := uuid("none"); got != "" {
		t.Error(got)
	}
}

func TestDescriptorsOfOneFlatExtentOnly(t *testing.T) {
	const head = "# Disk DescriptorFile\n"
	good, err := parseDescriptor(head + "RW 2048 VMFS \"a-flat.vmdk\"\nddb.uuid = \"\"\n")
	if err != nil || good.extent != "a-flat.vmdk" || good.sectors != 2048 {
		t.Errorf("%+v %v", good, err)
	}
	for _, text := range []string{
		"RW 1 VMFS \"a\"", head, head + "RW 1 SPARSE \"a.vmdk\"", head + "RW 1 VMFS \"../a\"",
		head + "RW 1 VMFS \"a\"\nRW 1 VMFS \"b\"",
	} {
		if _, err := parseDescriptor(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestPathsOfDatastores(t *testing.T) {
	if name, file, ok := storePath("[a b] c/../d.vmx"); !ok || name != "a b" || file != "d.vmx" {
		t.Error(name, file, ok)
	}
	if _, file, ok := storePath("[a] ../../etc/passwd"); !ok || file != "etc/passwd" {
		t.Error(file)
	}
	if _, _, ok := storePath("a/b.vmx"); ok {
		t.Error("no datastore was taken for one")
	}
}

func TestAreasMergeAndStopAtTheirLimit(t *testing.T) {
	const size = 3*trackedBlock + 100
	got := areas([]uint64{1, 1, 1, 1}, []uint64{1, 2, 3, 4}, 0, size)
	want := []types.DiskChangeExtent{{Start: trackedBlock, Length: 2*trackedBlock + 100}}
	if !reflect.DeepEqual(got.ChangedArea, want) || got.Length != size {
		t.Errorf("%+v", got)
	}
	before, now := make([]uint64, 4*areasMax), make([]uint64, 4*areasMax)
	for index := 0; index < len(now); index += 2 {
		now[index] = 1
	}
	whole := int64(len(now)) * trackedBlock
	seen, offset := 0, int64(0)
	for offset < whole {
		part := areas(before, now, offset, whole)
		seen += len(part.ChangedArea)
		offset += part.Length
	}
	if seen != 2*areasMax {
		t.Errorf("%d areas", seen)
	}
}
