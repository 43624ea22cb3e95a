package main

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"

	googleuuid "github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Change tracking here compares what disks held at two snapshots, by hashes of their blocks. It names
// every block that differs and no other; an ESXi also names blocks that were written and are the same.
const trackedBlock = 64 << 10

// areasMax is how many areas one answer holds at most: few, so that clients have to ask again (an
// ESXi gives about 2000).
const areasMax = 64

var hashSeed = maphash.MakeSeed()

type tracking struct{ disks map[int32]*trackedDisk }

// trackedDisk has an id that a reset replaces, and the hashes of each snapshot by its number.
type trackedDisk struct {
	id     string
	number int
	hashes map[int][]uint64
}

// mark takes a snapshot's disk down, and gives its change id.
func (t *tracking) mark(frozen *frozenDisk) (string, error) {
	if t.disks == nil {
		t.disks = map[int32]*trackedDisk{}
	}
	key := frozen.disk.key
	known := t.disks[key]
	if known == nil {
		known = &trackedDisk{id: newChangeID(), hashes: map[int][]uint64{}}
		t.disks[key] = known
	}
	hashes, err := hashBlocks(frozen.file)
	if err != nil {
		return "", err
	}
	known.number++
	known.hashes[known.number] = hashes
	id := fmt.Sprintf("%s/%d", known.id, known.number)
	frozen.disk.changeID = id
	return id, nil
}

// newChangeID looks like ESXi's: `52 3c 1e 7c ...-... `.
func newChangeID() string { return spaced(googleuuid.New().String()) }

func hashBlocks(file string) ([]uint64, error) {
	hashes := []uint64{}
	err := eachBlock(file, trackedBlock, func(_ int64, block []byte) {
		hashes = append(hashes, hashBlock(block))
	})
	return hashes, err
}

// hashBlock gives 0 to a block of zeros.
func hashBlock(block []byte) uint64 {
	zero := true
	for _, each := range block {
		if each != 0 {
			zero = false
			break
		}
	}
	if zero {
		return 0
	}
	var hash maphash.Hash
	hash.SetSeed(hashSeed)
	_, _ = hash.Write(block)
	return hash.Sum64() | 1
}

func (m *machine) QueryChangedDiskAreas(req *types.QueryChangedDiskAreas) soap.HasFault {
	defer m.free()()
	body := &methods.QueryChangedDiskAreasBody{}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	info, err := m.changed(req)
	if err != nil {
		body.Fault_ = asProblem(err).soap()
		return body
	}
	body.Res = &types.QueryChangedDiskAreasResponse{Returnval: *info}
	return body
}

func (m *machine) changed(req *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, error) {
	if req.Snapshot == nil {
		return nil, fail(&types.NotSupported{}, "The lab knows the changes up to a snapshot only.")
	}
	s, ok := simulator.Map.Get(*req.Snapshot).(*snapshot)
	if !ok || s.machine != m {
		return nil, fail(&types.NotFound{}, "The object or item referred to could not be found.")
	}
	var frozen *frozenDisk
	for _, each := range s.frozen {
		if each.disk.key == req.DeviceKey {
			frozen = each
		}
	}
	if frozen == nil {
		return nil, invalid("deviceKey")
	}
	if req.StartOffset < 0 || req.StartOffset >= frozen.disk.sizeBytes {
		return nil, invalid("startOffset")
	}
	now, ok := m.tracking.at(req.DeviceKey, frozen.changeID)
	if !ok {
		return nil, trackingLost(frozen.disk)
	}
	before := make([]uint64, len(now))
	if req.ChangeId != "*" {
		if !strings.Contains(req.ChangeId, "/") {
			return nil, invalid("changeId")
		}
		if before, ok = m.tracking.at(req.DeviceKey, req.ChangeId); !ok {
			return nil, trackingLost(frozen.disk)
		}
	}
	return areas(before, now, req.StartOffset, frozen.disk.sizeBytes), nil
}

// trackingLost is what ESXi says to a change id that is not its own any more.
func trackingLost(d *disk) *problem {
	file := d.store.path(d.file)
	return fail(&types.FileFault{File: file}, "Error caused by file %s", file)
}

// at gives what a disk held when this change id was given.
func (t *tracking) at(key int32, changeID string) ([]uint64, bool) {
	known := t.disks[key]
	slash := strings.LastIndex(changeID, "/")
	if known == nil || slash < 0 || changeID[:slash] != known.id {
		return nil, false
	}
	number, err := strconv.Atoi(changeID[slash+1:])
	hashes, ok := known.hashes[number]
	return hashes, err == nil && ok
}

// areas lists what differs from an offset on; its length says how far the answer reaches.
func areas(before, now []uint64, offset, size int64) *types.DiskChangeInfo {
	info := &types.DiskChangeInfo{StartOffset: offset, Length: size - offset}
	for index := offset / trackedBlock; index < int64(len(now)); index++ {
		start := index * trackedBlock
		if index < int64(len(before)) && before[index] == now[index] {
			continue
		}
		end := start + trackedBlock
		if end > size {
			end = size
		}
		if start < offset {
			start = offset
		}
		last := len(info.ChangedArea) - 1
		if last >= 0 && info.ChangedArea[last].Start+info.ChangedArea[last].Length == start {
			info.ChangedArea[last].Length += end - start
			continue
		}
		if last+1 == areasMax {
			info.Length = start - offset
			return info
		}
		info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: start, Length: end - start})
	}
	return info
}

// resetTracking makes all change ids of a machine worthless.
func (w *world) resetTracking(body *json.Decoder) (interface{}, error) {
	var asked struct{ Machine string }
	if err := body.Decode(&asked); err != nil {
		return nil, err
	}
	m := w.machineCalled(asked.Machine)
	if m == nil {
		return nil, fail(&types.NotFound{}, "there is no machine %s", asked.Machine)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m.tracking = tracking{}
	return nil, nil
}
