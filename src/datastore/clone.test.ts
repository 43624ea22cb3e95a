import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError } from '../errors.ts';
import { Stable } from '../nfs/file-system.ts';
import { baseByte, clones, CloneWorld } from '../testing/clone-world.ts';
import type { DiskWriter, SavesetWriter } from '../vault/api.ts';
import { createClone, discardClone, listClones, openClone } from './clone.ts';

const plain = { mode: 'unchecked', change: { sizeBytes: 0 } } as const;

test('making a clone again finds it; another saveset under its id is refused', async () => {
  const world = new CloneWorld();
  const clone = await world.make();
  const again = await createClone(world.around(), clones, world.spec);
  assert.equal(again.handleSecret, clone.record.handleSecret);
  const other = { ...world.spec, savesetId: 's2' };
  await assert.rejects(createClone(world.around(), clones, other), (error) =>
    isRouseError(error, 'already-exists'),
  );
  await clone.close();
  assert.deepEqual(await listClones(world.around(), clones), [world.spec.cloneId]);
  await discardClone(world.around(), clones, world.spec.cloneId);
  await discardClone(world.around(), clones, world.spec.cloneId);
  assert.deepEqual(await listClones(world.around(), clones), []);
  assert.deepEqual(await world.files.list(clones), []);
  await assert.rejects(openClone(world.around(), clones, world.spec.cloneId), (error) =>
    isRouseError(error, 'not-found'),
  );
});

test('names that would lead out of the area are refused', async () => {
  const world = new CloneWorld();
  for (const bad of ['../x', 'a/b', '', '.', 'x.new', 'a\0b']) {
    const spec = { ...world.spec, cloneId: bad };
    await assert.rejects(createClone(world.around(), clones, spec), (error) =>
      isRouseError(error, 'bad-request'),
    );
  }
  const spec = { ...world.spec, folder: '..' };
  await assert.rejects(createClone(world.around(), clones, spec), /cannot name a file/);
});

test('a power cut while a clone is made or discarded leaves all of it or none', async () => {
  const seen = new Set<string>();
  for (let seed = 0; seed < 120; seed++) {
    const world = new CloneWorld(seed);
    await world.files.makeDirectory(clones);
    await world.files.syncDirectory('/');
    world.files.stopAfter(1 + (seed % 60));
    const done = await createClone(world.around(), clones, world.spec).then(
      () => true,
      () => false,
    );
    world.files = world.files.crash();
    world.boot++;
    const there = (await listClones(world.around(), clones)).length === 1;
    assert.ok(there || !done, `seed ${seed}: an acknowledged clone is gone`);
    seen.add(`${done}${there}`);
    await createClone(world.around(), clones, world.spec);
    const clone = await world.open();
    assert.equal((await clone.readFile('web01/domain.xml')).toString(), '<domain/>\n');
    const disk = Buffer.alloc(512);
    const fs = clone.fileSystem();
    await fs.read(await fs.lookup(await fs.lookup(fs.root, 'web01'), 'vda-flat.vmdk'), 512, disk);
    assert.equal(disk[3], baseByte(0, 515));
    await clone.close();
  }
  assert.ok(seen.has('falsefalse') && seen.has('truetrue'));
});

test('names and files that were answered survive power cuts; those that were not are whole', async () => {
  for (let seed = 0; seed < 60; seed++) {
    const world = new CloneWorld(seed);
    let clone = await world.make();
    const known = new Map<string, string>();
    for (let life = 0; life < 3; life++) {
      const fs = clone.fileSystem();
      world.files.stopAfter(5 + world.random.below(150));
      const doubtful = new Set<string>();
      try {
        for (let i = 0; ; i++) {
          const name = `f${world.random.below(6)}`;
          const text = `${life}-${i}`;
          doubtful.add(name);
          if (known.has(name) && world.random.chance(0.3)) {
            await fs.remove(fs.root, name);
            known.delete(name);
          } else {
            const fresh = await fs.create(fs.root, `${name}.new`, plain);
            await fs.write(fresh, 0, Buffer.from(text), Stable.fileSync);
            await fs.rename(fs.root, `${name}.new`, fs.root, name);
            known.set(name, text);
          }
          doubtful.delete(name);
        }
      } catch (error) {
        if (!world.files.stopped) throw error;
      }
      world.files = life === 1 ? world.files.kill() : world.files.crash();
      if (life !== 1) world.boot++;
      clone = await world.open();
      for (const name of Array.from({ length: 6 }, (_, i) => `f${i}`)) {
        const found = await clone.readFile(name).then(String, () => undefined);
        const where = `seed ${seed} life ${life} ${name}`;
        if (!doubtful.has(name)) assert.equal(found, known.get(name), where);
        else assert.ok(found === undefined || /^\d-\d+$/.test(found), where);
        if (found === undefined) known.delete(name);
        else known.set(name, found);
      }
    }
  }
});

