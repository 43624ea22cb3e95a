import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Clock } from '../lib/clock.ts';
import { systemClock } from '../lib/clock.ts';
import { nfsLimits } from '../limits.ts';
import { MemoryFileSystem } from '../testing/memory-file-system.ts';
import { encodeCall, frame, RpcClient } from '../testing/nfs-client.ts';
import type { Attributes, ReadResult, Stable, WriteResult } from './file-system.ts';
import { Procedure } from './nfs3/types.ts';
import { createNfsServer, type NfsServer } from './server.ts';
import type { XdrWriter } from './xdr.ts';

/** What a connection does when much is asked of it, nothing is taken from it, or it stops half-way. */

/** A file system whose READs and WRITEs wait until they are let go. */
class HeldFileSystem extends MemoryFileSystem {
  held: (() => void)[] = [];
  holding = true;
  running = 0;
  mostRunning = 0;

  override read(file: number, offset: number, target: Buffer): Promise<ReadResult> {
    return this.#hold(() => super.read(file, offset, target));
  }

  override write(file: number, offset: number, data: Buffer, how: Stable): Promise<WriteResult> {
    return this.#hold(() => super.write(file, offset, data, how));
  }

  async #hold<T>(work: () => T | Promise<T>): Promise<T> {
    this.running++;
    this.mostRunning = Math.max(this.mostRunning, this.running);
    if (this.holding) await new Promise<void>((resolve) => this.held.push(resolve));
    this.running--;
    return await work();
  }

  letGo(): void {
    this.holding = false;
    for (const resolve of this.held.splice(0)) resolve();
  }
}

interface World {
  readonly server: NfsServer;
  readonly handle: Buffer;
  readonly client: RpcClient;
  end(): Promise<void>;
}

async function open(
  memory: MemoryFileSystem,
  clock: Clock = systemClock,
  inFlightBytesMax?: number,
): Promise<World> {
  const server = createNfsServer({
    clock,
    ...(inFlightBytesMax === undefined ? {} : { inFlightBytesMax }),
    log: { info: () => undefined, warn: () => undefined },
    listen: { addresses: ['127.0.0.1'], nfsPort: 0, mountPort: 0, portmap: 'off' },
  });
  await server.start();
  memory.put('/disk', Buffer.alloc(2 << 20, 5));
  const secret = Buffer.alloc(32, 1);
  server.addExport({ id: 1, path: '/a', secret, clients: ['127.0.0.1'], fileSystem: memory });
  const client = await RpcClient.open(server.nfsPort);
  const mounted = await client.call(1, (args) => args.text('/a'), { program: 100_005 });
  mounted.results.u32();
  const root = Buffer.from(mounted.results.opaque(64));
  const found = await client.call(Procedure.lookup, (args) => {
    args.opaque(root);
    args.text('disk');
  });
  found.results.u32();
  const handle = Buffer.from(found.results.opaque(64));
  const end = async () => {
    await client.close();
    await server.close();
  };
  return { server, handle, client, end };
}

function readArguments(handle: Buffer, offset: number, count: number) {
  return (args: XdrWriter) => {
    args.opaque(handle);
    args.u64Number(offset);
    args.u32(count);
  };
}

/** Waits for something that has to happen; half a minute is for a busy machine. */
async function until(condition: () => boolean): Promise<void> {
  for (let attempt = 0; attempt < 15_000 && !condition(); attempt++) await systemClock.sleep(2);
  assert.equal(condition(), true, 'it never came to be');
}

/** Long enough for a server without bounds to go past them. */
async function settle(): Promise<void> {
  await systemClock.sleep(100);
}

test('calls in flight are bounded; the rest waits in TCP and is answered later', async () => {
  const memory = new HeldFileSystem({ clock: systemClock });
  const { server, handle, client, end } = await open(memory);
  const calls = nfsLimits.connectionCallsMax * 3;
  const replies = Array.from({ length: calls }, (_, index) =>
    client.call(Procedure.read, readArguments(handle, index, 16)),
  );
  await until(() => memory.running === nfsLimits.connectionCallsMax);
  await settle();
  assert.equal(memory.mostRunning, nfsLimits.connectionCallsMax);
  assert.equal(server.exports()[0]?.inFlightCalls, nfsLimits.connectionCallsMax);
  memory.letGo();
  for (const reply of await Promise.all(replies)) assert.equal(reply.results.u32(), 0);
  assert.equal(server.inFlightBytes, 0);
  await end();
});

