import assert from 'node:assert/strict';
import { randomBytes, randomUUID } from 'node:crypto';
import { readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BackupSource, ConfigureSpec } from '#src/hypervisors/port.ts';
import { runChecked } from '#src/lib/command.ts';
import { fileStamp } from '#src/lib/file-stamp.ts';
import {
  bootsOf,
  guestDiskBytes,
  imageBytes,
  imageHead,
  openLibvirtWorld,
  writesOf,
} from './libvirt-world.ts';
import type { LibvirtWorld } from './libvirt-world.ts';
import { insideOwnWorld } from './nfs-world.ts';

/** What the contract cannot see: bytes that guests wrote, space at the target, leftovers. */
if (process.env['ROUSE_TEST_WORLD'] === '1') {
  describe('the libvirt driver', () => {
    before(async () => {
      world = await openLibvirtWorld();
    });
    after(() => world.close());
    runningTests();
    relocationTests();
    backupTests();
    failureTests();
  });
} else {
  test('the libvirt driver, in a world of its own', async () => {
    await insideOwnWorld(import.meta.filename);
  });
}

let world: LibvirtWorld;

function runningTests(): void {
  test('a woken machine boots from the export and writes to it', async () => {
    const id = await wake('woken');
    await eventually(async () => bootsOf(await exportedDisk()) === 1);
    const before = writesOf(await exportedDisk());
    await eventually(async () => writesOf(await exportedDisk()) > before);
    await asleep(id);
  });

  test('a relocation under a writing guest moves every byte and no zeros', async () => {
    const id = await wake('moving');
    await eventually(async () => writesOf(await exportedDisk()) > 0);
    const moved = await relocate(id, 4 << 20);
    const path = moved.disks[0]?.path ?? '';
    const atSwitch = writesOf(await exportedDisk());
    await eventually(async () => writesOf(await imageHead(world.directory, path)) > atSwitch);
    assert.ok((await stat(path)).blocks * 512 < guestDiskBytes / 2, 'zeros take no space');
    const power = await world.driver.powerState(id);
    assert.equal(power, 'on');
    await world.driver.powerOff(id, 'off');
    const copy = await imageBytes(world.directory, path);
    const original = await exportedDisk();
    assert.deepEqual(copy.subarray(64 * 512), original.subarray(64 * 512));
    assert.equal(bootsOf(copy), bootsOf(original));
    await world.driver.powerOn(id);
    await eventually(async () => {
      return bootsOf(await imageHead(world.directory, path)) === bootsOf(original) + 1;
    });
    await asleep(id);
    await rm(path);
  });

  test('saved firmware variables are put on the host, and go with the registration', async () => {
    const { driver, hostId, datastore } = world;
    const variables = randomBytes(540_672);
    world.files.put('/web01/nvram', variables);
    await driver.mountDatastore(hostId, datastore);
    const os = `<os><type arch='x86_64' machine='q35'>hvm</type>
      <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
      <nvram>/elsewhere/vars.fd</nvram></os>`;
    const configuration = `<domain type='qemu'><name>efi</name><memory>65536</memory>${os}
      <features><acpi/></features></domain>`;
    const spec = configureSpec('efi', configuration);
    const configured = driver.configure({ ...spec, nvram: 'nvram' });
    const { mark, folder, name } = spec;
    const id = await driver.register({ hostId, name, datastore, folder, configured, mark });
    const path = join(world.directory, 'state', 'nvram', `${id}.fd`);
    assert.deepEqual(await readFile(path), variables);
    await driver.unregister(id);
    await assert.rejects(stat(path), { code: 'ENOENT' });
  });
}

