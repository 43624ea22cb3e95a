import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NfsError, NfsStatus, Stable, type FileSystem } from '../nfs/file-system.ts';
import { CloneWorld } from '../testing/clone-world.ts';
import type { Clone } from './clone.ts';

async function opened(): Promise<{ world: CloneWorld; clone: Clone; fs: FileSystem }> {
  const world = new CloneWorld();
  const clone = await world.make();
  return { world, clone, fs: clone.fileSystem() };
}

const plain = { mode: 'unchecked', change: { mode: 0o640, uid: 7, gid: 8 } } as const;

async function fails(status: number, work: () => unknown): Promise<void> {
  const asked = async () => work();
  await assert.rejects(asked, (error) => error instanceof NfsError && error.status === status);
}

async function namesIn(fs: FileSystem, directory: number): Promise<string[]> {
  const { entries, eof } = await fs.readDirectory(directory, 0n, 1000);
  assert.equal(eof, true);
  return entries.map(({ name }) => name);
}

test('a new clone shows the folder with configuration, descriptors and flat disks', async () => {
  const { fs, clone } = await opened();
  assert.deepEqual(await namesIn(fs, fs.root), ['.', '..', 'web01']);
  const folder = await fs.lookup(fs.root, 'web01');
  assert.deepEqual(await namesIn(fs, folder), [
    '.',
    '..',
    'domain.xml',
    'vda.vmdk',
    'vda-flat.vmdk',
    'vdb.vmdk',
    'vdb-flat.vmdk',
  ]);
  const flat = await fs.attributes(await fs.lookup(folder, 'vda-flat.vmdk'));
  assert.equal(flat.sizeBytes, 1024 * 1024);
  assert.equal(flat.kind, 'file');
  const descriptor = (await clone.readFile('web01/vda.vmdk')).toString();
  assert.match(descriptor, /^RW 2048 VMFS "vda-flat.vmdk"$/m);
  assert.match(descriptor, /^parentCID=ffffffff$/m);
  assert.deepEqual(clone.disks[0], {
    name: 'vda',
    path: 'web01/vda-flat.vmdk',
    sizeBytes: 1048576,
  });
});

test('a disk keeps its size, refuses writes past its end, and can be renamed and removed', async () => {
  const { fs } = await opened();
  const folder = await fs.lookup(fs.root, 'web01');
  const disk = await fs.lookup(folder, 'vdb-flat.vmdk');
  await fails(NfsStatus.inval, () => fs.setAttributes(disk, { sizeBytes: 0 }));
  await fs.setAttributes(disk, { sizeBytes: 65 * 512 });
  await fails(NfsStatus.fbig, () => fs.write(disk, 65 * 512 - 1, Buffer.alloc(2), Stable.unstable));
  const tail = Buffer.alloc(8192);
  assert.deepEqual(await fs.read(disk, 65 * 512 - 100, tail), { bytes: 100, eof: true });
  assert.deepEqual(await fs.read(disk, 65 * 512, tail), { bytes: 0, eof: true });
  await fs.write(disk, 65 * 512 - 3, Buffer.from('end'), Stable.fileSync);
  await fs.rename(folder, 'vdb-flat.vmdk', folder, 'moved.vmdk');
  assert.equal(await fs.lookup(folder, 'moved.vmdk'), disk);
  assert.deepEqual(await fs.read(disk, 65 * 512 - 3, tail), { bytes: 3, eof: true });
  assert.equal(tail.toString('latin1', 0, 3), 'end');
  await fs.remove(folder, 'moved.vmdk');
  await fails(NfsStatus.stale, () => fs.attributes(disk));
});

