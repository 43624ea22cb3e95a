/**
 * The thirteen steps on the stand-in for vCenter (lab/vcenter), through the command line: a vCenter
 * is added by its fingerprint, a guest boots from its backup on an ESXi's NFS mount, moves to
 * production while it runs, and nothing is left.
 */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { buildGuest, Heartbeats } from '#lab/guest.ts';
import { eventually } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { startStandIn } from '#lab/vcenter/vcenter.ts';
import { enterWorld, worldAddresses } from '#lab/world.ts';

const world = await enterWorld();
const { directory } = world;
const production = join(directory, 'production');
await mkdir(production, { recursive: true });
const hosts = [await world.addHost('esx1'), await world.addHost('esx2')];
const guest = await buildGuest({ directory, name: 'web01', heartbeatMs: 500 });
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        clusters: [
          {
            name: 'cluster1',
            hosts: hosts.map(({ name, ipv4, ipv6 }) => ({
              name,
              netns: name,
              addresses: [ipv4, ipv6],
            })),
          },
        ],
        datastores: [{ name: 'production', directory: production }],
      },
    ],
  },
});
const data = join(directory, 'data');
const rouse = new RouseCommand(world, data, false, ['--address', worldAddresses.ipv4]);
await rouse.up();
after(async () => {
  await vcenter.stop();
  await rouse.stop();
  await world.end();
});

const passwordFile = join(directory, 'password');
await writeFile(passwordFile, `${vcenter.password}\n`, { mode: 0o600 });
const who = ['--user', vcenter.user, '--password-file', passwordFile];

test('a vCenter that nothing vouches for is shown by its fingerprint, and sent nothing', async () => {
  const before = (await vcenter.calls()).length;
  const { code, stderr } = await rouse.attempt('hypervisor', 'add', 'vc', vcenter.url, ...who);
  assert.equal(code, 2);
  assert.ok(stderr.includes(vcenter.fingerprint), stderr);
  assert.equal((await vcenter.calls()).length, before);
  const wrong = vcenter.fingerprint.replace(/^../, (pair) => (pair === '00' ? '01' : '00'));
  const add = ['hypervisor', 'add', 'vc', vcenter.url, ...who, '--fingerprint', wrong];
  const refused = await rouse.attempt(...add);
  assert.notEqual(refused.code, 0);
  assert.ok(refused.stderr.includes(vcenter.fingerprint), refused.stderr);
  assert.equal((await vcenter.calls()).length, before);
});

test('with its fingerprint it is added; its password is nowhere but in its file', async () => {
  const added = await rouse.run(
    ...['hypervisor', 'add', 'vc', vcenter.url, ...who, '--fingerprint', vcenter.fingerprint],
    '--json',
  );
  const listed = await rouse.run('hypervisor', 'list', '--json');
  const tested = await rouse.run('hypervisor', 'test', 'vc', '--json');
  assert.equal((JSON.parse(tested) as { ok: boolean }).ok, true, tested);
  for (const said of [added, listed, tested]) assert.ok(!said.includes(vcenter.password));
  const secrets = await readdir(join(data, 'secrets'));
  assert.equal(secrets.length, 1);
  const file = join(data, 'secrets', secrets[0] ?? '');
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  assert.equal(await readFile(file, 'utf8'), vcenter.password);
  for (const name of await readdir(join(data, 'log'))) {
    const log = await readFile(join(data, 'log', name), 'utf8');
    assert.ok(!log.includes(vcenter.password), `${name} holds the password`);
  }
});

interface Recovery {
  readonly id: string;
  readonly state: string;
  readonly export: { readonly path: string } | null;
}

test('a guest wakes on the chosen host, moves to production while it runs, and nothing is left', async () => {
  await rouse.run('backup', '--file', guest.disk, '--name', 'web01');
  const { id } = await rouse.json<Recovery>(
    ...['recover', 'web01', '--host', 'esx2', '--power-on'],
  );
  const serial = await vcenter.serial('web01');
  await serial.waitFor(/ROUSE fsck clean/, 120_000);
  assert.equal(await serial.command('hash'), guest.knownSha256);
  const machines = await vcenter.machines();
  assert.equal(machines.find(({ name }) => name === 'web01')?.host, 'esx2');
  await rouse.run('relocate', id, '--to', 'production');
  await eventually(
    'clean-up by itself',
    async () => {
      const { state } = await rouse.json<Recovery>('show', id);
      assert.notEqual(state, 'failed');
      return state === 'done' ? true : undefined;
    },
    120_000,
    500,
  );
  const [left] = await vcenter.machines();
  assert.equal(left?.poweredOn, true);
  assert.ok(left?.vmx.startsWith('[production] '), left?.vmx);
  assert.ok(left?.disks.every(({ file }) => file.startsWith('[production] ')));
  assert.ok((await new Heartbeats(serial).next(60_000, 2)) > 0);
  assert.deepEqual(await rouse.json('exports'), { exports: [] });
  const methods = (await vcenter.calls()).map(({ method }) => method);
  assert.ok(methods.includes('RemoveDatastore'));
  assert.ok(!methods.includes('UnregisterVM') && !methods.includes('Destroy_Task'));
  await serial.close();
});
