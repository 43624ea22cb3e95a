import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { after, before, test } from 'node:test';
import { systemClock } from '../../src/lib/clock.ts';
import { Procedure } from '../../src/nfs/nfs3/types.ts';
import { createNfsServer, type NfsServer } from '../../src/nfs/server.ts';
import type { XdrWriter } from '../../src/nfs/xdr.ts';
import { lateFileSystem, MemoryFileSystem } from '../../src/testing/memory-file-system.ts';
import { encodeCall, frame, RpcClient } from '../../src/testing/nfs-client.ts';

/**
 * Hostile bytes, by seed. Whatever comes, the server does not fall over, answers or closes, holds no
 * more than its bounds, and serves an honest client afterwards. A failure prints its seed; run it
 * again with ROUSE_FUZZ_SEED.
 */
const firstSeed = Number(process.env['ROUSE_FUZZ_SEED'] ?? 1);
const seeds = Array.from(
  { length: process.env['ROUSE_FUZZ_SEED'] === undefined ? 60 : 1 },
  (_, index) => firstSeed + index,
);

const warnings: unknown[] = [];
let server: NfsServer;
let memory: MemoryFileSystem;
let honest: RpcClient;
let handles: Buffer[];

before(async () => {
  memory = new MemoryFileSystem({ clock: systemClock, capacityBytes: 32 << 20 });
  memory.put('/web01/disk', Buffer.alloc(200_000, 1));
  memory.put('/web01/other', Buffer.alloc(10, 2));
  server = createNfsServer({
    clock: systemClock,
    log: { info: () => undefined, warn: (facts) => void warnings.push(facts) },
    listen: { addresses: ['127.0.0.1'], nfsPort: 0, mountPort: 0, portmap: 'off' },
  });
  await server.start();
  const clients = ['127.0.0.1'];
  const secret = Buffer.alloc(32, 1);
  server.addExport({ id: 1, path: '/now', secret, clients, fileSystem: memory });
  const late = lateFileSystem(memory);
  server.addExport({ id: 2, path: '/late', secret, clients, fileSystem: late });
  honest = await RpcClient.open(server.nfsPort);
  handles = [];
  for (const path of ['/now', '/late', '/now/web01', '/late/web01']) {
    const reply = await honest.call(1, (args) => args.text(path), { program: 100_005 });
    assert.equal(reply.results.u32(), 0);
    handles.push(Buffer.from(reply.results.opaque(64)));
  }
  for (const directory of handles.slice(2)) {
    const reply = await honest.call(Procedure.lookup, (args) => {
      args.opaque(directory);
      args.text('disk');
    });
    assert.equal(reply.results.u32(), 0);
    handles.push(Buffer.from(reply.results.opaque(64)));
  }
});

after(async () => {
  await honest.close();
  await server.close();
});

test('any bytes: answered or closed', async () => {
  for (const seed of seeds) {
    const random = generator(seed);
    await provoke(seed, randomBytes(random, random(4_000)));
    await provoke(seed, frame(randomBytes(random, random(600)), 1 + random(700)));
  }
});

test('calls with flipped, cut and stretched bytes: answered or closed', async () => {
  for (const seed of seeds) {
    const random = generator(seed);
    const calls = Array.from({ length: 40 }, () => mutated(random, someCall(random)));
    await provoke(seed, Buffer.concat(calls), 1 + random(3_000));
  }
});

test('well-formed calls with wild arguments: every one is answered', async () => {
  for (const seed of seeds) {
    const random = generator(seed);
    const client = await RpcClient.open(server.nfsPort);
    const replies = Array.from({ length: 60 }, () => {
      const xid = client.freshXid();
      const reply = client.replyTo(xid);
      client.socket.write(someCall(random, xid));
      return reply;
    });
    for (const reply of await Promise.all(replies)) {
      assert.ok(reply.denied || reply.status <= 4, `seed ${seed}: accept_stat ${reply.status}`);
    }
    await client.close();
  }
});

