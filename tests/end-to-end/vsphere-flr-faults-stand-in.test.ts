/**
 * File-level recovery when something goes wrong, on the stand-in for vCenter: faults of the
 * reconfiguration, a target that is switched off, moved or removed meanwhile, and kill -9 of the
 * server before and after every call. The target keeps what is its own.
 */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { enterWorld } from '#lab/world.ts';
import type { VsphereHypervisor } from '#src/hypervisors/vsphere/driver.ts';
import { hostRef, machineRef, placeFor } from '#src/hypervisors/vsphere/inventory.ts';
import { runTask } from '#src/hypervisors/vsphere/tasks.ts';
import { leaf, node, reference } from '#src/hypervisors/vsphere/vim-xml.ts';
import { recoveryRequest } from '#src/recovery/schema.ts';
import { VsphereScene, writeHelper } from './vsphere-scene.ts';
import { Story, type Work } from './vsphere-story.ts';

const world = await enterWorld({ guests: false });
const scene = await VsphereScene.open(world);
const { vcenter } = scene;
const story = new Story(scene, await scene.server(scene.database()));
const person = scene.driver();
before(async () => helperIsOn());
afterEach(async () => {
  await story.tidy();
  await helperIsOn();
});
after(async () => {
  await story.server.running.stop();
  await person.close();
  await scene.close();
});

const flr = { mode: 'flr', into: 'helper', powerOn: false, host: undefined };

async function idOf(kind: 'machines' | 'hosts', name: string): Promise<string> {
  const inventory = await person.inventory();
  return inventory[kind].find((one) => one.name === name)?.id ?? '';
}

/** As it was at the beginning: registered, on esx1, powered on, with its own disk. */
async function helperIsOn(): Promise<void> {
  if ((await idOf('machines', 'helper')) === '') await registerHelper(person);
  const id = await idOf('machines', 'helper');
  const { disks } = await person.machine(id);
  for (const { name } of disks.slice(1)) await person.detachDisk(id, name);
  await moveHelper('esx1');
  await person.powerOn(id);
}

async function registerHelper({ client }: VsphereHypervisor): Promise<void> {
  // Its .vmx may still name a disk of ours: nobody told it that it is gone.
  await writeHelper(world.directory);
  const host = await idOf('hosts', 'esx1');
  const { folder, pool } = await placeFor(client, host);
  const args = [
    leaf('path', '[helpers] helper/helper.vmx'),
    leaf('asTemplate', false),
    reference('pool', pool),
    reference('host', hostRef(host)),
  ];
  await runTask(client, 'RegisterVM_Task', folder, args, { what: 'by hand' });
}

/** vMotion by a person. */
async function moveHelper(host: string): Promise<void> {
  const machine = machineRef(await idOf('machines', 'helper'));
  const to = hostRef(await idOf('hosts', host));
  const spec = node('spec', [reference('host', to)]);
  await runTask(person.client, 'RelocateVM_Task', machine, [spec], { what: 'vMotion' });
}

const powerOff = async () => person.powerOff(await idOf('machines', 'helper'), 'off');
const remove = async () => {
  await powerOff();
  await person.client.call('UnregisterVM', machineRef(await idOf('machines', 'helper')));
};

async function helperHas(disks: number): Promise<void> {
  const machine = await vcenter.machine('helper');
  assert.equal(machine.disks.length, disks);
  assert.equal(machine.scsiControllers, 1);
}

const fails = (fault: string, nth?: number) => () =>
  vcenter.fault({
    method: 'ReconfigVM_Task',
    fault,
    message: 'It was refused.',
    ...(nth === undefined ? {} : { nth }),
  });
const beforeAttaching = (what: Work) => story.at('before CreateNasDatastore', what);

