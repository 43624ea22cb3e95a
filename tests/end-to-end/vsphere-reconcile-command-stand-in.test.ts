/**
 * `rouse reconcile` as an administrator types it, on the stand-in for vCenter, after a database was
 * restored from an earlier copy: what it says and its exit codes, with vCenter away before and in its
 * middle, and with somebody else's things beside ours.
 */
import assert from 'node:assert/strict';
import { cp, mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildBootSector } from '#lab/guest.ts';
import { eventually, run } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { buildGo } from '#lab/vcenter/build.ts';
import { startStandIn, writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld, worldAddresses } from '#lab/world.ts';
import { systemClock } from '#src/lib/clock.ts';
import { reconcileLimits } from '#src/recovery/reconcile/limits.ts';

const world = await enterWorld({ guests: false });
const { directory } = world;
const production = join(directory, 'production');
await mkdir(production, { recursive: true });
const esx = await world.addHost('esx1');
const image = join(directory, 'small.img');
await buildBootSector({ path: image });
const settings = { memsize: '16' };
const vmx = await writeMachine({ directory: production, name: 'helper', disks: [image], settings });
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        clusters: [
          {
            name: 'cluster1',
            hosts: [{ name: 'esx1', netns: 'esx1', addresses: [esx.ipv4, esx.ipv6] }],
          },
        ],
        datastores: [{ name: 'production', directory: production }],
        machines: [{ vmx: `[production] ${vmx}`, host: 'esx1', poweredOn: true }],
      },
    ],
  },
});
const data = join(directory, 'data');
const rouse = new RouseCommand(world, data, false, ['--address', worldAddresses.ipv4]);
after(async () => {
  await rouse.stop();
  await vcenter.stop();
  await world.end();
});

interface Report {
  readonly findings: readonly { readonly kind: string; readonly outcome: string }[];
  readonly unreachable: readonly { readonly kind: string; readonly name: string }[];
}

/** What is said fits 80 columns; answers it with its exit code. */
async function reconcile(...options: string[]): Promise<{ code: number; text: string }> {
  const { code, stdout, stderr } = await rouse.attempt('reconcile', ...options);
  for (const line of stdout.split('\n')) assert.ok(line.length <= 80, line);
  // Words are broken over lines; what is looked for is not.
  return { code: code ?? -1, text: `${stdout}${stderr}`.replaceAll(/\n\s+/gu, ' ') };
}

async function inVcenter(...args: string[]): Promise<string> {
  const program = await buildGo(join(import.meta.dirname, '../../lab/vcenter/client'));
  const login = ['-url', vcenter.url, '-user', vcenter.user, '-password', vcenter.password];
  const there = ['-certificate', vcenter.certificate, '-datacenter', 'dc1'];
  return run(program, [...login, ...there, ...args]);
}

const catalogFiles = async (from: string) =>
  (await readdir(from)).filter((name) => name.startsWith('catalog.sqlite'));
const foreign = 'rouse-zzzzzzzzzz';
const changing = /_Task$|^(?:CreateNasDatastore|RemoveDatastore|UnregisterVM)$/u;
const changes = async () =>
  (await vcenter.calls()).filter(({ method }) => changing.test(method)).length;
const ours = async () =>
  (await vcenter.datastores()).filter(({ name, remote }) => remote !== '' && name !== foreign);

before(async () => {
  await rouse.up();
  const password = join(directory, 'password');
  await writeFile(password, vcenter.password, { mode: 0o600 });
  const who = ['--user', vcenter.user, '--password-file', password];
  const trust = ['--fingerprint', vcenter.fingerprint];
  await rouse.run('hypervisor', 'add', 'lab', vcenter.url, ...who, ...trust);
  await rouse.run('backup', '--file', image, '--name', 'small01');
  await rouse.stop();
  const earlier = join(directory, 'earlier');
  await mkdir(earlier);
  for (const name of await catalogFiles(data)) await cp(join(data, name), join(earlier, name));
  await rouse.up();
  await rouse.run('recover', 'small01', '--name', 'off1', '--power-on');
  await rouse.run('recover', 'small01', '--name', 'on1', '--power-on');
  await rouse.run('recover', 'small01', '--mode', 'flr', '--into', 'helper');
  const publish = ['--mode', 'publish', '--client', esx.ipv4, '--name', 'shared'];
  const { export: shared } = await rouse.json<{ export: { path: string } }>(
    ...['recover', 'small01', ...publish],
  );
  // Somebody else's, called like ours: a share at another address, a snapshot.
  await run('ip', ['addr', 'add', '10.77.0.2/32', 'dev', 'lo']);
  await inVcenter('mount', 'esx1', '10.77.0.2', shared.path, foreign, 'readWrite');
  await inVcenter('snapshot', 'helper', foreign);
  await rouse.stop();
  for (const name of await catalogFiles(data)) await rm(join(data, name));
  for (const name of await catalogFiles(earlier)) await cp(join(earlier, name), join(data, name));
  await rouse.up();
});

