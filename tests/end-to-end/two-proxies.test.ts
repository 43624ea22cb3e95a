/**
 * Two proxies as real processes: one beside the server, one on another host with its own addresses,
 * enrolled over TLS. A machine is backed up and recovered entirely through the second.
 */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { buildBootSector, guestDomainXml } from '#lab/guest.ts';
import { startLibvirt } from '#lab/libvirt.ts';
import { eventually, run } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { enterWorld, worldAddresses } from '#lab/world.ts';

const world = await enterWorld({ guests: false });
const { directory } = world;
await mkdir(directory, { recursive: true });
const edge = await world.addHost('edge');
const edgeData = join(directory, 'edge');
const launcher = join(import.meta.dirname, '../../bin/rouse');
const options = ['--tls-port', '9443', '--address', worldAddresses.ipv4];
const rouse = new RouseCommand(world, join(directory, 'data'), false, options);
await rouse.up();
const libvirt = await startLibvirt({ directory: join(directory, 'v') });
const virsh = (...values: string[]) => run('virsh', ['-c', libvirt.uri, ...values]);
after(async () => {
  await rouse.stop();
  await libvirt.stop();
  await world.end();
});

interface ProxyView {
  readonly name: string;
  readonly state: string;
  readonly addresses: readonly string[];
  readonly status: {
    readonly pid: number;
    readonly exports: number;
    readonly clones: number;
  } | null;
}
interface Token {
  readonly token: string;
  readonly server: string;
}
interface Plan {
  readonly proxy: string | null;
  readonly proxyAddress: string | null;
  readonly candidates: readonly {
    readonly proxy: string;
    readonly refusals: readonly string[];
    readonly chosen: boolean;
  }[];
}

const proxyView = () => rouse.json<ProxyView>('proxy', 'show', 'edge');
const enrol = (token: Token, data: string, ...more: string[]) =>
  edge.attempt(launcher, [
    ...['proxy', 'enrol', '--server', token.server, '--token', token.token],
    ...['--data', data, '--name', 'edge', ...more],
  ]);
const startEdge = () =>
  edge.start('bash', ['-c', 'exec "$@"', 'x', launcher, 'up', '--data', edgeData]);
let edgeUp: ChildProcess | undefined;
const connected = () =>
  eventually(
    'the proxy is connected',
    async () => (await proxyView()).state === 'connected',
    30_000,
  );
const serialLog = join(directory, 'serial.log');
const boots = async (count: number) => {
  const text = `ROUSE boots ${String(count).padStart(2, '0')}`;
  const says = async () => (await readFile(serialLog, 'latin1')).includes(text);
  await eventually(text, says, 60_000);
};

test('a proxy on another host joins over TLS, once, and is heard of', async () => {
  const token = await rouse.json<Token>('proxy', 'token');
  assert.equal(token.server, `https://${worldAddresses.ipv4}:9443`);
  const joined = await enrol(token, edgeData, '--label', 'site=edge');
  assert.equal(joined.code, 0, joined.stderr);
  const second = await enrol(token, join(directory, 'other'));
  assert.equal(second.code, 4);
  assert.match(second.stderr, /the token was used by edge at/);
  edgeUp = startEdge();
  await connected();
  const { addresses } = await proxyView();
  assert.deepEqual(addresses, [edge.ipv4]);
});

test('a machine is backed up, lost and recovered through that proxy alone', async () => {
  const disk = join(directory, 'small01.raw');
  await buildBootSector({ path: disk });
  await writeFile(serialLog, '');
  const xml = join(directory, 'small01.xml');
  const guest = { name: 'small01', disk, serialLogPath: serialLog, memoryMiB: 16 };
  await writeFile(xml, guestDomainXml(guest));
  await virsh('define', xml);
  await virsh('start', 'small01');
  await boots(1);
  await rouse.run('hypervisor', 'add', 'lab', libvirt.uri);
  await rouse.run('backup', 'small01', '--proxy', 'edge');
  await virsh('destroy', 'small01');
  await virsh('undefine', 'small01', '--checkpoints-metadata');

  const plan = await rouse.json<Plan>('recover', 'small01', '--dry-run');
  assert.deepEqual([plan.proxy, plan.proxyAddress], ['edge', edge.ipv4]);
  const other = plan.candidates.find(({ proxy }) => proxy === 'local');
  assert.deepEqual(other?.refusals, ['proxy local has no access to device edge']);
  assert.deepEqual((await proxyView()).status?.clones, 0);

  const refused = await rouse.attempt('recover', 'small01', '--proxy', 'local');
  assert.equal(refused.code, 12);
  assert.match(refused.stderr, /proxy local cannot take small01: .*no access to device edge/);
  assert.match(refused.stderr, /These would do: .* by edge/);

  await rouse.run('recover', 'small01', '--power-on', '--identity', 'keep');
  await boots(2);
  assert.match(await virsh('dumpxml', 'small01'), new RegExp(edge.ipv4.replaceAll('.', '\\.')));
  const { exports } = await rouse.json<{ exports: { proxy: string }[] }>('exports');
  assert.deepEqual(
    exports.map(({ proxy }) => proxy),
    ['edge'],
  );
});

test('the proxy is killed and goes on: same exports, same writes', async () => {
  const { status } = await proxyView();
  assert.ok(status !== null);
  process.kill(status.pid, 'SIGKILL');
  await eventually(
    'another process of the proxy',
    async () => {
      const now = (await proxyView()).status;
      return now !== null && now.pid !== status.pid && now.exports === 1;
    },
    30_000,
  );
  await virsh('reset', 'small01');
  await boots(3);
});

test('a draining proxy keeps what it serves and gets nothing new', async () => {
  await rouse.run('proxy', 'drain', 'edge');
  const refused = await rouse.attempt('recover', 'small01', '--name', 'small02', '--proxy', 'edge');
  assert.equal(refused.code, 12);
  assert.match(refused.stderr, /proxy edge is draining/);
  const busy = await rouse.attempt('proxy', 'remove', 'edge');
  assert.equal(busy.code, 5);
  assert.match(busy.stderr, /proxy edge serves small01/);
  await virsh('reset', 'small01');
  await boots(4);
  await rouse.run('cancel', 'small01');
  await eventually(
    'an empty proxy',
    async () => {
      const { status } = await proxyView();
      return status?.exports === 0 && status.clones === 0;
    },
    30_000,
  );
});

test('removed, it is refused by name; joined anew under its name, it goes on', async () => {
  await rouse.run('proxy', 'remove', 'edge');
  assert.equal((await rouse.attempt('proxy', 'show', 'edge')).code, 3);
  const log = join(edgeData, 'log', 'proxy.log');
  await eventually(
    'the proxy is told',
    async () => (await readFile(log, 'utf8')).includes('proxy edge was removed'),
    20_000,
  );
  assert.ok(edgeUp !== undefined);
  await world.processes.end(edgeUp, 30_000);
  await rm(join(edgeData, 'joined.json'));
  const token = await rouse.json<Token>('proxy', 'token', '--name', 'edge');
  const joined = await enrol(token, edgeData);
  assert.equal(joined.code, 0, joined.stderr);
  edgeUp = startEdge();
  await connected();
  const plan = await rouse.json<Plan>('recover', 'small01', '--name', 'small03', '--dry-run');
  assert.equal(plan.proxy, 'edge');
});
