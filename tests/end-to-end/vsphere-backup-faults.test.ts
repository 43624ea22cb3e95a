/**
 * What goes wrong while a machine is backed up through the stand-in for vCenter: each ends in a
 * saveset that is the disk byte for byte, or in a failure that says what to do, and nothing is left.
 */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, afterEach, test } from 'node:test';
import { eventually } from '#lab/processes.ts';
import { enterWorld } from '#lab/world.ts';
import type { Backup } from '#src/backup/schema.ts';
import { turnLimits } from '#src/backup/limits.ts';
import { guestDisk } from './libvirt-world.ts';
import type { BackupServer } from '../simulation/backup-world.ts';
import { requestOf, sparseImage, VsphereBackupWorld } from './vsphere-backup-world.ts';

const MiB = 1 << 20;
const world = await enterWorld({ guests: false });
const { directory } = world;
await mkdir(directory, { recursive: true });
const bootable = join(directory, 'boot.img');
await writeFile(bootable, await guestDisk());
const image = await sparseImage(join(directory, 'a.img'), 16 * MiB);
const crowd = Array.from({ length: turnLimits.perHostMax + 3 }, (_, index) => `crowd${index}`);
const at = await VsphereBackupWorld.open(world, [
  { name: 'box', disks: [image] },
  { name: 'live', disks: [bootable], poweredOn: true },
  ...crowd.map((name) => ({ name, disks: [image] })),
]);
const server = await at.server();
const { vcenter } = at;
after(async () => {
  await server.stop();
  await at.close();
  await world.end();
});
afterEach(async () => {
  await vcenter.clearFaults();
  await vcenter.behaviour({});
  await vcenter.missingPrivileges([]);
});

const callsOf = async (method: string) =>
  (await vcenter.calls()).filter((call) => call.method === method).length;

async function assertSame(view: Backup, machine = 'box') {
  const saveset = await at.vault.saveset(view.savesetId ?? '');
  assert.deepEqual(await at.hashes(saveset), [await at.hashOf(machine)]);
}

/** A full backup of the machine, as if it were the first. */
async function full(machine = 'box'): Promise<Backup> {
  await vcenter.resetChangeTracking(machine);
  return at.backUp(server, machine);
}

test('a running machine is frozen with VMware Tools; without them, or when they fail, it says why', async () => {
  const frozen = await at.backUp(server, 'live');
  assert.deepEqual([frozen.consistency, frozen.warnings], ['filesystem', []]);
  await vcenter.fault({
    method: 'CreateSnapshot_Task',
    nth: 1,
    fault: 'ApplicationQuiesceFault',
    message: 'VSS says no',
  });
  const refused = await at.backUp(server, 'live');
  assert.equal(refused.consistency, 'crash');
  assert.match(refused.warnings.join(), /file systems of live were not frozen: .*VSS says no/);
  await vcenter.tools('live', 'guestToolsNotRunning');
  const without = await at.backUp(server, 'live');
  assert.equal(without.consistency, 'crash');
  assert.match(without.warnings.join(), /not frozen: VMware Tools do not run in it/);
});

test('the answer to the snapshot is lost: it is found, and there is one', async () => {
  const before = await callsOf('RemoveSnapshot_Task');
  await vcenter.fault({ method: 'CreateSnapshot_Task', nth: 1, dropAnswer: true });
  await assertSame(await full());
  assert.equal((await callsOf('RemoveSnapshot_Task')) - before, 1);
});

test('no snapshot can be made: the failure names the privilege, and nothing is left', async () => {
  await vcenter.missingPrivileges([{ privilege: 'VirtualMachine.State.CreateSnapshot' }]);
  const { id } = await server.backups.start(requestOf('box'));
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'failed');
  assert.match(view.error?.message ?? '', /VirtualMachine\.State\.CreateSnapshot/);
  assert.match(view.error?.advice ?? '', /role/);
  assert.deepEqual(await at.leftSnapshots(), []);
});

for (const [what, fault] of [
  ['is cut off', { how: 'cut', atByte: 200_000 }],
  ['holds a byte that was turned around', { how: 'flip', atByte: 150_000 }],
  ['stalls', { how: 'stall', atByte: 100_000 }],
] as const) {
  test(`a download that ${what} is made again`, async () => {
    const before = await callsOf('GET /nfc');
    await vcenter.fault({ method: 'GET /nfc', nth: 1, ...fault });
    await assertSame(await full());
    assert.equal((await callsOf('GET /nfc')) - before, 2);
  });
}

