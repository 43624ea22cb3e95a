/**
 * A proxy on another machine reads backups from the stand-in for vCenter, through the command line: it
 * joins over TLS, reads with a pass in a session of its own, is killed while it reads, serves what it
 * stored to the host beside it, and says so when vCenter is out of its reach and of nobody else's.
 */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { mkdir, open, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildBootSector } from '#lab/guest.ts';
import { attempt, eventually, run } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { buildGo } from '#lab/vcenter/build.ts';
import { startStandIn, writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld, worldAddresses } from '#lab/world.ts';

const world = await enterWorld({ guests: false });
const { directory } = world;
const production = join(directory, 'production');
await mkdir(production, { recursive: true });

/** The host and the proxy, on a wire of their own; vCenter has an address that a route can hide. */
const esx = await world.addHost('esx1');
const edge = await world.addHost('edge');
const wire = { esx: '10.78.1.11', edge: '10.78.1.1' } as const;
const managerAddress = '10.79.0.1';
await run('ip', ['addr', 'add', `${managerAddress}/32`, 'dev', 'lo']);
await edge.run('ip', ['route', 'add', `${managerAddress}/32`, 'via', worldAddresses.ipv4]);
await run('ip', ['link', 'add', 'wire0', 'type', 'veth', 'peer', 'name', 'wire1']);
for (const [host, link, address] of [
  [esx, 'wire0', wire.esx],
  [edge, 'wire1', wire.edge],
] as const) {
  await run('ip', ['link', 'set', link, 'netns', host.name]);
  await host.run('ip', ['addr', 'add', `${address}/24`, 'dev', link]);
  await host.run('ip', ['link', 'set', link, 'up']);
}

const image = join(directory, 'small.img');
await buildBootSector({ path: image });
await run('truncate', ['-s', '32M', image]);
const settings = { memsize: '16' };
const small = { directory: production, name: 'small01', disks: [image], settings };
const vmx = await writeMachine(small);
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  address: `${managerAddress}:0`,
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        clusters: [
          { name: 'cluster1', hosts: [{ name: 'esx1', netns: 'esx1', addresses: [wire.esx] }] },
        ],
        datastores: [{ name: 'production', directory: production }],
        machines: [{ vmx: `[production] ${vmx}`, host: 'esx1' }],
      },
    ],
  },
});
const options = ['--tls-port', '9443', '--address', worldAddresses.ipv4];
const rouse = new RouseCommand(world, join(directory, 'data'), false, options);
const launcher = join(import.meta.dirname, '../../bin/rouse');
const edgeData = join(directory, 'edge');
let edgeUp: ChildProcess | undefined;
await rouse.up();
after(async () => {
  if (edgeUp !== undefined) await world.processes.end(edgeUp, 30_000);
  await rouse.stop();
  await vcenter.stop();
  await world.end();
});

interface ProxyView {
  readonly state: string;
  readonly status: { readonly pid: number; readonly exports: number } | null;
}
interface BackupView {
  readonly id: string;
  readonly state: string;
  readonly kind: string;
  readonly fullBecause: string | null;
  readonly savesetId: string;
  readonly waitsFor: string | null;
  readonly warnings: readonly string[];
  readonly error: { readonly message: string; readonly advice: string } | null;
}

const edgeView = () => rouse.json<ProxyView>('proxy', 'show', 'edge');
const backup = (...more: string[]) =>
  rouse.json<BackupView>('backup', 'small01', '--proxy', 'edge', ...more);
const backupOf = async (id: string) => {
  const { code, stdout } = await rouse.attempt('backups', '--json');
  if (code !== 0) return undefined;
  return (JSON.parse(stdout) as { backups: BackupView[] }).backups.find((one) => one.id === id);
};
const callsOf = async (method: string) =>
  (await vcenter.calls()).filter((call) => call.method === method).length;

/** What an administrator does in vCenter, through govmomi's own library. */
async function inVcenter(...args: string[]): Promise<string> {
  const program = await buildGo(join(import.meta.dirname, '../../lab/vcenter/client'));
  const login = ['-url', vcenter.url, '-user', vcenter.user, '-password', vcenter.password];
  const there = ['-certificate', vcenter.certificate, '-datacenter', 'dc1'];
  return run(program, [...login, ...there, ...args]);
}

async function boots(name: string, count: number): Promise<void> {
  const text = `ROUSE boots ${String(count).padStart(2, '0')}`;
  const { serialLog } = await vcenter.machine(name);
  const says = async () => (await readFile(serialLog, 'latin1')).includes(text);
  await eventually(`${name}: ${text}`, says, 60_000, 50);
}

before(async () => {
  const password = join(directory, 'password');
  await writeFile(password, vcenter.password, { mode: 0o600 });
  const who = ['--user', vcenter.user, '--password-file', password];
  await rouse.run(
    'hypervisor',
    'add',
    'vc',
    vcenter.url,
    ...who,
    '--fingerprint',
    vcenter.fingerprint,
  );
  const { token, server } = await rouse.json<{ token: string; server: string }>('proxy', 'token');
  const joined = await edge.attempt(launcher, [
    ...['proxy', 'enrol', '--server', server, '--token', token, '--data', edgeData],
    ...['--name', 'edge', '--address', wire.edge, '--call-address', edge.ipv4],
  ]);
  assert.equal(joined.code, 0, joined.stderr);
  edgeUp = edge.start('bash', ['-c', 'exec "$@"', 'x', launcher, 'up', '--data', edgeData]);
  const isThere = async () => (await edgeView()).state === 'connected';
  await eventually('the proxy to join', isThere, 60_000, 250);
});

