import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlobStore } from '../blobs/port.ts';
import { isRouseError, type ErrorCode } from '../errors.ts';

/** What every blob store must do. `make` gives an empty store each time. */
export function testBlobStore(kind: string, make: () => Promise<BlobStore>): void {
  const contract: Contract = (name, check) =>
    test(`${kind}: ${name}`, async () => check(await make()));
  testPutAndRead(contract);
  testNames(contract);
}

type Contract = (name: string, check: (store: BlobStore) => Promise<void>) => void;

function testPutAndRead(contract: Contract): void {
  contract('a blob is read back, whole and in parts', async (store) => {
    const bytes = Buffer.from('the quick brown fox');
    await store.put('packs/a', [bytes.subarray(0, 5), bytes.subarray(5)]);
    assert.deepEqual(await store.get('packs/a'), bytes);
    assert.deepEqual(await store.stat('packs/a'), { name: 'packs/a', sizeBytes: bytes.length });
    const reader = await store.open('packs/a');
    assert.equal(reader.sizeBytes, bytes.length);
    const part = Buffer.alloc(5);
    await reader.read(part, 4);
    assert.equal(part.toString(), 'quick');
    part.fill(0);
    if (reader.readNow(part, 10)) assert.equal(part.toString(), 'brown');
    await reader.close();
  });

  contract('an existing blob is never overwritten', async (store) => {
    await store.put('x', [Buffer.from('one')]);
    await rejects('already-exists', store.put('x', [Buffer.from('two')]));
    assert.equal((await store.get('x')).toString(), 'one');
  });

  contract('of two puts of one name one wins', async (store) => {
    const puts = ['one', 'two'].map((text) => store.put('x', [Buffer.from(text)]));
    const ended = await Promise.allSettled(puts);
    const won = ended.findIndex((end) => end.status === 'fulfilled');
    assert.equal(ended.filter((end) => end.status === 'fulfilled').length, 1);
    assert.equal((await store.get('x')).toString(), ['one', 'two'][won]);
  });

  contract('reading beyond the end says so', async (store) => {
    await store.put('a', [Buffer.from('abc')]);
    const reader = await store.open('a');
    assert.equal(reader.readNow(Buffer.alloc(4), 0), false);
    await rejects('corrupt-data', reader.read(Buffer.alloc(4), 0));
    await rejects('corrupt-data', reader.read(Buffer.alloc(1), 3));
    await reader.close();
  });
  contract('an empty blob is a blob', async (store) => {
    await store.put('empty', []);
    assert.equal((await store.get('empty')).length, 0);
    assert.equal((await store.stat('empty'))?.sizeBytes, 0);
  });
  contract('many chunks make one blob', async (store) => {
    const chunks = Array.from({ length: 3000 }, (_, i) => Buffer.alloc(7, i));
    await store.put('many', chunks);
    assert.deepEqual(await store.get('many'), Buffer.concat(chunks));
  });
}

function testNames(contract: Contract): void {
  contract('what is missing is not found', async (store) => {
    await rejects('not-found', store.get('packs/a'));
    await rejects('not-found', store.open('packs/a'));
    assert.equal(await store.stat('packs/a'), undefined);
    await store.remove('packs/a');
    assert.deepEqual(await store.list('packs/'), []);
  });

  contract('blobs are listed by prefix', async (store) => {
    for (const name of ['packs/a', 'packs/b', 'savesets/a', 'vault.json'])
      await store.put(name, [Buffer.from(name)]);
    const names = async (prefix: string) =>
      (await store.list(prefix)).map((blob) => blob.name).sort();
    assert.deepEqual(await names('packs/'), ['packs/a', 'packs/b']);
    assert.deepEqual(await names('packs/b'), ['packs/b']);
    assert.deepEqual(await names(''), ['packs/a', 'packs/b', 'savesets/a', 'vault.json']);
    assert.equal((await store.list('vault'))[0]?.sizeBytes, 'vault.json'.length);
  });

  contract('a removed blob is gone and its name is free', async (store) => {
    await store.put('a', [Buffer.from('one')]);
    await store.remove('a');
    assert.equal(await store.stat('a'), undefined);
    await store.put('a', [Buffer.from('two')]);
    assert.equal((await store.get('a')).toString(), 'two');
  });

  contract('no name reaches outside', async (store) => {
    for (const name of ['', '/a', 'a/', '../a', 'a/../b', 'a//b', '.hidden', 'a/.b', 'a b', 'ä'])
      await rejects('bad-request', store.put(name, []));
  });
}

async function rejects(code: ErrorCode, work: Promise<unknown>): Promise<void> {
  await assert.rejects(work, (error) => isRouseError(error, code));
}
