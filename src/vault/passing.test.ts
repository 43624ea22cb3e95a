import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryBlobStore } from '../blobs/memory-store.ts';
import { isRouseError } from '../errors.ts';
import type { VaultDisk } from './api.ts';
import { backUp, smallBlockBytes as blockBytes, vaultWorld } from '../testing/vault-world.ts';

/** A reader of much, in order, reads past a full cache (BlockStore.passNow). */

const MiB = 1024 * 1024;

/** Blocks that cannot be packed, that can, that repeat earlier ones, and zeros. */
function mixedBytes(world: Awaited<ReturnType<typeof vaultWorld>>, sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (let at = 0, block = 0; at < sizeBytes; at += blockBytes, block++) {
    const piece = bytes.subarray(at, at + blockBytes);
    const kind = block % 7;
    if (kind === 5 && block > 100) bytes.copyWithin(at, at - 93 * blockBytes, at - 92 * blockBytes);
    else if (kind !== 6) {
      world.random.bytes(kind < 3 ? piece.length : 64).copy(piece);
      if (kind >= 3) piece.fill(piece.subarray(0, 64), 64);
    }
  }
  return bytes;
}

/** Reads as the NFS server does: at once where that is possible, else waiting. */
async function readAt(disk: VaultDisk, offset: number, length: number): Promise<Buffer> {
  const target = Buffer.alloc(length, 0xee);
  if (!disk.readNow(target, offset)) await disk.read(target, offset);
  return target;
}

async function sequentialWorld() {
  const store = new MemoryBlobStore();
  const world = await vaultWorld({ store });
  const vault = await world.open({ cacheBytes: 0 });
  const bytes = mixedBytes(world, 16 * MiB + 3 * blockBytes + 100);
  const saveset = await backUp(vault, { vda: bytes, vdb: world.random.bytes(2 * blockBytes) });
  const [vda, vdb] = saveset.disks;
  const disk = await vault.openDisk(vda!.root);
  return { store, vault, bytes, disk, other: await vault.openDisk(vdb!.root) };
}

test('a long sequential read gives every byte, in pieces of any size, over a rescan too', async () => {
  const { vault, bytes, disk } = await sequentialWorld();
  const sizes = [MiB, 5 * blockBytes, 100_000, blockBytes, 3 * MiB + 1, 17];
  for (let at = 0, n = 0; at < bytes.length; n++) {
    const length = Math.min(sizes[n % sizes.length]!, bytes.length - at);
    const got = await readAt(disk, at, length);
    assert.ok(got.equals(bytes.subarray(at, at + length)), `${length} bytes at ${at}`);
    at += length;
    if (n === 13) await vault.rescan();
  }
  await vault.close();
});

test('a long sequential read pushes nothing out of a full cache', async () => {
  const { vault, bytes, disk, other } = await sequentialWorld();
  // Once for the packs to be open: what waits for one goes through the cache.
  for (let at = 0; at < 16 * MiB; at += MiB) await readAt(disk, at, MiB);
  for (let at = 0; at < 10 * MiB; at += MiB) await readAt(disk, at, MiB);
  await readAt(other, 0, blockBytes);
  for (let at = 10 * MiB; at < 16 * MiB; at += MiB) {
    assert.ok((await readAt(disk, at, MiB)).equals(bytes.subarray(at, at + MiB)), `at ${at}`);
  }
  const before = (await vault.stats()).cache;
  await readAt(other, 0, blockBytes);
  const after = (await vault.stats()).cache;
  assert.equal(after.misses, before.misses);
  assert.ok(after.hits > before.hits);
  await vault.close();
});

test('a damaged block in a long sequential read is the error of its range, with its place', async () => {
  const { store, vault, bytes, disk } = await sequentialWorld();
  const at = 12 * MiB + blockBytes; // Of the blocks that are stored as they are.
  const block = bytes.subarray(at, at + blockBytes);
  let damaged = 0;
  for (const [name, pack] of store.blobs) {
    const found = name.startsWith('packs/') ? pack.indexOf(block) : -1;
    if (found < 0) continue;
    pack[found + 5]! ^= 1;
    damaged++;
  }
  assert.equal(damaged, 1);
  for (let from = 0; from + MiB <= at; from += MiB) await readAt(disk, from, MiB);
  assert.throws(
    () => disk.readNow(Buffer.alloc(MiB), at),
    (error) => {
      assert.ok(isRouseError(error, 'corrupt-data'));
      assert.match(
        error.message,
        /pack [0-9a-f]{64} is damaged at offset \d+: its checksum is wrong/,
      );
      return true;
    },
  );
  const behind = at + blockBytes;
  const rest = await readAt(disk, behind, MiB);
  assert.ok(rest.equals(bytes.subarray(behind, behind + MiB)));
  await vault.close();
});
