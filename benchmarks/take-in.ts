import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { attempt, run } from '../lab/processes.ts';
import { rowOf } from './figures.ts';
import type { Row } from './figures.ts';
import { editImage, makeImage } from './image.ts';
import { nodeFlags } from '../src/supervisor.ts';

/**
 * Taking in: the first backup of a disk, and a second one after it was changed in place, without
 * anybody saying what changed; beside borg and restic on the same bytes in the same round. Rates
 * are per second of processor time, of all threads and children together: cores may differ.
 */
export interface TakeInOptions {
  readonly directory: string;
  readonly rounds: number;
  readonly sizeBytes: number;
}

interface Taker {
  readonly name: string;
  readonly codec: string;
  /** Makes an empty repository; undefined: this taker is not installed. */
  prepare(folder: string): Promise<void>;
  /** The command line that backs `image` up. */
  command(folder: string, image: string, name: string): readonly string[];
}

/** With compiled code kept between runs, as bin/rouse has it and as borg keeps its own. */
const compiled = `NODE_COMPILE_CACHE=${new URL('../.cache/node', import.meta.url).pathname}`;
const flags = ['--disable-warning=ExperimentalWarning', ...nodeFlags('proxy')];
const node = ['env', compiled, process.execPath, ...flags];
const rouse = new URL('take-in-rouse.ts', import.meta.url).pathname;

function rouseTaker(codec: 'lz4' | 'zstd'): Taker {
  return {
    name: 'Rouse',
    codec,
    prepare: async (folder) => void (await mkdir(folder, { recursive: true })),
    command: (folder, image) => [
      ...[...node, rouse, '--vault', folder, '--image', image, '--codec', codec],
    ],
  };
}

function borgTaker(codec: 'lz4' | 'zstd'): Taker {
  const compression = codec === 'lz4' ? 'lz4' : 'zstd,3';
  return {
    name: 'borg',
    codec,
    prepare: async (folder) => {
      await run('borg', ['init', '--encryption=none', folder], { env: peerEnvironment(folder) });
    },
    command: (folder, image, name) => [
      ...['borg', 'create', '--compression', compression, `${folder}::${name}`, image],
    ],
  };
}

const resticTaker: Taker = {
  name: 'restic',
  codec: 'zstd',
  prepare: async (folder) => {
    const init = ['init', '-q', '--repository-version', '2', '-r', folder];
    await run('restic', init, { env: peerEnvironment(folder) });
  },
  command: (folder, image) => ['restic', '-q', '-r', folder, 'backup', '--force', image],
};

/** Caches and settings of their own: nothing of this machine's user is read or left behind. */
export function peerEnvironment(folder: string): NodeJS.ProcessEnv {
  return {
    HOME: `${folder}.home`,
    BORG_BASE_DIR: `${folder}.home`,
    BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes',
    RESTIC_PASSWORD: 'bench',
    RESTIC_CACHE_DIR: `${folder}.home/cache`,
  };
}

interface Cost {
  readonly megabytesPerCpuSecond: number;
  readonly megabytesPerSecond: number;
}

interface Round {
  readonly first: Cost;
  readonly second: Cost;
  /** Bytes on disk after each. */
  readonly storedFirst: number;
  readonly storedBoth: number;
}

export async function measureTakeIn(options: TakeInOptions): Promise<Row[]> {
  const folder = join(options.directory, 'take-in');
  await mkdir(folder, { recursive: true });
  const before = join(folder, 'v1.raw');
  const after = join(folder, 'v2.raw');
  process.stderr.write('  making the images\n');
  await makeImage(before, options.sizeBytes, folder);
  await run('cp', ['--sparse=always', before, after]);
  await editImage(after, folder);
  const takers = await installed([
    rouseTaker('lz4'),
    borgTaker('lz4'),
    rouseTaker('zstd'),
    borgTaker('zstd'),
    resticTaker,
  ]);
  const rounds = new Map<Taker, Round[]>();
  for (let round = 0; round < options.rounds; round++) {
    for (const taker of round % 2 === 0 ? takers : takers.toReversed()) {
      const result = await oneRound(taker, join(folder, 'repository'), { before, after, options });
      rounds.set(taker, [...(rounds.get(taker) ?? []), result]);
    }
    process.stderr.write(`  taking in: round ${round + 1} of ${options.rounds} done\n`);
  }
  await rm(folder, { recursive: true, force: true });
  return rowsOf(rounds);
}

async function installed(takers: readonly Taker[]): Promise<Taker[]> {
  const found: Taker[] = [];
  for (const taker of takers) {
    const program = taker.name === 'Rouse' ? 'node' : taker.name;
    const { code } = await attempt('sh', ['-c', `command -v ${program}`]);
    if (code === 0) found.push(taker);
  }
  return found;
}

