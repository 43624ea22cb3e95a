import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { MemoryBlobStore } from '../blobs/memory-store.ts';
import { isRouseError } from '../errors.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { checksum, portableChecksum } from './checksum.ts';
import { codecOf, portableLz4, portableZstd } from './codecs.ts';
import { decodeConfig, encodeConfig, newConfig, names } from './format.ts';
import { isAllZero, keyedHash, plainHash } from './hash.ts';
import {
  encodePackEnd,
  encodePackHeader,
  packHeaderBytes,
  readPackTable,
  salvagePack,
  type PackEntry,
  type PackShape,
} from './pack.ts';
import { checkRecord, decodeRecord, encodeRecord, recordBytes, recordBytesMax } from './record.ts';
import { openJson, sealJson } from './sealed-json.ts';

const blockBytes = 4096;
const hash = keyedHash(Buffer.alloc(32, 9));
const shape: PackShape = { blockBytes, vaultId: Buffer.alloc(16, 3), hash };

/** Blocks that compress well, badly, and not at all. */
const block = fc
  .tuple(fc.integer(), fc.integer({ min: 0, max: blockBytes }))
  .map(([seed, noise]) => {
    const bytes = Buffer.alloc(blockBytes, 'rouse');
    new SeededRandom(seed).bytes(noise).copy(bytes);
    return bytes;
  });
const codec = fc.constantFrom('raw' as const, 'lz4' as const, 'zstd' as const);

function recordOf(plain: Buffer, name: 'raw' | 'lz4' | 'zstd' = 'lz4') {
  const room = Buffer.alloc(recordBytesMax(blockBytes), 0xee);
  const id = hash(plain);
  const length = encodeRecord(room, id, plain, name);
  return { id, bytes: room.subarray(0, length) };
}

test('a record gives its block back, whatever follows it', () => {
  fc.assert(
    fc.property(
      block,
      codec,
      fc.uint8Array({ maxLength: 64 }),
      fc.nat(blockBytes),
      (plain, name, tail, need) => {
        const { id, bytes } = recordOf(plain, name);
        assert.equal(bytes.length % 8, 0);
        const target = Buffer.alloc(blockBytes);
        const whole = Buffer.concat([bytes, tail]);
        assert.equal(decodeRecord(whole, id, target), blockBytes);
        assert.ok(target.equals(plain));
        target.fill(0xcc);
        const filled = decodeRecord(whole, id, target, need);
        assert.ok(typeof filled === 'number' && filled >= need);
        assert.ok(target.subarray(0, filled).equals(plain.subarray(0, filled)));
      },
    ),
    { numRuns: 100 },
  );
});

test('a changed byte, a cut or a wrong id never passes', () => {
  const target = Buffer.alloc(blockBytes);
  fc.assert(
    fc.property(block, codec, fc.nat(), fc.integer({ min: 1, max: 255 }), (plain, name, at, x) => {
      const { id, bytes } = recordOf(plain, name);
      const used = 56 + bytes.readUInt32LE(8);
      const bad = Buffer.from(bytes);
      bad[at % used]! ^= x;
      assert.equal(typeof decodeRecord(bad, id, target), 'string');
      assert.equal(typeof decodeRecord(bytes.subarray(0, at % used), id, target), 'string');
      assert.equal(typeof decodeRecord(bytes, hash(id), target), 'string');
    }),
    { numRuns: 100 },
  );
});

test('any bytes are decoded to a sentence, never to an exception', () => {
  const target = Buffer.alloc(blockBytes);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.boolean(), (bytes, marked) => {
      const record = Buffer.from(bytes);
      if (marked && record.length > 24) {
        record.writeUInt16LE(0x4252, 18);
        record.writeUInt32LE(Math.max(0, record.length - 60), 8);
        const end = 56 + record.readUInt32LE(8);
        if (end <= record.length) record.writeBigUInt64LE(checksum(record.subarray(8, end)), 0);
      }
      assert.equal(typeof decodeRecord(record, undefined, target), 'string');
    }),
    { numRuns: 500 },
  );
});

test('the portable checksum is the same', () => {
  fc.assert(
    fc.property(block, fc.nat(blockBytes), (plain, length) => {
      const some = plain.subarray(0, length);
      assert.equal(checksum(some), portableChecksum(some));
    }),
    { numRuns: 50 },
  );
});

for (const [name, portable] of [
  ['lz4', portableLz4()],
  ['zstd', portableZstd],
] as const)
  test(`the portable ${name} is the same format, and what does not fit says so`, () => {
    const fast = codecOf(name);
    fc.assert(
      fc.property(block, (plain) => {
        for (const [packer, unpacker] of [
          [fast, portable],
          [portable, fast],
        ] as const) {
          const packed = Buffer.alloc(blockBytes * 2);
          const target = Buffer.alloc(blockBytes);
          const length = packer.compress(plain, packed);
          assert.ok(length > 0);
          assert.ok(unpacker.decompress(packed.subarray(0, length), target));
          assert.ok(target.equals(plain));
          assert.equal(packer.compress(plain, Buffer.alloc(length - 1)), 0);
          assert.equal(unpacker.decompress(packed.subarray(0, length - 1), target), false);
          const [longer, shorter] = [Buffer.alloc(blockBytes + 1), Buffer.alloc(blockBytes - 1)];
          assert.equal(unpacker.decompress(packed.subarray(0, length), longer), false);
          assert.equal(unpacker.decompress(packed.subarray(0, length), shorter), false);
        }
      }),
      { numRuns: 50 },
    );
  });

