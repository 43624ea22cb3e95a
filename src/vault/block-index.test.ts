import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../testing/seeded-random.ts';
import { BlockIndex, type BlockPlace } from './block-index.ts';

const nowhere = (): BlockPlace => ({ pack: 0, offset: 0, length: 0 });

test('finds what was inserted, in any order, through many doublings', () => {
  const random = new SeededRandom(1);
  const index = new BlockIndex();
  const known = new Map<string, BlockPlace>();
  for (let i = 0; i < 400_000; i++) {
    const id = Buffer.alloc(32);
    id.writeUInt32LE(random.below(2 ** 32), 0);
    id.writeUInt32LE(i, 4);
    const place = {
      pack: random.below(2 ** 24),
      offset: random.below(2 ** 25) * 8,
      length: 64 * (1 + random.below(2 ** 15 - 1)),
    };
    assert.equal(index.insert(id, 0, place), true);
    known.set(id.toString('hex'), place);
  }
  assert.equal(index.size, known.size);
  assert.ok(index.memoryBytes < known.size * 24, `${index.memoryBytes / known.size} an entry`);
  const found = nowhere();
  for (const [hex, place] of known) {
    assert.equal(index.find(Buffer.from(hex, 'hex'), 0, found), true);
    assert.deepEqual(found, place);
  }
  assert.equal(index.find(Buffer.alloc(32, 0xab), 0, found), false);
});

test('a second insertion of a block keeps the first place', () => {
  const index = new BlockIndex();
  const id = Buffer.alloc(40, 7);
  assert.equal(index.insert(id, 8, { pack: 1, offset: 32, length: 100 }), true);
  assert.equal(index.insert(id, 8, { pack: 2, offset: 64, length: 100 }), false);
  const found = nowhere();
  index.find(id, 0, found);
  assert.deepEqual(found, { pack: 1, offset: 32, length: 128 });
});

test('neighbouring ids, the extremes included, are kept apart', () => {
  const index = new BlockIndex();
  const ids = [];
  for (const lead of [0x00, 0x7f, 0x80, 0xff])
    for (let i = 0; i < 5000; i++) {
      const id = Buffer.alloc(32, lead);
      id.writeUInt32BE(i, 8);
      ids.push(id);
    }
  ids.forEach((id, i) => index.insert(id, 0, { pack: i, offset: 32, length: 64 }));
  const found = nowhere();
  ids.forEach((id, i) => {
    assert.ok(index.find(id, 0, found));
    assert.equal(found.pack, i);
  });
});

test('slices give all entries in order, and load takes them back', () => {
  const random = new SeededRandom(2);
  const index = new BlockIndex();
  const ids = Array.from({ length: 20_000 }, () => {
    const id = Buffer.alloc(32);
    for (let at = 0; at < 12; at += 4) id.writeUInt32LE(random.below(2 ** 32), at);
    return id;
  });
  ids.forEach((id, i) => index.insert(id, 0, { pack: i, offset: 8 * i, length: 64 }));
  const copy = new BlockIndex();
  for (let i = 0; i < index.slices; i++) assert.ok(copy.load(index.slice(i), index.size));
  assert.equal(copy.size, index.size);
  const found = nowhere();
  ids.forEach((id, i) => {
    assert.ok(copy.find(id, 0, found));
    assert.equal(found.pack, i);
    assert.equal(found.offset, 8 * i);
  });
  assert.equal(copy.load(index.slice(0), 0), false, 'entries out of order are refused');
});