function relocationTests(): void {
  test('a copy left by a server that stopped is joined by the next one', async () => {
    const id = await wake('joined');
    const stop = new AbortController();
    const spec = relocateSpec(id, 256 << 10);
    const watch = { signal: stop.signal, progress: () => stop.abort('shutdown') };
    await assert.rejects(world.driver.relocate(spec, watch), { code: 'cancelled' });
    assert.match(await world.virsh('blockjob', id, 'vda', '--raw'), /type=Block Copy/);
    await world.virsh('blockjob', id, 'vda', '--bytes', String(64 << 20));
    const moved = await relocate(id, 64 << 20);
    assert.equal(moved.disks.length, 1);
    await asleep(id);
    await rm(moved.disks[0]?.path ?? '');
  });

  test('a copy that is given up leaves no file', async () => {
    const id = await wake('given-up');
    const stop = new AbortController();
    const watch = { signal: stop.signal, progress: () => stop.abort('shutdown') };
    const spec = relocateSpec(id, 64 << 10);
    await assert.rejects(world.driver.relocate(spec, watch), { code: 'cancelled' });
    await world.driver.stopRelocation(id);
    assert.deepEqual(await production('given-up'), []);
    await asleep(id);
  });

  test('two disks move together, and are backed up at one moment afterwards', async () => {
    const { driver, hostId, datastore } = world;
    world.files.put('/web01/vdb-flat.vmdk', randomBytes(3 << 20));
    await driver.mountDatastore(hostId, datastore);
    const one = configureSpec('two-disks', undefined);
    const second = { name: 'vdb', file: 'vdb-flat.vmdk', sizeBytes: 3 << 20 };
    const configured = driver.configure({ ...one, disks: [...one.disks, second] });
    const { mark, folder, name } = one;
    const id = await driver.register({ hostId, name, datastore, folder, configured, mark });
    await driver.powerOn(id);
    const fromExport = await begin(id, 'two-raw');
    assert.match((await readNbd(fromExport)).subarray(510, 512).toString('hex'), /55aa/);
    await driver.endBackup(id, 'two-raw', 'stored');
    const moved = await relocate(id, 0);
    assert.deepEqual(
      moved.disks.map((disk) => [disk.name, disk.sizeBytes]),
      [
        ['vda', guestDiskBytes],
        ['vdb', 3 << 20],
      ],
    );
    assert.deepEqual(await driver.datastoreUsers(datastore.name), []);
    const source = await begin(id, 'two-qcow2');
    assert.deepEqual(
      source.disks.map((disk) => disk.name),
      ['vda', 'vdb'],
    );
    await driver.endBackup(id, 'two-qcow2', 'stored');
    const next = await begin(id, 'two-next', source.labels);
    assert.equal(next.kind, 'incremental', next.fullBecause);
    await driver.endBackup(id, 'two-next', 'failed');
    await asleep(id);
    for (const disk of moved.disks) await rm(disk.path);
  });

  test('a relocation never overwrites a file of someone else', async () => {
    const id = await wake('foreign');
    const path = join(world.directory, 'production', 'foreign-vda-mark-foreign.qcow2');
    await runChecked('qemu-img', ['create', '-f', 'qcow2', path, '1M']);
    await assert.rejects(relocate(id, 0), /already exists/);
    assert.equal(await world.driver.powerState(id), 'on');
    assert.deepEqual(await production('foreign'), ['foreign-vda-mark-foreign.qcow2']);
    await asleep(id);
    await rm(path);
  });
}

