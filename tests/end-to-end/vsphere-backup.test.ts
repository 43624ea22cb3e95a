/**
 * Backups through the stand-in for vCenter (lab/vcenter): full under a lease, then only what changed,
 * each the same as the disk byte for byte; every doubt makes a full one and says why.
 */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { enterWorld } from '#lab/world.ts';
import type { BackupSource } from '#src/hypervisors/port.ts';
import { leaf } from '#src/hypervisors/vsphere/vim-xml.ts';
import { runTask } from '#src/hypervisors/vsphere/tasks.ts';
import { sparseImage, VsphereBackupWorld } from './vsphere-backup-world.ts';

const MiB = 1 << 20;
const world = await enterWorld({ guests: false });
const { directory } = world;
await mkdir(directory, { recursive: true });
const images = [
  await sparseImage(join(directory, 'a.img'), 64 * MiB),
  await sparseImage(join(directory, 'b.img'), 24 * MiB + 512 * 3),
];
const small = await sparseImage(join(directory, 's.img'), 2 * MiB);
const at = await VsphereBackupWorld.open(
  world,
  [
    { name: 'box', disks: images, settings: { nvram: 'box.nvram' } },
    {
      name: 'mixed',
      disks: [small, small],
      settings: { 'scsi0:1.mode': 'independent-persistent' },
    },
    { name: 'untracked', disks: [small] },
    { name: 'people', disks: [small] },
  ],
  { nvram: ['box'] },
);
const server = await at.server();
const driver = at.driver();
const ids = await at.machineIds();
after(async () => {
  await server.stop();
  await at.close();
  await world.end();
});

const backUp = (machine: string) => at.backUp(server, machine);

async function assertSame(machine: string, disks: number, savesetId: string | null) {
  const saveset = await at.vault.saveset(savesetId ?? '');
  const wanted = [];
  for (let disk = 0; disk < disks; disk += 1) wanted.push(await at.hashOf(machine, disk));
  assert.deepEqual(await at.hashes(saveset), wanted);
  return saveset;
}

test('full, of a machine that is off: both disks, .vmx and .nvram; nothing is left', async () => {
  const view = await backUp('box');
  assert.deepEqual([view.kind, view.fullBecause, view.consistency], ['full', null, 'offline']);
  assert.deepEqual(view.warnings, []);
  const saveset = await assertSame('box', 2, view.savesetId);
  assert.deepEqual(saveset.files.map(({ name }) => name).sort(), ['machine.vmx', 'nvram']);
  assert.ok(saveset.cost.readBytes < 2 * MiB, `holes are not read: ${saveset.cost.readBytes}`);
  const methods = (await at.vcenter.calls()).map(({ method }) => method);
  assert.equal(methods.filter((method) => method === 'GET /nfc').length, 2);
  assert.ok(methods.includes('CloneSession'), 'the proxy reads in a session of its own');
  assert.ok(methods.includes('HttpNfcLeaseComplete'));
});

test('incremental: only what changed is read, by ranges, and the disks are the same', async () => {
  await at.scribble('box', 10 * MiB, 70_000);
  await at.scribble('box', 40 * MiB + 123, 1_000);
  const before = (await at.vcenter.calls()).length;
  const view = await backUp('box');
  assert.deepEqual([view.kind, view.fullBecause], ['incremental', null]);
  const saveset = await assertSame('box', 2, view.savesetId);
  assert.ok(saveset.cost.readBytes > 70_000, 'it was read');
  assert.ok(saveset.cost.readBytes < MiB / 2, `${saveset.cost.readBytes} bytes were read`);
  const calls = (await at.vcenter.calls()).slice(before);
  assert.ok(!calls.some(({ method }) => method === 'ExportSnapshot' || method === 'GET /nfc'));
  const ranges = calls.filter(({ method, args }) => method.endsWith('-flat.vmdk') && args !== null);
  const bytes = ranges.map(({ args }) => /^bytes=(\d+)-(\d+)$/.exec(String(args)) ?? []);
  const asked = bytes.reduce((sum, [, from, to]) => sum + Number(to) - Number(from) + 1, 0);
  assert.ok(asked > 70_000 && asked < MiB / 2, `${asked} bytes were asked for`);
});

