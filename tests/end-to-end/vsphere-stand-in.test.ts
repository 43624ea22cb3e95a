/**
 * The stand-in for vCenter, judged by a client that is not ours (govmomi's, lab/vcenter/client):
 * its hosts mount what Rouse publishes, boot from it, and move what they booted.
 */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { buildGuest, Heartbeats, type SerialConsole } from '#lab/guest.ts';
import { attempt } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { buildGo } from '#lab/vcenter/build.ts';
import { startStandIn, writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld, worldAddresses } from '#lab/world.ts';

const world = await enterWorld();
const { directory } = world;
const production = join(directory, 'production');
await mkdir(production, { recursive: true });
const hosts = [await world.addHost('esx1'), await world.addHost('esx2')] as const;
const guest = await buildGuest({ directory, name: 'web01', heartbeatMs: 500 });
const hostOf = ({ name, ipv4, ipv6 }: (typeof hosts)[number]) => ({
  name,
  netns: name,
  addresses: [ipv4, ipv6],
});
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        clusters: [{ name: 'cluster1', hosts: hosts.map(hostOf) }],
        datastores: [{ name: 'production', directory: production }],
      },
    ],
  },
});
const rouse = new RouseCommand(world, join(directory, 'data'));
await rouse.up();
const judge = await buildGo(join(import.meta.dirname, '..', '..', 'lab', 'vcenter', 'client'));
let serial: SerialConsole | undefined;
after(async () => {
  await serial?.close();
  await vcenter.stop();
  await rouse.stop();
  await world.end();
});

const asked = (...args: string[]) =>
  attempt(judge, [
    ...['-url', vcenter.url, '-user', vcenter.user, '-password', vcenter.password],
    ...['-certificate', vcenter.certificate, '-datacenter', 'dc1', ...args],
  ]);

async function ask<T = unknown>(...args: string[]): Promise<T> {
  const { code, stdout, stderr } = await asked(...args);
  assert.equal(code, 0, `${args.join(' ')}: ${stderr}`);
  return JSON.parse(stdout) as T;
}

async function refused(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await asked(...args);
  assert.equal(code, 1, `${args.join(' ')} was not refused: ${stdout}`);
  return stderr;
}

interface Published {
  readonly recovery: string;
  readonly export: { readonly path: string };
  readonly disks: readonly { readonly path: string; readonly sizeBytes: number }[];
}

const backup = ['backup', '--file', guest.disk, '--name', 'web01'];
const { savesetId } = await rouse.json<{ savesetId: string }>(...backup);
const [esx1] = hosts;
const published = await rouse.json<Published>(
  ...['recover', '--saveset', savesetId, '--mode', 'publish'],
  ...['--client', esx1.ipv4, '--client', esx1.ipv6],
);
const { path } = published.export;
const folder = dirname(published.disks[0]?.path ?? '');
const vmx = `[wake] ${folder}/web01.vmx`;

/** What a proxy for vSphere would put beside the disk, written from the host that may. */
async function configure(): Promise<void> {
  const disk = published.disks[0];
  assert.ok(disk !== undefined);
  const place = join(directory, 'written');
  await writeMachine({ directory: place, name: 'web01', disks: [guest.disk] });
  const text = await readFile(join(place, 'web01', 'web01.vmdk'), 'utf8');
  const descriptor = join(directory, 'web01.vmdk');
  await writeFile(descriptor, text.replace('web01-flat.vmdk', basename(disk.path)));
  for (const file of [join(place, 'web01', 'web01.vmx'), descriptor]) {
    const url = `nfs://${worldAddresses.ipv4}${path}/${folder}/${basename(file)}?version=3`;
    await esx1.run('nfs-cp', [file, url]);
  }
}

test('a host mounts what names its addresses, over IPv4 and IPv6; another one is refused', async () => {
  for (const server of [worldAddresses.ipv4, worldAddresses.ipv6]) {
    const words = await refused('mount', 'esx2', server, path, 'wake', 'readWrite');
    assert.match(words, /PlatformConfigFault An error occurred during host configuration/);
    assert.match(words, /mount request was denied by the NFS server/);
    await ask('mount', 'esx1', server, path, 'wake', 'readWrite');
    const store = await ask<{ Host: { Key: { Value: string } }[] }>('datastore', 'wake');
    assert.equal(store.Host.length, 1);
    assert.match(
      await refused('mount', 'esx1', server, '/other', 'wake', 'readWrite'),
      /DuplicateName/,
    );
    assert.match(
      await refused('mount', 'esx1', server, path, 'again', 'readWrite'),
      /AlreadyExists/,
    );
    await ask('unmount', 'esx1', 'wake');
    await refused('datastore', 'wake');
  }
  const words = await refused('mount', 'esx1', '10.77.0.77', path, 'wake', 'readWrite');
  assert.match(words, /Unable to connect to NFS server/);
  const log = await vcenter.nfsLog();
  assert.ok(log.some(({ host, code }) => host === 'esx2' && code !== 0));
});

test('a machine is registered from the export and boots over NFS', async () => {
  await configure();
  await ask('mount', 'esx1', worldAddresses.ipv6, path, 'wake', 'readWrite');
  assert.match(await refused('register', '[wake] no.vmx', 'web01', 'esx1'), /NotFound/);
  await ask('register', vmx, 'web01', 'esx1');
  assert.match(await refused('register', vmx, 'two', 'esx1'), /AlreadyExists/);
  await ask('on', 'web01');
  serial = await vcenter.serial('web01');
  await serial.waitFor(/ROUSE fsck clean/, 120_000);
  assert.ok((await new Heartbeats(serial).next(60_000, 2)) > 0);
  assert.equal(await serial.command('hash'), guest.knownSha256);
  assert.match(await refused('unmount', 'esx1', 'wake'), /ResourceInUse/);
  assert.match(await refused('unregister', 'web01'), /InvalidPowerState/);
});
