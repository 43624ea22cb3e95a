/**
 * What may go wrong once a machine runs from its backup, on the stand-in for vCenter: a relocation
 * fails or is cancelled half way, and the machine runs on and can be relocated again; clean-up goes
 * on until nothing is left, and never touches what is production.
 */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { after, afterEach, describe, test } from 'node:test';
import { eventually } from '#lab/processes.ts';
import { enterWorld } from '#lab/world.ts';
import { VsphereScene } from './vsphere-scene.ts';
import { Story, type Work } from './vsphere-story.ts';

const world = await enterWorld({ guests: false });
const person = 'person@vsphere.local';
const scene = await VsphereScene.open(world, { users: [person] });
const { vcenter } = scene;
const story = new Story(scene, await scene.server(scene.database()));
const { running } = story.server;
afterEach(() => story.tidy());
after(async () => {
  await running.stop();
  await scene.close();
});

/** Slow enough that something can happen while it copies 1 MiB. */
const slowly = () => vcenter.behaviour({ relocateBytesPerSecond: 256 << 10 });
const relocate = (id: string) => story.recoveries.relocate(id, { datastore: 'production' });

async function progressOf(id: string): Promise<number> {
  const { steps } = await story.recoveries.get(id);
  return steps[11]?.progress?.done ?? 0;
}

const isMoving = (id: string) =>
  eventually('progress', async () => (await progressOf(id)) > 0 || undefined, 30_000, 50);

/** It has come back to its backup, and nothing of the copy is left; then it moves for good. */
async function runsOnAndMoves(id: string, says: RegExp | undefined): Promise<void> {
  const view = await story.until(id, 'available', 'done', 'failed');
  assert.equal(view.state, 'available');
  if (says !== undefined) assert.match(view.steps[11]?.detail ?? '', says);
  await story.runsFromItsBackup(id);
  assert.deepEqual(await readdir(scene.production), [], 'nothing of the copy is left');
  await story.calm();
  await relocate(id);
  await movedFor(id);
}

async function movedFor(id: string): Promise<void> {
  const view = await story.until(id, 'done', 'available', 'failed');
  assert.equal(view.state, 'done', view.error?.message);
  await story.isProduction();
  await scene.forget('web01');
}

describe('a relocation', () => {
  const failing: readonly { what: string; arrange: Work; says: RegExp }[] = [
    {
      what: 'that fails half way',
      arrange: async () => {
        await slowly();
        const fault = { fault: 'GenericVmConfigFault', message: 'The copy was aborted.' };
        await vcenter.fault({ method: 'RelocateVM_Task', nth: 1, atProgress: 40, ...fault });
      },
      says: /relocating web01: The copy was aborted/,
    },
    {
      what: 'that is refused',
      arrange: () =>
        vcenter.fault({ method: 'RelocateVM_Task', nth: 1, fault: 'NoDiskSpace', inCall: true }),
      says: /NoDiskSpace/,
    },
    {
      what: 'that may not be asked for',
      arrange: () => vcenter.missingPrivileges([{ privilege: 'Resource.HotMigrate' }]),
      says: /privilege Resource\.HotMigrate/,
    },
  ];
  for (const { what, arrange, says } of failing) {
    test(`${what} leaves the machine running from its backup; it moves when asked again`, async () => {
      const id = await story.wake();
      await arrange();
      await relocate(id);
      await runsOnAndMoves(id, says);
    });
  }

  test('that is cancelled leaves the machine running from its backup', async () => {
    const id = await story.wake();
    await slowly();
    await relocate(id);
    await isMoving(id);
    await story.recoveries.cancel(id, { keepWrites: false });
    await runsOnAndMoves(id, undefined);
  });

  test('goes on when the answer to its call is lost', async () => {
    const id = await story.wake();
    await slowly();
    await vcenter.fault({ method: 'RelocateVM_Task', nth: 1, dropAnswer: true });
    await relocate(id);
    await movedFor(id);
    const calls = (await vcenter.calls()).filter(({ method }) => method === 'RelocateVM_Task');
    assert.equal(calls.filter(({ object }) => object === calls.at(-1)?.object).length, 1);
    await story.calm();
  });

  test('goes on over lost sessions and a vCenter that is gone for a while', async () => {
    const id = await story.wake();
    await slowly();
    await relocate(id);
    await isMoving(id);
    await vcenter.dropSessions();
    await vcenter.goAwayMs(1500);
    await movedFor(id);
    await story.calm();
  });

  test('of a machine whose host dies leaves the backup, and it is powered on again', async () => {
    const id = await story.wake();
    await slowly();
    await relocate(id);
    await isMoving(id);
    await vcenter.host('esx1', { dies: true });
    await story.until(id, 'available');
    await story.calm();
    const driver = scene.driver();
    const machine = await driver.findMarked(id);
    assert.ok(machine !== undefined);
    await driver.powerOn(machine);
    await driver.close();
    await relocate(id);
    await movedFor(id);
  });

  test('that a person began is neither joined nor cancelled', async () => {
    const id = await story.wake();
    await slowly();
    const theirs = scene.driver(undefined, person);
    const ours = scene.driver();
    const machine = (await ours.findMarked(id)) ?? '';
    const { datastores } = await ours.inventory();
    const target = datastores.find(({ name }) => name === 'production')?.id ?? '';
    const place = { server: '', path: '', nfsPort: 0, mountPort: 0 };
    const moving = theirs.relocate(
      {
        machineId: machine,
        fromDatastore: { name: `rouse-${id}`, ...place },
        toDatastoreId: target,
        bandwidthBytesPerSecond: 0,
      },
      { signal: new AbortController().signal, progress: () => undefined },
    );
    const hasBegun = async () =>
      (await vcenter.calls()).at(-1)?.method === 'WaitForUpdatesEx' || undefined;
    await eventually('their relocation', hasBegun, 30_000, 50);
    await relocate(id);
    const view = await story.until(id, 'available');
    assert.match(view.steps[11]?.detail ?? '', /person@vsphere\.local is relocating web01 already/);
    await ours.stopRelocation(machine);
    const { disks } = await moving;
    assert.equal(disks.length, 1, 'theirs came to its end');
    await story.recoveries.cancel(id, { keepWrites: false });
    await story.until(id, 'cancelled');
    await story.isProduction();
    await scene.forget('web01');
    await theirs.close();
    await ours.close();
    await story.calm();
  });
});