test('more changes than one answer holds are all found', async () => {
  for (let block = 0; block < 300; block += 1) {
    await at.scribble('box', (block * 3 + 1) * 64 * 1024 + 77, 100);
  }
  const before = (await at.vcenter.calls()).length;
  const view = await backUp('box');
  assert.equal(view.kind, 'incremental', view.fullBecause ?? '');
  await assertSame('box', 2, view.savesetId);
  const calls = (await at.vcenter.calls()).slice(before);
  const asked = calls.filter(({ method }) => method === 'QueryChangedDiskAreas').length;
  assert.ok(asked >= 6, `${asked} questions`);
});

test('nothing changed: nothing is read', async () => {
  const view = await backUp('box');
  const saveset = await assertSame('box', 2, view.savesetId);
  assert.equal(view.kind, 'incremental', view.fullBecause ?? '');
  assert.ok(saveset.cost.readBytes < 4096, 'its .vmx and .nvram, and no disk');
});

test('change tracking that began anew makes a full backup, and then goes on', async () => {
  await at.vcenter.resetChangeTracking('box');
  await at.scribble('box', 5 * MiB, 5_000);
  const view = await backUp('box');
  assert.equal(view.kind, 'full');
  assert.equal(
    view.fullBecause,
    'change tracking of disk scsi0:0 began anew since the last backup',
  );
  await assertSame('box', 2, view.savesetId);
  assert.equal((await backUp('box')).kind, 'incremental');
});

test('what is refused at the beginning makes a full backup that says why', async () => {
  const doubts = [
    [
      { method: 'QueryChangedDiskAreas', nth: 1, fault: 'FileFault', message: 'no such change id' },
      /what changed on disk scsi0:0 cannot be told: .*no such change id/,
    ],
    [
      { method: 'GET /folder', nth: 1, how: 'refuse' },
      /disk scsi0:0 cannot be read in part: .*HTTP 403/,
    ],
    [{ method: 'GET /folder', nth: 1, how: 'whole' }, /does not give ranges of .*box-flat\.vmdk/],
  ] as const;
  for (const [fault, because] of doubts) {
    await at.vcenter.fault(fault);
    await at.scribble('box', 7 * MiB, 3_000);
    const view = await backUp('box');
    await at.vcenter.clearFaults();
    assert.equal(view.kind, 'full');
    assert.match(view.fullBecause ?? '', because);
    await assertSame('box', 2, view.savesetId);
  }
});

test('what turns out while it is read is read whole from the same snapshot', async () => {
  // The server asks once for each disk, before anything is read; the third question is the proxy's.
  await at.vcenter.fault({ method: 'QueryChangedDiskAreas', nth: 3, fault: 'FileFault' });
  await at.scribble('box', 9 * MiB, 3_000);
  const view = await backUp('box');
  await at.vcenter.clearFaults();
  assert.equal(view.kind, 'full');
  assert.match(view.fullBecause ?? '', /^what changed could not be read: what changed on disk/);
  await assertSame('box', 2, view.savesetId);
  assert.equal((await backUp('box')).kind, 'incremental');
});

