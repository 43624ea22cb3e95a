import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { isRouseError, type ErrorCode } from '../errors.ts';
import type { Extent } from '../lib/disk.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import {
  backUp,
  diskBytes,
  header,
  readWhole,
  smallBlockBytes as blockBytes,
  vaultWorld,
} from '../testing/vault-world.ts';
import { sealJson } from './sealed-json.ts';

const code = (expected: ErrorCode) => (error: unknown) => isRouseError(error, expected);

test('disks come back byte for byte, after reopening too', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  const disks = {
    vda: diskBytes(world.random, 300 * blockBytes),
    odd: diskBytes(world.random, 17 * blockBytes + 123),
    tiny: Buffer.from('x'),
    empty: Buffer.alloc(0),
    zeros: Buffer.alloc(50 * blockBytes + 1),
  };
  const saveset = await backUp(vault, disks);
  for (const { name, root } of saveset.disks)
    assert.ok((await readWhole(vault, root)).equals(disks[name as keyof typeof disks]), name);
  await vault.close();
  const again = await world.open();
  assert.deepEqual(await again.savesets(), [saveset]);
  assert.deepEqual(await again.saveset(saveset.id), saveset);
  for (const { name, root } of saveset.disks)
    assert.ok((await readWhole(again, root)).equals(disks[name as keyof typeof disks]), name);
  const roots = Object.fromEntries(saveset.disks.map(({ name, root }) => [name, root]));
  assert.deepEqual(roots['zeros'], { hash: '', depth: 0, sizeBytes: 50 * blockBytes + 1 });
  assert.deepEqual(roots['empty'], { hash: '', depth: 0, sizeBytes: 0 });
  assert.deepEqual(again.problems, []);
  await again.close();
});

interface Write {
  readonly block: number;
  readonly blocks: number;
  readonly fill: number;
}

const writes = fc.array(
  fc.record({ block: fc.nat(400), blocks: fc.integer({ min: 1, max: 40 }), fill: fc.nat(3) }),
  { maxLength: 25 },
);

test('writes in any order, over any base, read as a plain buffer would', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(fc.nat(1_700_000), writes), { maxLength: 3 }), check),
    { numRuns: 25 },
  );
  async function check(rounds: [number, Write[]][]): Promise<void> {
    const world = await vaultWorld();
    const vault = await world.open();
    let model = Buffer.alloc(0);
    let base;
    for (const [sizeBytes, list] of rounds) {
      const next = Buffer.alloc(sizeBytes);
      model.copy(next);
      const writer = await vault.begin('main');
      const disk = writer.disk('vda', sizeBytes, 'test', base);
      for (const { block, blocks, fill } of list) {
        const from = block * blockBytes;
        const to = Math.min(sizeBytes, from + blocks * blockBytes);
        if (from >= to) continue;
        const bytes = Buffer.alloc(to - from);
        for (let at = 0; at < bytes.length; at += 4)
          if (fill > 0) bytes[at] = fill + ((at / blockBytes) & 7);
        if (fill === 0 && blocks % 2 === 0) await disk.zero(from, to - from);
        else await disk.write(from, bytes);
        bytes.copy(next, from);
      }
      const saveset = await writer.seal(header);
      base = saveset.disks[0]?.root;
      assert.ok(base);
      assert.ok((await readWhole(vault, base)).equals(next));
      await checkExtents(await (await vault.openDisk(base)).extents(0, sizeBytes), next);
      model = next;
    }
    assert.equal((await vault.verify()).ok, true);
    await vault.close();
  }
});

async function checkExtents(extents: readonly Extent[], bytes: Buffer): Promise<void> {
  let at = 0;
  for (const { offset, length, zero } of extents) {
    assert.equal(offset, at);
    assert.ok(length > 0);
    if (zero) assert.ok(bytes.subarray(offset, offset + length).every((byte) => byte === 0));
    at += length;
  }
  assert.equal(at, bytes.length);
}

