import assert from 'node:assert/strict';
import { duplexPair } from 'node:stream';
import type { Duplex } from 'node:stream';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { isRouseError, RouseError } from '../errors.ts';
import { systemClock } from '../lib/clock.ts';
import type { Clock } from '../lib/clock.ts';
import { connectNbdStream } from './client.ts';
import type { NbdDisk } from './client.ts';
import { MemoryDisk } from './memory-disk.ts';
import {
  chunk,
  command,
  decodeRequest,
  decodeStatus,
  encodeChunkHeader,
  encodeError,
  encodeOptionReply,
  encodeRequest,
  encodeSimpleReply,
  encodeStatus,
  info,
  magic,
  option,
  optionReply,
  uint16,
  uint32,
  uint64,
} from './protocol.ts';
import type { Request } from './protocol.ts';
import { Parts } from './requests.ts';
import { serveSession } from './session.ts';
import { Wire } from './wire.ts';

const KiB = 1024;

function content(sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (let at = sizeBytes / 4; at < sizeBytes / 2; at++) bytes[at] = (at * 31 + (at >> 8)) & 255;
  return bytes;
}

/** Our server on one end of a pair of streams, our client on the other. */
async function pair(disk: MemoryDisk, isWritable = true): Promise<Session> {
  const [near, far] = duplexPair();
  const item = { name: 'vda', disk, ...(isWritable ? { writable: disk } : {}) };
  const over = serveSession(new Wire(far), { exports: () => [item], clock: systemClock });
  const client = await connectNbdStream(near, 'pair', { exportName: 'vda', clock: systemClock });
  return { client, over };
}

interface Session {
  readonly client: NbdDisk;
  readonly over: Promise<void>;
}

test('what is written through client and server is what is read', async () => {
  const bytes = content(3 * 1024 * KiB);
  const disk = new MemoryDisk(bytes);
  const { client, over } = await pair(disk);
  const read = Buffer.alloc(bytes.length);
  await client.read(read, 0);
  assert.ok(read.equals(bytes));
  await client.write(Buffer.alloc(5000, 9), 777);
  await client.zero(800_000, 300_000);
  await client.sync();
  bytes.fill(9, 777, 5777);
  bytes.fill(0, 800_000, 1_100_000);
  assert.ok(disk.bytes.equals(bytes));
  assert.equal(disk.syncs, 1);
  const extents = await client.extents(0, bytes.length);
  assert.deepEqual(extents, await disk.extents(0, bytes.length));
  await client.close();
  await over;
});

test('a read-only export refuses writes on both sides; errors below arrive with their words', async () => {
  const disk = new MemoryDisk(content(64 * KiB));
  const { client, over } = await pair(disk, false);
  await assert.rejects(client.write(Buffer.alloc(1), 0), (e) => isRouseError(e, 'forbidden'));
  disk.failure = new RouseError('corrupt-data', 'block 7 is bad');
  await assert.rejects(client.read(Buffer.alloc(512), 0), (error) => {
    assert.ok(isRouseError(error, 'io-error'));
    return /block 7 is bad/.test(error.message);
  });
  disk.failure = undefined;
  await client.read(Buffer.alloc(512), 0);
  await client.close();
  await over;
});

test('a full disk keeps its meaning', async () => {
  const disk = new MemoryDisk(content(64 * KiB));
  const { client, over } = await pair(disk);
  disk.failure = new RouseError('disk-full', 'no space');
  await assert.rejects(client.write(Buffer.alloc(512), 0), (e) => isRouseError(e, 'disk-full'));
  await client.close();
  await over;
});

test('ranges outside of the disk never reach the wire', async () => {
  const { client, over } = await pair(new MemoryDisk(content(64 * KiB)));
  for (const offset of [-1, 65_536, 1.5, Number.NaN]) {
    await assert.rejects(client.read(Buffer.alloc(1), offset), (e) =>
      isRouseError(e, 'bad-request'),
    );
  }
  await client.close();
  await over;
});

