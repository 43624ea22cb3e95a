/**
 * Full restore on the stand-in for vCenter: the machine is registered on its mounted backup, moved to
 * production while it is off, and only then powered on; nothing else stays. Faults, cancel and
 * kill -9 leave all of it or nothing.
 */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { after, afterEach, test } from 'node:test';
import { enterWorld } from '#lab/world.ts';
import { recoveryRequest } from '#src/recovery/schema.ts';
import { VsphereScene } from './vsphere-scene.ts';
import { Story, type Work } from './vsphere-story.ts';

const world = await enterWorld({ guests: false });
const scene = await VsphereScene.open(world);
const { vcenter } = scene;
const story = new Story(scene, await scene.server(scene.database()));
afterEach(() => story.tidy());
after(async () => {
  await story.server.running.stop();
  await scene.close();
});

const whole = { mode: 'new', datastore: 'production', host: undefined } as const;

async function isRestored(isOn: boolean): Promise<void> {
  assert.deepEqual(await scene.held(), { mounted: [], exports: [], clones: [] });
  const machines = await scene.machines();
  assert.deepEqual(
    machines.map(({ name, poweredOn, vmx }) => [name, poweredOn, vmx]),
    [['web01', isOn, '[production] web01/web01.vmx']],
  );
  assert.ok(machines[0]?.disks.every(({ file }) => file.startsWith('[production] ')));
  const { id = '' } = machines[0] ?? {};
  const done = (await vcenter.calls()).filter(
    ({ object, method }) => object === id && /_Task$|Unregister/.test(method),
  );
  const wanted = isOn ? ['RelocateVM_Task', 'PowerOnVM_Task'] : ['RelocateVM_Task'];
  assert.deepEqual(
    done.map(({ method }) => method),
    wanted,
  );
}

async function nothingIsLeft(): Promise<void> {
  await story.nothingIsLeft();
  assert.deepEqual(await readdir(scene.production), []);
}

test('a whole machine is written to production, and powered on from there', async () => {
  const plan = await story.recoveries.plan(recoveryRequest.parse({ machine: 'web01', ...whole }));
  const details = plan.steps.map(({ detail }) => detail).join('\n');
  assert.match(details, /moved to production while it is off/);
  assert.doesNotMatch(details, /skipped/);
  const id = await story.begin(whole);
  const view = await story.until(id, 'done', 'failed');
  assert.equal(view.state, 'done', view.error?.message);
  assert.equal(view.steps[11]?.detail, '1 disk on production');
  assert.deepEqual([...new Set(view.steps.map(({ state }) => state))], ['done']);
  await isRestored(true);
  assert.equal(await scene.boots('web01'), 1);
});

test('without power, it lies there switched off', async () => {
  const id = await story.begin({ ...whole, powerOn: false });
  assert.equal((await story.until(id, 'done', 'failed')).state, 'done');
  await isRestored(false);
});

test('a machine that is refused its power is restored all the same, and that is said', async () => {
  const message = 'No resources.';
  await vcenter.fault({ method: 'PowerOnVM_Task', fault: 'InsufficientResourcesFault', message });
  const id = await story.begin(whole);
  const view = await story.until(id, 'done', 'failed');
  assert.equal(view.state, 'done');
  assert.match(view.steps[9]?.detail ?? '', /No resources/);
  assert.ok(story.server.running.told.includes('warning recovery.not-powered-on'));
  assert.equal((await scene.machines())[0]?.poweredOn, false);
});

const failing: readonly { what: string; arrange: Work; says: RegExp }[] = [
  {
    what: 'the disks cannot be moved',
    arrange: () =>
      vcenter.fault({ method: 'RelocateVM_Task', fault: 'NoDiskSpace', message: 'It is full.' }),
    says: /relocating web01: It is full/,
  },
  {
    what: 'the copy fails at its end',
    arrange: () =>
      vcenter.fault({ method: 'RelocateVM_Task', fault: 'SystemError', atProgress: 90 }),
    says: /relocating web01/,
  },
];
for (const { what, arrange, says } of failing) {
  test(`nothing is left when ${what}`, async () => {
    await arrange();
    const id = await story.begin(whole);
    const view = await story.until(id, 'done', 'failed');
    assert.equal(view.state, 'failed');
    assert.match(view.error?.message ?? '', says);
    assert.notEqual(view.error?.advice ?? '', '');
    await nothingIsLeft();
  });
}

test('no machine is put on the export of another recovery: it would go with that', async () => {
  const other = await story.wake({ name: 'other' });
  const there = { datastore: `rouse-${other}` };
  await assert.rejects(story.begin({ ...whole, ...there }), /shows a backup/);
  await assert.rejects(story.begin({ relocateTo: there.datastore }), /shows a backup/);
  await assert.rejects(story.recoveries.relocate(other, there), /shows a backup/);
  await story.cancel(other);
});

test('cancelled before its disks move, nothing is left', async () => {
  let id = '';
  await story.at('before RelocateVM_Task', async () => {
    await story.recoveries.cancel(id, { keepWrites: false });
  })();
  id = await story.begin(whole);
  assert.equal((await story.until(id, 'done', 'failed', 'cancelled')).state, 'cancelled');
  await nothingIsLeft();
});

test('cancelled when its disks have arrived, it is production and stays', async () => {
  let id = '';
  await story.at('before PowerOnVM_Task', async () => {
    await story.recoveries.cancel(id, { keepWrites: false });
  })();
  id = await story.begin(whole);
  assert.equal((await story.until(id, 'done', 'failed', 'cancelled')).state, 'cancelled');
  assert.deepEqual(await scene.held(), { mounted: [], exports: [], clones: [] });
  assert.match((await scene.machines())[0]?.vmx ?? '', /^\[production\]/);
});

test('killed before or after every other call, it is restored once', async () => {
  let meetings: readonly string[] = [];
  // Each call is met before and after: an odd stride tries both. All of them: vsphere-kill.
  for (let dieAt = 1; ; dieAt += 3) {
    const path = scene.database();
    let server = await scene.server(path, dieAt);
    ({ meetings } = server.life);
    const wanted = recoveryRequest.parse({ machine: 'web01', ...whole });
    const { id } = await server.running.recoveries.create(wanted);
    let isDead = false;
    for (;;) {
      const view = await server.running.until(id, ['done', 'failed']);
      if (view !== 'died') {
        assert.equal(view.state, 'done', `killed at ${dieAt}`);
        break;
      }
      isDead = true;
      await server.running.bury();
      server = await scene.server(path);
    }
    await isRestored(false);
    await scene.forget('web01');
    await server.running.stop();
    await server.driver.close();
    if (!isDead) break;
  }
  assert.ok(meetings.length >= 22 && meetings.includes('after RelocateVM_Task'));
});
