import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../lib/clock.ts';
import { Procedure } from '../nfs/nfs3/types.ts';
import { createNfsServer } from '../nfs/server.ts';
import type { XdrReader, XdrWriter } from '../nfs/xdr.ts';
import { lateFileSystem, MemoryFileSystem } from './memory-file-system.ts';
import { RpcClient, type RpcReply } from './nfs-client.ts';

/**
 * A server with one export of a memory file system, and a client that speaks raw NFS with it: the
 * verbs of the conformance tests. `eachWay` runs a test twice, with a file system that answers at
 * once and with one that answers late.
 */
export type Conversation = Awaited<ReturnType<typeof openConversation>>;

export const EXPORT_PATH = '/vault/Recover-a-1';
export const EXPORT_SECRET = Buffer.alloc(32, 7);
export const MOUNT = { program: 100_005, version: 3 };

export function eachWay(name: string, work: (conversation: Conversation) => Promise<void>): void {
  for (const late of [false, true]) {
    test(`${name}${late ? ' (late answers)' : ''}`, async () => {
      const conversation = await openConversation(late);
      try {
        await work(conversation);
      } finally {
        await conversation.client.close();
        await conversation.server.close();
      }
    });
  }
}

async function openServer(late: boolean) {
  const memory = new MemoryFileSystem({ clock: systemClock, capacityBytes: 8 << 20 });
  const server = createNfsServer({
    clock: systemClock,
    log: { info: () => undefined, warn: () => undefined },
    listen: { addresses: ['127.0.0.1', '::1'], nfsPort: 0, mountPort: 0, portmap: 'off' },
  });
  await server.start();
  server.addExport({
    id: 7,
    path: EXPORT_PATH,
    secret: EXPORT_SECRET,
    clients: ['127.0.0.1', '::1'],
    fileSystem: late ? lateFileSystem(memory) : memory,
  });
  const client = await RpcClient.open(server.nfsPort);
  return { memory, server, client, late };
}

async function openConversation(late: boolean) {
  const world = await openServer(late);
  const calls = basicCalls(world.client);
  const root = await calls.mount(EXPORT_PATH);
  return {
    ...world,
    ...calls,
    root,
    ...nameCalls(calls, root),
    ...dataCalls(calls),
    list: lister(world.client),
  };
}

function basicCalls(client: RpcClient) {
  async function mountStatus(path: string): Promise<{ status: number; results: XdrReader }> {
    const reply = await client.call(1, (args) => args.text(path), MOUNT);
    assert.equal(reply.status, 0);
    return { status: reply.results.u32(), results: reply.results };
  }

  async function mount(path: string): Promise<Buffer> {
    const { status, results } = await mountStatus(path);
    assert.equal(status, 0);
    return Buffer.from(results.opaque(64));
  }

  async function nfs(
    procedure: number,
    args: (writer: XdrWriter) => void,
    uid = 0,
  ): Promise<{ status: number; results: XdrReader }> {
    const reply = await client.call(procedure, args, { uid });
    assert.equal(reply.denied, false);
    assert.equal(reply.status, 0);
    return { status: reply.results.u32(), results: reply.results };
  }

  return { client, mountStatus, mount, nfs };
}

type BasicCalls = ReturnType<typeof basicCalls>;

function nameCalls({ nfs }: BasicCalls, root: Buffer) {
  async function create(name: string, directory = root): Promise<Buffer> {
    const { status, results } = await nfs(Procedure.create, (args) => {
      directoryName(args, directory, name);
      args.u32(0);
      noChange(args);
    });
    assert.equal(status, 0);
    return postHandle(results);
  }

  async function mkdir(name: string, directory = root): Promise<Buffer> {
    const { status, results } = await nfs(Procedure.mkdir, (args) => {
      directoryName(args, directory, name);
      noChange(args);
    });
    assert.equal(status, 0);
    return postHandle(results);
  }

  async function lookup(name: string, directory = root) {
    return await nfs(Procedure.lookup, (args) => directoryName(args, directory, name));
  }

  return { create, mkdir, lookup };
}

function dataCalls({ nfs }: BasicCalls) {
  async function getattr(handle: Buffer) {
    const { status, results } = await nfs(Procedure.getattr, (args) => args.opaque(handle));
    assert.equal(status, 0);
    const attributes = fattr(results);
    results.done();
    return attributes;
  }

  async function write(handle: Buffer, offset: number, data: Buffer, stable = 2) {
    return await nfs(Procedure.write, (args) => {
      args.opaque(handle);
      args.u64Number(offset);
      args.u32(data.length);
      args.u32(stable);
      args.opaque(data);
    });
  }

  async function read(handle: Buffer, offset: number, count: number) {
    const { status, results } = await nfs(Procedure.read, (args) => {
      args.opaque(handle);
      args.u64Number(offset);
      args.u32(count);
    });
    assert.equal(status, 0);
    assert.equal(results.u32(), 1);
    const attributes = fattr(results);
    const bytes = results.u32();
    const eof = results.bool();
    const data = Buffer.from(results.opaque(1 << 20));
    results.done();
    assert.equal(data.length, bytes);
    return { attributes, eof, data };
  }

  return { getattr, write, read };
}

/** All names of a directory, page by page. */
function lister(client: RpcClient) {
  return list;

  async function list(directory: Buffer, bytes: number, plus: boolean): Promise<string[]> {
    const names: string[] = [];
    let cookie = 0n;
    for (;;) {
      const procedure = plus ? Procedure.readdirplus : Procedure.readdir;
      const reply: RpcReply = await client.call(procedure, (args) => {
        args.opaque(directory);
        args.u64(cookie);
        args.u64(0n);
        if (plus) args.u32(512);
        args.u32(bytes);
      });
      const { results } = reply;
      assert.ok(reply.bytes.length - 28 <= Math.max(bytes, 0));
      assert.equal(results.u32(), 0);
      assert.equal(results.u32(), 1);
      fattr(results);
      results.u64();
      while (results.bool()) {
        const fileId = results.u64Number();
        names.push(results.text(255));
        cookie = results.u64();
        if (plus) {
          assert.equal(results.u32(), 1);
          assert.equal(fattr(results).fileId, fileId);
          postHandle(results);
        }
      }
      const eof = results.bool();
      results.done();
      if (eof) return names;
    }
  }
}

// -- what is on the wire

export function words(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  for (const [index, value] of values.entries()) bytes.writeUInt32BE(value, index * 4);
  return bytes;
}

export function directoryName(args: XdrWriter, directory: Buffer, name: string): void {
  args.opaque(directory);
  args.text(name);
}

export function noChange(args: XdrWriter): void {
  for (let index = 0; index < 6; index++) args.u32(0);
}

export function postHandle(results: XdrReader): Buffer {
  assert.equal(results.u32(), 1);
  return Buffer.from(results.opaque(64));
}

export function fattr(results: XdrReader) {
  const [type, mode, links, uid, gid] = Array.from({ length: 5 }, () => results.u32());
  const sizeBytes = results.u64Number();
  results.skip(8 + 8 + 8);
  const fileId = results.u64Number();
  results.skip(8);
  const modified: [number, number] = [results.u32(), results.u32()];
  const changed: [number, number] = [results.u32(), results.u32()];
  return { type, mode, links, uid, gid, sizeBytes, fileId, modified, changed };
}

export function wcc(results: XdrReader) {
  const before = results.bool() ? { sizeBytes: results.u64Number() } : undefined;
  if (before !== undefined) results.skip(16);
  const after = results.bool() ? fattr(results) : undefined;
  return { before, after };
}
