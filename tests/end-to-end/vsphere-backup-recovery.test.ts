/**
 * The whole way on the stand-in for vCenter (lab/vcenter), through the command line: a running machine
 * is backed up through vCenter, full and then what changed, with server and proxy killed under it; it
 * is lost with its disk, and wakes from its backup with what it had.
 */
import assert from 'node:assert/strict';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { buildGuest, Heartbeats } from '#lab/guest.ts';
import { attempt, eventually, run } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { buildGo } from '#lab/vcenter/build.ts';
import { startStandIn, writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld, worldAddresses } from '#lab/world.ts';
import { logsOf, pidOf } from './rouse-world.ts';

const world = await enterWorld();
const { directory } = world;
const production = join(directory, 'production');
await mkdir(production, { recursive: true });
const hosts = [await world.addHost('esx1'), await world.addHost('esx2')];
const guest = await buildGuest({ directory, name: 'web01', heartbeatMs: 500 });
const vmx = await writeMachine({ directory: production, name: 'web01', disks: [guest.disk] });
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        clusters: [
          {
            name: 'cluster1',
            hosts: hosts.map(({ name, ipv4, ipv6 }) => {
              return { name, netns: name, addresses: [ipv4, ipv6] };
            }),
          },
        ],
        datastores: [{ name: 'production', directory: production }],
        machines: [{ vmx: `[production] ${vmx}`, host: 'esx1', poweredOn: true }],
      },
    ],
  },
});
const rouse = new RouseCommand(world, join(directory, 'data'), false, [
  ...['--address', worldAddresses.ipv4],
]);
await rouse.up();
after(async () => {
  await vcenter.stop();
  await rouse.stop();
  await world.end();
});

interface BackupView {
  readonly id: string;
  readonly state: string;
  readonly kind: string;
  readonly fullBecause: string | null;
  readonly consistency: string;
  readonly newBytes: number;
  readonly warnings: readonly string[];
  readonly error: { readonly message: string } | null;
}

const callsOf = async (method: string) =>
  (await vcenter.calls()).filter((call) => call.method === method).length;

test('a running machine is backed up, full and then what changed', async () => {
  const password = join(directory, 'password');
  await writeFile(password, vcenter.password, { mode: 0o600 });
  const who = ['--user', vcenter.user, '--password-file', password];
  const trust = ['--fingerprint', vcenter.fingerprint];
  await rouse.run('hypervisor', 'add', 'vc', vcenter.url, ...who, ...trust);
  const serial = await vcenter.serial('web01');
  await new Heartbeats(serial).next(120_000);
  const full = await rouse.json<BackupView>('backup', 'web01');
  assert.deepEqual([full.kind, full.consistency, full.warnings], ['full', 'filesystem', []]);
  await serial.command('write 2');
  const said = await rouse.run('backup', 'web01');
  assert.match(said, /web01 is backed up \(incremental\)/);
  const [incremental] = (await rouse.json<{ backups: BackupView[] }>('backups')).backups;
  assert.ok(incremental !== undefined && incremental.newBytes < full.newBytes / 2);
  await serial.close();
});

/** Begins one that stands still in its download, and kills that process there. */
async function killedWhileReading(role: 'server' | 'proxy'): Promise<void> {
  await vcenter.resetChangeTracking('web01');
  await vcenter.behaviour({ leaseTimeoutSeconds: 3 });
  await vcenter.fault({ method: 'GET /nfc', nth: 1, how: 'stall', atByte: 1_000_000 });
  const before = await callsOf('GET /nfc');
  const { id } = await rouse.json<BackupView>('backup', 'web01', '--no-wait');
  await eventually('the download', async () => (await callsOf('GET /nfc')) > before || undefined);
  process.kill(await pidOf(rouse, role), 'SIGKILL');
  await vcenter.clearFaults();
  const view = await eventually(
    `the backup, after the ${role} was killed`,
    async () => {
      const { code, stdout } = await rouse.attempt('backups', '--json');
      if (code !== 0) return undefined;
      const { backups } = JSON.parse(stdout) as { backups: BackupView[] };
      return backups.find((one) => one.id === id && one.state !== 'running');
    },
    90_000,
    500,
  );
  assert.equal(view.state, 'done', `${view.error?.message}\n${logsOf(rouse)}`);
}

