import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  batchHeaderBytes,
  decodeBatchHeader,
  decodeSegmentHeader,
  encodeBatchHeader,
  encodeSegmentHeader,
  type Batch,
} from './layer-format.ts';
import { absent, PageMap, pagesPerGroup } from './page-map.ts';

const whole = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
const extent = fc.record({
  disk: fc.integer({ min: 0, max: 0xffff }),
  firstPage: whole,
  pages: fc.integer({ min: 1, max: 8 }),
  zero: fc.boolean(),
});
const batch: fc.Arbitrary<Batch> = fc
  .record({
    sequence: whole,
    syncedSequence: whole,
    time: fc.record({ seconds: whole, nanoseconds: fc.integer({ min: 0, max: 999_999_999 }) }),
    extents: fc.array(extent, { maxLength: 20 }),
    seed: fc.nat(),
  })
  .map(({ seed, ...rest }) => {
    const pages = rest.extents.reduce((sum, { zero, pages }) => sum + (zero ? 0 : pages), 0);
    const extents = rest.extents.map((extent) => ({ ...extent }));
    const time = { ...rest.time };
    return {
      ...rest,
      extents,
      time,
      checksums: Uint32Array.from({ length: pages }, (_, i) => (seed * (i + 7)) >>> 0),
    };
  });
const nonce = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });

test('a batch header is read as it was written, and fills whole units', () => {
  fc.assert(
    fc.property(batch, nonce, (value, key) => {
      const bytes = encodeBatchHeader(value, key);
      assert.equal(bytes.length, batchHeaderBytes(value.extents.length, value.checksums.length));
      assert.deepEqual(decodeBatchHeader(bytes, key), value);
    }),
  );
});

test('a batch header with any bit flipped, cut short, or of another segment is none', () => {
  fc.assert(
    fc.property(batch, nonce, fc.nat(), (value, key, at) => {
      const bytes = encodeBatchHeader(value, key);
      assert.equal(decodeBatchHeader(bytes, key ^ 1n), undefined);
      const used = 56 + 16 * value.extents.length + 4 * value.checksums.length;
      assert.equal(decodeBatchHeader(bytes.subarray(0, at % used), key), undefined);
      const bit = at % (used * 8);
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      assert.equal(decodeBatchHeader(bytes, key), undefined);
    }),
  );
});

test('any bytes give a header or none, and never throw', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 4096 }), nonce, (bytes, key) => {
      decodeBatchHeader(Buffer.from(bytes), key);
      assert.ok(['empty', 'bad'].includes(String(decodeSegmentHeader(Buffer.from(bytes)))));
    }),
  );
});

test('a segment header survives the loss of either copy', () => {
  const header = { id: 7, slot: 3, nonce: 99n, afterFailure: true };
  for (const lost of [0, 1024]) {
    const bytes = encodeSegmentHeader(header);
    bytes.fill(0xff, lost, lost + 512);
    assert.deepEqual(decodeSegmentHeader(bytes), header);
  }
  const bytes = encodeSegmentHeader(header).fill(0xff);
  assert.equal(decodeSegmentHeader(bytes), 'bad');
  assert.equal(decodeSegmentHeader(Buffer.alloc(2048)), 'empty');
});

test('a page map is a map, and a snapshot keeps what it saw', () => {
  const change = fc.tuple(
    fc.integer({ min: 0, max: 5000 }),
    fc.integer({ min: 1, max: 2 ** 32 - 1 }),
  );
  fc.assert(
    fc.property(fc.array(change), fc.array(change), (first, second) => {
      const map = new PageMap();
      const model = new Map<number, number>();
      for (const [page, position] of first) {
        assert.equal(map.set(page * 977, position, position ^ 5), model.get(page) ?? absent);
        model.set(page, position);
      }
      const snapshot = map.snapshot();
      for (const [page, position] of second) map.set(page * 977, position, 0);
      assert.equal(snapshot.pages, model.size);
      for (let page = 0; page <= 5000; page += 1) {
        const index = snapshot.find(page * 977);
        const found = index < 0 ? absent : snapshot.positionAt(index);
        assert.equal(found, model.get(page) ?? absent);
        if (found !== absent) assert.equal(snapshot.checksumAt(index), (found ^ 5) >>> 0);
      }
      const groups = [
        ...new Set([...model.keys()].map((page) => Math.floor((page * 977) / pagesPerGroup))),
      ];
      assert.deepEqual(
        [...snapshot.groups()],
        groups.sort((a, b) => a - b),
      );
    }),
    { numRuns: 30 },
  );
});