/** A server by script: shakes hands, then answers each request as told. */
async function scripted(spec: {
  readonly structured: boolean;
  readonly answer: (request: Request, wire: Wire, stream: Duplex) => Promise<void> | void;
  readonly clock?: Clock;
}): Promise<NbdDisk> {
  const [near, far] = duplexPair();
  void scriptedServer(new Wire(far), far, spec).catch(() => undefined);
  return connectNbdStream(near, 'scripted', { exportName: 'x', clock: spec.clock ?? systemClock });
}

async function scriptedServer(
  wire: Wire,
  stream: Duplex,
  spec: Parameters<typeof scripted>[0],
): Promise<void> {
  const hello = Buffer.alloc(18);
  hello.writeBigUInt64BE(magic.server, 0);
  hello.writeBigUInt64BE(magic.option, 8);
  hello.writeUInt16BE(3, 16);
  await wire.write(hello);
  await wire.take(4);
  for (let isOver = false; !isOver;) {
    const head = await wire.take(16);
    const type = head.readUInt32BE(8);
    await wire.take(head.readUInt32BE(12));
    const reply = (kind: number, payload = Buffer.alloc(0)) =>
      wire.write(encodeOptionReply(type, kind, payload));
    if (type === option.structuredReply && !spec.structured) {
      await reply(optionReply.errorUnsupported);
      continue;
    }
    if (type === option.setMetaContext) {
      await reply(
        optionReply.metaContext,
        Buffer.concat([uint32(7), Buffer.from('base:allocation')]),
      );
    }
    if (type === option.go) {
      await reply(
        optionReply.info,
        Buffer.concat([uint16(info.export), uint64(64 * KiB), uint16(1)]),
      );
      isOver = true;
    }
    await reply(optionReply.ack);
  }
  for (;;) {
    const request = decodeRequest(await wire.take(28));
    if (request === undefined || request.type === command.disconnect) {
      stream.destroy();
      return;
    }
    await spec.answer(request, wire, stream);
  }
}

test('a server without structured replies: all is read, nothing is known to be zero', async () => {
  const client = await scripted({
    structured: false,
    answer: async ({ cookie, length }, wire) => {
      await wire.write(encodeSimpleReply(cookie, 0), Buffer.alloc(length, 3));
    },
  });
  const bytes = Buffer.alloc(4096);
  await client.read(bytes, 512);
  assert.ok(bytes.every((byte) => byte === 3));
  assert.deepEqual(await client.extents(0, 4096), [{ offset: 0, length: 4096, zero: false }]);
  assert.deepEqual(client.contexts, []);
  await client.close();
});

test('replies in any order and in parts are put where they belong', async () => {
  const waiting: Request[] = [];
  const client = await scripted({
    structured: true,
    answer: async (request, wire) => {
      waiting.push(request);
      if (waiting.length < 3) return;
      for (const { cookie, offset, length } of waiting.splice(0).toReversed()) {
        const half = length / 2;
        const data = Buffer.alloc(half, offset / 4096);
        const type = chunk.offsetData;
        const head = encodeChunkHeader({ flags: 0, type, cookie, length: 8 + half });
        await wire.write(head, uint64(offset + half), data);
        const hole = encodeChunkHeader({ flags: 1, type: chunk.offsetHole, cookie, length: 12 });
        await wire.write(hole, uint64(offset), uint32(half));
      }
    },
  });
  const bytes = Buffer.alloc(3 * 4096, 0xee);
  await Promise.all(
    [1, 2, 3].map((i) => client.read(bytes.subarray((i - 1) * 4096, i * 4096), i * 4096)),
  );
  for (const i of [1, 2, 3]) {
    assert.ok(bytes.subarray((i - 1) * 4096, (i - 1) * 4096 + 2048).every((byte) => byte === 0));
    assert.ok(bytes.subarray((i - 1) * 4096 + 2048, i * 4096).every((byte) => byte === i));
  }
  await client.close();
});