test('its proxy is killed while it reads: it is read again', () => killedWhileReading('proxy'));

test('its server is killed while it is read: the backup goes on', () =>
  killedWhileReading('server'));

test('no snapshot is left, and no ticket or cookie was written down anywhere', async () => {
  await vcenter.behaviour({});
  const report = await rouse.json<{ findings: readonly unknown[] }>('reconcile', '--dry-run');
  assert.deepEqual(report.findings, []);
  const calls = await vcenter.calls();
  const count = (method: string) => calls.filter((call) => call.method === method).length;
  assert.equal(count('CreateSnapshot_Task'), count('RemoveSnapshot_Task'));
  const tickets = calls.flatMap(({ method, args }) =>
    method === 'CloneSession' ? [(args as { CloneTicket: string }).CloneTicket] : [],
  );
  assert.ok(tickets.length >= 4);
  for (const secret of [...tickets, 'vmware_soap_session']) {
    const { stdout } = await attempt('grep', ['-rlaF', '--', secret, rouse.data]);
    assert.equal(stdout, '', `${secret} is written down`);
  }
});

test('what could not be removed is removed by the reconciler', async () => {
  const fault = { method: 'RemoveSnapshot_Task', fault: 'GenericVmConfigFault', inCall: true };
  await vcenter.fault(fault);
  const stored = await rouse.json<BackupView>('backup', 'web01');
  assert.match(stored.warnings.join(), /did not end/);
  await vcenter.clearFaults();
  const { findings } = await rouse.json<{ findings: readonly { name: string; outcome: string }[] }>(
    'reconcile',
  );
  assert.deepEqual(
    findings.map(({ name, outcome }) => [name, outcome]),
    [[`snapshot rouse-${stored.id} of web01`, 'mended']],
  );
  const again = await rouse.json<BackupView>('backup', 'web01');
  assert.equal(again.kind, 'incremental', again.fullBecause ?? '');
});

test('its disks are shown to a running machine, for single files', async () => {
  const { id } = await rouse.json<{ id: string }>(
    'recover',
    'web01',
    '--mode',
    'flr',
    '--into',
    'web01',
  );
  const shown = await vcenter.machine('web01');
  assert.equal(shown.disks.length, 2);
  assert.match(shown.disks[1]?.file ?? '', /^\[rouse-\w+\] web01-in-web01\/scsi0-0\.vmdk$/);
  const during = await rouse.json<BackupView>('backup', 'web01');
  assert.deepEqual([during.kind, during.warnings], ['incremental', []]);
  await rouse.run('cancel', id);
  assert.equal((await vcenter.machine('web01')).disks.length, 1);
});

test('lost with its disk, it wakes from its backup with its known file and what it wrote', async () => {
  const judge = await buildGo(join(import.meta.dirname, '..', '..', 'lab', 'vcenter', 'client'));
  const login = ['-url', vcenter.url, '-user', vcenter.user, '-password', vcenter.password];
  const there = ['-certificate', vcenter.certificate, '-datacenter', 'dc1'];
  await run(judge, [...login, ...there, 'off', 'web01']);
  await run(judge, [...login, ...there, 'unregister', 'web01']);
  await rm(join(production, 'web01'), { recursive: true });
  await rouse.run('recover', 'web01', '--power-on', '--host', 'esx2', '--identity', 'keep');
  const serial = await vcenter.serial('web01');
  await serial.waitFor(/ROUSE heartbeat/, 120_000);
  assert.equal(await serial.command('hash'), guest.knownSha256);
  assert.match(await serial.command('check', 60_000), /clean/);
  await serial.close();
});