function backupTests(): void {
  test('a full backup, then an incremental of what changed', async () => {
    const id = await world.startGuest('backed-up', 'qcow2');
    const first = await begin(id, 'full-1');
    assert.equal(first.kind, 'full');
    assert.deepEqual(
      first.disks.map((disk) => disk.name),
      ['vda'],
    );
    const full = await readNbd(first);
    await sleep(300);
    assert.deepEqual(await readNbd(first), full, 'a point in time does not move');
    await world.driver.endBackup(id, 'full-1', 'stored');

    await eventually(async () => writesOf(await live('backed-up.qcow2')) > writesOf(full) + 5);
    const second = await begin(id, 'incr-1', first.labels);
    assert.equal(second.fullBecause, undefined);
    assert.equal(second.kind, 'incremental');
    const changed = await dirtyRanges(second);
    const now = await readNbd(second);
    const bytes = changed.reduce((sum, range) => sum + range.length, 0);
    assert.ok(bytes > 0 && bytes <= 128 << 10, `${bytes} bytes changed`);
    const patched = Buffer.from(full);
    for (const { start, length } of changed) now.copy(patched, start, start, start + length);
    assert.deepEqual(patched, now);
    await world.driver.endBackup(id, 'incr-1', 'stored');
    assert.deepEqual((await world.virsh('checkpoint-list', id, '--name')).trim().split('\n'), [
      'rouse-incr-1',
    ]);
    assert.deepEqual(await readdir(join(world.directory, 'scratch')), []);
    await failedBackupKeepsTheChain(id, second);
    await asleep(id);
  });

  test('raw disks are backed up in full each time, and it says why', async () => {
    const id = await world.startGuest('raw', 'raw');
    const first = await begin(id, 'raw-1');
    assert.equal(first.labels['checkpoint'], undefined);
    assert.equal(bootsOf(await readNbd(first)), 1);
    await world.driver.endBackup(id, 'raw-1', 'stored');
    const second = await begin(id, 'raw-2', first.labels);
    assert.equal(second.kind, 'full');
    assert.match(second.fullBecause ?? '', /no record/);
    await world.driver.endBackup(id, 'raw-2', 'stored');
    await world.driver.powerOff(id, 'off');
    const third = await begin(id, 'raw-3', first.labels);
    assert.equal(third.consistency, 'offline');
    const path = join(world.directory, 'production', 'raw.raw');
    const stamp = await fileStamp(path);
    assert.deepEqual(third.disks[0]?.access, { via: 'file', path, format: 'raw', stamp });
    await world.driver.powerOn(id);
    await eventually(async () => (await fileStamp(path)) !== stamp);
    await world.driver.powerOff(id, 'off');
    await world.driver.endBackup(id, 'raw-3', 'stored');
    await asleep(id);
  });

  test("another program's backup job is left alone", async () => {
    const id = await world.startGuest('shared', 'qcow2');
    const server = `<server transport='unix' socket='${join(world.directory, 'other.sock')}'/>`;
    const xml = join(world.directory, 'other.xml');
    await writeFile(xml, `<domainbackup mode='pull'>${server}</domainbackup>`);
    await world.virsh('backup-begin', id, xml);
    await assert.rejects(begin(id, 'shared-1'), { code: 'busy' });
    await world.driver.endBackup(id, 'shared-1', 'failed');
    await asleep(id);
  });
}

function failureTests(): void {
  test('an export that is not there, or not for us, is told apart', async () => {
    const { driver, hostId, datastore } = world;
    const missing = { ...datastore, name: 'missing', path: '/default/Recover-none' };
    await assert.rejects(driver.mountDatastore(hostId, missing), { code: 'hypervisor-error' });
    const down = { ...datastore, name: 'down', server: '127.0.0.99' };
    await world.nfs.close();
    await assert.rejects(driver.mountDatastore(hostId, down), { code: 'host-unreachable' });
    const { datastores } = await driver.inventory();
    assert.deepEqual(datastores.map((store) => store.name).sort(), ['production', 'rouse-test']);
  });

  test('a libvirt that is down is hypervisor-unreachable, and its test says so', async () => {
    await world.libvirt.stop();
    await assert.rejects(world.driver.inventory(), { code: 'hypervisor-unreachable' });
    const report = await world.driver.test();
    assert.equal(report.ok, false);
    assert.equal(report.problems.length, 1);
  });
}

async function failedBackupKeepsTheChain(id: string, last: BackupSource): Promise<void> {
  const failed = await begin(id, 'incr-2', last.labels);
  assert.equal(failed.kind, 'incremental');
  await world.driver.endBackup(id, 'incr-2', 'failed');
  const again = await begin(id, 'incr-3', last.labels);
  assert.equal(again.kind, 'incremental', again.fullBecause);
  await world.driver.endBackup(id, 'incr-3', 'stored');
  const gone = await begin(id, 'incr-4', last.labels);
  assert.equal(gone.kind, 'full');
  assert.match(gone.fullBecause ?? '', /checkpoint rouse-incr-1 .* is gone/);
  await world.driver.endBackup(id, 'incr-4', 'failed');
}

