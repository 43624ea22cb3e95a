import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isRouseError } from '../errors.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { alignedBuffer, directBytes, hugePageBuffer } from './libc.ts';
import { nodeFiles } from './node-files.ts';

const roots = await Promise.all(
  [tmpdir(), '/dev/shm'].filter(existsSync).map((folder) => mkdtemp(join(folder, 'rouse-files-'))),
);
after(() => Promise.all(roots.map((root) => rm(root, { recursive: true }))));

function filled(sizeBytes: number, seed: number): Buffer {
  const buffer = alignedBuffer(sizeBytes);
  new SeededRandom(seed).bytes(sizeBytes).copy(buffer);
  return buffer;
}

const page = directBytes;
const cases: readonly (readonly [what: string, buffers: readonly Buffer[], position: number])[] = [
  ['whole pages', [filled(4 * page, 1)], 0],
  ['pages and a rest', [filled(4 * page + 77, 2)], 0],
  ['pages, and other buffers behind', [filled(2 * page + 3, 3), filled(5, 4), filled(page, 5)], 0],
  ['less than a page', [filled(100, 6)], 0],
  ['memory that lies across pages', [filled(4 * page, 7).subarray(8)], 0],
  ['a place within a page', [filled(2 * page, 8)], 512],
  ['a later page', [filled(2 * page, 9)], 3 * page],
  ['an empty buffer first', [Buffer.alloc(0), filled(page, 10)], 0],
  ['nothing', [], 0],
];

for (const root of roots)
  for (const [what, buffers, position] of cases)
    test(`written past the page cache, in ${root}: ${what}`, async () => {
      const path = join(root, what);
      const file = await nodeFiles.open(path, 'create');
      await file.writeUncached(buffers, position);
      const bytes = Buffer.concat([Buffer.alloc(position), ...buffers]);
      const expected = buffers.length === 0 ? Buffer.alloc(0) : bytes;
      assert.ok((await readFile(path)).equals(expected));
      // What comes later may lie anywhere in memory and in the file.
      await file.write([Buffer.from('tail')], expected.length);
      await file.sync();
      await file.close();
      assert.ok((await readFile(path)).equals(Buffer.concat([expected, Buffer.from('tail')])));
    });

test('writing past the page cache fails as writing does', async () => {
  const path = join(roots[0] as string, 'read-only');
  await (await nodeFiles.open(path, 'create')).close();
  const file = await nodeFiles.open(path, 'read');
  await assert.rejects(file.writeUncached([filled(page, 1)], 0), (e) => isRouseError(e));
  await file.close();
});

test('aligned memory is as long as it was asked for', () => {
  for (const sizeBytes of [0, 1, page - 1, page, page + 1, 10 * page]) {
    assert.equal(alignedBuffer(sizeBytes).length, sizeBytes);
  }
});

test('memory in huge pages is as long as it was asked for, and the kernel knows of it', async () => {
  const huge = 2 * 1024 * 1024;
  for (const sizeBytes of [0, 1, huge - 1, huge, 3 * huge + 5]) {
    const buffer = hugePageBuffer(sizeBytes);
    assert.equal(buffer.length, sizeBytes);
    buffer.fill(7);
    assert.ok(buffer.every((byte) => byte === 7));
  }
  if (!existsSync('/sys/kernel/mm/transparent_hugepage')) return;
  // "hg": advised to be in huge pages (proc_pid_smaps(5)).
  const advised = /^VmFlags:.* hg\b/m;
  assert.match(await readFile('/proc/self/smaps', 'utf8'), advised);
});