describe('clean-up', () => {
  const lost = (method: string) => () => vcenter.fault({ method, nth: 1, dropAnswer: true });
  const fails = (method: string, fault: string, times: number) => async () => {
    for (let nth = 1; nth <= times; nth += 1) await vcenter.fault({ method, nth, fault });
  };
  const cases: readonly { what: string; arrange: Work }[] = [
    { what: 'the answer to PowerOffVM_Task is lost', arrange: lost('PowerOffVM_Task') },
    { what: 'the answer to UnregisterVM is lost', arrange: lost('UnregisterVM') },
    { what: 'the answer to RemoveDatastore is lost', arrange: lost('RemoveDatastore') },
    {
      what: 'the datastore is in use for a while, as vCenter says',
      arrange: fails('RemoveDatastore', 'ResourceInUse', 5),
    },
    { what: 'UnregisterVM fails for a while', arrange: fails('UnregisterVM', 'SystemError', 5) },
    {
      what: 'sessions are lost all the time',
      arrange: async () => {
        story.server.life.onMeet = () => vcenter.dropSessions();
      },
    },
    {
      what: 'the vCenter goes away before and after each call',
      arrange: async () => story.goAwayAt(/VM|Datastore/u, 700),
    },
  ];
  for (const { what, arrange } of cases) {
    test(`leaves nothing although ${what}`, async () => {
      const id = await story.wake();
      await arrange();
      await story.cancel(id);
      await story.calm();
    });
  }

  test('waits with the export while the host does not answer, and says so', async () => {
    const id = await story.wake();
    await vcenter.host('esx1', { dies: true });
    await story.recoveries.cancel(id, { keepWrites: false });
    const waits = async () => {
      const { state, steps } = await story.recoveries.get(id);
      return state === 'cleaning' && /disconnected/.test(steps[12]?.detail ?? '');
    };
    await eventually('the reason', waits, 30_000, 50);
    const { mounted, exports, clones } = await scene.held();
    assert.deepEqual([mounted.length, exports.length, clones.length], [1, 1, 1]);
    await story.calm();
    await story.until(id, 'cancelled');
    await story.nothingIsLeft();
  });

  test('keeps what a machine of somebody uses, although vCenter would let it go', async () => {
    const id = await story.wake();
    await vcenter.behaviour({ nasRemoveAnyway: true });
    const driver = scene.driver();
    const ours = (await driver.findMarked(id)) ?? '';
    const { machines } = await driver.inventory();
    const theirs = machines.find(({ name }) => name === 'helper')?.id ?? '';
    await driver.powerOff(ours, 'off');
    await driver.client.call('UnregisterVM', { type: 'VirtualMachine', id: ours });
    const place = { server: '', path: '', nfsPort: 0, mountPort: 0 };
    const datastore = { name: `rouse-${id}`, ...place };
    const path = 'web01/scsi0-0-flat.vmdk';
    const disk = { datastore, path, sizeBytes: 1 << 20, serial: 'theirs' };
    const device = await driver.attachDisk(theirs, disk);
    await story.recoveries.cancel(id, { keepWrites: false });
    const reason = async () => (await story.recoveries.get(id)).steps[12]?.detail ?? '';
    const waits = async () => /still uses datastore/.test(await reason());
    await eventually('the reason', waits, 30_000, 50);
    const { mounted, exports } = await scene.held();
    assert.deepEqual([mounted.length, exports.length], [1, 1]);
    await driver.detachDisk(theirs, device);
    await story.until(id, 'cancelled');
    await story.nothingIsLeft();
    await driver.close();
  });
});