async function oneRound(
  taker: Taker,
  folder: string,
  what: { readonly before: string; readonly after: string; readonly options: TakeInOptions },
): Promise<Round> {
  const home = `${folder}.home`;
  await mkdir(home, { recursive: true });
  await taker.prepare(folder);
  const { sizeBytes } = what.options;
  // Both images are in memory: what is measured is the taker, not this disk.
  await run('sh', ['-c', 'cat "$0" "$1" >/dev/null', what.before, what.after]);
  const first = await timed(taker.command(folder, what.before, 'v1'), folder, sizeBytes);
  const storedFirst = await bytesOf(folder);
  const second = await timed(taker.command(folder, what.after, 'v2'), folder, sizeBytes);
  const storedBoth = await bytesOf(folder);
  await rm(folder, { recursive: true, force: true });
  await rm(home, { recursive: true, force: true });
  return { first, second, storedFirst, storedBoth };
}

/** bash's own `time` counts children and threads. */
async function timed(command: readonly string[], folder: string, sizeBytes: number): Promise<Cost> {
  const script = 'TIMEFORMAT="TIMES %U %S %R"; time "$@"';
  const options = { env: { ...peerEnvironment(folder), LC_ALL: 'C' }, timeoutMs: 1_800_000 };
  const { code, stderr } = await attempt('bash', ['-c', script, 'time', ...command], options);
  const times = /TIMES ([\d.]+) ([\d.]+) ([\d.]+)/.exec(stderr);
  if (code !== 0 || times === null) {
    throw new Error(`${command.join(' ')}: exit ${code}\n${stderr.slice(-2000)}`);
  }
  const [user, system, wall] = times.slice(1).map(Number);
  return {
    megabytesPerCpuSecond: sizeBytes / 1e6 / ((user ?? 0) + (system ?? 0)),
    megabytesPerSecond: sizeBytes / 1e6 / (wall ?? 1),
  };
}

async function bytesOf(folder: string): Promise<number> {
  const said = await run('du', ['-s', '--apparent-size', '-B1', folder]);
  return Number(said.split(/\s/)[0]);
}

function rowsOf(rounds: ReadonlyMap<Taker, readonly Round[]>): Row[] {
  const of = (name: string, codec: string) =>
    [...rounds].find(([taker]) => taker.name === name && taker.codec === codec)?.[1] ?? [];
  const rows: Row[] = [];
  const add = (
    name: string,
    codec: 'lz4' | 'zstd',
    peer: 'borg' | 'restic',
    spec: {
      readonly unit: string;
      readonly figure: (round: Round) => number;
      readonly lessIsBetter?: boolean;
      readonly now?: number;
      readonly goal?: number;
    },
  ) => {
    const { figure, ...rest } = spec;
    rows.push(
      rowOf({
        group: 'taking in',
        name: `${name}, ${codec}`,
        ...rest,
        peer: `${peer} ${codec}`,
        ours: of('Rouse', codec).map(figure),
        theirs: of(peer, codec).map(figure),
      }),
    );
  };
  const cpu = { unit: 'MB/CPU-s' };
  const wall = { unit: 'MB/s' };
  const stored = { unit: 'MB', lessIsBetter: true };
  for (const codec of ['lz4', 'zstd'] as const) {
    // 350 MB per CPU-second where borg lz4 had 298.
    const bar = codec === 'lz4' ? { now: 1.17, goal: 2 } : {};
    const first = (round: Round) => round.first.megabytesPerCpuSecond;
    const second = (round: Round) => round.second.megabytesPerCpuSecond;
    add('first backup', codec, 'borg', { ...cpu, ...bar, figure: first });
    add('first backup by the clock', codec, 'borg', {
      ...wall,
      figure: (round) => round.first.megabytesPerSecond,
    });
    add('second backup, no change map', codec, 'borg', { ...cpu, figure: second });
    add('stored, first', codec, 'borg', {
      ...stored,
      now: codec === 'lz4' ? 0.96 : 0.89,
      goal: 1,
      figure: (round) => round.storedFirst / 1e6,
    });
    add('stored, both', codec, 'borg', {
      ...stored,
      now: codec === 'lz4' ? 0.96 : 0.89,
      goal: 1,
      figure: (round) => round.storedBoth / 1e6,
    });
  }
  const first = (round: Round) => round.first.megabytesPerCpuSecond;
  add('first backup', 'zstd', 'restic', { ...cpu, figure: first });
  rows.push(secondAgainstFirst(of('Rouse', 'lz4')));
  return rows;
}

/** The bar for a second backup is our own first one. */
function secondAgainstFirst(rounds: readonly Round[]): Row {
  return rowOf({
    group: 'taking in',
    name: 'second backup against the first, lz4',
    unit: 'MB/CPU-s',
    peer: 'Rouse, first',
    ours: rounds.map((round) => round.second.megabytesPerCpuSecond),
    theirs: rounds.map((round) => round.first.megabytesPerCpuSecond),
    now: 1.5,
  });
}
