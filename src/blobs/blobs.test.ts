import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isRouseError, RouseError } from '../errors.ts';
import type { Files } from '../lib/files.ts';
import { nodeFiles } from '../lib/node-files.ts';
import { systemRandom } from '../lib/random.ts';
import { testBlobStore } from '../testing/blob-store-contract.ts';
import { openDirectoryStore } from './directory-store.ts';
import { withFaults } from './faulty-store.ts';
import { MemoryBlobStore } from './memory-store.ts';

const root = await mkdtemp(join(tmpdir(), 'rouse-blobs-'));
after(() => rm(root, { recursive: true }));

let count = 0;
const directoryStore = (files: Files = nodeFiles) =>
  openDirectoryStore({ files, directory: join(root, `${count++}`), random: systemRandom });

testBlobStore('memory', async () => new MemoryBlobStore());
testBlobStore('directory', directoryStore);
testBlobStore('faulty without faults', async () => withFaults(new MemoryBlobStore(), {}));

test('a put that fails leaves nothing behind', async () => {
  const failing: Files = {
    ...nodeFiles,
    open: async (path, mode) => {
      const file = await nodeFiles.open(path, mode);
      if (mode === 'create')
        file.sync = async () => {
          throw new RouseError('disk-full', `${path}: no space left`);
        };
      return file;
    },
  };
  const store = await directoryStore(failing);
  await assert.rejects(store.put('a/b', [Buffer.from('x')]), (e) => isRouseError(e, 'disk-full'));
  assert.deepEqual(await store.list(''), []);
  assert.deepEqual(await nodeFiles.list(join(store.place, 'a')), []);
});

test('opening a directory removes what a killed put has left', async () => {
  const store = await directoryStore();
  await store.put('packs/whole', []);
  const file = await nodeFiles.open(join(store.place, 'packs', '.partial-half'), 'create');
  await file.close();
  await openDirectoryStore({ files: nodeFiles, directory: store.place, random: systemRandom });
  assert.deepEqual(await nodeFiles.list(join(store.place, 'packs')), ['whole']);
});

test('faults: before a put, after a put, in what is read, and cold reads', async () => {
  const inner = new MemoryBlobStore();
  const store = withFaults(inner, {
    before: (operation, name) => {
      if (operation === 'put' && name === 'refused') throw new RouseError('io-error', name);
    },
    afterPut: (name) => {
      if (name === 'unheard') throw new RouseError('io-error', name);
    },
    afterRead: (_name, bytes, position) => {
      if (position === 0) bytes[0]! ^= 1;
    },
    isCold: (_name, position) => position === 2,
  });
  await assert.rejects(store.put('refused', []));
  await assert.rejects(store.put('unheard', []));
  assert.deepEqual([...inner.blobs.keys()], ['unheard']);
  await store.put('a', [Buffer.from('abc')]);
  assert.equal((await store.get('a')).toString(), '`bc');
  const reader = await store.open('a');
  assert.equal(reader.readNow(Buffer.alloc(1), 2), false);
  assert.equal(reader.readNow(Buffer.alloc(1), 1), true);
});
