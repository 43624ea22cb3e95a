import assert from 'node:assert/strict';
import { duplexPair } from 'node:stream';
import type { Duplex } from 'node:stream';
import { test } from 'node:test';
import { RouseError } from '#src/errors.ts';
import { systemClock } from '#src/lib/clock.ts';
import { connectNbdStream } from '#src/nbd/client.ts';
import { MemoryDisk } from '#src/nbd/memory-disk.ts';
import { serveSession } from '#src/nbd/session.ts';
import { Wire } from '#src/nbd/wire.ts';

/**
 * Real conversations with bytes changed on the way, by seed: the client ends with data or one
 * RouseError, the server with its session; neither crashes, hangs or remembers without bound.
 * NBD_SEED and NBD_ROUNDS repeat or widen a run.
 */
const seed = Number(process.env['NBD_SEED'] ?? 20261122);
const rounds = Number(process.env['NBD_ROUNDS'] ?? 200);

function randomOf(start: number): (below: number) => number {
  let state = start >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) % below;
  };
}

/** Passes bytes on, in other pieces, some of them changed, dropped or doubled. */
function spoil(from: Duplex, to: Duplex, random: (below: number) => number): void {
  let passed = 0;
  const spoilAt = random(600);
  from.on('data', (bytes: Buffer) => {
    let copy: Buffer = Buffer.from(bytes);
    const isHere = spoilAt >= passed && spoilAt < passed + bytes.length;
    passed += bytes.length;
    if (isHere) {
      const at = spoilAt - (passed - bytes.length);
      const kind = random(5);
      if (kind === 0) copy = copy.subarray(0, at);
      else if (kind === 1) copy = Buffer.concat([copy.subarray(0, at), copy]);
      else if (kind === 2) copy.fill(255, at, Math.min(copy.length, at + 1 + random(8)));
      else copy[at] = random(256);
    }
    const cut = random(copy.length + 1);
    if (to.writable) to.write(copy.subarray(0, cut));
    if (to.writable) to.write(copy.subarray(cut));
  });
  from.on('end', () => to.end());
  from.on('close', () => to.destroy());
  from.on('error', () => to.destroy());
}

/** A clock on which a time-out comes after some 50 ms, so that a wait is an answer as well. */
const hasty = {
  now: () => systemClock.now(),
  monotonic: () => systemClock.monotonic() * 1000,
  sleep: (milliseconds: number, signal?: AbortSignal) =>
    systemClock.sleep(milliseconds / 1000, signal),
};

const content = Buffer.from(Array.from({ length: 40_960 }, (_, i) => (i < 9000 ? 0 : i & 255)));

async function conversation(random: (below: number) => number, spoilt: 'client' | 'server') {
  const [near, nearFar] = duplexPair();
  const [far, farNear] = duplexPair();
  const clean = () => 10_000_000;
  spoil(nearFar, farNear, spoilt === 'server' ? random : clean);
  spoil(farNear, nearFar, spoilt === 'client' ? random : clean);
  const disk = new MemoryDisk(content);
  const item = { name: 'vda', disk, writable: disk };
  const session = serveSession(new Wire(far), { exports: () => [item], clock: hasty });
  let result: unknown;
  try {
    const client = await connectNbdStream(near, 'fuzzed', { exportName: 'vda', clock: hasty });
    try {
      await client.read(Buffer.alloc(4096), 8192);
      await client.extents(0, 40_960);
      await client.write(Buffer.alloc(1024, 7), 512);
      await client.zero(4096, 4096);
      await client.sync();
      await client.read(Buffer.alloc(20_000), 0);
    } finally {
      await client.close();
    }
  } catch (error) {
    result = error;
  }
  near.destroy();
  far.destroy();
  await session;
  return result;
}

for (const spoilt of ['client', 'server'] as const) {
  test(`bytes changed on their way to the ${spoilt}: an answer or one typed error`, async () => {
    let failures = 0;
    for (let round = 0; round < rounds; round++) {
      const error = await conversation(randomOf(seed + round), spoilt);
      if (error === undefined) continue;
      failures++;
      assert.ok(error instanceof RouseError, `seed ${seed + round}: ${String(error)}`);
      assert.notEqual(error.code, 'internal', `seed ${seed + round}: ${error.message}`);
    }
    assert.ok(failures > 0, 'not one change mattered');
    assert.ok(process.memoryUsage().rss < 600 * 1024 * 1024);
  });
}

test('noise instead of a peer ends the session, whichever side', async () => {
  for (let round = 0; round < rounds; round++) {
    const random = randomOf(seed + round);
    const noise = Buffer.from(Array.from({ length: random(300) }, () => random(256)));
    const [a, b] = duplexPair();
    const disk = new MemoryDisk(content);
    const session = serveSession(new Wire(b), {
      exports: () => [{ name: '', disk }],
      clock: hasty,
    });
    a.on('error', () => undefined);
    a.resume();
    a.end(noise);
    await session;
    const [c, d] = duplexPair();
    d.on('error', () => undefined);
    d.resume();
    d.end(noise);
    await assert.rejects(
      connectNbdStream(c, 'noise', { exportName: 'x', clock: hasty }),
      (error) => error instanceof RouseError,
    );
  }
});
