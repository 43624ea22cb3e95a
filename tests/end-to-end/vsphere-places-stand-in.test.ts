/**
 * Where a recovery goes, on the stand-in for vCenter: an export answers the one host alone, a host
 * whose NFS.MaxVolumes is full is passed over, and what cannot work is said before anything is made.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, afterEach, test } from 'node:test';
import { writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld, type Host, worldAddresses } from '#lab/world.ts';
import { hostRef, placeFor } from '#src/hypervisors/vsphere/inventory.ts';
import { runTask } from '#src/hypervisors/vsphere/tasks.ts';
import { leaf, reference } from '#src/hypervisors/vsphere/vim-xml.ts';
import { recoveryRequest } from '#src/recovery/schema.ts';
import { VsphereScene } from './vsphere-scene.ts';
import { Story } from './vsphere-story.ts';

const world = await enterWorld({ guests: false });
const scene = await VsphereScene.open(world);
const { vcenter } = scene;
const [esx1, esx2] = scene.hosts;
const story = new Story(scene, await scene.server(scene.database()));
const person = scene.driver();
afterEach(() => story.tidy());
after(async () => {
  await story.server.running.stop();
  await person.close();
  await scene.close();
});

interface Answer {
  readonly status?: number;
  readonly handle?: string;
  readonly statuses?: readonly number[];
}

const script = join(import.meta.dirname, 'nfs-host-client.ts');
const client = async (on: Host, ...args: string[]): Promise<Answer> => {
  const answer: Answer = JSON.parse(await on.run(process.execPath, [script, ...args]));
  return answer;
};
const denied = 13;

test('the export answers its host in both families, and refuses the other of its cluster', async () => {
  const id = await story.wake();
  const [shared] = await scene.proxy.exports();
  const path = shared?.path ?? '';
  assert.deepEqual([...(shared?.clients ?? [])].toSorted(), [esx1.ipv4, esx1.ipv6].toSorted());
  const { handle = '' } = await client(esx1, 'mount', worldAddresses.ipv4, '', path);
  assert.notEqual(handle, '');
  for (const address of [worldAddresses.ipv4, worldAddresses.ipv6]) {
    assert.equal((await client(esx1, 'mount', address, '', path)).status, 0, address);
    assert.equal((await client(esx2, 'mount', address, '', path)).status, denied, address);
    const { statuses } = await client(esx2, 'use', address, handle);
    const all = Array.from({ length: 21 }, () => denied);
    assert.deepEqual(statuses, all, `every call with a stolen handle at ${address}`);
  }
  const { hosts } = await person.inventory();
  const other = hosts.find(({ name }) => name === 'esx2')?.id ?? '';
  const name = `rouse-${id}`;
  const spec = { name, server: worldAddresses.ipv4, path, nfsPort: 2049, mountPort: 2049 };
  await assert.rejects(person.mountDatastore(other, spec), /mount request was denied/);
  await story.runsFromItsBackup(id);
});

test('a host whose NFS.MaxVolumes is full is passed over with its reason, and freed is taken', async () => {
  const elsewhere = { powerOn: false, host: 'esx2' };
  const ids = [];
  for (const name of ['one', 'two']) ids.push(await story.wake({ ...elsewhere, name }));
  const wanted = recoveryRequest.parse({ machine: 'web01', name: 'three' });
  const plan = await story.recoveries.plan(wanted);
  const full = plan.candidates.find(({ host }) => host === 'esx2');
  assert.deepEqual(full?.refusals, ['the host has no NFS datastore free: 2 of 2 are used']);
  assert.equal(plan.candidates.find(({ chosen }) => chosen)?.host, 'esx1');
  await assert.rejects(story.begin({ ...elsewhere, name: 'three' }), {
    code: 'host-unreachable',
    message: /esx2 cannot take three.*no NFS datastore free: 2 of 2 are used/,
  });
  const three = await story.wake({ name: 'three', host: undefined });
  assert.equal((await story.recoveries.get(three)).host, 'esx1');
  await story.recoveries.cancel(ids[0] ?? '', { keepWrites: false });
  await story.until(ids[0] ?? '', 'cancelled');
  const four = await story.wake({ ...elsewhere, name: 'four' });
  assert.equal((await story.recoveries.get(four)).host, 'esx2');
});

test('a name that somebody has is refused before anything is made', async () => {
  const disk = join(world.directory, 'helper.img');
  const vmx = await writeMachine({ directory: scene.production, name: 'web01', disks: [disk] });
  const { hosts } = await person.inventory();
  const host = hosts[0]?.id ?? '';
  const { folder, pool } = await placeFor(person.client, host);
  const args = [leaf('path', `[production] ${vmx}`), leaf('asTemplate', false)];
  args.push(reference('pool', pool), reference('host', hostRef(host)));
  await runTask(person.client, 'RegisterVM_Task', folder, args, { what: 'by hand' });
  const id = await story.begin();
  const view = await story.until(id, 'failed', 'available');
  assert.match(view.error?.message ?? '', /a machine named web01 exists/);
  assert.match(view.error?.advice ?? '', /--name web01-recovered/);
  assert.deepEqual(await scene.held(), { mounted: [], exports: [], clones: [] });
});

test('hosts in maintenance or disconnected are named, all of them, and nothing is begun', async () => {
  await vcenter.host('esx1', { maintenance: true });
  await vcenter.host('esx2', { connection: 'disconnected' });
  const id = await story.begin({ host: undefined });
  const view = await story.until(id, 'failed', 'available');
  assert.match(view.error?.message ?? '', /esx1 .*the host is in maintenance/);
  assert.match(view.error?.message ?? '', /esx2 .*the host is disconnected/);
  await assert.rejects(story.begin({ host: 'esx1', name: 'other' }), /in maintenance/);
  assert.deepEqual(await scene.held(), { mounted: [], exports: [], clones: [] });
  const changed = (await vcenter.calls()).filter(
    ({ method, args }) => method === 'CreateNasDatastore' && JSON.stringify(args).includes(id),
  );
  assert.deepEqual(changed, []);
});

test('a host that is lost after it was chosen is named, with what to do', async () => {
  await story.at('before createExport', () =>
    vcenter.host('esx1', { connection: 'notResponding' }),
  )();
  const id = await story.begin();
  const view = await story.until(id, 'failed', 'available');
  assert.match(view.error?.message ?? '', /host esx1 is disconnected/);
  assert.match(view.error?.advice ?? '', /Bring it back, or choose another host/);
  await story.calm();
  await story.nothingIsLeft();
});