describe('attaching', () => {
  const cases: readonly { what: string; arrange: Work; says?: RegExp; isGone?: boolean }[] = [
    {
      what: 'is refused',
      arrange: fails('InvalidDeviceBacking'),
      says: /attaching \[rouse-.* to helper: It was refused/,
    },
    { what: 'is refused once', arrange: fails('TaskInProgress', 1) },
    {
      what: 'has its answer lost',
      arrange: () => vcenter.fault({ method: 'ReconfigVM_Task', nth: 1, dropAnswer: true }),
    },
    {
      what: 'loses its session before and after each call',
      arrange: async () => {
        story.server.life.onMeet = () => vcenter.dropSessions();
      },
    },
    {
      what: 'finds the vCenter gone for a while',
      arrange: async () => story.goAwayAt(/ReconfigVM_Task/u, 1500),
    },
    {
      what: 'finds its target switched off',
      arrange: beforeAttaching(powerOff),
      says: /helper is off: it sees no new disk/,
    },
    {
      what: 'finds its target on another host',
      arrange: beforeAttaching(() => moveHelper('esx2')),
      says: /helper has moved away from esx1 since/,
    },
    {
      what: 'finds its target gone',
      arrange: beforeAttaching(remove),
      says: /helper is no longer there/,
      isGone: true,
    },
  ];
  for (const { what, arrange, says, isGone = false } of cases) {
    test(what, async () => {
      await arrange();
      const id = await story.begin(flr);
      const view = await story.until(id, 'available', 'failed');
      assert.equal(view.state, says === undefined ? 'available' : 'failed', view.error?.message);
      if (says === undefined) {
        await helperHas(2);
        await story.calm();
        return story.cancel(id);
      }
      assert.match(view.error?.message ?? '', says);
      assert.notEqual(view.error?.advice ?? '', '');
      await story.nothingIsLeft();
      if (!isGone) await helperHas(1);
    });
  }
});

describe('a target that has the disk', () => {
  test('is switched off: the disk is taken from it all the same', async () => {
    const id = await story.wake(flr);
    await powerOff();
    await story.cancel(id);
    await helperHas(1);
  });

  test('is removed from the inventory: everything else goes', async () => {
    const id = await story.wake(flr);
    await remove();
    await story.cancel(id);
  });

  test('cannot be moved to another host, as vCenter says, and keeps its disk', async () => {
    const id = await story.wake(flr);
    await assert.rejects(moveHelper('esx2'), /Unable to access datastore/);
    await helperHas(2);
    await story.cancel(id);
    await helperHas(1);
  });

  test('does not let go of it for a while: clean-up goes on until it does', async () => {
    const id = await story.wake(flr);
    for (const nth of [1, 2, 3, 4]) await fails('InvalidDeviceOperation', nth)();
    await vcenter.fault({ method: 'ReconfigVM_Task', nth: 5, dropAnswer: true });
    await story.cancel(id);
    await helperHas(1);
  });
});

test('killed before and after every call, the disk is attached once and taken away again', async () => {
  let meetings: readonly string[] = [];
  for (let dieAt = 1; ; dieAt += 1) {
    const path = scene.database();
    let server = await scene.server(path, dieAt);
    ({ meetings } = server.life);
    const next = async () => {
      await server.running.bury();
      server = await scene.server(path);
      return server.running;
    };
    let isDead = false;
    const follow = async (id: string, state: 'available' | 'cancelled') => {
      for (;;) {
        const view = await server.running.until(id, [state, 'failed']);
        if (view !== 'died') return assert.equal(view.state, state, `killed at ${dieAt}`);
        isDead = true;
        await next();
      }
    };
    const wanted = recoveryRequest.parse({ machine: 'web01', mode: 'flr', into: 'helper' });
    const { id } = await server.running.recoveries.create(wanted);
    await follow(id, 'available');
    await helperHas(2);
    const ending = server.running.recoveries.cancel(id, { keepWrites: false });
    if ((await Promise.race([ending.then(() => 'asked'), server.life.died])) === 'died') {
      isDead = true;
      const { recoveries } = await next();
      const { state } = await recoveries.get(id);
      if (state === 'available') await recoveries.cancel(id, { keepWrites: false });
    }
    await follow(id, 'cancelled');
    await story.nothingIsLeft();
    await helperHas(1);
    await server.running.stop();
    await server.driver.close();
    if (!isDead) break;
  }
  assert.ok(meetings.length >= 14 && meetings.includes('after ReconfigVM_Task'));
});