class MemoryWriter implements SavesetWriter {
  readonly disks = new Map<string, Buffer>();
  readonly files = new Map<string, string>();
  writtenBytes = 0;
  readonly cost = { readBytes: 0, zeroBytes: 0, knownBytes: 0, newBytes: 0, storedBytes: 0 };

  disk(name: string, sizeBytes: number): DiskWriter {
    const number = name === 'vda' ? 0 : 1;
    const bytes = Buffer.from(Array.from({ length: sizeBytes }, (_, at) => baseByte(number, at)));
    this.disks.set(name, bytes);
    return {
      write: async (offset, data) => {
        assert.equal(offset % 32768, 0);
        assert.ok(data.length % 32768 === 0 || offset + data.length === sizeBytes);
        this.writtenBytes += data.length;
        bytes.set(data, offset);
      },
      zero: async (offset, length) => void bytes.fill(0, offset, offset + length),
      finish: async () => ({ hash: '', depth: 0, sizeBytes }),
    };
  }

  async file(name: string, bytes: Uint8Array): Promise<void> {
    this.files.set(name, Buffer.from(bytes).toString());
  }

  seal(): never {
    throw new Error('the caller seals');
  }

  async abandon(): Promise<void> {}
}

test('sealing sees one moment, reads what was written alone, and merges with the base', async () => {
  const world = new CloneWorld();
  const clone = await world.make();
  const fs = clone.fileSystem();
  const folder = await fs.lookup(fs.root, 'web01');
  const disk = await fs.lookup(folder, 'vda-flat.vmdk');
  await fs.write(disk, 40_000, Buffer.alloc(10, 0xaa), Stable.unstable);
  await fs.write(disk, 65536, Buffer.alloc(65536), Stable.fileSync);
  await clone.writeFile('web01/domain.xml', Buffer.from('<changed/>'));
  const expected = Buffer.alloc(1024 * 1024);
  await fs.read(disk, 0, expected);
  const writer = new MemoryWriter();
  const sealing = clone.sealInto(writer, 32768);
  await fs.write(disk, 0, Buffer.alloc(4096, 0xbb), Stable.fileSync);
  await sealing;
  assert.ok(writer.disks.get('vda')?.equals(expected));
  // Blocks 1 to 3 of 32 in one piece: the first in part, the others zeros.
  assert.equal(writer.writtenBytes, 3 * 32768);
  assert.deepEqual([...writer.files], [['domain.xml', '<changed/>']]);
  const extents = [];
  for await (const extent of clone.changedExtents('vda')) extents.push(extent);
  assert.deepEqual(extents, [
    { offset: 0, length: 4096, zero: false },
    { offset: 36864, length: 4096, zero: false },
    { offset: 65536, length: 65536, zero: true },
  ]);
  await clone.exportRaw('vda', '/out.raw');
  const raw = await world.files.open('/out.raw', 'read');
  const bytes = Buffer.alloc(1024 * 1024);
  await raw.read(bytes, 0);
  await fs.read(disk, 0, expected);
  assert.ok(bytes.equals(expected));
});

test('flipped bits in the log are an error for their page, told, and no wrong byte', async () => {
  const world = new CloneWorld();
  const clone = await world.make();
  const fs = clone.fileSystem();
  const disk = await fs.lookup(await fs.lookup(fs.root, 'web01'), 'vda-flat.vmdk');
  await fs.write(disk, 0, Buffer.alloc(8192, 7), Stable.fileSync);
  const path = `${clones}/${world.spec.cloneId}/layer/segment-000000000001`;
  const segment = await world.files.open(path, 'write');
  await segment.write([Buffer.from([8])], 2048 + 1024 + 4096 + 100);
  const target = Buffer.alloc(4096);
  await fs.read(disk, 0, target);
  assert.equal(target[5], 7);
  await assert.rejects(async () => fs.read(disk, 4096, target), { status: 5 });
  assert.equal(world.damages[0]?.disk, 'vda');
});
