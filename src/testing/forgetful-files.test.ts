import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError } from '../errors.ts';
import { ForgetfulFiles } from './forgetful-files.ts';

async function read(files: ForgetfulFiles, path: string): Promise<string> {
  const file = await files.open(path, 'read');
  const target = Buffer.alloc(await file.size());
  await file.read(target, 0);
  await file.close();
  return target.toString();
}

async function durableFile(files: ForgetfulFiles, path: string, text: string): Promise<void> {
  const file = await files.open(path, 'write');
  await file.write([Buffer.from(text)], 0);
  await file.sync();
  await file.close();
  await files.syncDirectory('/');
}

test('what was synced survives every power cut, whatever came after it', async () => {
  for (let seed = 0; seed < 50; seed++) {
    const files = new ForgetfulFiles(seed);
    await durableFile(files, '/a', 'kept');
    assert.equal(await read(files.crash(), '/a'), 'kept');
  }
});

test('an unsynced write is sometimes lost, sometimes kept, sometimes torn at a sector', async () => {
  const seen = new Set<string>();
  for (let seed = 0; seed < 200; seed++) {
    const files = new ForgetfulFiles(seed);
    await durableFile(files, '/a', 'o'.repeat(1024));
    const file = await files.open('/a', 'write');
    await file.write([Buffer.alloc(1024, 'n')], 0);
    const text = await read(files.crash(), '/a');
    assert.match(text, /^(o{512}|n{512})(o{512}|n{512})$/);
    seen.add(`${text[0]}${text[512]}`);
  }
  assert.deepEqual([...seen].sort(), ['nn', 'no', 'on', 'oo']);
});

test('a name that no directory sync confirmed is sometimes forgotten', async () => {
  const seen = new Set<boolean>();
  for (let seed = 0; seed < 50; seed++) {
    const files = new ForgetfulFiles(seed);
    const file = await files.open('/a', 'create');
    await file.sync();
    seen.add((await files.crash().stat('/a')) !== undefined);
  }
  assert.equal(seen.size, 2);
});

test('a rename is whole: the old file or the new one, never none', async () => {
  for (let seed = 0; seed < 50; seed++) {
    const files = new ForgetfulFiles(seed);
    await durableFile(files, '/a', 'old');
    const file = await files.open('/a.new', 'create');
    await file.write([Buffer.from('new')], 0);
    await file.sync();
    await files.rename('/a.new', '/a');
    assert.match(await read(files.crash(), '/a'), /^(old|new)$/);
  }
});

test('the death of the process loses nothing, and makes nothing safer', async () => {
  const seen = new Set<string>();
  for (let seed = 0; seed < 50; seed++) {
    const files = new ForgetfulFiles(seed);
    await durableFile(files, '/a', 'old');
    const file = await files.open('/a', 'write');
    file.writeNow([Buffer.from('new')], 0);
    const after = files.kill();
    assert.throws(() => file.writeNow([Buffer.from('bad')], 0), /has stopped/);
    assert.equal(await read(after, '/a'), 'new');
    seen.add(await read(after.crash(), '/a'));
  }
  assert.deepEqual([...seen].sort(), ['new', 'old']);
});

test('a full disk says so, and removing a file gives its space back', async () => {
  const files = new ForgetfulFiles(1, { capacityBytes: 8 * 4096 });
  const file = await files.open('/a', 'create');
  await file.write([Buffer.alloc(6 * 4096, 1)], 0);
  const other = await files.open('/b', 'create');
  await assert.rejects(other.write([Buffer.alloc(4 * 4096, 1)], 0), (error) =>
    isRouseError(error, 'disk-full'),
  );
  await file.close();
  await files.remove('/a');
  await other.write([Buffer.alloc(8 * 4096, 1)], 0);
  assert.equal(files.usedBytes, 8 * 4096);
});

test('a failed sync does not come true later', async () => {
  const seen = new Set<string>();
  for (let seed = 0; seed < 60; seed++) {
    const files = new ForgetfulFiles(seed);
    await durableFile(files, '/a', 'old');
    const file = await files.open('/a', 'write');
    await file.write([Buffer.from('new')], 0);
    files.inject({ operation: 'sync' });
    await assert.rejects(file.sync(), (error) => isRouseError(error, 'io-error'));
    await file.sync();
    seen.add(await read(files.crash(), '/a'));
  }
  assert.deepEqual([...seen].sort(), ['new', 'old']);
});

test('a stopped machine fails every call', async () => {
  const files = new ForgetfulFiles(3);
  files.stopAfter(2);
  const file = await files.open('/a', 'create');
  await assert.rejects(file.write([Buffer.from('x')], 0), /has stopped/);
  assert.equal(files.stopped, true);
  assert.equal(await read(files.kill(), '/a'), '');
});