const data = (cookie: bigint, offset: number, length: number, flags = 0) =>
  Buffer.concat([
    encodeChunkHeader({ flags, type: chunk.offsetData, cookie, length: 8 + length }),
    uint64(offset),
    Buffer.alloc(length, 1),
  ]);

const done = (cookie: bigint) =>
  encodeChunkHeader({ flags: 1, type: chunk.none, cookie, length: 0 });

/** Each breaks one MUST of the protocol; none may be believed, none may hang. */
const lies: Readonly<Record<string, (request: Request) => Buffer>> = {
  'an unknown magic': () => Buffer.alloc(20, 0x55),
  'a cookie that nobody sent': ({ cookie }) => done(cookie + 1n),
  'too little data': ({ cookie, offset }) =>
    Buffer.concat([data(cookie, offset, 100), done(cookie)]),
  'data before the range': ({ cookie, offset }) => data(cookie, offset - 1, 100),
  'data beyond the range': ({ cookie, offset, length }) => data(cookie, offset, length + 1),
  'data far away': ({ cookie }) => data(cookie, 2 ** 60, 10),
  'the same data twice': ({ cookie, offset }) =>
    Buffer.concat([data(cookie, offset, 100), data(cookie, offset + 99, 100)]),
  'an empty data chunk': ({ cookie, offset }) => data(cookie, offset, 0),
  'a hole of odd form': ({ cookie }) =>
    Buffer.concat([
      encodeChunkHeader({ flags: 1, type: chunk.offsetHole, cookie, length: 13 }),
      Buffer.alloc(13),
    ]),
  'a simple reply to a read': ({ cookie }) => encodeSimpleReply(cookie, 0),
  'an unknown chunk': ({ cookie }) => encodeChunkHeader({ flags: 1, type: 77, cookie, length: 0 }),
  'a status in answer to a read': ({ cookie }) => {
    const payload = encodeStatus(7, [{ length: 512, flags: 0 }]);
    const type = chunk.blockStatus;
    const { length } = payload;
    return Buffer.concat([encodeChunkHeader({ flags: 1, type, cookie, length }), payload]);
  },
  'an endless error': ({ cookie }) =>
    encodeChunkHeader({ flags: 1, type: chunk.error, cookie, length: 2 ** 31 }),
  'an error of zero': ({ cookie }) =>
    Buffer.concat([
      encodeChunkHeader({ flags: 1, type: chunk.error, cookie, length: 6 }),
      encodeError(0, ''),
    ]),
};

for (const [name, lie] of Object.entries(lies)) {
  test(`a server that lies: ${name}`, async () => {
    const client = await scripted({
      structured: true,
      answer: (request, wire) => wire.write(lie(request)),
    });
    const isProtocolError = (error: unknown) =>
      isRouseError(error, 'corrupt-data') && /breaks the NBD protocol/.test(error.message);
    await assert.rejects(client.read(Buffer.alloc(4096), 4096), isProtocolError);
    // The connection is not used again.
    await assert.rejects(client.read(Buffer.alloc(512), 0), isProtocolError);
    await client.close();
  });
}

test('a status that lies about its context or says nothing', async () => {
  for (const payload of [
    encodeStatus(8, [{ length: 512, flags: 0 }]),
    encodeStatus(7, [{ length: 0, flags: 0 }]),
    encodeStatus(7, []),
  ]) {
    const client = await scripted({
      structured: true,
      answer: ({ cookie }, wire) =>
        wire.write(
          encodeChunkHeader({ flags: 1, type: chunk.blockStatus, cookie, length: payload.length }),
          payload,
        ),
    });
    await assert.rejects(client.extents(0, 4096), (e) => isRouseError(e, 'corrupt-data'));
    await client.close();
  }
});