test('extents of any range cover it, and zeros are found by whole subtrees', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  const writer = await vault.begin('main');
  const sizeBytes = 2 ** 40 + 5;
  const disk = writer.disk('vda', sizeBytes, 'test');
  await disk.write(2 ** 39, Buffer.alloc(2 * blockBytes, 7));
  const root = await disk.finish();
  await writer.seal(header);
  const opened = await vault.openDisk(root);
  assert.deepEqual(await opened.extents(0, sizeBytes), [
    { offset: 0, length: 2 ** 39, zero: true },
    { offset: 2 ** 39, length: 2 * blockBytes, zero: false },
    { offset: 2 ** 39 + 2 * blockBytes, length: 2 ** 39 + 5 - 2 * blockBytes, zero: true },
  ]);
  assert.deepEqual(await opened.extents(2 ** 39 + 10, 5), [
    { offset: 2 ** 39 + 10, length: 5, zero: false },
  ]);
  const end = Buffer.alloc(5, 1);
  await opened.read(end, 2 ** 40);
  assert.deepEqual(end, Buffer.alloc(5));
  await vault.close();
});

test('what is known costs nothing but its tree, and counts are right', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  const bytes = world.random.bytes(64 * blockBytes);
  bytes.fill(0, 0, 8 * blockBytes);
  bytes.copy(bytes, 20 * blockBytes, 10 * blockBytes, 15 * blockBytes);
  const first = await backUp(vault, { vda: bytes });
  assert.equal(first.cost.readBytes, bytes.length);
  assert.equal(first.cost.zeroBytes, 8 * blockBytes);
  assert.equal(first.cost.knownBytes, 5 * blockBytes);
  assert.equal(first.cost.newBytes, 51 * blockBytes);
  assert.equal(first.disks[0]?.referencedBytes, 56 * blockBytes);
  const packs = (await vault.stats()).packs;
  const second = await backUp(vault, { vdb: bytes });
  assert.equal(second.disks[0]?.root.hash, first.disks[0]?.root.hash);
  assert.equal(second.cost.newBytes, 0);
  assert.equal(second.cost.storedBytes, 0);
  const stats = await vault.stats();
  assert.equal(stats.packs, packs);
  assert.equal(stats.logicalBytes, 2 * bytes.length);
  assert.equal(stats.referencedBytes, 112 * blockBytes);
  assert.equal(stats.uniqueBytes, 52 * blockBytes);
  assert.equal(stats.indexEntries, 52);
  assert.equal(stats.savesets, 2);
  assert.equal(stats.machines, 1);
  await vault.close();
});

test('an incremental backup writes what changed and the path to it', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  const bytes = diskBytes(world.random, 2000 * blockBytes);
  const full = await backUp(vault, { vda: bytes });
  const base = full.disks[0]?.root;
  assert.ok(base);
  const before = await vault.stats();
  const writer = await vault.begin('main');
  const disk = writer.disk('vda', bytes.length, 'test', base);
  const change = world.random.bytes(blockBytes);
  await disk.write(777 * blockBytes, change);
  change.copy(bytes, 777 * blockBytes);
  const next = await writer.seal({ ...header, kind: 'incremental', basedOn: full.id });
  const after = await vault.stats();
  assert.equal(after.indexEntries - before.indexEntries, 1 + 2, 'a block and two nodes');
  const root = next.disks[0]?.root;
  assert.ok(root);
  assert.ok((await readWhole(vault, root)).equals(bytes));
  const ranges = [];
  for await (const range of vault.difference(base, root)) ranges.push(range);
  assert.deepEqual(ranges, [{ offset: 777 * blockBytes, length: blockBytes, zero: false }]);
  await vault.close();
});

