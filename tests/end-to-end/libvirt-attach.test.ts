import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { openLibvirtWorld } from './libvirt-world.ts';
import type { LibvirtWorld } from './libvirt-world.ts';
import { insideOwnWorld } from './nfs-world.ts';

/** Disks that come to running machines of several kinds, and go, with what was added for them. */
if (process.env['ROUSE_TEST_WORLD'] === '1') {
  describe('disks attached to running machines of libvirt', () => {
    before(async () => {
      world = await openLibvirtWorld();
      for (let number = 0; number < disksMany; number += 1) {
        world.files.put(`/web01/d${number}-flat.vmdk`, Buffer.alloc(64 << 10, number + 1));
      }
      await world.driver.mountDatastore(world.hostId, world.datastore);
    });
    after(() => world.close());
    attachTests();
  });
} else {
  test('attached disks on libvirt, in a world of its own', async () => {
    await insideOwnWorld(import.meta.filename);
  });
}

let world: LibvirtWorld;
/** More than the seven that libvirt gives to a SCSI controller by itself. */
const disksMany = 9;

function attachTests(): void {
  test('nine disks share one virtio-scsi controller, each with its serial', async () => {
    const id = await world.startGuest('many', 'raw');
    const before = await devices(id);
    const names = await attachAll(id, disksMany);
    assert.equal(new Set(names).size, disksMany);
    const { disks } = await world.driver.machine(id);
    const serials = disks.flatMap(({ serial }) => (serial === undefined ? [] : [serial]));
    assert.deepEqual(
      serials.toSorted(),
      names.map((_, number) => `rouse-abcdefghjk-${number}`),
    );
    assert.equal((await devices(id)).controllers, before.controllers);
    await detachAll(id, names);
    assert.deepEqual(await devices(id), before);
  });

  test('a full machine gets a controller in its last place, for all further disks', async () => {
    const id = await startWithoutScsi('tight', 2);
    const before = await devices(id);
    const names = await attachAll(id, 4);
    // One place takes a virtio disk, the last one a controller with all the others.
    assert.deepEqual(
      names.map((name) => name.slice(0, 2)),
      ['vd', 'sd', 'sd', 'sd'],
    );
    assert.equal((await devices(id)).controllers, before.controllers + 1);
    await detachAll(id, names.slice(1, 3));
    assert.equal((await devices(id)).controllers, before.controllers + 1);
    // A machine without a system frees no PCI place: tests/end-to-end/flr.test.ts has one that does.
    await detachAll(id, names.slice(3));
    assert.deepEqual((await devices(id)).disks, ['vda', names[0]]);
  });

  test('a machine without any place says so, and nothing is changed', async () => {
    const id = await startWithoutScsi('full', 0);
    const before = await devices(id);
    await assert.rejects(attachAll(id, 1), { code: 'hypervisor-unsupported' });
    assert.deepEqual(await devices(id), before);
  });

  test('a machine that is off takes no disk; one that goes off has lost its disks', async () => {
    const id = await world.startGuest('goes-off', 'raw');
    const stored = (await world.driver.machine(id)).configuration;
    const names = await attachAll(id, 2);
    await world.driver.powerOff(id, 'off');
    const machine = await world.driver.machine(id);
    assert.equal(machine.configuration, stored);
    assert.deepEqual(
      machine.disks.filter(({ serial }) => serial !== undefined),
      [],
    );
    await detachAll(id, names);
    await assert.rejects(attachAll(id, 1), { code: 'wrong-state' });
  });
}

async function attachAll(id: string, count: number): Promise<string[]> {
  const names: string[] = [];
  for (let number = 0; number < count; number += 1) {
    const path = `web01/d${number}-flat.vmdk`;
    const serial = `rouse-abcdefghjk-${number}`;
    const spec = { datastore: world.datastore, path, sizeBytes: 64 << 10, serial };
    names.push(await world.driver.attachDisk(id, spec));
  }
  return names;
}

async function detachAll(id: string, names: readonly string[]): Promise<void> {
  for (const name of names) await world.driver.detachDisk(id, name);
}

async function devices(id: string): Promise<{ controllers: number; disks: string[] }> {
  const xml = await world.virsh('dumpxml', id);
  const controllers = [...xml.matchAll(/<controller type='scsi'/g)].length;
  const disks = (await world.driver.machine(id)).disks.map(({ name }) => name);
  return { controllers, disks };
}

/** A q35 machine that halts at once, with so many free root ports and no SCSI controller. */
async function startWithoutScsi(name: string, freePorts: number): Promise<string> {
  const disk = join(world.directory, 'production', `${name}.raw`);
  await writeFile(disk, Buffer.alloc(1 << 20));
  const ports = "<controller type='pci' model='pcie-root-port'/>".repeat(freePorts + 1);
  const xml = join(world.directory, `${name}.xml`);
  await writeFile(
    xml,
    `<domain type='qemu'><name>${name}</name><memory unit='MiB'>64</memory>
      <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
      <devices>
        <controller type='pci' index='0' model='pcie-root'/>${ports}
        <controller type='usb' model='none'/>
        <disk type='file' device='disk'><driver name='qemu' type='raw'/>
          <source file='${disk}'/><target dev='vda' bus='virtio'/></disk>
        <memballoon model='none'/>
      </devices></domain>`,
  );
  await world.virsh('define', xml);
  await world.virsh('start', name);
  return (await world.virsh('domuuid', name)).trim();
}
