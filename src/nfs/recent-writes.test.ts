import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../lib/clock.ts';
import { MemoryFileSystem } from '../testing/memory-file-system.ts';
import { encodeCall, RpcClient } from '../testing/nfs-client.ts';
import { directoryName, EXPORT_PATH, EXPORT_SECRET, MOUNT } from '../testing/nfs-conversation.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { ExportTable } from './exports.ts';
import type { FileSystem } from './file-system.ts';
import { Procedure } from './nfs3/types.ts';
import { RecentWrites, REPLACED, writeMark } from './recent-writes.ts';
import { createNfsServer } from './server.ts';

/** Bytes of a connection that its client gave up come late, and must not undo newer ones. */

function notes(count: number) {
  const table = new ExportTable();
  const fileSystem = new MemoryFileSystem({ clock: systemClock });
  const definition = { id: 3, path: '/a', secret: EXPORT_SECRET, clients: ['::1'], fileSystem };
  const from = table.add(definition, 0);
  const ended: number[] = [];
  return { from, ended, writes: new RecentWrites(table, (serial) => ended.push(serial), count) };
}

test('of two connections with the same write the older one ends, and runs nothing', () => {
  const { writes, ended } = notes(64);
  const place = writes.begin(1, 3, 100, 7);
  assert.ok(place >= 0);
  assert.equal(writes.begin(1, 3, 100, 7), place);
  assert.deepEqual(ended, []);
  assert.equal(writes.begin(2, 3, 100, 7), place);
  assert.deepEqual(ended, [1]);
  assert.equal(writes.begin(1, 3, 100, 7), REPLACED);
});

test('another xid, mark or export is another write', () => {
  const { writes, ended } = notes(64);
  const places = [
    writes.begin(1, 3, 100, 7),
    writes.begin(2, 3, 100, 8),
    writes.begin(3, 4, 100, 7),
    writes.begin(4, 3, 101, 7),
  ];
  assert.equal(new Set(places).size, 4);
  assert.deepEqual(ended, []);
});

test('a repetition waits while the first run lasts', async () => {
  const { writes, ended } = notes(64);
  const place = writes.begin(1, 3, 100, 7);
  writes.started(place);
  const wait = writes.begin(2, 3, 100, 7);
  assert.ok(wait < REPLACED);
  assert.deepEqual(ended, [1]);
  let over = false;
  const waiting = writes.over(wait).then(() => (over = true));
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(over, false);
  writes.ended(place);
  await waiting;
  assert.equal(writes.begin(2, 3, 100, 7), place);
});

test('notes that are given up are remembered by their export; running ones stay', () => {
  const { writes, from } = notes(8);
  const running = writes.begin(5, 3, 0, 0);
  writes.started(running);
  for (let xid = 1; xid < 8; xid++) writes.begin(5, 3, xid, 0);
  assert.equal(from.forgottenSerial, 0);
  for (let xid = 8; xid < 40; xid++) writes.begin(6, 3, xid, 0);
  assert.equal(from.forgottenSerial, 6);
  assert.ok(writes.begin(6, 3, 0, 0) < REPLACED);
});

test('when all notes of a bucket run, one more write still runs', () => {
  const { writes, from } = notes(8);
  for (let xid = 0; xid < 8; xid++) writes.started(writes.begin(1, 3, xid, 0));
  const place = writes.begin(2, 3, 8, 0);
  assert.ok(place >= 0);
  writes.started(place);
  writes.ended(place);
  assert.equal(from.forgottenSerial, 2);
});

test('a mark sees place, length and data, near and far', () => {
  const data = Buffer.alloc(4096, 1);
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const mark = (file = 1, offset = 0, bytes = 4096) => writeMark(9, file, offset, view, 0, bytes);
  const first = mark();
  assert.equal(mark(), first);
  assert.notEqual(writeMark(8, 1, 0, view, 0, 4096), first);
  const others = [mark(2), mark(1, 4096), mark(1, 2 ** 33), mark(1, 0, 2048), mark(1, 0, 3)];
  data[0] = 2;
  others.push(mark());
  data[0] = 1;
  data[4096 - 128] = 2;
  others.push(mark());
  assert.equal(new Set([first, ...others]).size, others.length + 1);
});

