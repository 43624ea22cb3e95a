import assert from 'node:assert/strict';
import { test } from 'node:test';
import { matchGuestDisks } from './agent.ts';
import { freeName, freeSlot } from './slots.ts';
import { parseXml } from './xml.ts';
import type { XmlElement } from './xml.ts';

function domain(...devices: readonly string[]): XmlElement {
  return parseXml(`<domain><devices>${devices.join('')}</devices></domain>`, 'a test');
}

const scsi = (index: number, model = 'virtio-scsi') =>
  `<controller type='scsi' index='${index}' model='${model}'/>`;
const onScsi = (controller: number, target: number) =>
  `<disk><target dev='sd${controller}x${target}' bus='scsi'/>
    <address type='drive' controller='${controller}' bus='0' target='0' unit='${target}'/></disk>`;
const virtio = (slot: number) =>
  `<disk><target dev='vd${slot}' bus='virtio'/>
    <address type='pci' domain='0x0000' bus='0x00' slot='${slot}' function='0x0'/></disk>`;
const port = (index: number) => `<controller type='pci' index='${index}' model='pcie-root-port'/>`;
const behind = (bus: number) =>
  `<interface><address type='pci' bus='0x0${bus}' slot='0x00'/></interface>`;
const pc = "<controller type='pci' index='0' model='pci-root'/>";
const q35 = "<controller type='pci' index='0' model='pcie-root'/>";
const filled = (controller: number) =>
  Array.from({ length: 256 }, (_, target) => onScsi(controller, target));

test('a disk takes the first free unit of a virtio-scsi controller', () => {
  const slot = freeSlot(domain(pc, scsi(0), onScsi(0, 0), onScsi(0, 1), onScsi(0, 3)));
  assert.deepEqual(slot, { bus: 'scsi', controller: 0, unit: 2, isNew: false });
  const passed = `<hostdev><address type='drive' controller='0' target='0'/></hostdev>`;
  const besides = freeSlot(domain(pc, scsi(0), passed));
  assert.deepEqual(besides, { bus: 'scsi', controller: 0, unit: 1, isNew: false });
});

test('a full controller is passed over, and one is added when all are full', () => {
  const second = freeSlot(domain(pc, scsi(0), scsi(1), ...filled(0)));
  assert.deepEqual(second, { bus: 'scsi', controller: 1, unit: 0, isNew: false });
  const added = freeSlot(domain(pc, scsi(0), ...filled(0)));
  assert.deepEqual(added, { bus: 'scsi', controller: 1, unit: 0, isNew: true });
});

test('a controller whose disks no guest sees come and go is not used', () => {
  const slot = freeSlot(domain(pc, scsi(0, 'lsilogic')));
  assert.deepEqual(slot, { bus: 'scsi', controller: 1, unit: 0, isNew: true });
});

test('virtio disks take PCI places until one is left: that becomes a controller', () => {
  const ports = [q35, port(1), port(2), port(3), behind(1), virtio(1)];
  assert.deepEqual(freeSlot(domain(...ports)), { bus: 'virtio' });
  const last = freeSlot(domain(...ports, behind(2)));
  assert.deepEqual(last, { bus: 'scsi', controller: 0, unit: 0, isNew: true });
  assert.throws(() => freeSlot(domain(...ports, behind(2), behind(3))), {
    code: 'hypervisor-unsupported',
    message: /no place for another disk/,
  });
  const used = Array.from({ length: 29 }, (_, index) => virtio(index + 1));
  assert.deepEqual(freeSlot(domain(pc, ...used)), { bus: 'virtio' });
  const lastSlot = freeSlot(domain(pc, ...used, virtio(30)));
  assert.deepEqual(lastSlot, { bus: 'scsi', controller: 0, unit: 0, isNew: true });
});