test('workers make the same vault as this thread does, with both codecs', async () => {
  const roots = [];
  for (const workers of [0, 2]) {
    const world = await vaultWorld({ blockBytes: 32 * 1024 });
    const vault = await world.open({ workers });
    await vault.createMtree('cold', 'zstd');
    const bytes = diskBytes(new SeededRandom(3), 8 * 1024 * 1024 + 77, 32 * 1024);
    const inverse = Buffer.from(bytes);
    for (let i = 0; i < inverse.length; i++) inverse[i]! ^= 3;
    const lz4 = await backUp(vault, { vda: bytes });
    const zstd = await backUp(vault, { vda: inverse }, { mtree: 'cold' });
    const [one, other] = [lz4.disks[0]?.root, zstd.disks[0]?.root];
    assert.ok(one && other);
    assert.ok((await readWhole(vault, one)).equals(bytes));
    assert.ok((await readWhole(vault, other)).equals(inverse));
    assert.ok(lz4.cost.storedBytes < lz4.cost.newBytes);
    assert.equal((await vault.verify()).ok, true);
    roots.push([one, other, lz4.cost.newBytes]);
    await vault.close();
  }
  assert.deepEqual(roots[0], roots[1]);
});

test('many disks at once share the pipeline and their blocks', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  const bytes = world.random.bytes(500 * blockBytes);
  const writers = await Promise.all(
    Array.from({ length: 6 }, async () => {
      const writer = await vault.begin('main');
      const disk = writer.disk('vda', bytes.length, 'test');
      for (let at = 0; at < bytes.length; at += 50 * blockBytes)
        await disk.write(at, bytes.subarray(at, at + 50 * blockBytes));
      return writer;
    }),
  );
  const savesets = await Promise.all(writers.map((writer) => writer.seal(header)));
  assert.equal(new Set(savesets.map((s) => s.disks[0]?.root.hash)).size, 1);
  assert.equal((await vault.stats()).indexEntries, 500 + 4 + 1);
  await vault.close();
  const again = await world.open();
  for (const saveset of savesets)
    assert.ok((await readWhole(again, saveset.disks[0]!.root)).equals(bytes));
  await again.close();
});

test('a small cache serves large reads, and readNow answers what is in it', async () => {
  const world = await vaultWorld();
  const vault = await world.open({ cacheBytes: 0 });
  const bytes = diskBytes(world.random, 1000 * blockBytes);
  const saveset = await backUp(vault, { vda: bytes });
  const disk = await vault.openDisk(saveset.disks[0]!.root);
  const parts = await Promise.all(
    Array.from({ length: 10 }, async (_, i) => {
      const part = Buffer.alloc(300 * blockBytes);
      await disk.read(part, i * 70 * blockBytes);
      return part;
    }),
  );
  parts.forEach((part, i) => {
    const from = i * 70 * blockBytes;
    assert.ok(part.equals(bytes.subarray(from, from + part.length)));
  });
  const page = Buffer.alloc(512);
  await disk.read(page, 5 * blockBytes + 100);
  assert.equal(disk.readNow(page, 5 * blockBytes + 100), true);
  assert.ok(page.equals(bytes.subarray(5 * blockBytes + 100, 5 * blockBytes + 612)));
  assert.throws(() => disk.readNow(page, bytes.length - 100), code('bad-request'));
  const { cache } = await vault.stats();
  assert.ok(cache.hits > 0 && cache.misses > 0 && cache.usedBytes <= cache.boundBytes);
  await vault.close();
});

test('files are kept whole', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  const writer = await vault.begin('main');
  await writer.file('domain.xml', Buffer.from('<domain/>'));
  await writer.file('nvram', world.random.bytes(100_000));
  await writer.file('empty', Buffer.alloc(0));
  await assert.rejects(writer.file('nvram', Buffer.alloc(1)), code('already-exists'));
  const saveset = await writer.seal(header);
  const contents = await Promise.all(saveset.files.map((file) => vault.readFile(file)));
  assert.deepEqual(
    contents.map((bytes) => bytes.length),
    [9, 100_000, 0],
  );
  assert.equal(contents[0]?.toString(), '<domain/>');
  await vault.close();
});