test('afterwards nothing is left in flight, and all errors had a status', async () => {
  const reply = await honest.call(Procedure.getattr, (args) => args.opaque(handles[0] as Buffer));
  assert.equal(reply.results.u32(), 0);
  assert.equal(server.inFlightBytes, 0);
  for (let wait = 0; wait < 3_000 && server.connections > 1; wait++) await systemClock.sleep(10);
  assert.equal(server.connections, 1);
  assert.deepEqual(warnings, []);
});

/** Sends bytes and waits until the server has answered all or closed; then it has to serve. */
async function provoke(seed: number, bytes: Buffer, pieceBytes = bytes.length): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const socket = connect({ port: server.nfsPort, host: '127.0.0.1' });
    const giveUp = setTimeout(() => {
      socket.destroy();
      reject(new Error(`seed ${seed}: neither answered nor closed`));
    }, 60_000);
    socket.on('data', () => undefined);
    // A reset is one way to close.
    socket.on('error', () => undefined);
    socket.on('close', () => {
      clearTimeout(giveUp);
      resolve();
    });
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      socket.write(bytes.subarray(at, at + pieceBytes));
    }
    socket.end();
  });
  const reply = await honest.call(Procedure.getattr, (args) => args.opaque(handles[0] as Buffer));
  assert.equal(reply.results.u32(), 0, `seed ${seed}`);
}

// -- calls ----------------------------------------------------------------------------------------

type Random = (below: number) => number;

function generator(seed: number): Random {
  let state = Math.imul(seed, 2_654_435_761) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % Math.max(1, below);
  };
}

function randomBytes(random: Random, length: number): Buffer {
  return Buffer.from(Array.from({ length }, () => random(256)));
}

function pick<T>(random: Random, values: readonly T[]): T {
  return values[random(values.length)] as T;
}

const numbers = [0, 1, 2, 3, 4_096, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff, 65_536];
const names = [
  'disk',
  'other',
  'a',
  '',
  '.',
  '..',
  'a/b',
  '\0',
  'é',
  'x'.repeat(255),
  'y'.repeat(300),
];

function someCall(random: Random, xid = random(0xffff_ffff)): Buffer {
  const program = pick(random, [100_003, 100_003, 100_003, 100_003, 100_005, 100_000, random(9)]);
  const procedure = random(program === 100_003 ? 23 : 7);
  const version = random(20) === 0 ? random(9) : 3;
  const uid = pick(random, [0, 99]);
  const args = (writer: XdrWriter) => someArguments(random, procedure, writer);
  return encodeCall(xid, procedure, args, { program, version, uid });
}

/** Mostly what a procedure takes: a handle, then names, numbers and bytes. */
function someArguments(random: Random, procedure: number, writer: XdrWriter): void {
  if (random(10) > 0) writer.opaque(pick(random, handles));
  else writer.opaque(randomBytes(random, random(65)));
  const takesName = [3, 8, 9, 10, 11, 12, 13, 14].includes(procedure);
  if (takesName) writer.text(pick(random, names));
  if (procedure === 14 || procedure === 15) {
    writer.opaque(pick(random, handles));
    writer.text(pick(random, names));
  }
  if (procedure === 7) {
    const data = randomBytes(random, random(200));
    for (const value of [0, random(300_000), data.length, random(3)]) writer.u32(value);
    return writer.opaque(data);
  }
  const wanted: Record<number, number> = { 2: 7, 4: 1, 6: 3, 8: 7, 9: 6, 16: 5, 17: 6, 21: 3 };
  const count = (wanted[procedure] ?? 0) + (random(8) === 0 ? random(4) : 0);
  const mild = random(2) === 0;
  for (let index = 0; index < count; index++) {
    writer.u32(mild ? random(3) : pick(random, numbers));
  }
}

function mutated(random: Random, call: Buffer): Buffer {
  const bytes = Buffer.from(call);
  const kind = random(4);
  if (kind === 0) return bytes.subarray(0, random(bytes.length + 1));
  if (kind === 1) return Buffer.concat([bytes, randomBytes(random, random(20))]);
  for (let flips = random(6); flips > 0; flips--) {
    const at = 4 + random(bytes.length - 4);
    bytes[at] = (bytes[at] ?? 0) ^ (1 << random(8));
  }
  return bytes;
}
