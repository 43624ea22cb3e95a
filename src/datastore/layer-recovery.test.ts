import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../testing/fake-clock.ts';
import { ForgetfulFiles } from '../testing/forgetful-files.ts';
import { MemoryVaultDisk } from '../testing/memory-vault-disk.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { pageBytes } from './layer-format.ts';
import type { LayerSurroundings } from './layer-surroundings.ts';
import { segmentName } from './segments.ts';
import { TimeSource } from './time-source.ts';
import { WriteLayer } from './write-layer.ts';

const sizeBytes = 16 * pageBytes;
const layerPath = '/clone/layer';

function surroundings(files: ForgetfulFiles): LayerSurroundings {
  const clock = new FakeClock();
  return {
    files,
    clock,
    random: new SeededRandom(7),
    times: new TimeSource(clock),
    bootId: 'boot',
    onDamage: (_, __, message) => assert.fail(message),
    tuning: {
      segmentBytes: 64 * 1024,
      garbageBytesMin: 64 * 1024,
      checkpointEveryBytes: 1024 * 1024,
      reserveBytes: 0,
      quietMs: 200,
    },
  };
}

function open(files: ForgetfulFiles): Promise<WriteLayer> {
  const base = new MemoryVaultDisk(
    sizeBytes,
    (target) => target.fill(0),
    () => false,
  );
  return WriteLayer.open(surroundings(files), layerPath, [{ sizeBytes, base }]);
}

async function readAll(files: ForgetfulFiles, path: string): Promise<Buffer> {
  const file = await files.open(path, 'read');
  const bytes = Buffer.alloc(await file.size());
  await file.read(bytes, 0);
  await file.close();
  return bytes;
}

test('a removed segment that is back after a power cut is not taken for newer writes', async () => {
  const files = new ForgetfulFiles(3);
  await files.makeDirectory('/clone');
  await WriteLayer.create(surroundings(files), layerPath);
  const first = `${layerPath}/${segmentName(1)}`;

  let layer = await open(files);
  await layer.write(0, 0, Buffer.alloc(pageBytes, 'old'), true);
  const removed = await readAll(files, first);
  for (let round = 0; (await files.stat(first)) !== undefined; round++) {
    assert.ok(round < 1000, 'the first segment was never removed');
    for (let page = 0; page < 16; page++) {
      await layer.write(0, page * pageBytes, Buffer.alloc(pageBytes, `new ${page}`), true);
    }
  }
  await layer.close();
  const file = await files.open(first, 'create');
  await file.write([removed], 0);
  await file.close();

  layer = await open(files);
  const page = Buffer.alloc(pageBytes);
  await layer.read(0, 0, page);
  assert.deepEqual(page, Buffer.alloc(pageBytes, 'new 0'));
  assert.equal(await files.stat(first), undefined, 'nothing lives in it: it goes again');
  await layer.close();
});