async function wake(name: string): Promise<string> {
  const { driver, hostId, datastore } = world;
  await driver.mountDatastore(hostId, datastore);
  const spec = configureSpec(name, undefined);
  const { mark, folder } = spec;
  const configured = driver.configure(spec);
  const id = await driver.register({ hostId, name, datastore, folder, configured, mark });
  await driver.powerOn(id);
  return id;
}

function configureSpec(name: string, configuration: string | undefined): ConfigureSpec {
  return {
    configuration,
    name,
    datastore: world.datastore,
    folder: 'web01',
    disks: [{ name: 'vda', file: 'vda-flat.vmdk', sizeBytes: guestDiskBytes }],
    identity: { keep: false, uuid: randomUUID(), macs: ['52:54:00:00:bb:01'] },
    connectNetworks: false,
    mark: `mark-${name}`,
  };
}

async function asleep(id: string): Promise<void> {
  await world.driver.powerOff(id, 'off');
  await world.driver.unregister(id);
}

function relocateSpec(machineId: string, bandwidthBytesPerSecond: number) {
  const fromDatastore = world.datastore;
  return { machineId, fromDatastore, toDatastoreId: 'production', bandwidthBytesPerSecond };
}

function relocate(id: string, bandwidth: number) {
  const signal = new AbortController().signal;
  return world.driver.relocate(relocateSpec(id, bandwidth), { signal, progress: () => undefined });
}

async function production(start: string): Promise<string[]> {
  const names = await readdir(join(world.directory, 'production'));
  return names.filter((name) => name.startsWith(start));
}

function begin(machineId: string, token: string, since?: Readonly<Record<string, string>>) {
  const scratchDirectory = join(world.directory, 'scratch');
  const spec = { machineId, token, scratchDirectory };
  return world.driver.beginBackup(since === undefined ? spec : { ...spec, since });
}

async function exportedDisk(): Promise<Buffer> {
  const folder = await world.files.lookup(world.files.root, 'web01');
  const file = await world.files.lookup(folder, 'vda-flat.vmdk');
  const { bytes } = await world.files.read(file, 0, diskBuffer);
  assert.equal(bytes, guestDiskBytes);
  return Buffer.from(diskBuffer);
}

const diskBuffer = Buffer.alloc(guestDiskBytes);

function live(name: string): Promise<Buffer> {
  return imageHead(world.directory, join(world.directory, 'production', name));
}

function nbdUrl(source: BackupSource): string {
  const access = source.disks[0]?.access;
  assert.ok(access?.via === 'nbd' && access.socket !== undefined);
  return `nbd+unix:///${access.exportName}?socket=${access.socket}`;
}

function readNbd(source: BackupSource): Promise<Buffer> {
  return imageBytes(world.directory, nbdUrl(source));
}

/** QEMU's own reading of the changed ranges: `data: false` means dirty. */
async function dirtyRanges(source: BackupSource): Promise<{ start: number; length: number }[]> {
  const access = source.disks[0]?.access;
  assert.ok(access?.via === 'nbd' && access.changesContext !== undefined);
  const image = [
    'driver=nbd',
    `server.type=unix,server.path=${access.socket}`,
    `export=${access.exportName},x-dirty-bitmap=${access.changesContext}`,
  ].join(',');
  const said = await runChecked('qemu-img', ['map', '--output=json', '--image-opts', image]);
  const ranges: unknown = JSON.parse(said);
  assert.ok(Array.isArray(ranges));
  return ranges.filter((range) => range.data === false);
}

async function eventually(holds: () => Promise<boolean>): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt += 1) {
    if (await holds()) return;
    await sleep(50);
  }
  assert.fail('it did not happen within ten seconds');
}