test('plain files: sparse writes, short reads with eof, sizes, over a restart', async () => {
  const { world, clone, fs } = await opened();
  const folder = await fs.lookup(fs.root, 'web01');
  const file = await fs.create(folder, 'a.log', plain);
  assert.deepEqual(await fs.write(file, 10_000, Buffer.from('tail'), Stable.unstable), {
    committed: 0,
  });
  const target = Buffer.alloc(20_000, 1);
  assert.deepEqual(await fs.read(file, 0, target), { bytes: 10_004, eof: true });
  assert.equal(target.toString('latin1', 10_000, 10_004), 'tail');
  assert.equal(
    target.subarray(0, 10_000).every((byte) => byte === 0),
    true,
  );
  assert.deepEqual(await fs.read(file, 5, target.subarray(0, 10)), { bytes: 10, eof: false });
  await fs.setAttributes(file, { sizeBytes: 10_002 });
  assert.deepEqual(await fs.commit(file, 0, 0), { committed: 2 });
  const before = await fs.attributes(file);
  await clone.close();
  const again = (await world.open()).fileSystem();
  const after = await again.attributes(file);
  assert.deepEqual({ ...after, usedBytes: 0 }, { ...before, usedBytes: 0 });
  assert.equal(after.sizeBytes, 10_002);
  assert.deepEqual([after.uid, after.gid, after.mode], [7, 8, 0o640]);
  assert.equal(again.generation(file), fs.generation(file));
  assert.equal(again.generation(999), undefined);
});

test('CREATE: unchecked truncates, guarded refuses, exclusive knows its verifier', async () => {
  const { fs } = await opened();
  const folder = await fs.lookup(fs.root, 'web01');
  const file = await fs.create(folder, 'f', plain);
  await fs.write(file, 0, Buffer.from('hello'), Stable.fileSync);
  const again = await fs.create(folder, 'f', { mode: 'unchecked', change: { sizeBytes: 0 } });
  assert.equal(again, file);
  assert.equal((await fs.attributes(file)).sizeBytes, 0);
  await fails(NfsStatus.exist, () => fs.create(folder, 'f', { mode: 'guarded', change: {} }));
  const made = await fs.create(folder, 'x', { mode: 'exclusive', verifier: 5n });
  assert.equal(await fs.create(folder, 'x', { mode: 'exclusive', verifier: 5n }), made);
  await fails(NfsStatus.exist, () => fs.create(folder, 'x', { mode: 'exclusive', verifier: 6n }));
  await fails(NfsStatus.nametoolong, () => fs.create(folder, 'é'.repeat(128), plain));
  await fs.create(folder, `${'é'.repeat(127)}x`, plain);
  await fails(NfsStatus.inval, () => fs.create(folder, 'a/b', plain));
  await fails(NfsStatus.exist, () => fs.create(folder, '..', { mode: 'guarded', change: {} }));
  await fails(NfsStatus.notdir, () => fs.create(file, 'x', plain));
});

test('hard links share a file until the last name is gone', async () => {
  const { fs } = await opened();
  const folder = await fs.lookup(fs.root, 'web01');
  const file = await fs.create(folder, 'one', plain);
  await fs.write(file, 0, Buffer.from('data'), Stable.fileSync);
  await fs.link(file, fs.root, 'two');
  assert.equal((await fs.attributes(file)).links, 2);
  await fails(NfsStatus.exist, () => fs.link(file, folder, 'one'));
  await fs.rename(folder, 'one', fs.root, 'two');
  assert.equal((await fs.attributes(file)).links, 2);
  await fs.remove(folder, 'one');
  assert.equal((await fs.attributes(file)).links, 1);
  const target = Buffer.alloc(4);
  await fs.read(file, 0, target);
  assert.equal(target.toString(), 'data');
  await fs.remove(fs.root, 'two');
  await fails(NfsStatus.stale, () => fs.read(file, 0, target));
});