test('labels that are not of this machine as it is now make a full backup', async () => {
  const machineId = ids.get('box') ?? '';
  const begin = async (since?: Readonly<Record<string, string>>): Promise<BackupSource> => {
    const base = { machineId, token: 'labels', scratchDirectory: directory };
    const source = await driver.beginBackup(since === undefined ? base : { ...base, since });
    await driver.endBackup(machineId, 'labels', 'failed');
    return source;
  };
  const { labels } = await begin();
  const disk = (change: object) =>
    JSON.stringify({
      ...(JSON.parse(labels['vsphere.disk.scsi0:0'] ?? '{}') as object),
      ...change,
    });
  const { 'vsphere.disk.scsi0:1': second = '', ...withoutSecond } = labels;
  const known: readonly (readonly [Readonly<Record<string, string>>, RegExp | undefined])[] = [
    [labels, undefined],
    [{ ...labels, 'vsphere.manager': 'other' }, /made through another vCenter/],
    [{ ...labels, machine: 'vm-1' }, /of another machine/],
    [{ ...labels, 'vsphere.instance': 'x' }, /of another machine/],
    [{ machine: machineId }, /kept no change ids/],
    [withoutSecond, /disk scsi0:1 was added since/],
    [{ ...labels, 'vsphere.disk.scsi0:2': second }, /scsi0:2 of the last backup is not there/],
    [{ ...labels, 'vsphere.disk.scsi0:0': disk({ sizeBytes: 1024 }) }, /was 1 KiB at the last/],
    [{ ...labels, 'vsphere.disk.scsi0:0': disk({ uuid: 'y' }) }, /is another one than/],
    [
      { ...labels, 'vsphere.disk.scsi0:0': disk({ changeId: undefined }) },
      /tracking of disk scsi0:0 was off at the last backup/,
    ],
    [{ ...labels, 'vsphere.disk.scsi0:0': '{' }, /label of disk scsi0:0 cannot be read/],
  ];
  for (const [since, because] of known) {
    const { kind, fullBecause } = await begin(since);
    if (because === undefined) assert.equal(kind, 'incremental', fullBecause);
    else assert.match(fullBecause ?? kind, because);
  }
});

test('a disk that snapshots leave out is named, and the rest is backed up', async () => {
  const view = await backUp('mixed');
  const [warning = ''] = view.warnings;
  assert.match(warning, /disk scsi0:1 is not backed up: its mode is independent-persistent/);
  const saveset = await at.vault.saveset(view.savesetId ?? '');
  assert.deepEqual(
    saveset.disks.map(({ name }) => name),
    ['scsi0:0'],
  );
});

test('without the privilege to track changes there is a warning, and full backups say why', async () => {
  await at.vcenter.missingPrivileges([{ privilege: 'VirtualMachine.Config.ChangeTracking' }]);
  const first = await backUp('untracked');
  assert.match(
    first.warnings.join(),
    /cannot be switched on: .*VirtualMachine\.Config\.ChangeTrack/,
  );
  const second = await backUp('untracked');
  assert.equal(second.fullBecause, 'change tracking of disk scsi0:0 was off at the last backup');
  await at.vcenter.missingPrivileges([]);
  assert.deepEqual((await backUp('untracked')).warnings, []);
  assert.equal((await backUp('untracked')).kind, 'incremental');
});

test('snapshots of people are read around, never removed, and no traces of ours', async () => {
  await backUp('people');
  const machine = { type: 'VirtualMachine', id: ids.get('people') ?? '' };
  for (const name of ['before the upgrade', 'rouse-mine']) {
    const args = [
      leaf('name', name),
      leaf('description', 'made by a person'),
      leaf('memory', false),
      leaf('quiesce', false),
    ];
    await runTask(driver.client, 'CreateSnapshot_Task', machine, args, { what: name });
  }
  const view = await backUp('people');
  assert.equal(
    view.fullBecause,
    'disk scsi0:0 has older snapshots, so its data lies in several files',
  );
  await driver.endBackup(machine.id, 'mine', 'failed');
  const removed = (await at.vcenter.calls()).filter(
    ({ method }) => method === 'RemoveSnapshot_Task',
  );
  const made = (await at.vcenter.calls()).filter(({ method }) => method === 'CreateSnapshot_Task');
  assert.equal(made.length - removed.length, 2, 'both of theirs are there');
});
