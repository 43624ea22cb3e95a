import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { World } from '../lab/world.ts';
import { openDirectoryStore } from '../src/blobs/directory-store.ts';
import { configOf } from '../src/config.ts';
import { MemoryHypervisor } from '../src/hypervisors/memory.ts';
import { systemClock } from '../src/lib/clock.ts';
import { nodeFiles } from '../src/lib/node-files.ts';
import { systemRandom } from '../src/lib/random.ts';
import { recoveryRequest } from '../src/recovery/schema.ts';
import { openRecoveryBench, type RecoveryBench } from '../src/testing/recovery-bench.ts';
import type { Saveset } from '../src/vault/api.ts';
import { createVault, openVault } from '../src/vault/vault.ts';
import { type Row, rowOf } from './figures.ts';
import { runLoad } from './nfs-load.ts';
import { type RouseTarget, startRouse } from './rouse-target.ts';
import { serverCore } from './serving.ts';

/**
 * Constant time and small memory: our own time from the request to "power on", for a small disk and
 * for a huge one in turns, and what many idle clones of one saveset cost. A proxy in its own process,
 * the server's engine and catalog on a real file, and a hypervisor that takes no time.
 */
export interface RecoveriesOptions {
  readonly rounds: number;
  /** Recoveries of each disk in a round; the 95th percentile is taken of them. */
  readonly recoveries: number;
  readonly clones: number;
}

const MiB = 1_048_576;
const GiB = 1024 * MiB;
const small = { name: '1 GiB', sizeBytes: GiB };
const huge = { name: '16 TiB', sizeBytes: 16 * 1024 * GiB };
/** Blocks with something in them: half of them the first 32 MiB, half spread over the rest. */
const blocksWritten = 2_048;
/** What every clone reads: all of them the same blocks. */
const readBytes = 4 * MiB;

/** bars.md, "Constant time and small memory". */
const bars = { powerOnMs: 300, ratio: 1.1, cloneMiB: 4 } as const;

export async function measureRecoveries(world: World, options: RecoveriesOptions): Promise<Row[]> {
  const data = join(world.directory, 'recoveries');
  const savesets = await prepareVault(data);
  const target = await startRouse({ data, image: '', cacheBytes: 256 * MiB, cores: serverCore });
  try {
    const rows = await measureTimes(target, data, savesets, options);
    process.stderr.write('  own time to power on: done\n');
    const memory = await measureClones(target, options);
    process.stderr.write(`  ${options.clones} idle clones: done\n`);
    return [...rows, ...memory];
  } finally {
    await target.stop();
  }
}

/** Two savesets, of a small and of a huge disk, with the same number of blocks in them. */
async function prepareVault(data: string): Promise<readonly Saveset[]> {
  const config = configOf({ data });
  await mkdir(config.data, { recursive: true, mode: 0o700 });
  const random = systemRandom;
  const store = await openDirectoryStore({ files: nodeFiles, directory: config.vault, random });
  await createVault(store, { random });
  const index = { files: nodeFiles, directory: config.index };
  const vault = await openVault({ store, index, cacheBytes: MiB, clock: systemClock, random });
  try {
    await vault.createMtree('bench', 'lz4');
    const savesets: Saveset[] = [];
    for (const { name, sizeBytes } of [small, huge]) {
      const writer = await vault.begin('bench');
      const disk = writer.disk('vda', sizeBytes, name);
      const { blockBytes } = vault;
      for (let block = 0; block < blocksWritten; block++) {
        const spread = (block - blocksWritten / 2) * (sizeBytes / blocksWritten);
        const offset = block < blocksWritten / 2 ? block * blockBytes : sizeBytes / 2 + spread;
        await disk.write(offset, random.bytes(blockBytes));
      }
      await disk.finish();
      const machine = { id: name, name };
      const header = { machine, takenAtMs: systemClock.now(), labels: {} };
      savesets.push(await writer.seal({ ...header, kind: 'full', consistency: 'offline' }));
    }
    return savesets;
  } finally {
    await vault.close();
  }
}

