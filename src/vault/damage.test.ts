import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withFaults, type FaultRules } from '../blobs/faulty-store.ts';
import { MemoryBlobStore } from '../blobs/memory-store.ts';
import { isRouseError, RouseError, type ErrorCode } from '../errors.ts';
import {
  backUp,
  diskBytes,
  header,
  readWhole,
  smallBlockBytes as blockBytes,
  vaultWorld,
} from '../testing/vault-world.ts';

const code = (expected: ErrorCode) => (error: unknown) => isRouseError(error, expected);

async function damagedWorld() {
  const store = new MemoryBlobStore();
  const rules: { -readonly [K in keyof FaultRules]: FaultRules[K] } = {};
  const world = await vaultWorld({ store: withFaults(store, rules) });
  const vault = await world.open();
  const bytes = world.random.bytes(40 * blockBytes);
  const saveset = await backUp(vault, { vda: bytes });
  const packs = [...store.blobs.keys()].filter((name) => name.startsWith('packs/'));
  return { store, rules, world, vault, bytes, saveset, packs, root: saveset.disks[0]!.root };
}

test('a flipped bit is an error for its range, named by verify, and never a wrong byte', async () => {
  const { store, vault, bytes, packs, root, saveset } = await damagedWorld();
  const pack = store.blobs.get(packs[0]!)!;
  pack[32 + 56 + 1000]! ^= 4; // In the payload of the first block's record.
  const disk = await vault.openDisk(root);
  const target = Buffer.alloc(blockBytes);
  await assert.rejects(disk.read(target, 0), (error) => {
    assert.ok(isRouseError(error, 'corrupt-data'));
    assert.match(error.message, /pack [0-9a-f]{64} is damaged at offset 32: its checksum is wrong/);
    return true;
  });
  assert.throws(() => disk.readNow(target, 0), code('corrupt-data'));
  await disk.read(target, blockBytes);
  assert.ok(target.equals(bytes.subarray(blockBytes, 2 * blockBytes)));
  const report = await vault.verify(saveset.id);
  assert.equal(report.ok, false);
  assert.equal(report.savesets[0]?.blocks, 40);
  assert.equal(report.savesets[0]?.problems.length, 1);
  assert.match(
    report.savesets[0]?.problems[0] ?? '',
    /^disk vda, bytes 0 to 4095: pack [0-9a-f]{64} at offset 32: its checksum is wrong$/,
  );
  await vault.close();
});

test('a block that another saveset shares is named for both, a good saveset stays good', async () => {
  const { store, vault, bytes, packs } = await damagedWorld();
  await backUp(vault, { vdb: Buffer.concat([Buffer.alloc(blockBytes, 9), bytes]) });
  await backUp(vault, { vdc: Buffer.alloc(10 * blockBytes, 5) });
  store.blobs.get(packs[0]!)![32 + 56]! ^= 1;
  const report = await vault.verify();
  assert.deepEqual(
    report.savesets.map((s) => [s.ok, s.problems.map((p) => p.split(':')[0])]),
    [
      [false, ['disk vda, bytes 0 to 4095']],
      [false, ['disk vdb, bytes 4096 to 8191']],
      [true, []],
    ],
  );
  await vault.close();
});

test('a damaged node names the whole range it maps', async () => {
  const { store, world, vault } = await damagedWorld();
  const bytes = world.random.bytes(200 * blockBytes);
  const saveset = await backUp(vault, { vdb: bytes });
  await vault.close();
  const disk = saveset.disks[0]!;
  const again = await world.open();
  const top = Buffer.from(disk.root.hash, 'hex');
  for (const [name, pack] of store.blobs) {
    const at = name.startsWith('packs/') ? pack.indexOf(top) : -1;
    if (at >= 0) pack[at + 40]! ^= 1;
  }
  await assert.rejects(readWhole(again, disk.root), code('corrupt-data'));
  const report = await again.verify(saveset.id);
  assert.equal(report.savesets[0]?.problems.length, 1);
  assert.match(report.savesets[0]?.problems[0] ?? '', /^disk vdb, bytes 0 to 819199: /);
  await again.close();
});

test('a truncated pack is found at opening; what it lost is stored again', async () => {
  const { store, world, vault, bytes, packs, root } = await damagedWorld();
  await vault.close();
  const pack = store.blobs.get(packs[1]!)!;
  store.blobs.set(packs[1]!, pack.subarray(0, pack.length - 20_000));
  const again = await world.open();
  assert.equal(again.problems.length, 2);
  assert.match(again.problems[1] ?? '', /its end is missing.*; \d+ good blocks were found in it/);
  await assert.rejects(readWhole(again, root), code('corrupt-data'));
  assert.equal((await again.verify()).ok, false);
  const repeated = await backUp(again, { vda: bytes });
  assert.ok(repeated.cost.newBytes > 0 && repeated.cost.newBytes <= 5 * blockBytes);
  assert.ok((await readWhole(again, root)).equals(bytes), 'the old saveset is whole again');
  await again.close();
});

test('a pack that vanished is told, and its blocks are stored again', async () => {
  const { store, world, vault, bytes, packs, root } = await damagedWorld();
  await vault.close();
  store.blobs.delete(packs[0]!);
  const again = await world.open();
  assert.match(again.problems[0] ?? '', /is gone/);
  assert.equal((await again.verify()).ok, false);
  const report = await again.rescan();
  assert.equal(report.packs, packs.length - 1);
  await backUp(again, { vda: bytes });
  assert.ok((await readWhole(again, root)).equals(bytes));
  assert.equal((await again.verify()).ok, true);
  await again.close();
});