/** Writes take a random number of turns, as with a disk behind it; at once when it says 0. */
function slowFileSystem(inner: MemoryFileSystem, turns: () => number): FileSystem {
  return new Proxy<FileSystem>(inner, {
    get(target, name) {
      if (name === 'write') {
        return async (...values: Parameters<FileSystem['write']>) => {
          for (let left = turns(); left > 0; left--) {
            await new Promise((resolve) => setImmediate(resolve));
          }
          return target.write(...values);
        };
      }
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

/** Mostly quick; some take longer than a client needs to connect anew. */
function turnsFrom(random: SeededRandom): () => number {
  return () => random.below(random.chance(0.2) ? 300 : 6);
}

async function openScene(random: SeededRandom, writeNotesMax: number) {
  const memory = new MemoryFileSystem({ clock: systemClock });
  memory.put('/disk', Buffer.alloc(64));
  const fileSystem = random.chance(0.5) ? slowFileSystem(memory, turnsFrom(random)) : memory;
  const server = createNfsServer({
    clock: systemClock,
    log: { info: () => undefined, warn: () => undefined },
    listen: { addresses: ['127.0.0.1'], nfsPort: 0, mountPort: 0, portmap: 'off' },
    writeNotesMax,
  });
  await server.start();
  const clients = ['127.0.0.1'];
  server.addExport({ id: 7, path: EXPORT_PATH, secret: EXPORT_SECRET, clients, fileSystem });
  const client = await RpcClient.open(server.nfsPort);
  const mounted = await client.call(1, (args) => args.text(EXPORT_PATH), MOUNT);
  assert.equal(mounted.results.u32(), 0);
  const root = Buffer.from(mounted.results.opaque(64));
  const found = await client.call(Procedure.lookup, (args) => directoryName(args, root, 'disk'));
  assert.equal(found.results.u32(), 0);
  return { memory, server, client, handle: Buffer.from(found.results.opaque(64)) };
}

/**
 * A client that writes one value after the other to a few places, each once the one before was
 * answered. Its connections break now and then: what it sent over them comes late, when it has long
 * gone on over a new one. Returns how many writes came so.
 */
async function live(seed: number, writeNotesMax: number): Promise<number> {
  const random = new SeededRandom(seed);
  const scene = await openScene(random, writeNotesMax);
  const all = [scene.client];
  try {
    return await writeAll(seed, random, scene, all);
  } finally {
    await Promise.all(all.map((one) => one.close()));
    await scene.server.close();
  }
}

async function writeAll(
  seed: number,
  random: SeededRandom,
  { memory, server, client: first, handle }: Awaited<ReturnType<typeof openScene>>,
  all: RpcClient[],
): Promise<number> {
  let client = first;
  const late: { client: RpcClient; bytes: Buffer }[] = [];
  const wanted = Buffer.alloc(64);
  let sentLate = 0;
  const sendLate = () => {
    const [piece] = late.splice(random.below(late.length), 1);
    if (piece === undefined || piece.client.closed) return;
    sentLate++;
    piece.client.socket.write(piece.bytes);
  };
  for (let value = 1; value <= 60; value++) {
    const xid = 5000 + value;
    const at = random.below(4) * 16;
    const data = Buffer.alloc(16, value);
    const bytes = writeCall(xid, handle, at, data, random.below(3));
    // Sent, but the connection is taken for dead before the answer: here or on the way it lingers.
    while (random.chance(0.25)) {
      if (random.chance(0.5)) client.socket.write(bytes);
      else late.push({ client, bytes });
      client = await RpcClient.open(server.nfsPort);
      all.push(client);
    }
    const reply = client.replyTo(xid);
    client.socket.write(bytes);
    assert.equal((await reply).results.u32(), 0, `seed ${seed}: write ${value}`);
    data.copy(wanted, at);
    while (late.length > 0 && random.chance(0.5)) sendLate();
    if (random.chance(0.3)) await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(memory.contents('/disk'), wanted, `seed ${seed}: after write ${value}`);
  }
  while (late.length > 0) sendLate();
  // A call over each connection comes back, or the connection ends: all bytes before it were taken.
  await Promise.all(all.map((one) => one.call(0, () => undefined).catch(() => undefined)));
  await server.removeExport(EXPORT_PATH);
  assert.deepEqual(memory.contents('/disk'), wanted, `seed ${seed}: at the end`);
  return sentLate;
}

function writeCall(xid: number, handle: Buffer, at: number, data: Buffer, stable: number): Buffer {
  return encodeCall(xid, Procedure.write, (args) => {
    args.opaque(handle);
    args.u64Number(at);
    args.u32(data.length);
    args.u32(stable);
    args.opaque(data);
  });
}

test('late repetitions never undo what was written since, by seed', async () => {
  let sentLate = 0;
  for (let seed = 1; seed <= 40; seed++) sentLate += await live(seed, seed % 2 === 0 ? 8 : 4096);
  assert.ok(sentLate > 40, `${sentLate} repetitions came late`);
});
