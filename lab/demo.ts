/**
 * The main job on real parts, in a world of its own: a guest is built, backed up while it runs, lost
 * with its disk, woken from the vault over NFS, used, moved live to production storage, cleaned up.
 * Everything is done as a person would, through the command line.
 *
 *     npm run demo [-- --keep] [-- --report FILE] [-- --verbose]
 */
import { parseArgs } from 'node:util';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { tmpdir } from 'node:os';
import { buildGuest, Heartbeats, SerialConsole, guestDomainXml } from './guest.ts';
import { startLibvirt } from './libvirt.ts';
import { attempt, eventually, run } from './processes.ts';
import { RouseCommand } from './rouse-command.ts';
import { printSummary, type Report, type StepTime, tell } from './demo-report.ts';
import { enterWorld, type World } from './world.ts';

const { values: options } = parseArgs({
  options: {
    keep: { type: 'boolean', default: false },
    report: { type: 'string' },
    picture: { type: 'string' },
    verbose: { type: 'boolean', default: false },
  },
});

/** What the recovered machine's own steps look like in `rouse show --json`. */
interface RecoveryView {
  readonly id: string;
  readonly state: string;
  readonly timeToAvailableMs: number | null;
  readonly steps: readonly {
    readonly number: number;
    readonly name: string;
    readonly state: string;
    readonly startedMs: number | null;
    readonly endedMs: number | null;
  }[];
}

const world = await enterWorld();
const picture = resolve(options.picture ?? join(tmpdir(), 'rouse-demo-screen.png'));
try {
  const report = await demo(world);
  printSummary(report, picture);
  if (options.report !== undefined) {
    await writeFile(resolve(options.report), `${JSON.stringify(report, null, 2)}\n`);
  }
  process.exitCode = report.ok ? 0 : 1;
} finally {
  if (!options.keep || process.exitCode === 1) await world.end();
}

async function demo(place: World): Promise<Report> {
  const directory = place.directory;
  const production = join(directory, 'production');
  await mkdir(production, { recursive: true });
  const libvirt = await tell('A private libvirt', () =>
    startLibvirt({ directory: join(directory, 'v') }),
  );
  const virsh = (...args: string[]) => run('virsh', ['-c', libvirt.uri, ...args]);
  const guest = await tell('A guest of Debian packages', () =>
    buildGuest({ directory: production, name: 'web01' }),
  );
  const serialLogPath = join(directory, 'serial.log');
  const commandSocketPath = join(directory, 'command.sock');
  const domain = join(directory, 'web01.xml');
  await writeFile(serialLogPath, '');
  await writeFile(
    domain,
    // Persistent bitmaps, and so incremental backups, need qcow2.
    guestDomainXml({
      name: 'web01',
      disk: await asQcow2(guest.disk),
      format: 'qcow2',
      serialLogPath,
      commandSocketPath,
    }),
  );
  const serial = new SerialConsole({ logPath: serialLogPath, commandSocketPath });
  const beats = new Heartbeats(serial);
  await tell('web01 boots', async () => {
    await virsh('define', domain);
    await virsh('start', 'web01');
    await beats.next(90_000);
  });

  const rouse = new RouseCommand(place, join(directory, 'data'), options.verbose);
  await tell('rouse up', () => rouse.up());
  await rouse.json(
    'hypervisor',
    'add',
    'lab',
    libvirt.uri,
    '--datastore',
    `production=${production}`,
  );
  await tell('Backup of the running machine', () => rouse.json('backup', 'web01'));
  await serial.command('write 4');
  await tell('Incremental backup', () => rouse.json('backup', 'web01'));

  await tell('web01 and its disk are destroyed', async () => {
    await virsh('destroy', 'web01');
    await virsh('undefine', 'web01', '--nvram', '--checkpoints-metadata');
    await rm(join(production, 'web01.qcow2'));
    await rm(guest.disk, { force: true });
  });

  const lostAt = serial.position;
  const askedMs = performance.now();
  const recovered = await tell('rouse recover web01 --power-on', () =>
    rouse.json<RecoveryView>('recover', 'web01', '--power-on', '--identity', 'keep'),
  );
  await tell('Its first heartbeat', () => serial.waitFor(/ROUSE heartbeat/, 90_000, lostAt));
  const timeToHeartbeatMilliseconds = Math.round(performance.now() - askedMs);
  const hash = await tell('The known file, from inside', () => serial.command('hash'));
  await serial.command('write 4');
  await rouse.run('show', recovered.id, '--picture', picture);
  const beforeRelocation = await beats.next(30_000, 2);

  const from = serial.position;
  await tell('Relocated live, while it writes', async () => {
    const writing = serial.command('churn 6', 60_000);
    await rouse.json('relocate', recovered.id, '--to', 'production');
    await writing;
  });
  const afterRelocation = await beats.next(30_000, 2);
  const { missed } = beats.report(from);
  const done = await tell('Clean-up, by itself', () =>
    eventually(
      'the end of the recovery',
      async () => {
        const view = await rouse.json<RecoveryView>('show', recovered.id);
        return view.state === 'done' ? view : undefined;
      },
      60_000,
      200,
    ),
  );
  const check = await tell('The file system, from inside', () => serial.command('check', 60_000));
  const left = await leftovers(rouse, virsh);
  const stats = await rouse.json<{ logicalBytes: number; storedBytes: number }>('vault', 'stats');
  if (!options.keep) {
    await virsh('destroy', 'web01');
    await virsh('undefine', 'web01', '--nvram', '--checkpoints-metadata');
    await rouse.stop();
    await serial.close();
    await libvirt.stop();
  }
  const processes = options.keep ? 0 : await countOurProcesses(directory);
  const report: Omit<Report, 'ok'> = {
    steps: done.steps.map(stepTime),
    timeToPowerOnMilliseconds: recovered.timeToAvailableMs ?? 0,
    timeToHeartbeatMilliseconds,
    heartbeats: { beforeRelocation, afterRelocation, missed },
    fileHashOk: hash.includes(guest.knownSha256),
    filesystemCheckOk: check.includes('clean'),
    vault: { logicalBytes: stats.logicalBytes, storedBytes: stats.storedBytes },
    leftovers: { ...left, processes },
  };
  return { ok: isGood(report), ...report };
}

async function asQcow2(raw: string): Promise<string> {
  const target = raw.replace(/\.raw$/, '.qcow2');
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, target]);
  return target;
}

function stepTime(step: RecoveryView['steps'][number]): StepTime {
  const milliseconds =
    step.startedMs === null || step.endedMs === null ? 0 : step.endedMs - step.startedMs;
  return { number: step.number, name: step.name, milliseconds };
}

async function leftovers(rouse: RouseCommand, virsh: (...args: string[]) => Promise<string>) {
  const status = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  const xml = await virsh('dumpxml', 'web01');
  return {
    exports: status.proxy.exports,
    clones: status.proxy.clones,
    registrations: /protocol=.nfs./.test(xml) ? 1 : 0,
  };
}

async function countOurProcesses(directory: string): Promise<number> {
  const { stdout } = await attempt('pgrep', ['-f', directory]);
  return stdout.split('\n').filter((line) => line !== '').length;
}

function isGood(report: Omit<Report, 'ok'>): boolean {
  const { heartbeats, leftovers: left } = report;
  return (
    report.fileHashOk &&
    report.filesystemCheckOk &&
    heartbeats.afterRelocation > heartbeats.beforeRelocation &&
    heartbeats.missed === 0 &&
    left.exports + left.clones + left.registrations + left.processes === 0
  );
}
