import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../lib/clock.ts';
import { ForgetfulFiles } from '../testing/forgetful-files.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { isRouseError } from '../errors.ts';
import { IndexFiles, type KnownPack } from './index-files.ts';
import { processOwner, takeLock } from './lock.ts';
import type { PackEntry } from './pack.ts';
import { VaultIndex } from './vault-index.ts';

const vaultId = Buffer.alloc(16, 1);
const key = Buffer.alloc(32, 2);

function openIndex(files: ForgetfulFiles): VaultIndex {
  return new VaultIndex(new IndexFiles(files, '/index', vaultId, key));
}

function pack(random: SeededRandom, entries: number): [KnownPack, PackEntry[]] {
  const name = random.bytes(32).toString('hex');
  const list = Array.from({ length: entries }, (_, i) => ({
    id: random.bytes(32),
    offset: 32 + 64 * i,
    length: 64,
  }));
  return [{ name, sizeBytes: 1000 + entries }, list];
}

function checkAll(index: VaultIndex, packs: readonly [KnownPack, PackEntry[]][]): void {
  const place = { pack: 0, offset: 0, length: 0 };
  for (const [known, entries] of packs) {
    assert.ok(index.knows(known.name));
    for (const entry of entries) {
      assert.ok(index.find(entry.id, 0, place));
      assert.equal(index.packName(place.pack), known.name);
      assert.equal(place.offset, entry.offset);
    }
  }
}

test('the index comes back from its runs, through many of them and new bases', async () => {
  const random = new SeededRandom(1);
  const files = new ForgetfulFiles(1);
  await files.makeDirectory('/index');
  let index = openIndex(files);
  const packs: [KnownPack, PackEntry[]][] = [];
  for (let round = 0; round < 90; round++) {
    const added = pack(random, random.below(30));
    packs.push(added);
    index.addPack(...added);
    await index.save();
    if (round % 10 !== 9) continue;
    index = openIndex(files);
    await index.load();
    checkAll(index, packs);
    assert.equal(
      index.blocks.size,
      packs.reduce((sum, [, list]) => sum + list.length, 0),
    );
  }
  assert.ok((await files.list('/index')).length < 40, 'old runs are removed');
});

test('a damaged or foreign run is thrown away, the others stay', async () => {
  const random = new SeededRandom(2);
  const files = new ForgetfulFiles(2);
  await files.makeDirectory('/index');
  const index = openIndex(files);
  const packs = [pack(random, 10), pack(random, 10), pack(random, 10)] as const;
  for (const one of packs) {
    index.addPack(...one);
    await index.save();
  }
  const names = (await files.list('/index')).sort();
  assert.equal(names.length, 3);
  const file = await files.open(`/index/${names[1]}`, 'write');
  await file.write([Buffer.from([0xff])], 130);
  await file.close();
  const again = openIndex(files);
  await again.load();
  checkAll(again, [packs[0], packs[2]]);
  assert.equal(again.knows(packs[1][0].name), false);
  const foreign = new VaultIndex(new IndexFiles(files, '/index', Buffer.alloc(16, 9), key));
  await foreign.load();
  assert.equal(foreign.packs.length, 0);
  assert.deepEqual(await files.list('/index'), []);
});

test('what cannot be saved is saved next time', async () => {
  const random = new SeededRandom(3);
  const files = new ForgetfulFiles(3);
  await files.makeDirectory('/index');
  const index = openIndex(files);
  const packs = [pack(random, 10), pack(random, 10)] as const;
  index.addPack(...packs[0]);
  files.inject({ operation: 'sync', code: 'disk-full' });
  await assert.rejects(index.save(), (error) => isRouseError(error, 'disk-full'));
  index.addPack(...packs[1]);
  await index.save();
  const again = openIndex(files);
  await again.load();
  checkAll(again, packs);
});

test('a base leaves out packs that became known while it was written', async () => {
  const random = new SeededRandom(4);
  const files = new ForgetfulFiles(4);
  await files.makeDirectory('/index');
  const index = openIndex(files);
  const first = pack(random, 500);
  index.addPack(...first);
  const runs = new IndexFiles(files, '/index', vaultId, key);
  const writing = runs.rewrite(index.blocks, index.packs.slice());
  const second = pack(random, 500);
  index.addPack(...second);
  await writing;
  const again = openIndex(files);
  await again.load();
  checkAll(again, [first]);
  assert.equal(again.knows(second[0].name), false);
  assert.equal(again.blocks.size, 500);
});

test('of two takers of a lock one gets it; a dead owner loses it', async () => {
  const files = new ForgetfulFiles(5);
  const mine = processOwner('a');
  const other = processOwner('b');
  const takers = [mine, other].map((owner) => takeLock(files, '/index', owner, systemClock));
  const ended = await Promise.allSettled(takers);
  assert.equal(ended.filter((end) => end.status === 'fulfilled').length, 1);
  mine.forget();
  other.forget();
  const third = processOwner('c');
  const unlock = await takeLock(files, '/index', third, systemClock);
  await assert.rejects(takeLock(files, '/index', processOwner('d'), systemClock), (error) =>
    isRouseError(error, 'busy'),
  );
  await unlock();
  await (
    await takeLock(files, '/index', processOwner('e'), systemClock)
  )();
});

test('a lock of another process is told by its start, not its number alone', async () => {
  const owner = processOwner('x');
  const parent = process.ppid;
  const [, , start, boot] = owner.name.split(' ');
  assert.equal(owner.isAlive(`process ${parent} ${start}0 ${boot} y`), false);
  assert.equal(owner.isAlive(`process 999999999 1 ${boot} y`), false);
  assert.equal(owner.isAlive(`process ${process.pid} ${start} another-boot y`), false);
  assert.equal(owner.isAlive('garbage'), false);
  assert.equal(owner.isAlive(owner.name), true);
  owner.forget();
  assert.equal(owner.isAlive(owner.name), false);
});