test('disk names go on after sdz as Linux counts', () => {
  const taken = new Set<string>();
  for (let number = 0; number < 26 + 26 * 26; number += 1) taken.add(freeName('sd', taken));
  assert.ok(taken.has('sdz') && taken.has('sdaa') && taken.has('sdzz'));
  assert.equal(freeName('sd', taken), 'sdaaa');
  assert.equal(freeName('vd', new Set(['vda', 'vdc'])), 'vdb');
});

const pci = (slot: number, bus = 0) => ({ domain: 0, bus, slot, function: 0 });
const controllerAt = (index: number, bus: number) =>
  `<controller type='scsi' index='${index}' model='virtio-scsi'>
    <address type='pci' domain='0x0000' bus='0x0${bus}' slot='0x00' function='0x0'/></controller>`;
const ours = (name: string, number: number, controller: number, unit: number) =>
  `<disk><target dev='${name}' bus='scsi'/><serial>rouse-k3f9x2m7qa-${number}</serial>
    <address type='drive' controller='${controller}' bus='0' target='0' unit='${unit}'/></disk>`;
const attached = domain(
  controllerAt(0, 4),
  controllerAt(1, 5),
  virtio(5),
  ours('sda', 0, 0, 2),
  ours('sdb', 1, 0, 3),
  ours('sdc', 2, 1, 2),
);

const said = (disks: readonly object[]) => JSON.stringify({ return: disks });
/** As qemu-ga 7.2 says it of a virtio-scsi disk: target 0, whatever it is. */
const lun = (unit: number, bus = 4) => ({
  'bus-type': 'scsi',
  bus: 0,
  target: 0,
  unit,
  'pci-controller': pci(0, bus),
});
const onPci = { 'bus-type': 'virtio', bus: 0, target: 0, unit: 0, 'pci-controller': pci(5) };

test("the guest's disks are known by serial, or by their place when it tells none", () => {
  const serial = '0QEMU_QEMU_HARDDISK_rouse-k3f9x2m7qa-1';
  const disks = said([
    { name: '/dev/vda', partition: false, address: onPci },
    { name: '/dev/vda1', partition: true, address: onPci },
    { name: '/dev/sde', partition: false, address: lun(2, 5) },
    { name: '/dev/sdc', partition: false, address: lun(2) },
    { name: '/dev/sdd', partition: false, address: { ...lun(9), serial } },
    { name: '/dev/loop0', partition: false },
  ]);
  const systems = said([
    { name: 'sdc1', mountpoint: '/mnt', type: 'ext4', disk: [lun(2)] },
    { name: 'sdc2', mountpoint: '/mnt/var', type: 'ext4', disk: [lun(2)] },
    { name: 'overlay', mountpoint: '/o', type: 'overlay' },
  ]);
  assert.deepEqual(matchGuestDisks(attached, disks, systems), [
    { name: 'vd5', seenAs: '/dev/vda', mounts: [] },
    { name: 'sda', seenAs: '/dev/sdc', mounts: ['/mnt', '/mnt/var'] },
    { name: 'sdb', seenAs: '/dev/sdd', mounts: [] },
    { name: 'sdc', seenAs: '/dev/sde', mounts: [] },
  ]);
});

test('a guest with one controller may number its buses as it likes', () => {
  const one = domain(controllerAt(0, 4), ours('sda', 0, 0, 2));
  const disks = said([{ name: '/dev/sdc', partition: false, address: lun(2, 9) }]);
  assert.deepEqual(matchGuestDisks(one, disks, ''), [
    { name: 'sda', seenAs: '/dev/sdc', mounts: [] },
  ]);
});

test('what is no answer of an agent counts as none', () => {
  for (const answer of ['', 'null', '{}', '{"return":1}', '{"return":[{"name":7}]}', '[']) {
    assert.equal(matchGuestDisks(attached, answer, '{"return":[]}'), undefined, answer);
  }
  assert.deepEqual(matchGuestDisks(attached, '{"return":[]}', 'nonsense'), []);
});
