/**
 * A database restored from an earlier copy knows nothing of what was begun since: exports, datastores,
 * machines and attached disks are found on a real libvirt and taken away; what only looks like ours
 * stays.
 */
import assert from 'node:assert/strict';
import { cp, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { eventually } from '#lab/processes.ts';
import { enterWorld } from '#lab/world.ts';
import { openGuestScene } from './rouse-world.ts';

const world = await enterWorld();
const scene = await openGuestScene(world);
after(() => scene.close());
const { rouse } = scene;

interface Report {
  readonly findings: readonly {
    readonly kind: string;
    readonly name: string;
    readonly outcome: string;
    readonly note: string;
  }[];
  readonly unreachable: readonly object[];
}

const held = async () => {
  const { proxy } = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  return [proxy.clones, proxy.exports];
};
const names = (report: Report) => report.findings.map(({ kind, outcome }) => `${kind} ${outcome}`);

async function catalogFiles(): Promise<string[]> {
  const all = await readdir(rouse.data);
  return all.filter((name) => name.startsWith('catalog'));
}

async function keepCatalog(): Promise<string> {
  const kept = join(world.directory, 'kept');
  await mkdir(kept);
  await rouse.stop();
  for (const name of await catalogFiles()) await cp(join(rouse.data, name), join(kept, name));
  await rouse.up();
  return kept;
}

async function restoreCatalog(kept: string): Promise<void> {
  await rouse.stop();
  for (const name of await catalogFiles()) await rm(join(rouse.data, name));
  await cp(kept, rouse.data, { recursive: true });
  await plantNote();
  await rouse.up();
}

/** A mount of somebody else's, called as ours are. */
async function plantNote(): Promise<void> {
  const [id = ''] = await readdir(join(rouse.data, 'hypervisors'));
  const file = join(rouse.data, 'hypervisors', id, 'libvirt.json');
  const state = JSON.parse(await readFile(file, 'utf8')) as { datastores: object[] };
  const place = { server: '198.51.100.7', path: '/vol/prod', nfsPort: 2049, mountPort: 2049 };
  state.datastores.push({ name: 'rouse-zzzzzzzzzz', ...place, client: 'qemu' });
  await writeFile(file, JSON.stringify(state));
}

/** A stopped machine with a mark like ours and a disk on an export that is not. */
async function plantMachine(recovery: string): Promise<void> {
  const xml = join(world.directory, 'somebody.xml');
  const source = `/main/Recover-local-${recovery}/web01/vda-flat.vmdk`;
  await writeFile(
    xml,
    `<domain type='qemu'><name>somebody</name><memory unit='MiB'>64</memory>
      <metadata><rouse:machine xmlns:rouse='https://rouse.dev/xmlns/1' mark='${recovery}'
        datastore='rouse-${recovery}' location='198.51.100.7:/main'/></metadata>
      <os><type arch='x86_64'>hvm</type></os>
      <devices><disk type='network' device='disk'><driver name='qemu' type='raw'/>
        <source protocol='nfs' name='${source}'><host name='198.51.100.7'/></source>
        <target dev='vda' bus='virtio'/></disk></devices></domain>`,
  );
  await scene.virsh('define', xml);
}

test('where all is as it should be, it says so', async () => {
  await rouse.run('backup', 'web01');
  assert.deepEqual(await rouse.json<Report>('reconcile').then(names), []);
  assert.match(await rouse.run('reconcile', '--dry-run'), /Everything is as it should be\./);
});

test('what an older database does not know is found by itself and taken away', async () => {
  const kept = await keepCatalog();
  const copy = await rouse.json<{ id: string }>('recover', 'web01', '--name', 'web01-copy');
  await rouse.json('recover', 'web01', '--mode', 'flr', '--into', 'web01');
  assert.deepEqual(await held(), [2, 2]);
  assert.deepEqual(await rouse.json<Report>('reconcile').then(names), [], 'both are known');
  await plantMachine(copy.id);
  await restoreCatalog(kept);
  const isGone = async () => !/web01-copy/.test(await scene.virsh('list', '--all', '--name'));
  await eventually('the machine to be unregistered', isGone, 60_000, 500);
  await eventually('its export and clone to go', async () => (await held())[0] === 1, 60_000, 500);
  const { events } = await rouse.json<{ events: { kind: string; message: string }[] }>('events');
  assert.ok(
    events.some(({ message }) => /machine web01-copy .* unregistered/.test(message)),
    'it is in the log of events',
  );
});

test('a disk that a guest may use stays until it is forced, and so does its export', async () => {
  const report = await rouse.json<Report>('reconcile');
  assert.deepEqual(names(report).toSorted(), [
    'clone left',
    'datastore left',
    'datastore left',
    'disk left',
    'export left',
  ]);
  assert.match(
    await rouse.run('status'),
    /5 things are not as expected.*rouse reconcile --dry-run/,
  );
  assert.match(await scene.virsh('dumpxml', 'web01'), /protocol='nfs'/);
  assert.deepEqual(await held(), [1, 1]);
  const text = await rouse.run('reconcile', '--force');
  assert.match(text, /mended: disk sda of web01 at lab/);
  assert.match(text, /left: datastore rouse-zzzzzzzzzz at lab\n.*\s+198\.51\.100\.7:\/vol\/prod/);
  assert.deepEqual(await held(), [0, 0]);
  assert.doesNotMatch(await scene.virsh('dumpxml', 'web01'), /protocol='nfs'/);
  await scene.beats.next(30_000);
});

test("what only looks like ours is still there, and somebody's machine as it was", async () => {
  const report = await rouse.json<Report>('reconcile', '--force');
  assert.deepEqual(
    report.findings.map(({ name, outcome }) => `${name} ${outcome}`),
    ['rouse-zzzzzzzzzz left'],
  );
  const xml = await scene.virsh('dumpxml', 'somebody');
  assert.match(xml, /host name='198\.51\.100\.7'/);
});

test('a hypervisor that is away is told, with an exit code', async () => {
  await scene.libvirt.stop();
  const answer = await rouse.attempt('reconcile');
  assert.equal(answer.code, 11, answer.stderr);
  assert.match(answer.stdout, /! hypervisor lab: /);
});
