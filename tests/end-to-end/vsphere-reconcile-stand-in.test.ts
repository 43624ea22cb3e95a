/**
 * Drift on the stand-in for vCenter: what is left of recoveries that a database does not know any
 * more, and what somebody took away by hand, is found and mended; somebody else's things with names
 * and marks like ours are never touched.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { run } from '#lab/processes.ts';
import { writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld } from '#lab/world.ts';
import { hostRef, machineRef, placeFor } from '#src/hypervisors/vsphere/inventory.ts';
import { readOne } from '#src/hypervisors/vsphere/properties.ts';
import { runTask } from '#src/hypervisors/vsphere/tasks.ts';
import { leaf, reference } from '#src/hypervisors/vsphere/vim-xml.ts';
import { Reconciler } from '#src/recovery/reconcile/reconcile.ts';
import { inputOf } from '#src/recovery/service.ts';
import { VsphereScene } from './vsphere-scene.ts';
import { Story } from './vsphere-story.ts';

const world = await enterWorld({ guests: false });
const scene = await VsphereScene.open(world);
const { vcenter, production } = scene;
const story = new Story(scene, await scene.server(scene.database()));
const { running } = story.server;
const person = scene.driver();
const reconciler = new Reconciler({
  ...running.desk,
  hypervisors: async () => [{ id: 'memory', name: 'vc' }],
  inputOf,
  hostId: (id) => running.recoveries.hostId(id),
  backupState: async () => undefined,
  isBackupRunning: async () => false,
  checkpoints: async () => new Set(),
  report: async () => undefined,
  failed: (error) => assert.fail(String(error)),
});
after(async () => {
  await running.stop();
  await person.close();
  await scene.close();
});

const foreignPlace = '10.77.0.2';
const foreignStore = 'rouse-zzzzzzzzzz';
const foreign: string[] = [];

/** `kind outcome` of each finding that is not about somebody else's datastore, sorted. */
async function pass(options: { dryRun?: boolean; force?: boolean } = {}): Promise<string[]> {
  const { dryRun = false, force = false } = options;
  const { findings, unreachable } = await reconciler.reconcile({ dryRun, force });
  assert.deepEqual(unreachable, []);
  const stranger = findings.find(({ name }) => name === foreignStore);
  assert.equal(stranger?.outcome, 'left');
  assert.match(stranger?.note ?? '', /which is no export of ours: it is left alone/);
  return findings
    .filter((finding) => finding !== stranger)
    .map(({ kind, outcome }) => `${kind} ${outcome}`)
    .toSorted();
}

async function hostId(): Promise<string> {
  return (await person.inventory()).hosts.find(({ name }) => name === 'esx1')?.id ?? '';
}

async function idOf(machine: string): Promise<string> {
  return (await person.inventory()).machines.find(({ name }) => name === machine)?.id ?? '';
}

async function registerByHand(path: string): Promise<string> {
  const host = await hostId();
  const { folder, pool } = await placeFor(person.client, host);
  const args = [leaf('path', path), leaf('asTemplate', false)];
  args.push(reference('pool', pool), reference('host', hostRef(host)));
  const what = 'registering by hand';
  return (await runTask(person.client, 'RegisterVM_Task', folder, args, { what }))?.text ?? '';
}

async function removeDatastoreByHand(name: string): Promise<void> {
  const { client } = person;
  const host = await readOne(client, hostRef(await hostId()), ['configManager.datastoreSystem']);
  const system = host.get('configManager.datastoreSystem')?.text ?? '';
  const { datastores } = await person.inventory();
  const id = datastores.find((one) => one.name === name)?.id ?? '';
  const datastore = reference('datastore', { type: 'Datastore', id });
  await client.call('RemoveDatastore', { type: 'HostDatastoreSystem', id: system }, [datastore]);
}

/** A share of somebody's that is called as ours are, and a snapshot and a machine likewise. */
before(async () => {
  await run('ip', ['addr', 'add', `${foreignPlace}/32`, 'dev', 'lo']);
  const [esx1] = scene.hosts;
  const published = await story.begin({
    mode: 'publish',
    clients: [esx1.ipv4],
    powerOn: false,
    host: undefined,
  });
  const { export: shared } = await story.until(published, 'available');
  const place = { server: foreignPlace, path: shared?.path ?? '', nfsPort: 2049, mountPort: 2049 };
  await person.mountDatastore(await hostId(), { name: foreignStore, ...place });
  const helper = machineRef(await idOf('helper'));
  const flags = [leaf('memory', false), leaf('quiesce', false)];
  const snapshot = [leaf('name', 'rouse-zzzzzzzzzz'), ...flags];
  await runTask(person.client, 'CreateSnapshot_Task', helper, snapshot, { what: 'a snapshot' });
});

const held = async () => {
  const { mounted, exports, clones } = await scene.held();
  return [mounted.length - 1, exports.length - 1, clones.length - 1];
};

/** Somebody's clone of a machine of ours: our keys in its .vmx, and a UUID of its own. */
async function plantClone(mark: string): Promise<void> {
  const disk = join(world.directory, 'helper.img');
  const settings = {
    'rouse.recovery': mark,
    'rouse.datastore': `rouse-${mark}`,
    'rouse.uuid': '11111111-2222-4333-8444-555555555555',
  };
  const vmx = await writeMachine({
    directory: production,
    name: 'theirs',
    disks: [disk],
    settings,
  });
  foreign.push(await registerByHand(`[production] ${vmx}`));
}