test('a download that is always broken ends in a failure that says so', async () => {
  await vcenter.resetChangeTracking('box');
  await vcenter.fault({ method: 'GET /nfc', how: 'flip', atByte: 150_000 });
  const { id } = await server.backups.start(requestOf('box'));
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'failed');
  assert.match(view.error?.message ?? '', /download of disk scsi0:0 is broken: /);
  assert.deepEqual(await at.leftSnapshots(), []);
});

test('a lease that is lost under its download is made anew', async () => {
  await vcenter.behaviour({ leaseTimeoutSeconds: 2 });
  await vcenter.fault({ method: 'GET /nfc', nth: 1, how: 'stall', atByte: 100_000 });
  await vcenter.fault({ method: 'HttpNfcLeaseProgress', nth: 2, fault: 'InvalidState' });
  const before = await callsOf('ExportSnapshot');
  await assertSame(await full());
  assert.equal((await callsOf('ExportSnapshot')) - before, 2);
});

test('a lease that is only told of now and then lives as long as it is read', async () => {
  await vcenter.behaviour({ leaseTimeoutSeconds: 1 });
  const before = await callsOf('ExportSnapshot');
  const told = await callsOf('HttpNfcLeaseProgress');
  await vcenter.fault({ method: 'HttpNfcLeaseComplete', nth: 1, delayMs: 10 });
  await assertSame(await full());
  assert.equal((await callsOf('ExportSnapshot')) - before, 1);
  assert.ok((await callsOf('HttpNfcLeaseProgress')) > told);
});

test('sessions that end while disks are read are begun anew', async () => {
  await vcenter.behaviour({ leaseTimeoutSeconds: 2 });
  await vcenter.fault({ method: 'GET /nfc', nth: 1, how: 'stall', atByte: 100_000 });
  await vcenter.resetChangeTracking('box');
  const before = await callsOf('GET /nfc');
  const { id } = await server.backups.start(requestOf('box'));
  await eventually('the download', async () => (await callsOf('GET /nfc')) > before || undefined);
  await vcenter.dropSessions();
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'done', view.error?.message);
  await assertSame(view);
  assert.deepEqual(await at.leftSnapshots(), []);
});

test('a vCenter that goes away while disks are read is waited for', async () => {
  await vcenter.fault({ method: 'GET /nfc', nth: 1, how: 'stall', atByte: 100_000 });
  await vcenter.resetChangeTracking('box');
  const before = await callsOf('GET /nfc');
  const { id } = await server.backups.start(requestOf('box'));
  await eventually('the download', async () => (await callsOf('GET /nfc')) > before || undefined);
  await vcenter.goAwayMs(1_500);
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'done', view.error?.message);
  await assertSame(view);
  assert.deepEqual(await at.leftSnapshots(), []);
});

test('a range that is cut off is read again, and the backup stays incremental', async () => {
  await full();
  await at.scribble('box', 3 * MiB, 100_000);
  // The first is the server's look whether ranges are given at all.
  await vcenter.fault({ method: 'GET /folder', nth: 2, how: 'cut' });
  const view = await at.backUp(server, 'box');
  assert.equal(view.kind, 'incremental', view.fullBecause ?? '');
  await assertSame(view);
});

const removal = { method: 'RemoveSnapshot_Task', fault: 'GenericVmConfigFault', inCall: true };

test('the snapshot is removed in the end, also when removing it fails at first', async () => {
  await vcenter.fault({ ...removal, nth: 1 });
  await vcenter.fault({ method: 'RemoveSnapshot_Task', nth: 2, dropAnswer: true });
  const view = await at.backUp(server, 'box');
  assert.deepEqual(view.warnings, []);
});

/** A backup whose snapshot cannot be removed; its id. */
async function leaving(): Promise<string> {
  await vcenter.fault(removal);
  const { id } = await server.backups.start(requestOf('box'));
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'done');
  assert.match(view.warnings.join(), /stored, but its job at the hypervisor did not end/);
  assert.deepEqual(await at.leftSnapshots(), [`box: ${id}`], 'a trace for the reconciler');
  return id;
}

async function failedAt(other: BackupServer): Promise<NonNullable<Backup['error']>> {
  const { id } = await other.backups.start(requestOf('box'));
  const view = await other.ended(id);
  assert.ok(view !== 'died' && view.error !== null);
  assert.equal(view.state, 'failed');
  return view.error;
}

