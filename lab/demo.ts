/**
 * The main job on real parts, in a world of its own: a guest is built, backed up while it runs, lost
 * with its disk, woken from the vault over NFS, used, moved live to production storage, cleaned up.
 * Everything is done as a person would, through the command line.
 *
 *     npm run demo [-- --vsphere] [-- --keep] [-- --report FILE] [-- --verbose]
 */
import { parseArgs } from 'node:util';
import { writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { tmpdir } from 'node:os';
import { libvirtStage } from './demo-libvirt.ts';
import type { Stage } from './demo-stage.ts';
import { vsphereStage } from './demo-vsphere.ts';
import { Heartbeats, type SerialConsole } from './guest.ts';
import { attempt, eventually } from './processes.ts';
import { RouseCommand } from './rouse-command.ts';
import { printSummary, type Report, type StepTime, tell } from './demo-report.ts';
import { enterWorld, type World } from './world.ts';

const { values: options } = parseArgs({
  options: {
    keep: { type: 'boolean', default: false },
    report: { type: 'string' },
    picture: { type: 'string' },
    verbose: { type: 'boolean', default: false },
    /** On the stand-in for vCenter; otherwise on libvirt. */
    vsphere: { type: 'boolean', default: false },
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

async function demo(place: World): Promise<Report> {
  const stage = await (options.vsphere ? vsphereStage(place) : libvirtStage(place));
  const data = join(place.directory, 'data');
  const rouse = new RouseCommand(place, data, options.verbose, stage.upOptions);
  await tell('rouse up', () => rouse.up());
  await stage.prepare(rouse);
  await stage.lose();
  const woken = await wake(rouse, stage);
  const moved = await relocate(rouse, woken.serial, woken.recovery.id);
  const check = await tell('The file system, from inside', () =>
    woken.serial.command('check', 60_000),
  );
  const left = await leftovers(rouse, stage);
  const stats = await rouse.json<{ logicalBytes: number; storedBytes: number }>('vault', 'stats');
  const processes = options.keep ? 0 : await endAll(rouse, stage, place.directory);
  const report: Omit<Report, 'ok'> = {
    steps: moved.steps.map(stepTime),
    timeToPowerOnMilliseconds: woken.recovery.timeToAvailableMs ?? 0,
    timeToHeartbeatMilliseconds: woken.timeToHeartbeatMilliseconds,
    heartbeats: moved.heartbeats,
    fileHashOk: woken.hash.includes(stage.knownSha256),
    filesystemCheckOk: check.includes('clean'),
    vault: { logicalBytes: stats.logicalBytes, storedBytes: stats.storedBytes },
    leftovers: { ...left, processes },
  };
  return { ok: isGood(report), ...report };
}

/** From the command to the first sign of life, and what the machine says of itself. */
async function wake(rouse: RouseCommand, stage: Stage) {
  const before = options.vsphere ? 0 : (await stage.serial()).position;
  const askedMs = performance.now();
  const recovery = await tell('rouse recover web01 --power-on', () =>
    rouse.json<RecoveryView>('recover', 'web01', '--power-on', '--identity', 'keep'),
  );
  const serial = await stage.serial();
  await tell('Its first heartbeat', () => serial.waitFor(/ROUSE heartbeat/, 90_000, before));
  const timeToHeartbeatMilliseconds = Math.round(performance.now() - askedMs);
  const hash = await tell('The known file, from inside', () => serial.command('hash'));
  await serial.command('write 4');
  await rouse.run('show', recovery.id, '--picture', picture);
  return { recovery, serial, timeToHeartbeatMilliseconds, hash };
}

/** Live, while the guest writes and compares; then clean-up has to come by itself. */
async function relocate(rouse: RouseCommand, serial: SerialConsole, id: string) {
  const beats = new Heartbeats(serial);
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
async function endAll(rouse: RouseCommand, stage: Stage, directory: string): Promise<number> {
  await rouse.stop();
  await stage.end();
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

async function leftovers(rouse: RouseCommand, stage: Stage) {
  const status = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  return {
    exports: status.proxy.exports,
    clones: status.proxy.clones,
    registrations: await stage.registrations(),
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
