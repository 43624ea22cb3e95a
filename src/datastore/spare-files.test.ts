import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../testing/fake-clock.ts';
import { ForgetfulFiles } from '../testing/forgetful-files.ts';
import { MemoryVaultDisk } from '../testing/memory-vault-disk.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { datastoreLimits } from '../limits.ts';
import { pageBytes } from './layer-format.ts';
import { TimeSource } from './time-source.ts';
import { WriteLayer } from './write-layer.ts';

const layerPath = '/clone/layer';
const segmentBytes = 128 * 1024;
const diskPages = 16;

function open(files: ForgetfulFiles, clock = new FakeClock()): Promise<WriteLayer> {
  const surroundings = {
    files,
    clock,
    random: new SeededRandom(5),
    times: new TimeSource(clock),
    bootId: 'boot-1',
    onDamage: (_: number, __: number, message: string) => {
      if (!files.stopped) assert.fail(message);
    },
    tuning: { segmentBytes, garbageBytesMin: 64 * 1024, reserveBytes: 16 * 1024 },
  };
  const base = new MemoryVaultDisk(diskPages * pageBytes, (target) => target.fill(0));
  return WriteLayer.open(surroundings, layerPath, [{ base, sizeBytes: base.sizeBytes }]);
}

async function newLayer(seed: number): Promise<ForgetfulFiles> {
  const files = new ForgetfulFiles(seed);
  await files.makeDirectory('/clone');
  const clock = new FakeClock();
  const random = new SeededRandom(seed);
  const around = { files, clock, random, times: new TimeSource(clock), bootId: 'boot-1' };
  await WriteLayer.create({ ...around, onDamage: () => undefined }, layerPath);
  await files.syncDirectory('/');
  await files.syncDirectory('/clone');
  return files;
}

const pageOf = (number: number, round: number) =>
  Buffer.alloc(pageBytes, `page ${number} of round ${round};`);

/** Overwrites the whole disk in each round; answers the round of each page that was answered. */
async function overwrite(layer: WriteLayer, from: number, to: number): Promise<number[]> {
  const answered: number[] = Array.from({ length: diskPages }, () => -1);
  for (let round = from; round < to; round++) {
    for (let page = 0; page < diskPages; page++) {
      try {
        await layer.write(0, page * pageBytes, pageOf(page, round), true);
      } catch {
        return answered;
      }
      answered[page] = round;
    }
    // What is done beside the traffic gets its turns.
    await turns();
  }
  return answered;
}

async function turns(): Promise<void> {
  for (let turn = 0; turn < 60; turn++) await new Promise<void>((go) => setImmediate(go));
}

/** Each page is as it was answered last, or as it was being written then. */
async function check(layer: WriteLayer, answered: readonly number[]): Promise<void> {
  const read = Buffer.alloc(pageBytes);
  for (const [page, round] of answered.entries()) {
    await layer.read(0, page * pageBytes, read);
    const before = round < 0 ? Buffer.alloc(pageBytes) : pageOf(page, round);
    if (!read.equals(pageOf(page, round + 1))) assert.deepEqual(read, before, `page ${page}`);
  }
}

const namesOf = async (files: ForgetfulFiles, kind: 'segment' | 'spare') =>
  (await files.list(layerPath)).filter((name) => name.startsWith(`${kind}-`));

test('a log that is overwritten again and again writes the same files again', async () => {
  const files = await newLayer(1);
  const layer = await open(files);
  let fewest = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 40; round += 4) {
    await check(layer, await overwrite(layer, round, round + 4));
    const spare = await namesOf(files, 'spare');
    assert.ok(spare.length <= datastoreLimits.spareFilesMax);
    if (round >= 20) fewest = Math.min(fewest, spare.length);
  }
  const last = Number((await namesOf(files, 'segment')).at(-1)?.slice('segment-'.length));
  assert.ok(last > 12, `${last} segments were begun`);
  assert.ok(fewest < datastoreLimits.spareFilesMax, 'spare files are used, not only kept');
  const { allocatedBytes } = layer.stats();
  assert.ok(allocatedBytes <= files.usedBytes && allocatedBytes > files.usedBytes / 2);
  await layer.close();
  assert.deepEqual(await namesOf(files, 'spare'), []);
  const again = await open(files);
  await check(
    again,
    Array.from({ length: diskPages }, () => 39),
  );
  await again.close();
});

test('a power cut at any moment of using a file again loses nothing that was answered', async () => {
  let cutWhileKept = 0;
  for (let cut = 0; cut < 260; cut += 7) {
    const files = await newLayer(cut);
    const layer = await open(files);
    const first = await overwrite(layer, 0, 12);
    files.stopAfter(1 + cut);
    const later = await overwrite(layer, 12, 24);
    const after = files.crash();
    if ((await namesOf(after, 'spare')).length > 0) cutWhileKept++;
    const answered = first.map((round, page) => Math.max(round, later[page] ?? -1));
    const again = await open(after);
    await check(again, answered);
    assert.deepEqual(await namesOf(after, 'spare'), [], 'what was left is gone');
    await check(again, await overwrite(again, 30, 34));
    await again.close();
  }
  assert.ok(cutWhileKept > 0, 'no cut came while a file was kept');
});

test('a file whose sync has failed is not used again', async () => {
  const files = await newLayer(7);
  const kept: string[] = [];
  const rename = files.rename.bind(files);
  files.rename = (from, to) => {
    if (to.includes('/spare-')) kept.push(from);
    return rename(from, to);
  };
  const layer = await open(files);
  await overwrite(layer, 0, 1);
  const active = 'segment-000000000001';
  files.inject({ operation: 'sync', path: active });
  const failed = await overwrite(layer, 1, 2);
  assert.ok(failed.includes(-1), 'no sync failed');
  await check(layer, await overwrite(layer, 2, 20));
  assert.ok(kept.length > 0, 'no file was kept');
  assert.ok(!kept.includes(`${layerPath}/${active}`), `${active} was kept`);
  assert.ok(!(await namesOf(files, 'segment')).includes(active), `${active} is still there`);
  await layer.close();
});

test('files that are kept give way when the disk is full', async () => {
  const files = await newLayer(9);
  const clock = new FakeClock();
  const layer = await open(files, clock);
  for (let round = 0; (await namesOf(files, 'spare')).length === 0; round++) {
    assert.ok(round < 40, 'none was ever kept');
    await overwrite(layer, round, round + 1);
  }
  files.capacityBytes = files.usedBytes;
  // Free space is asked for once a second.
  const second = () => clock.advance(2 * datastoreLimits.spaceCheckMs);
  for (let i = 0; i < 40 && (await namesOf(files, 'spare')).length > 0; i++) {
    await second();
    await overwrite(layer, 50, 51);
    await turns();
  }
  assert.deepEqual(await namesOf(files, 'spare'), []);
  // What they took is free for the log.
  let answered = [-1];
  for (let round = 60; answered.includes(-1); round++) {
    assert.ok(round < 100, 'there is no room');
    await second();
    await turns();
    answered = await overwrite(layer, round, round + 1);
  }
  await check(layer, answered);
  files.capacityBytes = Number.POSITIVE_INFINITY;
  await layer.close();
});
