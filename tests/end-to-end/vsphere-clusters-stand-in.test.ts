/**
 * Two clusters in one vCenter, each on a network of its own with a proxy of its own, on the stand-in:
 * each machine wakes in the cluster whose hosts its proxy reaches, without being told, and the other
 * pairs are refused with their reasons.
 */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildBootSector } from '#lab/guest.ts';
import { eventually, run } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { startStandIn } from '#lab/vcenter/vcenter.ts';
import { enterWorld, type Host, worldAddresses } from '#lab/world.ts';

const world = await enterWorld({ guests: false });
const { directory } = world;

/** A cluster of one host and its proxy, on a wire between the two that nobody else is on. */
interface Site {
  readonly name: string;
  readonly number: number;
  readonly esx: Host;
  readonly proxy: Host;
  readonly machine: string;
}

async function openSite(name: string, number: number): Promise<Site> {
  const esx = await world.addHost(`esx-${name}`);
  const proxy = await world.addHost(`proxy-${name}`);
  const ends = [
    { host: esx, link: `e${number}`, last: 11 },
    { host: proxy, link: `p${number}`, last: 1 },
  ] as const;
  await run('ip', ['link', 'add', `e${number}`, 'type', 'veth', 'peer', 'name', `p${number}`]);
  for (const { host, link, last } of ends) {
    await run('ip', ['link', 'set', link, 'netns', host.name]);
    await host.run('ip', ['addr', 'add', `10.78.${number}.${last}/24`, 'dev', link]);
    await host.run('ip', ['addr', 'add', `fd78:${number}::${last}/64`, 'dev', link, 'nodad']);
    await host.run('ip', ['link', 'set', link, 'up']);
  }
  return { name, number, esx, proxy, machine: `small-${name}` };
}

const sites = [await openSite('a', 1), await openSite('b', 2)];
const production = join(directory, 'production');
await mkdir(production, { recursive: true });
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        clusters: sites.map(({ name, number, esx }) => ({
          name: `cluster-${name}`,
          hosts: [
            {
              name: esx.name,
              netns: esx.name,
              addresses: [`10.78.${number}.11`, `fd78:${number}::11`],
            },
          ],
        })),
        datastores: [{ name: 'production', directory: production }],
      },
    ],
  },
});
const options = ['--tls-port', '9443', '--address', worldAddresses.ipv4];
const rouse = new RouseCommand(world, join(directory, 'data'), false, options);
await rouse.up();
after(async () => {
  await rouse.stop();
  await vcenter.stop();
  await world.end();
});

const launcher = join(import.meta.dirname, '../../bin/rouse');

interface Plan {
  readonly proxy: string | null;
  readonly proxyAddress: string | null;
  readonly candidates: readonly {
    readonly proxy: string;
    readonly host: string;
    readonly chosen: boolean;
    readonly refusals: readonly string[];
  }[];
}

async function enrol({ name, number, proxy }: Site): Promise<void> {
  const { token, server } = await rouse.json<{ token: string; server: string }>('proxy', 'token');
  const data = join(directory, `proxy-${name}`);
  const where = ['--address', `10.78.${number}.1`, '--call-address', proxy.ipv4];
  const joined = await proxy.attempt(launcher, [
    ...['proxy', 'enrol', '--server', server, '--token', token],
    ...['--data', data, '--name', proxy.name, ...where],
  ]);
  assert.equal(joined.code, 0, joined.stderr);
  proxy.start('bash', ['-c', 'exec "$@"', 'x', launcher, 'up', '--data', data]);
  const isThere = async () => {
    const { state } = await rouse.json<{ state: string }>('proxy', 'show', proxy.name);
    return state === 'connected';
  };
  await eventually(`${proxy.name} to join`, isThere, 60_000, 250);
}

before(async () => {
  const password = join(directory, 'password');
  await writeFile(password, vcenter.password, { mode: 0o600 });
  const who = ['--user', vcenter.user, '--password-file', password];
  const pin = ['--fingerprint', vcenter.fingerprint];
  await rouse.run('hypervisor', 'add', 'vc', vcenter.url, ...who, ...pin);
  for (const site of sites) {
    await enrol(site);
    const disk = join(directory, `${site.machine}.img`);
    await buildBootSector({ path: disk });
    const from = ['--file', disk, '--name', site.machine];
    await rouse.run('backup', ...from, '--proxy', site.proxy.name);
  }
});

for (const [index, site] of sites.entries()) {
  const other = sites[1 - index] ?? site;
  test(`${site.machine} wakes in cluster-${site.name}, through its proxy`, async () => {
    const plan = await rouse.json<Plan>('recover', site.machine, '--dry-run');
    const [best] = plan.candidates;
    assert.deepEqual(
      [best?.proxy, best?.host, best?.chosen, plan.proxyAddress],
      [site.proxy.name, site.esx.name, true, `10.78.${site.number}.1`],
      JSON.stringify(plan.candidates, null, 1),
    );
    for (const one of plan.candidates) {
      if (one.proxy === site.proxy.name) continue;
      assert.match(one.refusals.join('; '), /has no access to device/, `${one.proxy} ${one.host}`);
    }
    const wrong = await rouse.attempt('recover', site.machine, '--proxy', other.proxy.name);
    assert.notEqual(wrong.code, 0);
    assert.match(wrong.stderr, /has no access to device/);
    assert.ok(wrong.stderr.includes(`${site.esx.name} by ${site.proxy.name}`), wrong.stderr);

    await rouse.run('recover', site.machine, '--power-on');
    const { host, poweredOn, serialLog } = await vcenter.machine(site.machine);
    assert.deepEqual([host, poweredOn], [site.esx.name, true]);
    const boots = async () => (await readFile(serialLog, 'latin1')).includes('ROUSE boots 01');
    await eventually('its boot', boots, 60_000, 100);
    const { exports } = await rouse.json<{ exports: { proxy: string; clients: string[] }[] }>(
      'exports',
    );
    const own = exports.filter(({ proxy }) => proxy === site.proxy.name);
    assert.deepEqual(
      own.map(({ clients }) => [...clients].toSorted()),
      [[`10.78.${site.number}.11`, `fd78:${site.number}::11`].toSorted()],
    );
  });

  test(`a host that the proxy of ${site.machine} has no way to is refused, or fails and says so`, async () => {
    const asked = ['recover', site.machine, '--name', 'stray', '--host', other.esx.name];
    const answer = await rouse.attempt(...asked);
    assert.notEqual(answer.code, 0, answer.stdout);
    assert.match(answer.stderr, /no route|cannot mount/);
    assert.equal((await vcenter.machines()).length, index + 1);
  });
}

test('each is cleaned up at its own proxy, and nothing is left', async () => {
  for (const { machine } of sites) await rouse.run('cancel', machine);
  assert.deepEqual(await rouse.json('exports'), { exports: [] });
  assert.deepEqual(await vcenter.machines(), []);
  assert.deepEqual(
    (await vcenter.datastores()).map(({ name }) => name),
    ['production'],
  );
});