test('a pack that vanishes while the vault is open is an error for its range', async () => {
  const { store, world, vault, packs, root } = await damagedWorld();
  await vault.close();
  const again = await world.open();
  store.blobs.delete(packs[0]!);
  await assert.rejects(readWhole(again, root), /the pack is gone/);
  const report = await again.verify();
  assert.match(report.savesets[0]?.problems[0] ?? '', /cannot be read/);
  await again.close();
});

test('a damaged record of a saveset is told by verify and rescan', async () => {
  const { store, world, vault, saveset } = await damagedWorld();
  await vault.close();
  store.blobs.get(`savesets/${saveset.id}.json`)![100]! ^= 1;
  const again = await world.open();
  assert.deepEqual(await again.savesets(), []);
  await assert.rejects(again.saveset(saveset.id), code('corrupt-data'));
  for (const report of [await again.verify(), await again.verify(saveset.id)]) {
    assert.equal(report.ok, false);
    assert.equal(report.savesets[0]?.id, saveset.id);
  }
  const scanned = await again.rescan();
  assert.match(scanned.problems[0] ?? '', /savesets\/.* is damaged/);
  await again.close();
});

test('rescan rebuilds the index from the packs, while disks are read', async () => {
  const { world, vault, bytes, root } = await damagedWorld();
  const before = await vault.stats();
  const reading = Promise.all([1, 2, 3].map(() => readWhole(vault, root)));
  const seen: number[] = [];
  const report = await vault.rescan((progress) => seen.push(progress.doneBytes));
  for (const read of await reading) assert.ok(read.equals(bytes));
  assert.deepEqual(report, {
    packs: before.packs,
    blocks: before.indexEntries,
    savesets: 1,
    problems: [],
  });
  assert.equal(seen.at(-1), before.storedBytes);
  const writer = await vault.begin('main');
  await assert.rejects(vault.rescan(), code('busy'));
  await writer.abandon();
  await assert.rejects(vault.rescan(undefined, AbortSignal.abort()), code('cancelled'));
  await assert.rejects(vault.verify(undefined, undefined, AbortSignal.abort()), code('cancelled'));
  assert.ok((await readWhole(vault, root)).equals(bytes));
  await vault.close();
  const again = await world.open();
  assert.deepEqual(again.problems, []);
  assert.ok((await readWhole(again, root)).equals(bytes));
  await again.close();
});

test('a full disk fails the backups under way, and nothing else', async () => {
  const { rules, world, vault, bytes, root } = await damagedWorld();
  const more = world.random.bytes(100 * blockBytes);
  const under = await vault.begin('main');
  await under.disk('vda', more.length, 'test').write(0, more);
  rules.before = (operation, name) => {
    if (operation === 'put') throw new RouseError('disk-full', `${name}: no space left`);
  };
  await assert.rejects(under.seal(header), code('disk-full'));
  await assert.rejects(backUp(vault, { vdb: more }), code('disk-full'));
  assert.ok((await readWhole(vault, root)).equals(bytes));
  delete rules.before;
  const saveset = await backUp(vault, { vda: more });
  assert.ok((await readWhole(vault, saveset.disks[0]!.root)).equals(more));
  await vault.close();
  const again = await world.open();
  assert.deepEqual((await again.savesets()).length, 2);
  assert.equal((await again.verify()).ok, true);
  await again.close();
});

test('a backup that counted on a lost pack of another one fails too', async () => {
  const { rules, world, vault } = await damagedWorld();
  const bytes = diskBytes(world.random, 30 * blockBytes);
  const one = await vault.begin('main');
  const other = await vault.begin('main');
  await one.disk('vda', bytes.length, 'test').write(0, bytes);
  const disk = other.disk('vda', bytes.length, 'test');
  await disk.write(0, bytes);
  await disk.finish();
  let failed = 0;
  rules.before = (operation, name) => {
    if (operation === 'put' && name.startsWith('packs/') && failed++ === 0)
      throw new RouseError('io-error', `${name}: injected`);
  };
  await assert.rejects(one.seal(header), code('io-error'));
  await assert.rejects(other.seal(header), code('io-error'));
  assert.ok(failed > 0);
  assert.equal((await vault.savesets()).length, 1);
  await vault.close();
});

test('read errors are the error of the read', async () => {
  const { rules, world, vault, root } = await damagedWorld();
  await vault.close();
  const again = await world.open();
  rules.before = (operation, name) => {
    if (operation === 'read') throw new RouseError('io-error', `${name}: injected`);
  };
  await assert.rejects(readWhole(again, root), code('io-error'));
  delete rules.before;
  await readWhole(again, root);
  await again.close();
});

test('cold packs are waited for, and sequential readers are read ahead', async () => {
  const store = new MemoryBlobStore();
  let reads = 0;
  const rules: FaultRules = {
    isCold: () => true,
    before: (operation) => void (operation === 'read' && reads++),
  };
  const world = await vaultWorld({ store: withFaults(store, rules) });
  const vault = await world.open({ cacheBytes: 16 * 1024 * 1024 });
  const bytes = world.random.bytes(400 * blockBytes);
  const saveset = await backUp(vault, { vda: bytes });
  await vault.close();
  const again = await world.open({ cacheBytes: 16 * 1024 * 1024 });
  reads = 0;
  const disk = await again.openDisk(saveset.disks[0]!.root);
  const page = Buffer.alloc(blockBytes);
  assert.equal(disk.readNow(page, 0), false);
  for (let at = 0; at < bytes.length; at += page.length) {
    await disk.read(page, at);
    assert.ok(page.equals(bytes.subarray(at, at + page.length)));
    await new Promise((resolve) => void setImmediate(resolve));
  }
  assert.ok(reads < 200, `${reads} reads for 400 blocks in neighbouring records`);
  await again.close();
});
