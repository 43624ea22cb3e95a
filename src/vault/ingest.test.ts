import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError } from '../errors.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { codecs } from './codecs.ts';
import { keyedHash } from './hash.ts';
import { inlineEngine, workerEngine } from './ingest-engine.ts';
import { newSlabMemory, skip, SlabViews } from './ingest-slab.ts';
import { decodeRecord } from './record.ts';

const blockBytes = 4096;
const key = Buffer.alloc(32, 1);

function slabOf(number: number, seed: number) {
  const memory = newSlabMemory(16 * blockBytes, blockBytes);
  const views = new SlabViews(memory, blockBytes);
  const random = new SeededRandom(seed);
  for (let i = 0; i < views.blocks; i++) {
    views.block(i).fill(i + 1);
    random.bytes(i * 100).copy(views.block(i));
    views.codecs[i] = i % 3 === 0 ? skip : codecs.lz4;
  }
  return { number, memory, views };
}

for (const [name, make] of [
  ['inline', inlineEngine],
  ['workers', (setup: Parameters<typeof inlineEngine>[0]) => workerEngine(setup, 2)],
] as const)
  test(`${name}: slabs are hashed and packed, known blocks are left alone`, async () => {
    const engine = make({ key, blockBytes });
    const hash = keyedHash(key);
    const slabs = [0, 1, 2, 3].map((n) => slabOf(n, n));
    await Promise.all(slabs.map((slab) => engine.hash(slab, 16)));
    await Promise.all(slabs.map((slab) => engine.pack(slab, 15)));
    const plain = Buffer.alloc(blockBytes);
    for (const { views } of slabs)
      for (let i = 0; i < 16; i++) {
        assert.ok(views.id(i).equals(hash(views.block(i))));
        const isPacked = i < 15 && i % 3 !== 0;
        assert.equal(views.lengths[i] !== 0, isPacked);
        if (!isPacked) continue;
        assert.equal(decodeRecord(views.room(i), views.id(i), plain), blockBytes);
        assert.ok(plain.equals(views.block(i)));
      }
    assert.equal(engine.isBroken, false);
    await engine.close();
  });

test('a worker that dies fails its jobs and says so', async () => {
  const noKey = undefined as unknown as Uint8Array; // The thread throws as soon as it starts.
  const engine = workerEngine({ key: noKey, blockBytes }, 2);
  const slab = slabOf(0, 1);
  const isInternal = (error: unknown) => isRouseError(error, 'internal');
  await Promise.all([1, 2, 3].map(() => assert.rejects(engine.hash(slab, 16), isInternal)));
  assert.equal(engine.isBroken, true);
  await assert.rejects(engine.pack(slab, 16), isInternal);
  await engine.close();
});
