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
import { buildGuest, type Guest, guestDomainXml, Heartbeats, SerialConsole } from './guest.ts';
import { type Libvirt, startLibvirt } from './libvirt.ts';
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
  if (options.keep) await untilInterrupted(join(world.directory, 'data'));
} finally {
  await world.end();
}

/** The parts that everything below acts on. */
interface Scene {
  readonly directory: string;
  readonly production: string;
  readonly libvirt: Libvirt;
  readonly guest: Guest;
  readonly serial: SerialConsole;
  readonly beats: Heartbeats;
  readonly rouse: RouseCommand;
  virsh(...args: string[]): Promise<string>;
}

async function demo(place: World): Promise<Report> {
  const scene = await bootMachine(place);
  await backUpTwice(scene);
  await loseEverything(scene);
  const woken = await wake(scene);
  const moved = await relocate(scene, woken.recovery.id);
  const { rouse, serial } = scene;
  const check = await tell('The file system, from inside', () => serial.command('check', 60_000));
  const left = await leftovers(scene);
  const stats = await rouse.json<{ logicalBytes: number; storedBytes: number }>('vault', 'stats');
  const processes = options.keep ? 0 : await endAll(scene);
  const report: Omit<Report, 'ok'> = {
    steps: moved.steps.map(stepTime),
    timeToPowerOnMilliseconds: woken.recovery.timeToAvailableMs ?? 0,
    timeToHeartbeatMilliseconds: woken.timeToHeartbeatMilliseconds,
    heartbeats: moved.heartbeats,
    fileHashOk: woken.hash.includes(scene.guest.knownSha256),
    filesystemCheckOk: check.includes('clean'),
    vault: { logicalBytes: stats.logicalBytes, storedBytes: stats.storedBytes },
    leftovers: { ...left, processes },
  };
  return { ok: isGood(report), ...report };
}

/** A guest on production storage, running under a private libvirt. */
async function bootMachine(place: World): Promise<Scene> {
  const { directory } = place;
  const production = join(directory, 'production');
  await mkdir(production, { recursive: true });
  const libvirt = await tell('A private libvirt', () =>
    startLibvirt({ directory: join(directory, 'v') }),
  );
  const guest = await tell('A guest of Debian packages', () =>
    buildGuest({ directory: production, name: 'web01' }),
  );
  // Persistent bitmaps, and so incremental backups, need qcow2.
  const disk = guest.disk.replace(/\.raw$/, '.qcow2');
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', guest.disk, disk]);
  await rm(guest.disk);
  const serialLogPath = join(directory, 'serial.log');
  const commandSocketPath = join(directory, 'command.sock');
  const domain = join(directory, 'web01.xml');
  await writeFile(serialLogPath, '');
  const ports = { serialLogPath, commandSocketPath };
  await writeFile(domain, guestDomainXml({ name: 'web01', disk, format: 'qcow2', ...ports }));
  const serial = new SerialConsole({ logPath: serialLogPath, commandSocketPath });
  const beats = new Heartbeats(serial);
  const virsh = (...args: string[]) => run('virsh', ['-c', libvirt.uri, ...args]);
  await tell('web01 boots', async () => {
    await virsh('define', domain);
    await virsh('start', 'web01');
    await beats.next(90_000);
  });
  const rouse = new RouseCommand(place, join(directory, 'data'), options.verbose);
  return { directory, production, libvirt, guest, serial, beats, rouse, virsh };
}

async function backUpTwice({ rouse, libvirt, production, serial }: Scene): Promise<void> {
  await tell('rouse up', () => rouse.up());
  const datastore = `production=${production}`;
  await rouse.json('hypervisor', 'add', 'lab', libvirt.uri, '--datastore', datastore);
  await tell('rouse backup web01, while it runs', () => rouse.json('backup', 'web01'));
  await serial.command('write 4');
  await tell('rouse backup web01, what changed', () => rouse.json('backup', 'web01'));
}