test('BLAKE3 is BLAKE3', () => {
  // The empty input's hash, from the reference test vectors.
  const empty = 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262';
  assert.equal(plainHash(''), empty);
  assert.notEqual(hash(Buffer.alloc(0)).toString('hex'), empty);
});

test('zeros are found, and nothing else', () => {
  assert.ok(isAllZero(Buffer.alloc(0)));
  assert.ok(isAllZero(Buffer.alloc(3_000_000)));
  for (const at of [0, 1, 1_048_575, 1_048_576, 2_999_999]) {
    const bytes = Buffer.alloc(3_000_000);
    bytes[at] = 1;
    assert.equal(isAllZero(bytes), false);
  }
});

async function packOf(plains: readonly Buffer[]) {
  const header = Buffer.alloc(packHeaderBytes);
  encodePackHeader(header, shape);
  const entries: PackEntry[] = [];
  const chunks = [header];
  let offset = packHeaderBytes;
  for (const plain of plains) {
    const { id, bytes } = recordOf(plain);
    entries.push({ id, offset, length: bytes.length });
    chunks.push(bytes);
    offset += bytes.length;
  }
  const { end, name } = encodePackEnd(entries, offset, hash);
  return { name, entries, bytes: Buffer.concat([...chunks, end]) };
}

async function readerOf(bytes: Buffer) {
  const store = new MemoryBlobStore();
  await store.put('p', [bytes]);
  return store.open('p');
}

test('a pack tells its table, and is named by it', async () => {
  const pack = await packOf([1, 2, 3].map((fill) => Buffer.alloc(blockBytes, fill)));
  const reader = await readerOf(pack.bytes);
  assert.deepEqual(await readPackTable(pack.name, reader, shape), pack.entries);
  await assert.rejects(readPackTable('00'.repeat(32), reader, shape), isCorrupt);
});

test('a pack that is cut or changed in header, table or footer is refused', async () => {
  const pack = await packOf([1, 2].map((fill) => Buffer.alloc(blockBytes, fill)));
  const tableAt = pack.bytes.length - 64 - 80;
  for (let at = 0; at < pack.bytes.length; at++) {
    if (at >= packHeaderBytes && at < tableAt) continue;
    const bad = Buffer.from(pack.bytes);
    bad[at]! ^= 0x10;
    // The eight spare bytes of the footer are not covered by anything but its hash.
    await assert.rejects(readPackTable(pack.name, await readerOf(bad), shape), (error) =>
      isRouseError(error),
    );
  }
  for (let size = 0; size < pack.bytes.length; size += 7) {
    const cut = await readerOf(pack.bytes.subarray(0, size));
    await assert.rejects(readPackTable(pack.name, cut, shape), isCorrupt);
  }
});

test('the good records of a damaged pack are found', async () => {
  const random = new SeededRandom(5);
  const plains = Array.from({ length: 40 }, () => random.bytes(blockBytes));
  const pack = await packOf(plains);
  const bad = Buffer.from(pack.bytes.subarray(0, pack.bytes.length - 3000));
  const broken = pack.entries[7] as PackEntry;
  bad[broken.offset + 100]! ^= 1;
  const found = await salvagePack(await readerOf(bad), shape);
  const good = pack.entries.filter((e) => e !== broken && e.offset + e.length <= bad.length);
  assert.ok(good.length > 35);
  assert.deepEqual(found, good);
});

test('record lengths are as documented', () => {
  assert.equal(recordBytes(1), 64);
  assert.equal(recordBytes(8), 64);
  assert.equal(recordBytes(9), 72);
  assert.equal(checkRecord(Buffer.alloc(10)), 'it is cut short');
});

test('sealed JSON comes back, and no changed byte passes', () => {
  fc.assert(
    fc.property(fc.json(), (text) => {
      const value: unknown = JSON.parse(text);
      assert.deepEqual(openJson(sealJson(value), 'x'), JSON.parse(JSON.stringify(value)));
    }),
    { numRuns: 100 },
  );
  const sealed = sealJson({ name: 'ä', list: [1, 2] });
  assert.deepEqual(JSON.parse(sealed.toString()).body, { name: 'ä', list: [1, 2] });
  for (let at = 0; at < sealed.length; at++) {
    const bad = Buffer.from(sealed);
    bad[at]! ^= 1;
    assert.throws(() => openJson(bad, 'x'), isCorrupt);
    assert.throws(() => openJson(sealed.subarray(0, at), 'x'), isCorrupt);
  }
});

test('a configuration comes back; a newer one and a bad one are refused', () => {
  const config = newConfig(new SeededRandom(1), 32768, 1 << 25);
  assert.deepEqual(decodeConfig(encodeConfig(config), 'here'), config);
  const newer = sealJson({ format: 'rouse-vault', version: 2, surprise: true });
  assert.throws(
    () => decodeConfig(newer, 'here'),
    (e) => isRouseError(e, 'newer-format'),
  );
  const bad = sealJson({ format: 'rouse-vault', version: 1 });
  assert.throws(() => decodeConfig(bad, 'here'), isCorrupt);
  for (const size of [0, 2048, 12_000, 2 << 20])
    assert.throws(
      () => newConfig(new SeededRandom(1), size, 1 << 25),
      (e) => isRouseError(e, 'bad-request'),
    );
  assert.equal(names.pack('ab'), 'packs/ab');
});

function isCorrupt(error: unknown): boolean {
  return isRouseError(error, 'corrupt-data');
}