test('bytes in flight are bounded for READ and WRITE', async () => {
  const memory = new HeldFileSystem({ clock: systemClock });
  const { server, handle, client, end } = await open(memory);
  const count = 40;
  const reads = Array.from({ length: count }, () =>
    client.call(Procedure.read, readArguments(handle, 0, 1 << 20)),
  );
  await until(() => server.inFlightBytes >= nfsLimits.connectionBytesMax);
  await settle();
  assert.ok(server.inFlightBytes <= nfsLimits.connectionBytesMax + (2 << 20));
  memory.letGo();
  for (const reply of await Promise.all(reads)) assert.equal(reply.results.u32(), 0);
  memory.holding = true;
  const data = Buffer.alloc(1 << 20, 9);
  const writes = Array.from({ length: count }, () =>
    client.call(Procedure.write, (args) => {
      readArguments(handle, 0, data.length)(args);
      args.u32(0);
      args.opaque(data);
    }),
  );
  await until(() => server.inFlightBytes >= nfsLimits.connectionBytesMax);
  await settle();
  assert.ok(server.inFlightBytes <= nfsLimits.connectionBytesMax + (2 << 20));
  memory.letGo();
  for (const reply of await Promise.all(writes)) assert.equal(reply.results.u32(), 0);
  assert.equal(memory.contents('/disk').subarray(0, data.length).equals(data), true);
  await end();
});

test('bytes in flight are bounded over all connections, and every one goes on later', async () => {
  const memory = new HeldFileSystem({ clock: systemClock });
  const bound = 1 << 20;
  const { server, handle, client, end } = await open(memory, systemClock, bound);
  const others = await Promise.all([1, 2, 3].map(() => RpcClient.open(server.nfsPort)));
  const replies = [client, ...others].flatMap((one) =>
    Array.from({ length: 30 }, () => one.call(Procedure.read, readArguments(handle, 0, 65_536))),
  );
  await until(() => server.inFlightBytes >= bound);
  await settle();
  assert.ok(memory.mostRunning <= 17, `${memory.mostRunning} reads of 64 KiB at once`);
  memory.letGo();
  for (const reply of await Promise.all(replies)) assert.equal(reply.results.u32(), 0);
  assert.equal(server.inFlightBytes, 0);
  for (const one of others) await one.close();
  await end();
});

test('replies that are not taken stop the reading of calls, for that client only', async () => {
  const memory = new MemoryFileSystem({ clock: systemClock });
  const { server, handle, client, end } = await open(memory);
  const slow = await RpcClient.open(server.nfsPort);
  slow.socket.pause();
  const before = memory.calls.get('read') ?? 0;
  const replies = Array.from({ length: 300 }, () =>
    slow.call(Procedure.read, readArguments(handle, 0, 1 << 20)),
  );
  await until(() => (memory.calls.get('read') ?? 0) > before);
  await settle();
  const done = (memory.calls.get('read') ?? 0) - before;
  // What both kernels buffer on loopback, and our bound for unsent replies.
  assert.ok(done < 100, `${done} MiB were read for a client that takes nothing`);
  const other = await client.call(Procedure.read, readArguments(handle, 0, 4096));
  assert.equal(other.results.u32(), 0);
  slow.socket.resume();
  for (const reply of await Promise.all(replies)) assert.equal(reply.results.u32(), 0);
  await slow.close();
  await end();
});

test('a connection that dies leaves nothing in flight, and buffers are not mixed up', async () => {
  const memory = new HeldFileSystem({ clock: systemClock });
  const { server, handle, client, end } = await open(memory);
  const dying = await RpcClient.open(server.nfsPort);
  for (let index = 0; index < 20; index++) {
    void dying.call(Procedure.read, readArguments(handle, 0, 65_536)).catch(() => undefined);
  }
  await until(() => memory.running === 20);
  dying.socket.resetAndDestroy();
  await until(() => server.connections === 1);
  memory.letGo();
  await until(() => server.inFlightBytes === 0);
  assert.equal(server.exports()[0]?.inFlightCalls, 0);
  const reply = await client.call(Procedure.read, readArguments(handle, 0, 65_536));
  assert.equal(reply.results.u32(), 0);
  await end();
});