test('vCenter is away: it is said, nothing is touched, and the exit code tells a script', async () => {
  await vcenter.goAwayMs(5_000);
  const said = await reconcile();
  assert.equal(said.code, 11);
  assert.match(said.text, /^! hypervisor lab: \S+ cannot be reached/);
  assert.match(said.text, /Nobody can tell whether lab uses it: it does not answer\./);
  const answer = await rouse.attempt('reconcile', '--dry-run', '--json');
  assert.equal(answer.code, 11);
  const report = JSON.parse(answer.stdout) as Report;
  assert.deepEqual(
    report.unreachable.map(({ kind, name }) => `${kind} ${name}`),
    ['hypervisor lab'],
  );
  const isBack = async () => (await rouse.attempt('hypervisor', 'test', 'lab')).code === 0;
  await eventually('vCenter', isBack, 20_000, 250);
});

/** Of the pass that each start brings; the next one comes a quarter of an hour later. */
async function passByItself(): Promise<void> {
  const isPast = async () => {
    const { server } = await rouse.json<{ server: { startedMs: number } }>('status');
    return systemClock.now() > server.startedMs + reconcileLimits.firstAfterMs + 1_000;
  };
  await eventually('the first pass', isPast, 60_000, 250);
  // One pass waits for the other.
  assert.equal((await reconcile()).code, 0);
}

test('a dry run says what would be done, and changes nothing', async () => {
  await passByItself();
  await inVcenter('off', 'off1');
  const [called, exported] = [await changes(), await rouse.run('exports')];
  const { code, text } = await reconcile('--dry-run');
  assert.equal(code, 0);
  assert.match(text, /would mend: machine off1 at lab no recovery \w+ is known: unregistered/);
  assert.match(text, /left: machine on1 at lab .*It is on and is not switched off\./);
  assert.match(text, /left: disk scsi0:1 of helper at lab .*rouse reconcile --force/);
  assert.match(text, /left: datastore rouse-zzzzzzzzzz at lab .*no export of ours/);
  assert.match(text, /A dry run: nothing was changed\.\n$/);
  assert.deepEqual([await changes(), await rouse.run('exports')], [called, exported]);
});

test('vCenter goes away in its middle: what is left is told, and done the next time', async () => {
  await vcenter.fault({ method: 'RemoveDatastore', nth: 1, delayMs: 800 });
  const removes = async () =>
    (await vcenter.calls()).some(({ method }) => method === 'RemoveDatastore') || undefined;
  const pass = reconcile();
  await eventually('the removal', removes, 10_000, 20);
  await vcenter.goAwayMs(2_000);
  const { code, text } = await pass;
  assert.equal(code, 11, text);
  assert.match(text, /mended: machine off1 at lab/);
  assert.match(text, /failed: datastore rouse-\w+ at lab .*cannot be reached/);
  assert.match(text, /could not be mended\n→ Read above what was said, then: rouse reconcile\n$/);
  await vcenter.clearFaults();
  const isBack = async () => (await rouse.attempt('hypervisor', 'test', 'lab')).code === 0;
  await eventually('vCenter', isBack, 20_000, 250);
  assert.equal((await reconcile('--force')).code, 0);
  const machines = (await vcenter.machines()).map(({ name, disks }) => `${name} ${disks.length}`);
  assert.deepEqual(machines.toSorted(), ['helper 1', 'on1 1'], 'one that runs is not stopped');
});

test('switched off by its administrator, the last of ours goes; the rest is as it was', async () => {
  await inVcenter('off', 'on1');
  const { findings } = await rouse.json<Report>('reconcile', '--force');
  const outcomes = findings.map(({ kind, outcome }) => `${kind} ${outcome}`).toSorted();
  const mended = ['clone mended', 'datastore mended', 'export mended', 'machine mended'];
  assert.deepEqual(outcomes, ['datastore left', ...mended].toSorted());
  assert.deepEqual(await ours(), []);
  const stores = (await vcenter.datastores()).map(({ name }) => name);
  assert.deepEqual(stores.toSorted(), ['production', foreign].toSorted());
  await inVcenter('drop', 'helper');
  const removed = (await vcenter.calls()).filter(({ method }) => /^Remove\w*Snapshot/.test(method));
  assert.equal(removed.length, 1, 'by its owner, just now');
});
