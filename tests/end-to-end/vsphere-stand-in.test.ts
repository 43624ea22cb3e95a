/**
 * The stand-in for vCenter, judged by a client that is not ours (govmomi's, lab/vcenter/client):
 * its hosts mount what Rouse publishes, boot from it, and move what they booted.
 */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { buildGuest, Heartbeats, type SerialConsole } from '#lab/guest.ts';
import { attempt, eventually } from '#lab/processes.ts';
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

interface IdentityView {
  readonly Config: { readonly Uuid: string };
}

interface MachineView {
  readonly Config: { readonly Files: { readonly VmPathName: string } };
  readonly Runtime: { readonly PowerState: string };
}

test('a relocation is canceled and leaves nothing; another moves it while it writes', async () => {
  assert.ok(serial !== undefined);
  const beats = new Heartbeats(serial);
  const from = serial.position;
  await vcenter.behaviour({ relocateBytesPerSecond: 8 * 1024 * 1024 });
  assert.match(await refused('cancel', 'web01', 'production'), /RequestCanceled/);
  assert.deepEqual(await readdir(production), []);
  await beats.next(30_000, 2);

  await vcenter.behaviour({ relocateBytesPerSecond: 48 * 1024 * 1024 });
  const writing = serial.command('churn 4', 60_000);
  await ask('relocate', 'web01', 'production');
  assert.ok(Number(await writing) > 0, 'the guest wrote and compared');
  const { Config, Runtime } = await ask<MachineView>('machine', 'web01');
  assert.match(Config.Files.VmPathName, /^\[production\] \S+\/web01\.vmx$/);
  assert.equal(Runtime.PowerState, 'poweredOn');
  assert.equal((await ask<{ Vm: unknown }>('datastore', 'wake')).Vm, null);
  assert.equal(await serial.command('check', 60_000), 'clean');
  assert.equal(beats.report(from).missed, 0);
  await vcenter.behaviour({});
});

test('a disk of the export is shown to the running guest, and taken away again', async () => {
  assert.ok(serial !== undefined);
  const file = `[wake] ${folder}/web01.vmdk`;
  assert.match(await refused('attach', 'web01', file, 'persistent', '0'), /InvalidDeviceSpec/);
  assert.match(await refused('attach', 'web01', file, 'persistent', '7'), /InvalidDeviceSpec/);
  assert.match(
    await refused('attach', 'web01', '[no] x.vmdk', 'persistent', '1'),
    /InvalidDatastore/,
  );
  await ask('attach', 'web01', file, 'independent_nonpersistent', '1');
  const size =
    'blockdev --getsize64 /dev/sdb && head -c 512 /dev/sdb | tail -c 2 | hexdump -e \'2/1 "%x"\'';
  assert.equal((await serial.shell(size)).trim(), `${guest.sizeBytes}\n55aa`);
  assert.match(await refused('unmount', 'esx1', 'wake'), /ResourceInUse/);
  await ask('detach', 'web01', file);
  assert.equal((await serial.shell('ls /dev/sdb 2>/dev/null || echo gone')).trim(), 'gone');
  await ask('unmount', 'esx1', 'wake');
  await rouse.run('cancel', published.recovery);
  assert.ok((await new Heartbeats(serial).next(30_000, 2)) > 0);
  await ask('off', 'web01');
});

test('a machine that is somewhere else asks whether it was moved or copied', async () => {
  assert.ok(serial !== undefined);
  const { vmx: place, host } = await vcenter.machine('web01');
  assert.equal(host, 'esx1');
  const { Config } = await ask<IdentityView>('machine', 'web01');
  await ask('unregister', 'web01');
  await ask('register', place, 'web02', 'esx2');
  const from = serial.position;
  const starting = ask('on', 'web02');
  const question = await ask<{ Message: { Id: string }[] }>('answer', 'web02', '1');
  assert.equal(question.Message[0]?.Id, 'msg.uuid.altered');
  await starting;
  const moved = await vcenter.serial('web02');
  await moved.waitFor(/ROUSE fsck clean/, 120_000);
  await moved.close();
  assert.equal(serial.position, from, 'each machine has a serial port of its own');
  assert.equal((await ask<IdentityView>('machine', 'web02')).Config.Uuid, Config.Uuid);
  await vcenter.host('esx2', { dies: true });
  const power = async () => (await ask<MachineView>('machine', 'web02')).Runtime.PowerState;
  assert.equal(await power(), 'poweredOn', 'vCenter knows what it saw last');
  assert.match(await refused('unregister', 'web02'), /HostNotConnected/);
  await vcenter.host('esx2', { connection: 'connected' });
  assert.equal(await power(), 'poweredOff');
});

test('what is scripted happens: privileges, faults, lost sessions, a vCenter that is gone', async () => {
  await vcenter.missingPrivileges([{ privilege: 'Host.Config.Storage', entity: 'esx1' }]);
  const mount = ['mount', 'esx1', worldAddresses.ipv4, path, 'wake', 'readWrite'] as const;
  assert.match(await refused(...mount), /NoPermission.*Host\.Config\.Storage/s);
  await vcenter.missingPrivileges([]);
  await vcenter.fault({
    method: 'CreateNasDatastore',
    nth: 1,
    fault: 'HostConfigFault',
    message: 'so',
  });
  assert.match(await refused(...mount), /HostConfigFault so/);
  const calls = await vcenter.calls();
  assert.equal(
    calls.findLast(({ type }) => type === 'HostDatastoreSystem')?.method,
    'CreateNasDatastore',
  );
  await vcenter.fault({ method: 'UnregisterVM', fault: 'NotAuthenticated', message: 'again' });
  assert.match(await refused('unregister', 'web02'), /NotAuthenticated again/);
  await vcenter.clearFaults();
  await vcenter.goAwayMs(1000);
  assert.match(await refused('host', 'esx1'), /refused|reset|EOF/);
  await eventually(
    'the vCenter',
    async () => (await asked('host', 'esx1')).code === 0 || undefined,
  );
});
