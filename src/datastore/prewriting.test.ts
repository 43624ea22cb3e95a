import assert from 'node:assert/strict';
import { test } from 'node:test';
import { datastoreLimits } from '../limits.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { ForgetfulFiles } from '../testing/forgetful-files.ts';
import { MemoryVaultDisk } from '../testing/memory-vault-disk.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { pageBytes, unitBytes } from './layer-format.ts';
import type { LayerSurroundings } from './layer-surroundings.ts';
import { segmentName } from './segments.ts';
import { TimeSource } from './time-source.ts';
import { WriteLayer } from './write-layer.ts';

const sizeBytes = 4 * 1024 * 1024;
const prewriteBytes = 64 * 1024;
const layerPath = '/clone/layer';
const first = `${layerPath}/${segmentName(1)}`;

function surroundings(files: ForgetfulFiles): LayerSurroundings {
  const clock = new FakeClock();
  return {
    files,
    clock,
    random: new SeededRandom(7),
    times: new TimeSource(clock),
    bootId: 'boot',
    onDamage: (_, __, message) => assert.fail(message),
    tuning: { reserveBytes: 0, prewriteBytes },
  };
}

async function open(files: ForgetfulFiles): Promise<WriteLayer> {
  const base = new MemoryVaultDisk(
    sizeBytes,
    (target) => target.fill(0),
    () => false,
  );
  return WriteLayer.open(surroundings(files), layerPath, [{ sizeBytes, base }]);
}

async function create(): Promise<{ files: ForgetfulFiles; layer: WriteLayer }> {
  const files = new ForgetfulFiles(3);
  await files.makeDirectory('/clone');
  await WriteLayer.create(surroundings(files), layerPath);
  await files.syncDirectory('/');
  await files.syncDirectory('/clone');
  return { files, layer: await open(files) };
}

const pageOf = (number: number) => Buffer.alloc(pageBytes, `page ${number};`);

async function writePages(layer: WriteLayer, from: number, to: number): Promise<void> {
  for (let page = from; page < to; page++) {
    await layer.write(0, page * pageBytes, pageOf(page), true);
  }
}

async function checkPages(layer: WriteLayer, pages: number): Promise<void> {
  const read = Buffer.alloc(pageBytes);
  for (let page = 0; page < pages; page++) {
    await layer.read(0, page * pageBytes, read);
    assert.deepEqual(read, pageOf(page));
  }
}

/** The pages of these tests end in no zeros. */
async function bytesBehindTheLog(files: ForgetfulFiles): Promise<number> {
  const file = await files.open(first, 'read');
  const bytes = Buffer.alloc(await file.size());
  await file.read(bytes, 0);
  await file.close();
  const last = bytes.findLastIndex((byte) => byte !== 0);
  return bytes.length - Math.ceil((last + 1) / unitBytes) * unitBytes;
}

test('a client that waits for each small write finds the file longer than its log', async () => {
  const { files, layer } = await create();
  await writePages(layer, 0, datastoreLimits.smallSyncsInRow - 1);
  assert.equal(await bytesBehindTheLog(files), 0);
  await writePages(layer, datastoreLimits.smallSyncsInRow - 1, 4);
  assert.equal(await bytesBehindTheLog(files), prewriteBytes);
  const size = (await files.stat(first))?.sizeBytes;
  await writePages(layer, 4, 8);
  assert.equal((await files.stat(first))?.sizeBytes, size, 'no sync changes its size any more');
  // More than was prewritten, and on into the next zeros.
  await writePages(layer, 8, 40);
  await checkPages(layer, 40);
  await layer.close();
});

test('what was written ahead is no part of the log after a power cut, and is cut off', async () => {
  const { files, layer } = await create();
  await writePages(layer, 0, 9);
  const after = files.crash();
  const again = await open(after);
  await checkPages(again, 9);
  assert.equal(await bytesBehindTheLog(after), 0);
  await writePages(again, 9, 30);
  await checkPages(again, 30);
  await again.close();
});

test('large syncs are not made larger', async () => {
  const { files, layer } = await create();
  const large = Buffer.alloc(datastoreLimits.smallSyncBytes + pageBytes, 'large');
  for (let i = 0; i < 8; i++) await layer.write(0, i * pageBytes, large, true);
  assert.equal(await bytesBehindTheLog(files), 0);
  await layer.close();
});

test('a disk without room for zeros takes writes all the same', async () => {
  const { files, layer } = await create();
  await writePages(layer, 0, 2);
  files.capacityBytes = files.usedBytes + 12 * pageBytes;
  await writePages(layer, 2, 8);
  await checkPages(layer, 8);
  const { usedBytes } = files;
  assert.ok(usedBytes <= files.capacityBytes);
  files.capacityBytes = Number.POSITIVE_INFINITY;
  await writePages(layer, 8, 20);
  await checkPages(layer, 20);
  await layer.close();
});
