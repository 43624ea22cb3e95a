import { copyFile, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { hasGanesha, startGanesha } from '../lab/peers/ganesha.ts';
import { run } from '../lab/processes.ts';
import type { World } from '../lab/world.ts';
import { rowOf } from './figures.ts';
import type { Row } from './figures.ts';
import type { LoadResult } from './nfs-load.ts';
import { startRouse } from './rouse-target.ts';

/**
 * Serving: our proxy and nfs-ganesha side by side, one after the other in every round, each server
 * on one core and the client on the other. Ganesha serves a raw file.
 */
export interface ServingOptions {
  readonly rounds: number;
  readonly seconds: number;
  readonly sizeBytes: number;
  /** Only patterns whose name contains it. */
  readonly only: string | undefined;
}

interface Pattern {
  readonly name: string;
  readonly load: Pick<LoadResult, 'size' | 'depth'> & {
    readonly pattern: 'randread' | 'seqread' | 'randwrite';
    readonly stable: 'file' | 'unstable';
  };
  /** Which of our two proxies: with all blocks in its cache, or with a cache far too small. */
  readonly cache: 'warm' | 'cold';
  readonly now: number;
  readonly goal: number;
}

const small = { size: 4096, stable: 'unstable' } as const;
const large = { size: 1_048_576, stable: 'unstable' } as const;

/** The table "Serving" of the bars. */
const patterns: readonly Pattern[] = [
  {
    name: '4 KiB random read, depth 32, in cache',
    load: { ...small, pattern: 'randread', depth: 32 },
    cache: 'warm',
    now: 4,
    goal: 6,
  },
  {
    name: '4 KiB random read, depth 32, not in cache',
    load: { ...small, pattern: 'randread', depth: 32 },
    cache: 'cold',
    now: 1.2,
    goal: 2,
  },
  {
    name: '4 KiB random read, depth 1, not in cache',
    load: { ...small, pattern: 'randread', depth: 1 },
    cache: 'cold',
    now: 0.85,
    goal: 1,
  },
  {
    name: '1 MiB sequential read',
    load: { ...large, pattern: 'seqread', depth: 4 },
    cache: 'cold',
    now: 0.6,
    goal: 1,
  },
  {
    name: '4 KiB random write UNSTABLE, depth 32',
    load: { ...small, pattern: 'randwrite', depth: 32 },
    cache: 'warm',
    now: 2,
    goal: 4,
  },
  {
    name: '4 KiB random write FILE_SYNC, depth 32',
    load: { size: 4096, stable: 'file', pattern: 'randwrite', depth: 32 },
    cache: 'warm',
    now: 4,
    goal: 8,
  },
  {
    name: '4 KiB random write FILE_SYNC, depth 1',
    load: { size: 4096, stable: 'file', pattern: 'randwrite', depth: 1 },
    cache: 'warm',
    now: 1,
    goal: 1.5,
  },
];

interface Target {
  readonly nfsPort: number;
  readonly mountPort: number;
  /** Reads and writes have a file each: written pages are read in another way. */
  readonly readPath: string;
  readonly writePath: string;
}

export const serverCore = '1';
export const clientCore = '0';
const MiB = 1_048_576;

export async function measureServing(world: World, options: ServingOptions): Promise<Row[]> {
  const folder = join(world.directory, 'serving');
  await mkdir(folder, { recursive: true });
  const image = join(folder, 'disk.raw');
  await packageBytes(image, options.sizeBytes);
  const ganesha = (await hasGanesha()) ? await ganeshaTarget(world, folder, image) : undefined;
  const warm = await rouseTarget(join(folder, 'warm'), image, options.sizeBytes + 256 * MiB);
  const cold = await rouseTarget(join(folder, 'cold'), image, 16 * MiB);
  try {
    const rows: Row[] = [];
    for (const pattern of patterns) {
      if (options.only !== undefined && !pattern.name.includes(options.only)) continue;
      const ours = pattern.cache === 'warm' ? warm.target : cold.target;
      rows.push(await measurePattern(pattern, ours, ganesha, options));
    }
    return rows;
  } finally {
    await warm.stop();
    await cold.stop();
    await world.processes.endAll();
  }
}

async function measurePattern(
  pattern: Pattern,
  ours: Target,
  peer: Target | undefined,
  options: ServingOptions,
): Promise<Row> {
  const { sizeBytes, seconds } = options;
  // Everything has been read once before anything is measured.
  if (pattern.load.pattern !== 'randwrite') {
    const whole = { size: MiB, depth: 4, pattern: 'seqread', stable: 'unstable' } as const;
    await load(ours, { ...pattern, load: whole }, 2);
    if (peer !== undefined) await load(peer, { ...pattern, load: whole }, 2);
  }
  const figures = { ours: [] as number[], theirs: [] as number[] };
  for (let round = 0; round < options.rounds; round++) {
    const turns = [
      async () => void figures.ours.push(await load(ours, pattern, seconds)),
      async () => {
        if (peer !== undefined) figures.theirs.push(await load(peer, pattern, seconds));
      },
    ];
    // Who comes first changes: neither always finds what the other left.
    for (const turn of round % 2 === 0 ? turns : turns.toReversed()) await turn();
  }
  process.stderr.write(`  ${pattern.name}: done (${sizeBytes / MiB} MiB)\n`);
  const isLarge = pattern.load.size >= MiB;
  return rowOf({
    group: 'serving',
    name: pattern.name,
    unit: isLarge ? 'MiB/s' : 'calls/s',
    peer: 'nfs-ganesha',
    ...figures,
    now: pattern.now,
    goal: pattern.goal,
  });
}

/** A client in a process of its own, on its own core. */
export async function load(target: Target, pattern: Pattern, seconds: number): Promise<number> {
  const client = new URL('nfs-load.ts', import.meta.url).pathname;
  const isWrite = pattern.load.pattern === 'randwrite';
  const said = await run('taskset', [
    ...['-c', clientCore, process.execPath, '--disable-warning=ExperimentalWarning', client],
    ...['--host', '127.0.0.1', '--json', '--seconds', String(seconds)],
    ...['--nfs-port', String(target.nfsPort), '--mount-port', String(target.mountPort)],
    ...['--path', isWrite ? target.writePath : target.readPath],
    ...['--pattern', pattern.load.pattern, '--stable', pattern.load.stable],
    ...['--size', String(pattern.load.size), '--depth', String(pattern.load.depth)],
  ]);
  const result = JSON.parse(said) as LoadResult;
  if (result.errors > 0) throw new Error(`${pattern.name}: ${result.errors} calls failed`);
  return pattern.load.size >= MiB ? result.mebibytesPerSecond : result.callsPerSecond;
}

async function ganeshaTarget(world: World, folder: string, image: string): Promise<Target> {
  const directory = join(folder, 'ganesha-export');
  await mkdir(directory);
  await copyFile(image, join(directory, 'read.raw'));
  await copyFile(image, join(directory, 'write.raw'));
  const workDirectory = join(folder, 'ganesha');
  const spec = { directory, workDirectory, cores: serverCore };
  const { nfsPort, mountPort } = await startGanesha(world.processes, spec);
  const [readPath, writePath] = [`${directory}/read.raw`, `${directory}/write.raw`];
  return { nfsPort, mountPort, readPath, writePath };
}

export async function rouseTarget(data: string, image: string, cacheBytes: number) {
  const rouse = await startRouse({ data, image, cacheBytes, cores: serverCore });
  const target: Target = {
    nfsPort: rouse.nfsPort,
    mountPort: rouse.mountPort,
    readPath: await rouse.publish('Recover-bench-read'),
    writePath: await rouse.publish('Recover-bench-write'),
  };
  return { target, stop: () => rouse.stop() };
}

/** A file without holes, of what packages consist of: it compresses as disks do. */
export async function packageBytes(image: string, sizeBytes: number): Promise<void> {
  const script = `
    set -e
    while [ "$(stat -c %s "$0" 2>/dev/null || echo 0)" -lt "$1" ]; do
      find /usr/lib /usr/bin -xdev -type f -size -8M -print0 | LC_ALL=C sort -z |
        xargs -0 cat | head -c "$(($1 - $(stat -c %s "$0" 2>/dev/null || echo 0)))" >>"$0"
    done
    cat "$0" >/dev/null`;
  await run('sh', ['-c', script, image, String(sizeBytes)], { timeoutMs: 600_000 });
}
