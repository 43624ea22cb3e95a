/** What a preflight finds on the stand-in for vCenter, whose privileges and hosts take a script. */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { startStandIn } from '#lab/vcenter/vcenter.ts';
import { temporaryDirectory } from '#lab/world.ts';
import { VsphereHypervisor } from '#src/hypervisors/vsphere/driver.ts';
import { systemClock } from '#src/lib/clock.ts';

const directory = await temporaryDirectory('preflight');
const production = join(directory, 'production');
await mkdir(production);
const host = (name: string) => ({ name, addresses: ['127.0.0.1'] });
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        clusters: [
          { name: 'cluster1', hosts: [host('esx1'), { ...host('esx2'), maintenance: true }] },
        ],
        datastores: [{ name: 'production', directory: production }],
      },
    ],
  },
});
const open = (aheadMs = 0) =>
  new VsphereHypervisor({
    url: vcenter.url,
    user: vcenter.user,
    password: async () => vcenter.password,
    trust: { fingerprint: vcenter.fingerprint },
    clock: { ...systemClock, now: () => systemClock.now() + aheadMs },
  });
const driver = open();
after(async () => {
  await driver.close();
  await vcenter.stop();
});
const { hosts } = await driver.inventory();
const idOf = (name: string) => hosts.find((one) => one.name === name)?.id ?? '';

test('a fit host has no problem; a test passes while one host is fit', async () => {
  assert.deepEqual((await driver.preflight({ hostId: idOf('esx1') })).problems, []);
  const report = await driver.test();
  assert.deepEqual(report.problems, []);
  assert.match(report.facts['host esx2'] ?? '', /maintenance/);
});

test('everything that is wrong is named at once, with its object and what to do', async () => {
  await vcenter.missingPrivileges([
    { privilege: 'Host.Config.Storage', entity: 'esx2' },
    { privilege: 'VirtualMachine.Inventory.Register' },
  ]);
  const late = open(3_600_000);
  const { ok, problems } = await late.preflight({ hostId: idOf('esx2') });
  await late.close();
  await vcenter.missingPrivileges([]);
  const said = problems.map(({ message }) => message);
  assert.equal(ok, false);
  assert.ok(problems.every(({ advice }) => advice !== ''));
  for (const wanted of [
    /clock is .* behind ours/,
    /host esx2 is in maintenance mode/,
    /privilege Host\.Config\.Storage is missing on host esx2/,
    /privilege VirtualMachine\.Inventory\.Register is missing on folder/,
  ]) {
    assert.ok(
      said.some((message) => wanted.test(message)),
      `${wanted}: ${said.join('; ')}`,
    );
  }
  assert.deepEqual((await driver.preflight({ hostId: idOf('esx1') })).problems, []);
});

test('a session that ended is begun anew by whoever finds it so', async () => {
  await vcenter.dropSessions();
  assert.equal((await driver.inventory()).hosts.length, 2);
  await vcenter.dropSessions();
  assert.equal((await driver.test()).ok, true);
});

test('a refused login, and a vCenter that is away, are problems with advice', async () => {
  const stranger = new VsphereHypervisor({
    url: vcenter.url,
    user: vcenter.user,
    password: async () => 'wrong',
    trust: { fingerprint: vcenter.fingerprint },
    clock: systemClock,
  });
  const { problems } = await stranger.test();
  assert.equal(problems.length, 1);
  assert.match(problems[0]?.message ?? '', /refuses the login/);
  await stranger.close();
});
