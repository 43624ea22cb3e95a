import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { attempt, eventually, run } from '../lab/processes.ts';
import type { World } from '../lab/world.ts';
import { rowOf } from './figures.ts';
import type { Row } from './figures.ts';
import { clientCore, load, packageBytes, rouseTarget, serverCore } from './serving.ts';
import { peerEnvironment } from './take-in.ts';

/**
 * A disk read at random out of a backup: through our export, and through `restic mount` and `borg
 * mount`. 4 KiB, 32 at once, each server on one core and its client on the other. Nobody has the
 * blocks in a cache of his own beforehand, all have their packs in the page cache; fio asks the
 * mounts by direct I/O, or the kernel would answer what it has seen before.
 */
export interface MountsOptions {
  readonly rounds: number;
  readonly seconds: number;
  readonly sizeBytes: number;
}

interface MountPeer {
  readonly name: 'restic' | 'borg';
  /** Command lines: an empty repository, the image into it, and the mount, in the foreground. */
  readonly init: readonly string[];
  readonly backUp: readonly string[];
  readonly mount: readonly string[];
  /** The folder of the mount below which the image's whole path stands. */
  readonly below: string;
}

function peersOf(folder: string, image: string): MountPeer[] {
  const [restic, borg] = [join(folder, 'restic'), join(folder, 'borg')];
  return [
    {
      name: 'restic',
      init: ['restic', 'init', '-q', '--repository-version', '2', '-r', restic],
      backUp: ['restic', '-q', '-r', restic, 'backup', image],
      mount: ['restic', '-q', '-r', restic, 'mount', `${restic}.mount`],
      below: `${restic}.mount/ids`,
    },
    {
      name: 'borg',
      init: ['borg', 'init', '--encryption=none', borg],
      backUp: ['borg', 'create', '--compression', 'lz4', `${borg}::bench`, image],
      mount: ['borg', 'mount', '-f', borg, `${borg}.mount`],
      below: `${borg}.mount`,
    },
  ];
}

const pattern = {
  name: '4 KiB random read, depth 32, not in cache',
  load: { size: 4096, stable: 'unstable', pattern: 'randread', depth: 32 },
  cache: 'cold',
  now: 20,
  goal: 40,
} as const;

const MiB = 1_048_576;

export async function measureMounts(world: World, options: MountsOptions): Promise<Row[]> {
  const folder = join(world.directory, 'mounts');
  await mkdir(folder, { recursive: true });
  const image = join(folder, 'disk.raw');
  await packageBytes(image, options.sizeBytes);
  const mounted: { name: string; file: string; figures: number[] }[] = [];
  for (const peer of peersOf(folder, image)) {
    const file = await mounting(world, folder, peer);
    if (file === undefined) process.stderr.write(`  ${peer.name} mount does not work here\n`);
    else mounted.push({ name: peer.name, file, figures: [] });
  }
  const { target, stop } = await rouseTarget(join(folder, 'rouse'), image, 16 * MiB);
  try {
    const whole = { ...pattern.load, size: MiB, depth: 4, pattern: 'seqread' } as const;
    await load(target, { ...pattern, load: whole }, 2);
    const ours: number[] = [];
    for (let round = 0; round < options.rounds; round++) {
      const turns = [
        async () => void ours.push(await load(target, pattern, options.seconds)),
        ...mounted.map(({ file, figures }) => async () => {
          figures.push(await readMounted(file, options));
        }),
      ];
      for (const turn of round % 2 === 0 ? turns : turns.toReversed()) await turn();
    }
    const { name, now, goal } = pattern;
    return mounted.map(({ name: peer, figures: theirs }) =>
      rowOf({
        group: 'mounts',
        name,
        unit: 'reads/s',
        ours,
        theirs,
        peer: `${peer} mount`,
        now,
        goal,
      }),
    );
  } finally {
    await stop();
    await world.processes.endAll();
    for (const { name } of mounted) await attempt('umount', ['-l', join(folder, `${name}.mount`)]);
    await rm(folder, { recursive: true, force: true });
  }
}

/** The image's path in a mount of its backup; undefined without the program or without FUSE. */
async function mounting(
  world: World,
  folder: string,
  peer: MountPeer,
): Promise<string | undefined> {
  const needs = `command -v ${peer.name} fusermount3 fio && test -c /dev/fuse`;
  if ((await attempt('sh', ['-c', needs])).code !== 0) return undefined;
  const env = peerEnvironment(join(folder, peer.name));
  const options = { env, timeoutMs: 600_000 };
  await mkdir(join(folder, `${peer.name}.mount`), { recursive: true });
  for (const [command = '', ...args] of [peer.init, peer.backUp]) await run(command, args, options);
  await run('sh', ['-c', `find "$0" -type f -exec cat {} + >/dev/null`, join(folder, peer.name)]);
  world.processes.start('taskset', ['-c', serverCore, ...peer.mount], { env });
  const search = ['-c', `find "$0" -name "$1" -type f -print -quit`, peer.below, 'disk.raw'];
  return eventually(
    `${peer.name} mount`,
    async () => (await attempt('sh', search)).stdout.trim() || undefined,
    30_000,
  );
}

/** Reads a second. */
async function readMounted(file: string, options: MountsOptions): Promise<number> {
  const said = await run('taskset', [
    ...['-c', clientCore, 'fio', '--name=mounted', `--filename=${file}`, '--readonly'],
    ...['--rw=randread', '--bs=4k', '--direct=1', '--ioengine=libaio', '--iodepth=32'],
    ...[`--size=${options.sizeBytes}`, '--time_based', `--runtime=${options.seconds}`],
    ...['--randrepeat=0', '--output-format=json'],
  ]);
  const result = JSON.parse(said) as { readonly jobs: readonly { read: { iops: number } }[] };
  const rate = result.jobs[0]?.read.iops ?? 0;
  if (rate === 0) throw new Error(`${file}: fio read nothing`);
  return rate;
}