test('a server that vanishes, at any moment, is an error and no wait', async () => {
  for (const bytes of [0, 10, 16, 20, 28, 500]) {
    const client = await scripted({
      structured: true,
      answer: async ({ cookie, offset }, wire, stream) => {
        if (bytes > 0) await wire.write(data(cookie, offset, 4096).subarray(0, bytes));
        stream.destroy();
      },
    });
    await assert.rejects(client.read(Buffer.alloc(4096), 0), (error) => {
      assert.ok(isRouseError(error, 'host-unreachable'), String(error));
      return /scripted: vanished/.test(error.message);
    });
    await client.close();
  }
});

/** Time passes only when the test says so. */
class ManualClock implements Clock {
  #now = 0;
  readonly #sleepers = new Set<{ readonly until: number; readonly wake: () => void }>();

  now(): number {
    return this.#now;
  }

  monotonic(): number {
    return this.#now;
  }

  sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) return reject(signal.reason);
      const sleeper = { until: this.#now + milliseconds, wake: resolve };
      this.#sleepers.add(sleeper);
      signal?.addEventListener('abort', () => {
        this.#sleepers.delete(sleeper);
        reject(signal.reason);
      });
    });
  }

  async pass(milliseconds: number): Promise<void> {
    this.#now += milliseconds;
    for (const sleeper of this.#sleepers) {
      if (sleeper.until > this.#now) continue;
      this.#sleepers.delete(sleeper);
      sleeper.wake();
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
}

test('a silent server is given up, by the clock; one that nobody asks is not', async () => {
  const clock = new ManualClock();
  const client = await scripted({
    structured: true,
    clock,
    answer: async ({ cookie, length, offset }, wire) => {
      if (offset > 0) await new Promise<void>(() => undefined);
      await wire.write(data(cookie, offset, length, 1));
    },
  });
  for (let i = 0; i < 20; i++) await clock.pass(15_000);
  await client.read(Buffer.alloc(512), 0);
  const reading = client.read(Buffer.alloc(512), 512);
  let isOver = false;
  const over = assert
    .rejects(reading, (error) => isRouseError(error, 'time-out'))
    .finally(() => (isOver = true));
  for (let i = 0; i < 3; i++) await clock.pass(15_000);
  assert.equal(isOver, false);
  for (let i = 0; i < 3; i++) await clock.pass(15_000);
  await over;
  await client.close();
});

test('requests and statuses survive the wire', () => {
  fc.assert(
    fc.property(
      fc.record({
        flags: fc.nat(0xffff),
        type: fc.nat(0xffff),
        cookie: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        offset: fc.maxSafeNat(),
        length: fc.nat(0xffffffff),
      }),
      (request) => assert.deepEqual(decodeRequest(encodeRequest(request)), { ...request }),
    ),
  );
  const extent = fc.record({
    length: fc.integer({ min: 1, max: 0xffffffff }),
    flags: fc.nat(0xffffffff),
  });
  fc.assert(
    fc.property(fc.nat(0xffffffff), fc.array(extent, { minLength: 1 }), (context, extents) => {
      const plain = extents.map((one) => ({ ...one }));
      assert.deepEqual(decodeStatus(encodeStatus(context, extents)), { context, extents: plain });
    }),
  );
});

test('parts of a read: whole exactly when every byte came once', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(40), fc.nat(12))), (pieces) => {
      const parts = new Parts(100, 50);
      const seen = new Set<number>();
      for (const [start, length] of pieces) {
        const range = Array.from({ length: length + 1 }, (_, i) => 100 + start + i);
        if (range.some((at) => at >= 150)) continue;
        const isNew = range.every((at) => !seen.has(at));
        assert.equal(parts.add(100 + start, length + 1), isNew);
        if (!isNew) return;
        for (const at of range) seen.add(at);
        assert.equal(parts.isWhole, seen.size === 50);
      }
    }),
  );
});
