import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs/promises';
import * as net from 'node:net';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { isRouseError } from '#src/errors.ts';
import type { ReadableDisk } from '#src/lib/disk.ts';
import { connectNbd } from '#src/nbd/client.ts';

/** Our client against QEMU's servers: qemu-nbd, and qemu-storage-daemon with a dirty bitmap. */
const run = promisify(execFile);
const limit = { timeout: 60_000 };
const MiB = 1024 * 1024;
const sizeBytes = 24 * MiB + 512;

let folder: string;
let content: Buffer;
let image: string;
const children: ChildProcess[] = [];

before(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), 'nbd-'));
  content = Buffer.alloc(sizeBytes);
  for (let at = 3 * MiB; at < 9 * MiB; at += 32) {
    createHash('sha256').update(`${at}`).digest().copy(content, at);
  }
  content.fill('end', sizeBytes - 700);
  image = path.join(folder, 'disk.qcow2');
  const raw = path.join(folder, 'disk.raw');
  await fs.writeFile(raw, content);
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, image], limit);
});

after(async () => {
  for (const child of children) await stop(child);
  await fs.rm(folder, { recursive: true, force: true });
});

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGTERM');
  await gone;
}

async function start(socket: string, program: string, args: readonly string[]) {
  const child = spawn(program, args, { stdio: 'ignore' });
  children.push(child);
  for (let tries = 0; tries < 200; tries++) {
    if (await answers(socket)) return child;
    assert.equal(child.exitCode, null, `${program} ended`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error(`${program} did not listen on ${socket}`);
}

function answers(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = net.connect({ path: socket });
    probe.once('error', () => resolve(false));
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
  });
}

async function readByExtents(disk: ReadableDisk): Promise<{ bytes: Buffer; zeroBytes: number }> {
  const bytes = Buffer.alloc(disk.sizeBytes, 0xee);
  let zeroBytes = 0;
  for (const extent of await disk.extents(0, disk.sizeBytes)) {
    const part = bytes.subarray(extent.offset, extent.offset + extent.length);
    if (extent.zero) part.fill(0);
    else await disk.read(part, extent.offset);
    if (extent.zero) zeroBytes += extent.length;
  }
  return { bytes, zeroBytes };
}

test('qemu-nbd: content and holes over a unix socket', async () => {
  const socket = path.join(folder, 'read.sock');
  const args = ['-f', 'qcow2', '-r', '-t', '-e', '4', '-x', 'disk', '-k', socket, image];
  const server = await start(socket, 'qemu-nbd', args);
  const disk = await connectNbd({ socket, exportName: 'disk' });
  assert.equal(disk.sizeBytes, sizeBytes);
  assert.equal(disk.isReadOnly, true);
  const { bytes, zeroBytes } = await readByExtents(disk);
  assert.ok(bytes.equals(content));
  assert.ok(zeroBytes >= 17 * MiB, `${zeroBytes}`);
  // Many small reads at once, in no order.
  await Promise.all(
    Array.from({ length: 200 }, async (_, i) => {
      const offset = (i * 7_919_993) % (sizeBytes - 5000);
      const part = Buffer.alloc(4999);
      await disk.read(part, offset);
      assert.ok(part.equals(content.subarray(offset, offset + 4999)));
    }),
  );
  await assert.rejects(disk.write(Buffer.alloc(512), 0), (e) => isRouseError(e, 'forbidden'));
  await assert.rejects(disk.changedExtents('qemu:dirty-bitmap:x', 0, 512), (e) =>
    isRouseError(e, 'not-found'),
  );
  await assert.rejects(connectNbd({ socket, exportName: 'other' }), (error) => {
    assert.ok(isRouseError(error, 'not-found'));
    return /"other" does not exist/.test(error.message);
  });

  server.kill('SIGKILL');
  await assert.rejects(
    async () => {
      for (let i = 0; i < 1000; i++) await disk.read(Buffer.alloc(4096), 4 * MiB);
    },
    (error) => isRouseError(error, 'host-unreachable') && /vanished/.test(error.message),
  );
  await assert.rejects(disk.extents(0, 512), (e) => isRouseError(e, 'host-unreachable'));
  await disk.close();
  await assert.rejects(connectNbd({ socket, exportName: '' }), (e) =>
    isRouseError(e, 'host-unreachable'),
  );
});

test('qemu-nbd: written, zeroed, trimmed and synced, then read by QEMU', async () => {
  const raw = path.join(folder, 'written.raw');
  const socket = path.join(folder, 'write.sock');
  const expected = Buffer.from(content);
  await fs.writeFile(raw, expected);
  const args = ['-f', 'raw', '-t', '--discard=unmap', '-k', socket, raw];
  const server = await start(socket, 'qemu-nbd', args);
  const disk = await connectNbd({ socket, exportName: '' });
  assert.equal(disk.isReadOnly, false);
  const bytes = Buffer.alloc(3 * MiB + 77, 'written ');
  await disk.write(bytes, 5 * MiB + 11);
  bytes.copy(expected, 5 * MiB + 11);
  await disk.zero(3 * MiB, MiB + 1);
  expected.fill(0, 3 * MiB, 4 * MiB + 1);
  await disk.trim(20 * MiB, MiB);
  await disk.sync();
  const { bytes: back } = await readByExtents(disk);
  await disk.close();
  assert.ok(back.equals(expected));
  await stop(server);
  assert.ok((await fs.readFile(raw)).equals(expected));
});

test('qemu-storage-daemon: a dirty bitmap tells what changed', async () => {
  const copy = path.join(folder, 'bitmap.qcow2');
  await fs.copyFile(image, copy);
  await run('qemu-img', ['bitmap', '--add', '-g', '65536', copy, 'since'], limit);
  const io = ['-c', 'write -P 5 1M 4k', '-c', 'write -P 6 10M 200k', '-c', 'write -z 7M 64k', copy];
  await run('qemu-io', io, limit);
  const socket = path.join(folder, 'daemon.sock');
  const server = await start(socket, 'qemu-storage-daemon', [
    '--blockdev',
    `driver=file,node-name=file,read-only=on,filename=${copy}`,
    '--blockdev',
    'driver=qcow2,node-name=disk,file=file,read-only=on',
    '--nbd-server',
    `addr.type=unix,addr.path=${socket}`,
    '--export',
    'type=nbd,id=e,node-name=disk,name=vda,bitmaps.0=since',
  ]);
  const context = 'qemu:dirty-bitmap:since';
  const disk = await connectNbd({ socket, exportName: 'vda', metaContexts: [context, 'x:none'] });
  assert.deepEqual([...disk.contexts].sort(), ['base:allocation', context]);
  const KiB = 1024;
  assert.deepEqual(await disk.changedExtents(context, 0, sizeBytes), [
    { offset: MiB, length: 64 * KiB, zero: false },
    { offset: 7 * MiB, length: 64 * KiB, zero: false },
    { offset: 10 * MiB, length: 256 * KiB, zero: false },
  ]);
  assert.deepEqual(await disk.changedExtents(context, 10 * MiB + 512, 1024), [
    { offset: 10 * MiB + 512, length: 1024, zero: false },
  ]);
  const { bytes } = await readByExtents(disk);
  await disk.close();
  await stop(server);
  const raw = path.join(folder, 'bitmap.raw');
  await run('qemu-img', ['convert', '-O', 'raw', copy, raw], limit);
  assert.ok(bytes.equals(await fs.readFile(raw)));
});
