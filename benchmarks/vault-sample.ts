/** What the vault's benchmarks share: real files as one disk, CPU time, and a vault in a directory. */
import { mkdir, readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { openDirectoryStore } from '#src/blobs/directory-store.ts';
import { systemClock } from '#src/lib/clock.ts';
import { nodeFiles } from '#src/lib/node-files.ts';
import { systemRandom } from '#src/lib/random.ts';
import { createVault, openVault, type OpenedVault } from '#src/vault/vault.ts';
import type { SavesetHeader } from '#src/vault/api.ts';

const MB = 1e6;

/** Files below /usr, each at a multiple of 4 KiB as on a file system, up to `megabytes`. */
export async function realFiles(megabytes: number): Promise<Buffer> {
  const disk = Buffer.alloc(megabytes * MB);
  let used = 0;
  const inodes = new Set<number>(); // One file by many names would flatter small blocks.
  const take = async (path: string): Promise<void> => {
    for (const entry of await readdir(path, { withFileTypes: true })) {
      if (used >= disk.length) return;
      const below = join(path, entry.name);
      if (entry.isDirectory()) await take(below);
      if (!entry.isFile()) continue;
      const facts = await stat(below);
      if (facts.size > 32 * MB || inodes.has(facts.ino)) continue;
      inodes.add(facts.ino);
      const bytes = await readFile(below).catch(() => undefined);
      if (bytes === undefined) continue;
      used += bytes.copy(disk, used);
      used = Math.ceil(used / 4096) * 4096;
    }
  };
  for (const folder of ['/usr/lib/x86_64-linux-gnu', '/usr/bin', '/usr/share', '/usr/lib'])
    if (used < disk.length) await take(folder);
  return disk.subarray(0, used);
}

export interface Cost {
  readonly seconds: number;
  readonly cpuSeconds: number;
}

export async function measure(work: () => Promise<void>): Promise<Cost> {
  const cpu = process.cpuUsage();
  const start = systemClock.monotonic();
  await work();
  const used = process.cpuUsage(cpu);
  return {
    seconds: (systemClock.monotonic() - start) / 1000,
    cpuSeconds: (used.user + used.system) / 1e6,
  };
}

export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

export async function freshVault(
  directory: string,
  options: { blockBytes?: number; workers?: number; cacheBytes?: number; codec?: 'lz4' | 'zstd' },
): Promise<{ vault: OpenedVault; reopen: () => Promise<OpenedVault> }> {
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { recursive: true });
  const store = await openDirectoryStore({
    files: nodeFiles,
    directory: join(directory, 'vault'),
    random: systemRandom,
  });
  await createVault(store, {
    random: systemRandom,
    ...(options.blockBytes === undefined ? {} : { blockBytes: options.blockBytes }),
  });
  const reopen = () =>
    openVault({
      store,
      index: { files: nodeFiles, directory: join(directory, 'index') },
      cacheBytes: options.cacheBytes ?? 64 * 1024 * 1024,
      clock: systemClock,
      random: systemRandom,
      ...(options.workers === undefined ? {} : { workers: options.workers }),
    });
  const vault = await reopen();
  await vault.createMtree('main', options.codec ?? 'lz4');
  return { vault, reopen };
}

const header: SavesetHeader = {
  machine: { id: 'bench', name: 'bench' },
  takenAtMs: 0,
  kind: 'full',
  consistency: 'offline',
  labels: {},
};

export async function takeIn(vault: OpenedVault, bytes: Buffer) {
  const writer = await vault.begin('main');
  const disk = writer.disk('vda', bytes.length, 'benchmark');
  const step = 2 * 1024 * 1024;
  for (let at = 0; at < bytes.length; at += step)
    await disk.write(at, bytes.subarray(at, at + step));
  return writer.seal(header);
}