test('one that cannot be removed is a warning; the next backup removes it first', async () => {
  const id = await leaving();
  const refused = await failedAt(server);
  assert.match(refused.message, /rouse-\w+ of box, which an earlier backup left behind, cannot be/);
  assert.match(refused.advice, /delete it in vCenter/);
  await vcenter.clearFaults();
  const view = await at.backUp(server, 'box');
  assert.equal(view.kind, 'incremental', view.fullBecause ?? '');
  assert.deepEqual(view.warnings, [
    `the snapshot rouse-${id}, which an earlier backup left behind, was removed first`,
  ]);
  await assertSame(view);
});

test('one of a backup that this server does not know stays: another server may read from it', async () => {
  const id = await leaving();
  await vcenter.clearFaults();
  const other = await at.server();
  const refused = await failedAt(other);
  assert.equal(refused.code, 'busy');
  assert.match(refused.advice, /does not know that backup.*delete the snapshot in vCenter/);
  assert.deepEqual(await at.leftSnapshots(), [`box: ${id}`]);
  await other.stop();
  assert.equal((await at.backUp(server, 'box')).warnings.length, 1, 'its own server removes it');
});

test('disks that a removed snapshot leaves in need of consolidation are consolidated', async () => {
  await vcenter.behaviour({ removalLeavesFiles: true });
  const before = await callsOf('ConsolidateVMDisks_Task');
  assert.deepEqual((await at.backUp(server, 'box')).warnings, []);
  assert.equal(await callsOf('ConsolidateVMDisks_Task'), before + 1);

  const locked = {
    method: 'ConsolidateVMDisks_Task',
    fault: 'FileLocked',
    message: 'It is locked.',
  };
  await vcenter.fault(locked);
  const told = (await at.backUp(server, 'box')).warnings.join();
  assert.match(told, /the disks of box need consolidation: .*It is locked/);

  await vcenter.clearFaults();
  await vcenter.behaviour({});
  assert.deepEqual((await at.backUp(server, 'box')).warnings, [], 'the next one tries again');
  const now = await callsOf('ConsolidateVMDisks_Task');
  assert.deepEqual((await at.backUp(server, 'box')).warnings, []);
  assert.equal(await callsOf('ConsolidateVMDisks_Task'), now, 'there is nothing left to do');
});

test('a cancelled backup ends although its disks cannot be consolidated', async () => {
  await vcenter.behaviour({ removalLeavesFiles: true });
  await vcenter.fault({ method: 'ConsolidateVMDisks_Task', fault: 'FileLocked' });
  await vcenter.fault({ method: 'GET /nfc', nth: 1, how: 'stall', atByte: 100_000 });
  await vcenter.resetChangeTracking('box');
  const before = await callsOf('GET /nfc');
  const { id } = await server.backups.start(requestOf('box'));
  await eventually('the download', async () => (await callsOf('GET /nfc')) > before || undefined);
  await server.backups.cancel(id);
  const view = await server.ended(id);
  assert.equal(view === 'died' ? view : view.state, 'cancelled');
  assert.deepEqual(await at.leftSnapshots(), []);
  await vcenter.clearFaults();
  await vcenter.behaviour({});
  assert.deepEqual((await at.backUp(server, 'box')).warnings, []);
});

test('cancelled while it downloads: lease and snapshot are gone', async () => {
  await vcenter.fault({ method: 'GET /nfc', nth: 1, how: 'stall', atByte: 100_000 });
  await vcenter.resetChangeTracking('box');
  const before = await callsOf('GET /nfc');
  const aborted = await callsOf('HttpNfcLeaseAbort');
  const { id } = await server.backups.start(requestOf('box'));
  await eventually('the download', async () => (await callsOf('GET /nfc')) > before || undefined);
  await server.backups.cancel(id);
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'cancelled');
  assert.deepEqual(await at.leftSnapshots(), []);
  assert.equal((await callsOf('HttpNfcLeaseAbort')) - aborted, 1);
});

test('a proxy that restarts while it reads gets a new pass, and reads again', async () => {
  await vcenter.fault({ method: 'GET /nfc', nth: 1, how: 'stall', atByte: 100_000 });
  await vcenter.resetChangeTracking('box');
  const before = await callsOf('GET /nfc');
  const { id } = await server.backups.start(requestOf('box'));
  await eventually('the download', async () => (await callsOf('GET /nfc')) > before || undefined);
  at.proxy.restart();
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'done', view.error?.message);
  await assertSame(view);
  const passes = at.proxy.specs.flatMap((spec) =>
    spec.kind === 'backup' && spec.id === id ? [JSON.stringify(spec.pass)] : [],
  );
  assert.equal(new Set(passes).size, 2, 'a ticket is good once');
});