test('it reads a machine whole, then what changed, in sessions of its own', async () => {
  const full = await backup();
  assert.deepEqual([full.state, full.kind, full.warnings], ['done', 'full', []]);
  await inVcenter('on', 'small01');
  await boots('small01', 1);
  const next = await backup();
  assert.deepEqual([next.state, next.kind], ['done', 'incremental'], next.fullBecause ?? '');
  const passes = await callsOf('CloneSession');
  assert.ok(passes >= 2 && passes === (await callsOf('AcquireCloneTicket')));
  assert.equal(await callsOf('CreateSnapshot_Task'), await callsOf('RemoveSnapshot_Task'));
  // What it read is in its own vault; its server has no password to give, and gave none.
  const local = await rouse.json<{ savesets: number }>('vault', 'stats');
  assert.equal(local.savesets, 0);
  const secrets = [vcenter.password, vcenter.password.replaceAll('&', '&amp;')];
  for (const secret of secrets) {
    assert.equal((await attempt('grep', ['-rlaF', '--', secret, edgeData])).stdout, '');
  }
});

test('killed while it reads, it reads the same snapshot again', async () => {
  await vcenter.resetChangeTracking('small01');
  await vcenter.behaviour({ leaseTimeoutSeconds: 3 });
  await vcenter.fault({ method: 'GET /nfc', nth: 1, how: 'stall', atByte: 1000 });
  const [reads, made] = [await callsOf('GET /nfc'), await callsOf('CreateSnapshot_Task')];
  const { id } = await backup('--no-wait');
  await eventually('the download', async () => (await callsOf('GET /nfc')) > reads || undefined);
  const { status } = await edgeView();
  assert.ok(status !== null);
  process.kill(status.pid, 'SIGKILL');
  await vcenter.clearFaults();
  const over = async () => {
    const view = await backupOf(id);
    return view?.state === 'running' ? undefined : view;
  };
  const view = await eventually('the backup', over, 60_000, 250);
  assert.equal(view.state, 'done', view.error?.message);
  assert.equal(await callsOf('CreateSnapshot_Task'), made + 1);
  assert.equal(await callsOf('RemoveSnapshot_Task'), made + 1);
  await vcenter.behaviour({});
});

test('vCenter out of its reach: it is said whose reach, and goes on once it is back', async () => {
  await edge.run('ip', ['route', 'replace', 'unreachable', `${managerAddress}/32`]);
  const { id } = await backup('--no-wait');
  const view = await eventually(
    'what it waits for',
    async () => ((await backupOf(id))?.waitsFor ? backupOf(id) : undefined),
    20_000,
    250,
  );
  assert.match(view.waitsFor ?? '', /^proxy edge: 10\.79\.0\.1:\d+ cannot be reached/);
  const shown = await rouse.run('backups');
  for (const line of shown.split('\n')) assert.ok(line.length <= 80, line);
  await edge.run('ip', ['route', 'del', 'unreachable', `${managerAddress}/32`]);
  await edge.run('ip', ['route', 'add', `${managerAddress}/32`, 'via', worldAddresses.ipv4]);
  const over = async () => {
    const now = await backupOf(id);
    return now?.state === 'running' ? undefined : now;
  };
  const done = await eventually('its end', over, 30_000, 250);
  assert.deepEqual([done.state, done.waitsFor], ['done', null], done.error?.message);
});

test('what it stored wakes on the host beside it, and is restored whole', async () => {
  await inVcenter('off', 'small01');
  await inVcenter('unregister', 'small01');
  await rm(join(production, 'small01'), { recursive: true });
  await rouse.run('recover', 'small01', '--power-on');
  await boots('small01', 2);
  const [shared] = (await rouse.json<{ exports: { proxy: string }[] }>('exports')).exports;
  assert.equal(shared?.proxy, 'edge');
  await rouse.run('cancel', 'small01');
  const restore = ['recover', 'small01', '--mode', 'new', '--datastore', 'production'];
  assert.match(await rouse.run(...restore, '--power-on'), /small01 is done; nothing of it is left/);
  const { vmx: home, poweredOn } = await vcenter.machine('small01');
  assert.deepEqual([home, poweredOn], ['[production] small01/small01.vmx', true]);
  await boots('small01', 2);
  const flat = await open(join(production, 'small01', 'small01-flat.vmdk'));
  assert.equal((await flat.stat()).size, 32 << 20);
  await flat.close();
  assert.deepEqual(await rouse.json('exports'), { exports: [] });
  const { findings } = await rouse.json<{ findings: readonly unknown[] }>('reconcile', '--dry-run');
  assert.deepEqual(findings, []);
});
