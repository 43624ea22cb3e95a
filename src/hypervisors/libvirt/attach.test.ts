import assert from 'node:assert/strict';
import { test } from 'node:test';
import { matchGuestDisks } from './agent.ts';
import { domainDisks } from './domain.ts';
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
    <address type='drive' controller='${controller}' bus='0' target='${target}' unit='0'/></disk>`;
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

test('a disk takes the first free target of a virtio-scsi controller', () => {
  const slot = freeSlot(domain(pc, scsi(0), onScsi(0, 0), onScsi(0, 1), onScsi(0, 3)));
  assert.deepEqual(slot, { bus: 'scsi', controller: 0, target: 2, isNew: false });
  const passed = `<hostdev><address type='drive' controller='0' target='0'/></hostdev>`;
  const besides = freeSlot(domain(pc, scsi(0), passed));
  assert.deepEqual(besides, { bus: 'scsi', controller: 0, target: 1, isNew: false });
});

test('a full controller is passed over, and one is added when all are full', () => {
  const second = freeSlot(domain(pc, scsi(0), scsi(1), ...filled(0)));
  assert.deepEqual(second, { bus: 'scsi', controller: 1, target: 0, isNew: false });
  const added = freeSlot(domain(pc, scsi(0), ...filled(0)));
  assert.deepEqual(added, { bus: 'scsi', controller: 1, target: 0, isNew: true });
});

test('a controller whose disks no guest sees come and go is not used', () => {
  const slot = freeSlot(domain(pc, scsi(0, 'lsilogic')));
  assert.deepEqual(slot, { bus: 'scsi', controller: 1, target: 0, isNew: true });
});

test('virtio disks take PCI places until one is left: that becomes a controller', () => {
  const ports = [q35, port(1), port(2), port(3), behind(1), virtio(1)];
  assert.deepEqual(freeSlot(domain(...ports)), { bus: 'virtio' });
  const last = freeSlot(domain(...ports, behind(2)));
  assert.deepEqual(last, { bus: 'scsi', controller: 0, target: 0, isNew: true });
  assert.throws(() => freeSlot(domain(...ports, behind(2), behind(3))), {
    code: 'hypervisor-unsupported',
    message: /no place for another disk/,
  });
  const used = Array.from({ length: 29 }, (_, index) => virtio(index + 1));
  assert.deepEqual(freeSlot(domain(pc, ...used)), { bus: 'virtio' });
  const lastSlot = freeSlot(domain(pc, ...used, virtio(30)));
  assert.deepEqual(lastSlot, { bus: 'scsi', controller: 0, target: 0, isNew: true });
});

test('disk names go on after sdz as Linux counts', () => {
  const taken = new Set<string>();
  for (let number = 0; number < 26 + 26 * 26; number += 1) taken.add(freeName('sd', taken));
  assert.ok(taken.has('sdz') && taken.has('sdaa') && taken.has('sdzz'));
  assert.equal(freeName('sd', taken), 'sdaaa');
  assert.equal(freeName('vd', new Set(['vda', 'vdc'])), 'vdb');
});

const attached = domainDisks(
  domain(
    `<disk><target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/></disk>`,
    `<disk><target dev='sda' bus='scsi'/><serial>rouse-k3f9x2m7qa-0</serial>
      <address type='drive' controller='0' bus='0' target='2' unit='0'/></disk>`,
    `<disk><target dev='sdb' bus='scsi'/><serial>rouse-k3f9x2m7qa-1</serial>
      <address type='drive' controller='0' bus='0' target='3' unit='0'/></disk>`,
  ),
);

const said = (disks: readonly object[]) => JSON.stringify({ return: disks });
const lun = (target: number) => ({ 'bus-type': 'scsi', bus: 0, target, unit: 0 });

test("the guest's disks are known by serial, or by their place when it tells none", () => {
  const pci = { domain: 0, bus: 0, slot: 5, function: 0 };
  const disks = said([
    {
      name: '/dev/vda',
      partition: false,
      address: { 'bus-type': 'virtio', 'pci-controller': pci },
    },
    {
      name: '/dev/vda1',
      partition: true,
      address: { 'bus-type': 'virtio', 'pci-controller': pci },
    },
    { name: '/dev/sdc', partition: false, address: lun(2) },
    {
      name: '/dev/sdd',
      partition: false,
      address: { ...lun(9), serial: '0QEMU_QEMU_HARDDISK_rouse-k3f9x2m7qa-1' },
    },
  ]);
  const systems = said([
    { name: 'sdc1', mountpoint: '/mnt', type: 'ext4', disk: [lun(2)] },
    { name: 'sdc2', mountpoint: '/mnt/var', type: 'ext4', disk: [lun(2)] },
    { name: 'overlay', mountpoint: '/o', type: 'overlay' },
  ]);
  assert.deepEqual(matchGuestDisks(attached, disks, systems), [
    { name: 'vda', seenAs: '/dev/vda', mounts: [] },
    { name: 'sda', seenAs: '/dev/sdc', mounts: ['/mnt', '/mnt/var'] },
    { name: 'sdb', seenAs: '/dev/sdd', mounts: [] },
  ]);
});

test('what is no answer of an agent counts as none', () => {
  for (const answer of ['', 'null', '{}', '{"return":1}', '{"return":[{"name":7}]}', '[']) {
    assert.equal(matchGuestDisks(attached, answer, '{"return":[]}'), undefined, answer);
  }
  assert.deepEqual(matchGuestDisks(attached, '{"return":[]}', 'nonsense'), []);
});