async function measureTimes(
  target: RouseTarget,
  data: string,
  savesets: readonly Saveset[],
  { rounds, recoveries }: RecoveriesOptions,
): Promise<Row[]> {
  const poweredOnMs = new Map<string, number>();
  const hypervisor = new MemoryHypervisor(systemClock);
  const powerOn = hypervisor.powerOn.bind(hypervisor);
  hypervisor.powerOn = (machine) => {
    poweredOnMs.set('last', systemClock.monotonic());
    return powerOn(machine);
  };
  const [first] = savesets;
  if (first === undefined) throw new Error('there is no saveset');
  const bench = await openRecoveryBench({
    path: join(data, 'bench.sqlite'),
    clock: systemClock,
    saveset: first,
    hypervisor,
    desk: () => ({
      proxies: async () => [
        { name: 'local', address: '127.0.0.1', isAway: false, calls: target.proxy },
      ],
      chooseSaveset: async ({ saveset }) => savesets.find(({ id }) => id === saveset) ?? first,
    }),
  });
  const p95 = savesets.map((): number[] => []);
  try {
    for (let round = -1; round < rounds; round++) {
      const taken = savesets.map((): number[] => []);
      for (let index = 0; index < recoveries; index++) {
        for (const [which, saveset] of savesets.entries()) {
          taken[which]?.push(await ownTime(bench, saveset, poweredOnMs));
        }
      }
      // The first round warms up.
      if (round >= 0) for (const [which, all] of taken.entries()) p95[which]?.push(p95Of(all));
    }
  } finally {
    await bench.close();
  }
  return timeRows(p95[0] ?? [], p95[1] ?? []);
}

/** Milliseconds from the request to the hypervisor being told to power it on. */
async function ownTime(
  bench: RecoveryBench,
  saveset: Saveset,
  poweredOnMs: Map<string, number>,
): Promise<number> {
  const asked = { saveset: saveset.id, powerOn: true };
  const request = recoveryRequest.parse(asked);
  const startMs = systemClock.monotonic();
  const { id } = await bench.recoveries.create(request);
  await bench.until(id, 'available');
  const took = (poweredOnMs.get('last') ?? Number.NaN) - startMs;
  await bench.recoveries.cancel(id, { keepWrites: false });
  await bench.until(id, 'cancelled');
  return took;
}

function p95Of(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * 0.95) - 1)] ?? Number.NaN;
}

function timeRows(ofSmall: readonly number[], ofHuge: readonly number[]): Row[] {
  const common = { group: 'recoveries', unit: 'ms', lessIsBetter: true };
  const bar = { peer: 'the bar', theirs: ofSmall.map(() => bars.powerOnMs), now: 1 };
  const name = 'request to power on, own time, p95';
  return [
    rowOf({ ...common, name: `${name}, ${small.name}`, ours: ofSmall, ...bar }),
    rowOf({ ...common, name: `${name}, ${huge.name}`, ours: ofHuge, ...bar }),
    rowOf({
      ...common,
      name: `${name}, ${huge.name} against ${small.name}`,
      ours: ofHuge,
      peer: small.name,
      theirs: ofSmall,
      now: Number((1 / bars.ratio).toFixed(2)),
    }),
  ];
}

/** All of them were mounted, read and written, and are left alone then. */
async function measureClones(target: RouseTarget, { clones }: RecoveriesOptions): Promise<Row[]> {
  const used = async () => {
    // Collections come by themselves while nothing is asked.
    await systemClock.sleep(5_000);
    return (await target.proxy.status()).memoryBytes;
  };
  const touch = async (name: string) => {
    const path = await target.publish(name);
    const common = { host: '127.0.0.1', nfsPort: target.nfsPort, mountPort: target.mountPort };
    const load = { ...common, path, size: 4096, depth: 8, span: readBytes, warmUpSeconds: 0 };
    await runLoad({ ...load, pattern: 'randread', stable: 'unstable', seconds: 0.1 });
    await runLoad({ ...load, pattern: 'randwrite', stable: 'unstable', seconds: 0.02 });
  };
  // The first ones make what all share: caches, compiled code, buffers.
  for (let index = 0; index < 10; index++) await touch(`Recover-bench-warm${index}`);
  const before = await used();
  const cached = (await target.proxy.vaultStats()).cache.usedBytes;
  for (let index = 0; index < clones; index++) await touch(`Recover-bench-idle${index}`);
  const after = await used();
  const nowCached = (await target.proxy.vaultStats()).cache.usedBytes;
  const common = { group: 'recoveries', peer: 'the bar', lessIsBetter: true, now: 1 };
  return [
    rowOf({
      ...common,
      name: `memory of an idle clone, ${clones} of them`,
      unit: 'MiB',
      ours: [Math.max(0.001, (after - before) / clones / MiB)],
      theirs: [bars.cloneMiB],
    }),
    rowOf({
      ...common,
      name: `blocks cached, ${clones} clones more`,
      unit: 'MiB',
      ours: [nowCached / MiB],
      peer: '10 clones',
      theirs: [cached / MiB],
      now: 0.9,
    }),
  ];
}