test('an answer that is lost to any call is asked for again, or looked for', async () => {
  const methods = [
    ...['RetrievePropertiesEx', 'CreateSnapshot_Task', 'QueryChangedDiskAreas', 'WaitForUpdatesEx'],
    ...['AcquireCloneTicket', 'CloneSession', 'ExportSnapshot', 'HttpNfcLeaseProgress'],
    ...['HttpNfcLeaseComplete', 'RemoveSnapshot_Task', 'Logout'],
  ];
  for (const method of methods) {
    for (const isFull of [true, false]) {
      if (isFull) await vcenter.resetChangeTracking('box');
      else await at.scribble('box', 2 * MiB, 5_000);
      await vcenter.fault({ method, nth: 1, dropAnswer: true });
      const view = await at.backUp(server, 'box');
      await vcenter.clearFaults();
      assert.equal(view.kind, isFull ? 'full' : 'incremental', `${method}: ${view.fullBecause}`);
      assert.deepEqual(view.warnings, [], method);
      await assertSame(view);
    }
  }
});

test('a session that ends while the snapshot is made is begun anew', async () => {
  const before = await callsOf('CreateSnapshot_Task');
  const { id } = await server.backups.start(requestOf('box'));
  await eventually(
    'the snapshot',
    async () => (await callsOf('CreateSnapshot_Task')) > before || undefined,
    10_000,
    5,
  );
  await vcenter.dropSessions();
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'done', view.error?.message);
  await assertSame(view);
  assert.deepEqual(await at.leftSnapshots(), []);
});

test('a machine with which another task is busy is waited for', async () => {
  await vcenter.fault({ method: 'ExportSnapshot', nth: 1, fault: 'TaskInProgress' });
  const before = await callsOf('ExportSnapshot');
  await assertSame(await full());
  assert.equal((await callsOf('ExportSnapshot')) - before, 2);
});

test('one that waits for its turn is cancelled without a snapshot', async () => {
  await vcenter.fault({ method: 'CreateSnapshot_Task', delayMs: 400 });
  const names = crowd.slice(0, turnLimits.perHostMax + 1);
  const begun = await Promise.all(names.map((name) => server.backups.start(requestOf(name))));
  const waiting = await eventually('a queue', async () => {
    const views = await server.backups.list({ state: 'running' });
    return views.find(({ waitsFor }) => waitsFor !== null);
  });
  await server.backups.cancel(waiting.id);
  const cancelled = await server.ended(waiting.id);
  assert.ok(cancelled !== 'died');
  assert.deepEqual([cancelled.state, cancelled.waitsFor], ['cancelled', null]);
  for (const { id } of begun.filter((one) => one.id !== waiting.id)) {
    const view = await server.ended(id);
    assert.ok(view !== 'died' && view.state === 'done');
  }
  const made = (await vcenter.calls()).filter(({ method }) => method === 'CreateSnapshot_Task');
  assert.ok(!JSON.stringify(made).includes(waiting.id));
});

test('many machines at once: so many snapshots on one host as it bears, and all get their turn', async () => {
  const before = (await vcenter.calls()).length;
  const begun = await Promise.all(crowd.map((name) => server.backups.start(requestOf(name))));
  const waiting = await eventually('one that waits', async () => {
    const views = await server.backups.list({});
    return views.find(({ waitsFor }) => waitsFor !== null);
  });
  assert.match(waiting.waitsFor ?? '', /host esx1|datastore production/);
  for (const { id } of begun) {
    const view = await server.ended(id);
    assert.ok(view !== 'died');
    assert.equal(view.state, 'done', view.error?.message);
    assert.equal(view.waitsFor, null);
    await assertSame(view, view.machine.name);
  }
  let held = 0;
  let most = 0;
  for (const { method } of (await vcenter.calls()).slice(before)) {
    if (method === 'CreateSnapshot_Task') held += 1;
    if (method === 'RemoveSnapshot_Task') held -= 1;
    most = Math.max(most, held);
  }
  assert.ok(most > 1 && most <= turnLimits.perHostMax, `${most} at once`);
  assert.deepEqual(await at.leftSnapshots(), []);
});