test('bad requests say what was wrong', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  await assert.rejects(vault.begin('nowhere'), code('not-found'));
  await assert.rejects(vault.saveset('nothing'), code('not-found'));
  await assert.rejects(vault.saveset('../vault'), code('not-found'));
  await assert.rejects(vault.createMtree('main', 'lz4'), code('already-exists'));
  await assert.rejects(vault.createMtree('a/b', 'lz4'), code('bad-request'));
  await assert.rejects(vault.verify('nothing'), code('not-found'));
  await assert.rejects(vault.openDisk({ hash: '', depth: 3, sizeBytes: 1 }), code('bad-request'));
  const writer = await vault.begin('main');
  const disk = writer.disk('vda', 2 * blockBytes + 10, 'test');
  assert.throws(() => writer.disk('vda', 1, 'test'), code('already-exists'));
  assert.throws(() => writer.disk('vdb', -1, 'test'), code('bad-request'));
  await assert.rejects(disk.write(5, Buffer.alloc(blockBytes)), code('bad-request'));
  await assert.rejects(disk.write(0, Buffer.alloc(100)), code('bad-request'));
  await assert.rejects(disk.write(2 * blockBytes, Buffer.alloc(blockBytes)), code('bad-request'));
  await assert.rejects(disk.zero(0, 11), code('bad-request'));
  await disk.write(2 * blockBytes, Buffer.alloc(10, 1));
  await disk.finish();
  await assert.rejects(disk.write(0, Buffer.alloc(blockBytes)), code('wrong-state'));
  await writer.seal(header);
  await assert.rejects(writer.seal(header), code('wrong-state'));
  await vault.close();
  await assert.rejects(vault.begin('main'), code('wrong-state'));
});

test('what an abandoned backup stored is reused', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  const bytes = world.random.bytes(100 * blockBytes);
  const writer = await vault.begin('main');
  await writer.disk('vda', bytes.length, 'test').write(0, bytes);
  await writer.abandon();
  assert.deepEqual(await vault.savesets(), []);
  const saveset = await backUp(vault, { vda: bytes });
  assert.equal(saveset.cost.newBytes, 0);
  await vault.close();
});

test('a vault that is not there, newer, or open already is refused', async () => {
  const world = await vaultWorld();
  const vault = await world.open();
  await assert.rejects(world.open(), code('busy'));
  await vault.close();
  await (await world.open()).close();
  const mine = await world.open({ owner: { name: 'dead one', isAlive: () => false } });
  const next = await world.open({ owner: { name: 'next', isAlive: () => false } });
  await next.close();
  await mine.close();
  await world.store.remove('vault.json');
  await assert.rejects(world.open(), code('not-found'));
  await world.store.put('vault.json', [sealJson({ format: 'rouse-vault', version: 99 })]);
  await assert.rejects(world.open(), code('newer-format'));
});

test('small reads anywhere, whole blocks and parts of them, through a small cache', async () => {
  const world = await vaultWorld({ blockBytes: 32 * 1024 });
  const vault = await world.open({ cacheBytes: 0 });
  const bytes = diskBytes(world.random, 120 * 32 * 1024 + 999, 8 * 1024);
  const saveset = await backUp(vault, { vda: bytes });
  const disk = await vault.openDisk(saveset.disks[0]!.root);
  let now = 0;
  for (let i = 0; i < 4000; i++) {
    const offset = world.random.below(bytes.length);
    const length = Math.min(bytes.length - offset, 1 + world.random.below(i % 10 ? 6000 : 90_000));
    const part = Buffer.alloc(length, 0x55);
    if (disk.readNow(part, offset)) now++;
    else await disk.read(part, offset);
    assert.ok(part.equals(bytes.subarray(offset, offset + length)), `${offset}, ${length} bytes`);
  }
  assert.ok(now > 3000);
  await vault.close();
});
