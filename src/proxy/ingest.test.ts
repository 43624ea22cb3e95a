import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Extent, ReadableDisk } from '../lib/disk.ts';
import type { DiskRoot, DiskWriter, IngestCost, SavesetWriter } from '../vault/api.ts';
import { ingestDisks, wholeBlocks } from './ingest.ts';

const block = 4096;

/** A disk in memory that remembers what was read of it. */
function memoryDisk(content: Buffer, map: readonly Extent[]) {
  const reads: { offset: number; length: number }[] = [];
  const disk: ReadableDisk = {
    sizeBytes: content.length,
    read: async (target, offset) => {
      reads.push({ offset, length: target.length });
      content.copy(target, 0, offset);
    },
    extents: async (offset, length) => within(map, offset, length),
    close: async () => undefined,
  };
  return { disk, reads };
}

function within(map: readonly Extent[], offset: number, length: number): Extent[] {
  return map.flatMap((extent) => {
    const start = Math.max(extent.offset, offset);
    const end = Math.min(extent.offset + extent.length, offset + length);
    return end > start ? [{ offset: start, length: end - start, zero: extent.zero }] : [];
  });
}

/** Collects what is written onto a copy of the base. */
function collector(base?: Buffer) {
  const cost: IngestCost = {
    readBytes: 0,
    zeroBytes: 0,
    knownBytes: 0,
    newBytes: 0,
    storedBytes: 0,
  };
  let result = Buffer.alloc(0);
  const writer: SavesetWriter = {
    cost,
    disk: (_name, sizeBytes) => {
      result = Buffer.alloc(sizeBytes);
      base?.copy(result);
      const out: DiskWriter = {
        write: async (offset, bytes) => {
          assert.equal(offset % block, 0, 'whole blocks only');
          assert.ok(bytes.length % block === 0 || offset + bytes.length === sizeBytes);
          result.set(bytes, offset);
        },
        zero: async (offset, length) => void result.fill(0, offset, offset + length),
        finish: async () => root(sizeBytes),
      };
      return out;
    },
    file: async () => undefined,
    seal: async () => assert.fail('not sealed here'),
    abandon: async () => undefined,
  };
  return { writer, content: () => result };
}

const root = (sizeBytes: number): DiskRoot => ({ hash: 'aa', depth: 1, sizeBytes });
const progress = { signal: new AbortController().signal, update: () => undefined };

/** Runs of data and zeros that cover a disk, and its content. */
const someDisk = fc
  .array(fc.record({ length: fc.integer({ min: 1, max: 20_000 }), zero: fc.boolean() }), {
    minLength: 1,
    maxLength: 12,
  })
  .map((runs) => {
    let offset = 0;
    const map = runs.map(({ length, zero }) => {
      const extent = { offset, length, zero };
      offset += length;
      return extent;
    });
    const content = Buffer.alloc(offset);
    for (const { offset: at, length, zero } of map) {
      if (!zero) content.fill(1 + (at % 255), at, at + length);
    }
    return { map, content };
  });

test('a full backup is the disk, and whole blocks of zeros are not read', async () => {
  await fc.assert(
    fc.asyncProperty(someDisk, async ({ map, content }) => {
      const { disk, reads } = memoryDisk(content, map);
      const { writer, content: stored } = collector();
      await ingestDisks(writer, [{ name: 'vda', source: 'test', disk }], block, progress);
      assert.ok(stored().equals(content));
      const needed = wholeBlocks(map, block, content.length, ({ zero }) => !zero);
      const bytes = needed.reduce((sum, [start, end]) => sum + end - start, 0);
      assert.equal(
        reads.reduce((sum, { length }) => sum + length, 0),
        bytes,
      );
    }),
    { numRuns: 100 },
  );
});

test('an incremental backup is the disk as well, and reads only what changed', async () => {
  const changes = fc.array(
    fc.record({
      at: fc.integer({ min: 0, max: 99_999 }),
      length: fc.integer({ min: 1, max: 9_000 }),
    }),
    { maxLength: 6 },
  );
  await fc.assert(
    fc.asyncProperty(someDisk, changes, async ({ map, content }, edits) => {
      const before = Buffer.from(content);
      const now = Buffer.from(content);
      const changed: Extent[] = [];
      for (const { at, length } of edits) {
        const offset = at % now.length;
        const end = Math.min(offset + length, now.length);
        now.fill(7, offset, end);
        changed.push({ offset, length: end - offset, zero: false });
      }
      changed.sort((a, b) => a.offset - b.offset);
      const whole = [{ offset: 0, length: now.length, zero: false }];
      const { disk, reads } = memoryDisk(now, edits.length === 0 ? map : whole);
      const { writer, content: stored } = collector(before);
      const from = {
        name: 'vda',
        source: 'test',
        disk,
        base: root(now.length),
        changes: async (offset: number, length: number) => within(changed, offset, length),
      };
      await ingestDisks(writer, [from], block, progress);
      assert.ok(stored().equals(now));
      if (edits.length === 0) assert.equal(reads.length, 0);
    }),
    { numRuns: 100 },
  );
});

test('a disk that fails stops the backup with its own error', async () => {
  const content = Buffer.alloc(64 * block, 1);
  const map = [{ offset: 0, length: content.length, zero: false }];
  const { disk } = memoryDisk(content, map);
  const broken: ReadableDisk = {
    ...disk,
    read: async () => {
      throw new Error('the disk is gone');
    },
  };
  const { writer } = collector();
  await assert.rejects(
    ingestDisks(writer, [{ name: 'vda', source: 'test', disk: broken }], block, progress),
    /the disk is gone/,
  );
});
