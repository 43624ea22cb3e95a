import type { BlobStore } from '../blobs/port.ts';
import { MemoryBlobStore } from '../blobs/memory-store.ts';
import { systemClock } from '../lib/clock.ts';
import type { Files } from '../lib/files.ts';
import type { LockOwner } from '../vault/lock.ts';
import { createVault, openVault, type OpenedVault } from '../vault/vault.ts';
import type { DiskRoot, Saveset, SavesetHeader } from '../vault/api.ts';
import { ForgetfulFiles } from './forgetful-files.ts';
import { SeededRandom } from './seeded-random.ts';

/** Small blocks and packs, so that little data makes deep trees and many packs. */
export const smallBlockBytes = 4096;
const smallPackBytes = 64 * 1024;

export interface VaultWorld {
  readonly store: BlobStore;
  readonly files: Files;
  readonly random: SeededRandom;
  /** Opens the vault, creating it before if need be; all memory of an earlier opening is gone. */
  open(options?: {
    workers?: number;
    cacheBytes?: number;
    owner?: LockOwner;
  }): Promise<OpenedVault>;
}

/** A vault in memory; `store` and `files` may be replaced by others. */
export async function vaultWorld(
  options: { store?: BlobStore; files?: Files; seed?: number; blockBytes?: number } = {},
): Promise<VaultWorld> {
  const random = new SeededRandom(options.seed ?? 1);
  const store = options.store ?? new MemoryBlobStore();
  const files = options.files ?? new ForgetfulFiles(options.seed ?? 1);
  if ((await store.stat('vault.json')) === undefined)
    await createVault(store, {
      random,
      blockBytes: options.blockBytes ?? smallBlockBytes,
      packBytes: smallPackBytes,
    });
  return {
    store,
    files,
    random,
    open: async ({ workers = 0, cacheBytes = 256 * 1024, owner } = {}) => {
      const vault = await openVault({
        store,
        index: { files, directory: '/index' },
        cacheBytes,
        clock: systemClock,
        random,
        workers,
        slabBytes: 8 * smallBlockBytes,
        owner: owner ?? { name: random.id(), isAlive: () => true },
      });
      if ((await vault.mtrees()).length === 0) await vault.createMtree('main', 'lz4');
      return vault;
    },
  };
}

export const header: SavesetHeader = {
  machine: { id: 'm1', name: 'web' },
  takenAtMs: 1_000,
  kind: 'full',
  consistency: 'crash',
  labels: {},
};

/** Takes disks in whole, block by block in `order` (ascending when undefined). */
export async function backUp(
  vault: OpenedVault,
  disks: Readonly<Record<string, Buffer>>,
  options: { base?: DiskRoot; mtree?: string; header?: Partial<SavesetHeader> } = {},
): Promise<Saveset> {
  const writer = await vault.begin(options.mtree ?? 'main');
  for (const [name, bytes] of Object.entries(disks)) {
    const disk = writer.disk(name, bytes.length, 'test', options.base);
    await disk.write(0, bytes);
  }
  return writer.seal({ ...header, ...options.header });
}

export async function readWhole(vault: OpenedVault, root: DiskRoot): Promise<Buffer> {
  const disk = await vault.openDisk(root);
  const bytes = Buffer.alloc(root.sizeBytes, 0xaa);
  await disk.read(bytes, 0);
  return bytes;
}

/** Bytes with runs of zeros, repeated blocks and noise, as disks have them. */
export function diskBytes(random: SeededRandom, sizeBytes: number, blockBytes = smallBlockBytes) {
  const bytes = Buffer.alloc(sizeBytes);
  for (let at = 0; at < sizeBytes; at += blockBytes) {
    const end = Math.min(sizeBytes, at + blockBytes);
    const kind = random.below(4);
    if (kind === 1) bytes.fill(1 + random.below(8), at, end);
    if (kind === 2) random.bytes(Math.min(64, end - at)).copy(bytes, at);
    if (kind === 3) fillNoise(random, bytes.subarray(at, end));
  }
  return bytes;
}

/** Faster than `random.bytes`, and as hard to compress. */
function fillNoise(random: SeededRandom, bytes: Buffer): void {
  let state = random.below(2 ** 31) | 1;
  for (let i = 0; i < bytes.length; i++) {
    state = Math.imul(state, 1_103_515_245) + 12_345;
    bytes[i] = state >>> 16;
  }
}