async function loseEverything({ virsh, production }: Scene): Promise<void> {
  await tell('web01 and its disk are destroyed', async () => {
    await virsh('destroy', 'web01');
    await virsh('undefine', 'web01', '--nvram', '--checkpoints-metadata');
    await rm(join(production, 'web01.qcow2'));
  });
}

/** From the command to the first sign of life, and what the machine says of itself. */
async function wake({ rouse, serial }: Scene) {
  const lostAt = serial.position;
  const askedMs = performance.now();
  const recovery = await tell('rouse recover web01 --power-on', () =>
    rouse.json<RecoveryView>('recover', 'web01', '--power-on', '--identity', 'keep'),
  );
  await tell('Its first heartbeat', () => serial.waitFor(/ROUSE heartbeat/, 90_000, lostAt));
  const timeToHeartbeatMilliseconds = Math.round(performance.now() - askedMs);
  const hash = await tell('The known file, from inside', () => serial.command('hash'));
  await serial.command('write 4');
  await rouse.run('show', recovery.id, '--picture', picture);
  return { recovery, timeToHeartbeatMilliseconds, hash };
}

/** Live, while the guest writes and compares; then clean-up has to come by itself. */
async function relocate({ rouse, serial, beats }: Scene, id: string) {
  const beforeRelocation = await beats.next(30_000, 2);
  const from = serial.position;
  await tell('rouse relocate, while it writes', async () => {
    const writing = serial.command('churn 6', 60_000);
    await rouse.json('relocate', id, '--to', 'production');
    await writing;
  });
  const afterRelocation = await beats.next(30_000, 2);
  const { missed } = beats.report(from);
  const { steps } = await tell('Clean-up, by itself', () =>
    eventually(
      'the end of the recovery',
      async () => {
        const view = await rouse.json<RecoveryView>('show', id);
        return view.state === 'done' ? view : undefined;
      },
      60_000,
      200,
    ),
  );
  return { steps, heartbeats: { beforeRelocation, afterRelocation, missed } };
}

/** Ends all of it and counts what did not end. */
async function endAll({ virsh, rouse, serial, libvirt, directory }: Scene): Promise<number> {
  await virsh('destroy', 'web01');
  await virsh('undefine', 'web01', '--nvram', '--checkpoints-metadata');
  await rouse.stop();
  await serial.close();
  await libvirt.stop();
  const { stdout } = await attempt('pgrep', ['-f', directory]);
  return stdout.split('\n').filter((line) => line !== '').length;
}

/** Everything goes on running, in its own namespaces, until this process is told to stop. */
async function untilInterrupted(data: string): Promise<void> {
  const rouse = resolve(import.meta.dirname, '..', 'bin', 'rouse');
  const lines = [
    'Everything still runs. From another terminal, step in and look around:',
    '',
    '  nsenter --all --target "$(pgrep -nf lab/demo.ts)"',
    `  export ROUSE_DATA=${data}`,
    `  alias rouse=${rouse}`,
    '  rouse status',
    '  rouse savesets',
    '  rouse recover web01 --name web01-copy --power-on',
    '  rouse exports; rouse show web01-copy; rouse cancel web01-copy',
    '',
    'Ctrl-C here ends all of it.',
    '',
  ];
  process.stdout.write(lines.join('\n'));
  await new Promise<void>((done) => {
    const timer = setInterval(() => undefined, 60_000);
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      process.once(signal, () => {
        clearInterval(timer);
        done();
      });
    }
  });
}

function stepTime(step: RecoveryView['steps'][number]): StepTime {
  const milliseconds =
    step.startedMs === null || step.endedMs === null ? 0 : step.endedMs - step.startedMs;
  return { number: step.number, name: step.name, milliseconds };
}

async function leftovers({ rouse, virsh }: Scene) {
  const status = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  const xml = await virsh('dumpxml', 'web01');
  return {
    exports: status.proxy.exports,
    clones: status.proxy.clones,
    registrations: /protocol=.nfs./.test(xml) ? 1 : 0,
  };
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
