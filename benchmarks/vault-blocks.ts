/**
 * Block sizes compared on real files: what they store, how fast they are taken in, and how fast
 * random 4 KiB reads are, with the block cached and not (packs in the page cache). Everything is
 * per CPU second, so that a busy machine can run it. One round is
 * one vault of each size; `node benchmarks/vault-blocks.ts [megabytes] [rounds]`.
 */
import { rm } from 'node:fs/promises';
import { freshVault, measure, median, realFiles, takeIn } from './vault-sample.ts';
import type { VaultDisk } from '#src/vault/api.ts';

const megabytes = Number(process.argv[2] ?? 300);
const rounds = Number(process.argv[3] ?? 3);
const directory = '/tmp/rouse-bench-blocks';
const sizesKiB = [16, 32, 64];

interface Row {
  readonly firstMBPerCpuSecond: number;
  readonly againMBPerCpuSecond: number;
  readonly storedMB: number;
  readonly coldReadsPerCpuSecond: number;
  readonly cachedReadsPerCpuSecond: number;
  readonly sequentialMBPerCpuSecond: number;
}

const bytes = await realFiles(megabytes);
const rows = new Map<number, Row[]>(sizesKiB.map((size) => [size, []]));
for (let round = 0; round < rounds; round++)
  for (const size of sizesKiB) rows.get(size)?.push(await one(size));
await rm(directory, { recursive: true, force: true });

console.log(`${(bytes.length / 1e6).toFixed(0)} MB of files, ${rounds} rounds, medians`);
console.table(
  [...rows].map(([size, list]) => ({
    'block KiB': size,
    'first MB/CPU-s': of(list, 'firstMBPerCpuSecond'),
    'again MB/CPU-s': of(list, 'againMBPerCpuSecond'),
    'stored MB': of(list, 'storedMB'),
    'cold 4 KiB/CPU-s': of(list, 'coldReadsPerCpuSecond'),
    'cached 4 KiB/CPU-s': of(list, 'cachedReadsPerCpuSecond'),
    'sequential MB/CPU-s': of(list, 'sequentialMBPerCpuSecond'),
  })),
);

function of(list: readonly Row[], key: keyof Row): number {
  return Math.round(median(list.map((row) => row[key])) * 10) / 10;
}

async function one(sizeKiB: number): Promise<Row> {
  const blockBytes = sizeKiB * 1024;
  const { vault, reopen } = await freshVault(directory, { blockBytes });
  const first = await measure(async () => void (await takeIn(vault, bytes)));
  const again = await measure(async () => void (await takeIn(vault, bytes)));
  const { storedBytes } = await vault.stats();
  await vault.close();
  const reader = await reopen();
  const root = (await reader.savesets())[0]?.disks[0]?.root;
  if (root === undefined) throw new Error('nothing was taken in');
  const disk = await reader.openDisk(root);
  const cold = await randomReads(disk, 20_000, bytes.length);
  const cached = await randomReads(disk, 400_000, 32 * 1024 * 1024);
  const sequential = await measure(async () => {
    const target = Buffer.alloc(1024 * 1024);
    for (let at = 0; at + target.length <= root.sizeBytes; at += target.length)
      await disk.read(target, at);
  });
  await reader.close();
  return {
    firstMBPerCpuSecond: bytes.length / 1e6 / first.cpuSeconds,
    againMBPerCpuSecond: bytes.length / 1e6 / again.cpuSeconds,
    storedMB: storedBytes / 1e6,
    coldReadsPerCpuSecond: 20_000 / cold,
    cachedReadsPerCpuSecond: 400_000 / cached,
    sequentialMBPerCpuSecond: bytes.length / 1e6 / sequential.cpuSeconds,
  };
}

/** CPU seconds for so many 4 KiB reads below `range`, in an order that repeats nothing soon. */
async function randomReads(disk: VaultDisk, count: number, range: number): Promise<number> {
  const target = Buffer.alloc(4096);
  const pages = Math.floor(Math.min(range, disk.sizeBytes) / 4096);
  let state = 1;
  const { cpuSeconds } = await measure(async () => {
    for (let i = 0; i < count; i++) {
      state = (state * 48_271) % 2_147_483_647;
      const page = state % pages;
      if (!disk.readNow(target, page * 4096)) await disk.read(target, page * 4096);
    }
  });
  return cpuSeconds;
}