test('directories: links, emptiness, renames over each other and into themselves', async () => {
  const { fs } = await opened();
  const a = await fs.makeDirectory(fs.root, 'a', { mode: 0o700 });
  const b = await fs.makeDirectory(a, 'b', {});
  assert.equal((await fs.attributes(fs.root)).links, 4);
  assert.equal((await fs.attributes(a)).links, 3);
  assert.equal(await fs.parent(b), a);
  assert.equal(await fs.lookup(b, '..'), a);
  await fails(NfsStatus.notempty, () => fs.removeDirectory(fs.root, 'a'));
  await fails(NfsStatus.inval, () => fs.rename(fs.root, 'a', b, 'c'));
  await fails(NfsStatus.isdir, () => fs.remove(a, 'b'));
  await fs.create(a, 'f', plain);
  await fails(NfsStatus.notdir, () => fs.removeDirectory(a, 'f'));
  await fails(NfsStatus.isdir, () => fs.rename(a, 'f', a, 'b'));
  await fails(NfsStatus.notdir, () => fs.rename(a, 'b', a, 'f'));
  const c = await fs.makeDirectory(fs.root, 'c', {});
  await fs.rename(a, 'b', fs.root, 'c');
  await fails(NfsStatus.stale, () => fs.attributes(c));
  assert.equal(await fs.lookup(fs.root, 'c'), b);
  assert.equal(await fs.parent(b), fs.root);
  assert.equal((await fs.attributes(a)).links, 2);
  assert.equal((await fs.attributes(fs.root)).links, 5);
  await fails(NfsStatus.exist, () => fs.makeDirectory(fs.root, 'c', {}));
  await fs.removeDirectory(fs.root, 'c');
  await fails(NfsStatus.noent, () => fs.lookup(fs.root, 'c'));
});

test('rename replaces a file at once and drops the old one', async () => {
  const { fs } = await opened();
  const old = await fs.create(fs.root, 'config', plain);
  const fresh = await fs.create(fs.root, 'config.new', plain);
  await fs.rename(fs.root, 'config.new', fs.root, 'config');
  assert.equal(await fs.lookup(fs.root, 'config'), fresh);
  await fails(NfsStatus.stale, () => fs.attributes(old));
  await fails(NfsStatus.noent, () => fs.rename(fs.root, 'config.new', fs.root, 'x'));
});

test('cookies stay valid while a directory changes: each lasting entry is listed once', async () => {
  const { fs } = await opened();
  const directory = await fs.makeDirectory(fs.root, 'd', {});
  for (let i = 0; i < 50; i++) await fs.create(directory, `keep${i}`, plain);
  const seen: string[] = [];
  let cookie = 0n;
  for (let i = 0; ; i++) {
    const page = await fs.readDirectory(directory, cookie, 7);
    seen.push(...page.entries.map(({ name }) => name));
    cookie = page.entries.at(-1)?.cookie ?? cookie;
    if (page.eof) break;
    await fs.create(directory, `new${i}`, plain);
    if (i > 0) await fs.remove(directory, `new${i - 1}`);
  }
  const kept = seen.filter((name) => name.startsWith('keep'));
  assert.deepEqual(
    kept,
    Array.from({ length: 50 }, (_, i) => `keep${i}`),
  );
});

test('symbolic links are kept as they are and never followed', async () => {
  const { fs } = await opened();
  const link = await fs.makeSymlink(fs.root, 'out', '../../etc/passwd', {});
  assert.equal(await fs.readLink(link), '../../etc/passwd');
  assert.equal((await fs.attributes(link)).kind, 'symlink');
  assert.equal((await fs.attributes(link)).sizeBytes, 16);
  await fails(NfsStatus.inval, () => fs.read(link, 0, Buffer.alloc(1)));
  await fails(NfsStatus.notdir, () => fs.lookup(link, 'x'));
  await fails(NfsStatus.inval, () => fs.readLink(fs.root));
});

test('times: changes move ctime and mtime, a guard notices, SETATTR sets what it is told', async () => {
  const { fs } = await opened();
  const file = await fs.create(fs.root, 'f', plain);
  const first = await fs.attributes(file);
  await fs.write(file, 0, Buffer.from('x'), Stable.unstable);
  const second = await fs.attributes(file);
  assert.notDeepEqual(second.changed, first.changed);
  assert.notDeepEqual(second.modified, first.modified);
  await fails(NfsStatus.notSync, () => fs.setAttributes(file, { mode: 0o600 }, first.changed));
  const modified = { seconds: 1_000_000_000, nanoseconds: 7 };
  const third = await fs.setAttributes(file, { modified, accessed: modified }, second.changed);
  assert.deepEqual([third.modified, third.accessed], [modified, modified]);
  assert.equal(third.mode, 0o640);
  const parent = await fs.attributes(fs.root);
  await fs.remove(fs.root, 'f');
  assert.notDeepEqual((await fs.attributes(fs.root)).modified, parent.modified);
});

