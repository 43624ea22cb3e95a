import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { isRouseError } from '#src/errors.ts';
import { openDisk } from '#src/formats/open-disk.ts';
import { connectNbd } from '#src/nbd/client.ts';
import { MemoryDisk } from '#src/nbd/memory-disk.ts';
import { serveNbd } from '#src/nbd/server.ts';

/** Our server, judged by QEMU and libnbd. */
const run = promisify(execFile);
const limit = { timeout: 60_000 };
const MiB = 1024 * 1024;

let folder: string;
let content: Buffer;
before(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), 'nbd-server-'));
  content = Buffer.alloc(20 * MiB + 512);
  for (let at = 3 * MiB; at < 9 * MiB; at += 32) {
    createHash('sha256').update(`${at}`).digest().copy(content, at);
  }
  content.fill('end', content.length - 700);
});
after(() => fs.rm(folder, { recursive: true, force: true }));

test('qemu-img copies a disk that we serve, holes left out', async (context) => {
  const raw = path.join(folder, 'source.raw');
  await fs.writeFile(raw, content);
  const image = path.join(folder, 'source.qcow2');
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-c', raw, image], limit);
  const disk = await openDisk(image);
  const socket = path.join(folder, 'serve.sock');
  const server = await serveNbd({ socket, exports: () => [{ name: 'vda', disk }] });
  context.after(() => server.close());
  const back = path.join(folder, 'back.raw');
  const url = `nbd+unix:///vda?socket=${socket}`;
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', url, back], limit);
  assert.ok((await fs.readFile(back)).equals(content));
  const { stdout } = await run('qemu-img', ['map', '--output=json', '-f', 'raw', url], limit);
  const map: unknown = JSON.parse(stdout);
  assert.ok(Array.isArray(map));
  const zeros = map.reduce<number>((sum, part: { zero: boolean; length: number }) => {
    return sum + (part.zero ? part.length : 0);
  }, 0);
  assert.ok(zeros >= 13 * MiB, `${zeros} bytes known to be zero`);
  await server.close();
  await disk.close();
  await assert.rejects(fs.stat(socket));
});

test('QEMU writes, zeroes, discards and flushes', async (context) => {
  const disk = new MemoryDisk(content);
  const server = await serveNbd({
    host: '127.0.0.1',
    port: 0,
    exports: () => [{ name: 'rw', disk, writable: disk }],
  });
  context.after(() => server.close());
  const url = `nbd://127.0.0.1:${server.port}/rw`;
  const io = ['write -P 5 1M 300k', 'write -z 4M 1M', 'write -z -u 6M 64k', 'discard 8M 64k'];
  const commands = [...io, 'flush', 'read -P 5 1M 300k', 'read -P 0 4M 1M'];
  const { stdout } = await run(
    'qemu-io',
    ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), url],
    limit,
  );
  assert.ok(!/failed|error/i.test(stdout), stdout);
  await server.close();
  const expected = Buffer.from(content);
  expected.fill(5, MiB, MiB + 300 * 1024);
  expected.fill(0, 4 * MiB, 5 * MiB);
  expected.fill(0, 6 * MiB, 6 * MiB + 64 * 1024);
  expected.fill(0, 8 * MiB, 8 * MiB + 64 * 1024);
  assert.ok(disk.bytes.equals(expected));
  assert.ok(disk.syncs > 0);
});

test('libnbd lists and reads what we serve', async (context) => {
  const found = await run('nbdinfo', ['--version'], limit).catch(() => undefined);
  if (found === undefined) return context.skip('nbdinfo (package libnbd-bin) is not installed');
  const disk = new MemoryDisk(content);
  const socket = path.join(folder, 'info.sock');
  const server = await serveNbd({
    socket,
    exports: () => [
      { name: 'one', description: 'the first', disk },
      { name: 'two', disk, writable: disk },
    ],
  });
  context.after(() => server.close());
  const list = await run('nbdinfo', ['--list', '--json', `nbd+unix://?socket=${socket}`], limit);
  assert.match(list.stdout, /"export-name": "one"[^]*"export-name": "two"/);
  assert.match(list.stdout, /"the first"/);
  const url = `nbd+unix:///two?socket=${socket}`;
  const map = await run('nbdinfo', ['--map', '--json', url], limit);
  assert.match(map.stdout, /"description": "hole,zero"/);
  const copy = path.join(folder, 'copy.raw');
  await run('nbdcopy', [url, copy], limit);
  assert.ok((await fs.readFile(copy)).equals(content));
  await server.close();
});

test('our client and our server understand each other; a port or socket in use is told', async (context) => {
  const disk = new MemoryDisk(content);
  const socket = path.join(folder, 'own.sock');
  const exports = () => [{ name: 'own', disk, writable: disk }];
  const server = await serveNbd({ socket, exports });
  context.after(() => server.close());
  await assert.rejects(serveNbd({ socket, exports }), (e) => isRouseError(e, 'port-taken'));
  const clients = await Promise.all([1, 2, 3].map(() => connectNbd({ socket, exportName: 'own' })));
  const bytes = Buffer.alloc(content.length);
  await Promise.all(
    clients.map(async (client, i) => {
      const start = i * 7 * MiB;
      await client.read(bytes.subarray(start, Math.min(bytes.length, start + 7 * MiB)), start);
    }),
  );
  assert.ok(bytes.equals(content));
  assert.equal(server.connections, 3);
  await clients[0]?.close();
  await server.close();
  for (const client of clients.slice(1)) {
    await assert.rejects(client.read(Buffer.alloc(512), 0), (e) => isRouseError(e));
    await client.close();
  }
  // A killed server leaves its socket behind.
  const left = await serveNbd({ socket, exports });
  await left.close();
});