test('where all is as it should be, nothing is found', async () => {
  const id = await story.wake();
  assert.deepEqual(await pass(), []);
  await story.recoveries.relocate(id, { datastore: 'production' });
  await story.until(id, 'done');
  foreign.push(await idOf('web01'));
  await running.forget(id);
  assert.deepEqual(await pass({ force: true }), [], 'production is nobody of ours any more');
});

test('what an older database does not know is shown by a dry run, and taken away', async () => {
  const off = await story.wake({ name: 'off', powerOn: false });
  const on = await story.wake({ name: 'on' });
  await person.powerOn(await idOf('helper'));
  const flr = { mode: 'flr', into: 'helper', powerOn: false, host: undefined };
  const attached = await story.wake(flr);
  await plantClone(on);
  assert.deepEqual(await pass(), [], 'all of it is known');
  for (const id of [off, on, attached]) await running.forget(id);

  const before = (await vcenter.calls()).filter(({ method }) => changing.test(method)).length;
  const shown = await pass({ dryRun: true });
  const now = (await vcenter.calls()).filter(({ method }) => changing.test(method)).length;
  assert.equal(now, before, 'a dry run changes nothing');
  assert.deepEqual(await held(), [3, 3, 3]);
  const mended = ['clone', 'datastore', 'export', 'machine'].map((kind) => `${kind} would mend`);
  for (const finding of mended) assert.ok(shown.includes(finding), `${finding}: ${shown}`);
  for (const finding of ['machine left', 'disk left']) assert.ok(shown.includes(finding), finding);

  await pass();
  assert.deepEqual(await held(), [2, 2, 2], 'the machine that was off is gone');
  assert.equal(
    (await scene.machines()).some(({ name }) => name === 'off'),
    false,
  );
  assert.equal((await vcenter.machine('on')).poweredOn, true, 'one that runs is not stopped');
  assert.equal((await vcenter.machine('helper')).disks.length, 2, 'a guest may use it');

  await pass({ force: true });
  assert.deepEqual(await held(), [1, 1, 1]);
  assert.equal((await vcenter.machine('helper')).disks.length, 1);
  await person.powerOff(await idOf('on'), 'off');
  await pass({ force: true });
  assert.deepEqual(await held(), [0, 0, 0]);
  assert.deepEqual(await pass({ force: true }), []);
});

const changing = /_Task$|^(?:CreateNasDatastore|RemoveDatastore|UnregisterVM|AnswerVM)$/u;

test('an export and a datastore that have gone missing are made again', async () => {
  const id = await story.wake({ name: 'again', powerOn: false });
  const path = `/main/Recover-local-${id}`;
  await scene.proxy.deleteExport(path);
  assert.deepEqual(await pass({ dryRun: true }), ['export would mend']);
  assert.deepEqual(await pass(), ['export mended']);
  await person.powerOn(await idOf('again'));
  assert.equal(await scene.boots('again'), 1, 'the host reads from it as before');

  const flr = { mode: 'flr', into: 'helper', powerOn: false, host: undefined };
  const attached = await story.wake(flr);
  await vcenter.behaviour({ nasRemoveAnyway: true });
  await removeDatastoreByHand(`rouse-${attached}`);
  assert.ok((await pass({ dryRun: true })).includes('datastore would mend'));
  assert.ok((await pass()).includes('datastore mended'));
  assert.deepEqual(await pass(), []);
  for (const one of [id, attached]) {
    await story.recoveries.cancel(one, { keepWrites: false });
    await story.until(one, 'cancelled');
  }
  await vcenter.behaviour({});
  assert.deepEqual(await held(), [0, 0, 0]);
});

test('a machine that somebody relocated or unregistered is told apart', async () => {
  const moved = await story.wake({ name: 'moved' });
  const { datastores } = await person.inventory();
  const target = datastores.find(({ name }) => name === 'production')?.id ?? '';
  const place = { server: '', path: '', nfsPort: 0, mountPort: 0 };
  const spec = { fromDatastore: { name: `rouse-${moved}`, ...place }, toDatastoreId: target };
  const machineId = await idOf('moved');
  foreign.push(machineId);
  await person.relocate(
    { machineId, ...spec, bandwidthBytesPerSecond: 0 },
    { signal: new AbortController().signal, progress: () => undefined },
  );
  assert.deepEqual(await pass(), ['recovery mended']);
  await story.until(moved, 'done');
  assert.equal((await vcenter.machine('moved')).poweredOn, true);

  const lost = await story.wake({ name: 'lost', powerOn: false });
  await person.client.call('UnregisterVM', machineRef(await idOf('lost')));
  assert.deepEqual(await pass(), ['recovery left']);
  await story.recoveries.cancel(lost, { keepWrites: false });
  await story.until(lost, 'cancelled');
  assert.deepEqual(await held(), [0, 0, 0]);
});

test("somebody else's things are as they were", async () => {
  const names = (await scene.machines()).map(({ name, poweredOn }) => `${name} ${poweredOn}`);
  assert.deepEqual(names.toSorted(), ['moved true', 'theirs false', 'web01 true']);
  const stores = (await vcenter.datastores()).filter(({ remote }) => remote !== '');
  assert.deepEqual(
    stores.map(({ name }) => name),
    [foreignStore],
  );
  const helper = await readOne(person.client, machineRef(await idOf('helper')), ['snapshot']);
  assert.ok(helper.get('snapshot') !== undefined, 'its snapshot is there');
  const done = (await vcenter.calls()).filter(
    ({ method, object }) => foreign.includes(object) && /Unregister|Reconfig|PowerOff/.test(method),
  );
  assert.deepEqual(done, []);
});