test('what a disk shows is of now: after writes, changes of attributes and a new name', async () => {
  const { world, fs } = await opened();
  const folder = await fs.lookup(fs.root, 'web01');
  const disk = await fs.lookup(folder, 'vda-flat.vmdk');
  const first = await fs.attributes(disk);
  assert.deepEqual(await fs.attributes(disk), first);
  await world.clock.advance(1000);
  await fs.write(disk, 0, Buffer.alloc(4096, 1), Stable.unstable);
  const second = await fs.attributes(disk);
  assert.notDeepEqual(second.modified, first.modified);
  await fs.write(disk, 0, Buffer.alloc(4096, 2), Stable.fileSync);
  const third = await fs.attributes(disk);
  assert.notDeepEqual(third.modified, second.modified);
  assert.equal((await fs.setAttributes(disk, { mode: 0o600, uid: 5 })).mode, 0o600);
  assert.equal((await fs.attributes(disk)).uid, 5);
  await fs.link(disk, folder, 'other.vmdk');
  assert.equal((await fs.attributes(disk)).links, first.links + 1);
});

test('permission bits: owner, group, others, and uid 0 who may all', async () => {
  const { fs } = await opened();
  const file = await fs.create(fs.root, 'f', plain);
  const may = (uid: number, gid: number, groups: number[] = []) =>
    fs.access(file, 63, { uid, gid, groups });
  assert.equal(await may(7, 1), 1 | 4 | 8);
  assert.equal(await may(1, 8), 1);
  assert.equal(await may(1, 1, [8]), 1);
  assert.equal(await may(1, 1), 0);
  assert.equal(await may(0, 0), 1 | 4 | 8);
  assert.equal(await fs.access(fs.root, 63, { uid: 1, gid: 1, groups: [] }), 1 | 2);
});

test('a bad block fails its range alone and is told; the rest goes on', async () => {
  const { world, fs } = await opened();
  const disk = await fs.lookup(await fs.lookup(fs.root, 'web01'), 'vda-flat.vmdk');
  world.bases.get('0'.repeat(64))?.badRanges.push({ offset: 32768, length: 4096 });
  await fails(NfsStatus.io, () => fs.read(disk, 30_000, Buffer.alloc(8192)));
  assert.deepEqual(await fs.read(disk, 0, Buffer.alloc(4096)), { bytes: 4096, eof: false });
  assert.deepEqual([world.damages[0]?.savesetId, world.damages[0]?.disk], ['s1', 'vda']);
  await fs.write(disk, 32768, Buffer.alloc(4096, 9), Stable.fileSync);
  assert.deepEqual(await fs.read(disk, 30_000, Buffer.alloc(8192)), { bytes: 8192, eof: false });
});

test('a full disk says NOSPC, corrupts nothing, and reads go on', async () => {
  const { world, fs } = await opened();
  const disk = await fs.lookup(await fs.lookup(fs.root, 'web01'), 'vda-flat.vmdk');
  await fs.write(disk, 0, Buffer.alloc(4096, 5), Stable.fileSync);
  world.files.capacityBytes = world.files.usedBytes + 8192;
  await fails(NfsStatus.nospc, () => fs.write(disk, 8192, Buffer.alloc(65536, 6), Stable.fileSync));
  const target = Buffer.alloc(4096);
  await fs.read(disk, 0, target);
  assert.equal(
    target.every((byte) => byte === 5),
    true,
  );
  world.files.capacityBytes = Number.POSITIVE_INFINITY;
  await world.clock.advance(2000);
  await fs.write(disk, 8192, Buffer.alloc(65536, 6), Stable.fileSync);
});

test('a sync that fails is an error and another verifier, for plain files as well', async () => {
  const { world, fs } = await opened();
  const file = await fs.create(fs.root, 'f', plain);
  await fs.write(file, 0, Buffer.from('x'), Stable.unstable);
  const before = fs.writeVerifier;
  world.files.inject({ operation: 'sync', path: '/files/' });
  await fails(NfsStatus.io, () => fs.commit(file, 0, 0));
  assert.notEqual(fs.writeVerifier, before);
  assert.deepEqual(await fs.commit(file, 0, 0), { committed: 2 });
});