test('close answers what is in flight; removeExport waits for it', async () => {
  const memory = new HeldFileSystem({ clock: systemClock });
  const { server, handle, client } = await open(memory);
  const first = client.call(Procedure.read, readArguments(handle, 0, 100));
  await until(() => memory.running === 1);
  let removed = false;
  const removing = server.removeExport('/a').then(() => void (removed = true));
  await settle();
  assert.equal(removed, false);
  memory.letGo();
  assert.equal((await first).results.u32(), 0);
  await removing;
  const secret = Buffer.alloc(32, 1);
  server.addExport({ id: 1, path: '/a', secret, clients: ['127.0.0.1'], fileSystem: memory });
  memory.holding = true;
  const second = client.call(Procedure.read, readArguments(handle, 0, 100));
  await until(() => memory.running === 1);
  const closing = server.close();
  memory.letGo();
  assert.equal((await second).results.u32(), 0);
  await closing;
  await client.close();
});

test('half a record, and silence from the start, end the connection after a while', async () => {
  let nowMs = 1_000;
  const clock: Clock = {
    now: () => nowMs,
    monotonic: () => nowMs,
    sleep: (_milliseconds, signal) => systemClock.sleep(2, signal),
  };
  const { server, handle, client, end } = await open(
    new MemoryFileSystem({ clock: systemClock }),
    clock,
  );
  const half = await RpcClient.open(server.nfsPort);
  await half.call(0, () => undefined);
  const whole = encodeCall(5, Procedure.getattr, (args) => args.opaque(handle));
  half.socket.write(whole.subarray(0, 40));
  const silent = await RpcClient.open(server.nfsPort);
  await until(() => server.connections === 3);
  await settle();
  assert.equal(half.closed || silent.closed, false);
  nowMs += nfsLimits.partialRecordTimeoutMs + 1;
  await until(() => half.closed);
  assert.equal(silent.closed, false);
  nowMs += nfsLimits.firstCallTimeoutMs;
  await until(() => silent.closed);
  // One that has been used may be quiet for as long as it likes.
  nowMs += 3_600_000;
  await settle();
  const reply = await client.call(Procedure.getattr, (args) => args.opaque(handle));
  assert.equal(reply.results.u32(), 0);
  await end();
});

test('records and messages that cannot be understood end the connection', async () => {
  const { server, end } = await open(new MemoryFileSystem({ clock: systemClock }));
  const tooLong = Buffer.from([0x80, 0x7f, 0xff, 0xff]);
  const notACall = frame(Buffer.from([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]));
  const empty = frame(Buffer.alloc(0));
  const fragments = Buffer.concat(Array.from({ length: 2_000 }, () => Buffer.alloc(4)));
  for (const bytes of [tooLong, notACall, empty, fragments]) {
    const client = await RpcClient.open(server.nfsPort);
    client.socket.write(bytes);
    await until(() => client.closed);
  }
  await end();
});

test('a client that half-closes still gets its replies', async () => {
  const memory = new HeldFileSystem({ clock: systemClock });
  const { server, handle, end } = await open(memory);
  const client = await RpcClient.open(server.nfsPort);
  const reply = client.call(Procedure.read, readArguments(handle, 0, 100));
  client.socket.end();
  await until(() => memory.running === 1);
  memory.letGo();
  assert.equal((await reply).results.u32(), 0);
  await until(() => client.closed);
  await end();
});

test('a file system that fails without a status answers SERVERFAULT, and is heard of', async () => {
  class Broken extends MemoryFileSystem {
    broken = false;
    override attributes(file: number): Attributes {
      if (this.broken) throw new TypeError('a fault of ours');
      return super.attributes(file);
    }
  }
  const memory = new Broken({ clock: systemClock });
  const { server, handle, client, end } = await open(memory);
  memory.broken = true;
  const reply = await client.call(Procedure.getattr, (args) => args.opaque(handle));
  assert.equal(reply.results.u32(), 10_006);
  assert.equal(server.exports()[0]?.failed, 1);
  await end();
});
