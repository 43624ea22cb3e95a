import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { frame } from '../testing/nfs-client.ts';
import { ClientList, normalAddress } from './clients.ts';
import { DuplicateRequests } from './duplicates.ts';
import { HandleMaker, HandleParts } from './handles.ts';
import { LatencyHistogram } from './latency.ts';
import { RecordError, RecordSplitter } from './records.ts';
import { nfsLimits } from '../limits.ts';
import { XdrError, XdrReader, XdrWriter } from './xdr.ts';

/** The codecs and small parts of the NFS room. */

test('XDR: what is written is read back, in multiples of four', () => {
  const u64 = fc.bigInt(0n, (1n << 64n) - 1n);
  fc.assert(
    fc.property(
      fc.nat(0xffff_ffff),
      u64,
      fc.maxSafeNat(),
      fc.boolean(),
      fc.uint8Array({ maxLength: 40 }),
      fc.string({ unit: 'grapheme', maxLength: 20 }),
      fc.array(fc.nat(0xffff_ffff), { maxLength: 16 }),
      (a, b, c, d, e, f, g) => {
        const writer = XdrWriter.ofSize(1_024);
        writer.u32(a);
        writer.u64(b);
        writer.u64Number(c);
        writer.bool(d);
        writer.opaque(e);
        writer.text(f);
        writer.u32(g.length);
        for (const value of g) writer.u32(value);
        assert.equal(writer.position % 4, 0);
        const reader = XdrReader.of(writer.written());
        assert.equal(reader.u32(), a);
        assert.equal(reader.u64(), b);
        assert.equal(reader.u64Number(), c);
        assert.equal(reader.bool(), d);
        assert.deepEqual(new Uint8Array(reader.opaque(40)), e);
        assert.equal(reader.text(200), Buffer.from(f).toString());
        assert.deepEqual(reader.u32Array(16), g);
        reader.done();
      },
    ),
  );
});

test('XDR: any bytes give a value or XdrError, and never reach outside', () => {
  const step = fc.constantFrom('u32', 'u64', 'bool', 'opaque', 'text', 'array', 'fixed', 'done');
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), fc.array(step), (bytes, steps) => {
      const reader = XdrReader.of(Buffer.from(bytes));
      try {
        for (const one of steps) {
          if (one === 'u32') reader.u32();
          else if (one === 'u64') reader.u64();
          else if (one === 'bool') reader.bool();
          else if (one === 'opaque') assert.ok(reader.opaque(1_000).length <= bytes.length);
          else if (one === 'text') reader.text(1_000);
          else if (one === 'array') assert.ok(reader.u32Array(1e9).length <= bytes.length / 4);
          else if (one === 'fixed') reader.fixed(5);
          else reader.done();
          assert.ok(reader.position <= bytes.length);
        }
      } catch (error) {
        assert.ok(error instanceof XdrError, String(error));
      }
    }),
  );
});

test('XDR: a writer never writes behind its memory', () => {
  const writer = XdrWriter.ofSize(8);
  assert.throws(() => writer.opaque(Buffer.alloc(5)), RangeError);
  assert.throws(() => XdrWriter.ofSize(4).text('x'), RangeError);
  assert.throws(() => XdrWriter.ofSize(4).u64Number(1), RangeError);
});

test('records: any cut of the stream and any fragments give the same records', () => {
  const record = fc.uint8Array({ maxLength: 300 });
  fc.assert(
    fc.property(
      fc.array(fc.tuple(record, fc.integer({ min: 1, max: 320 })), { maxLength: 12 }),
      fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1, maxLength: 30 }),
      fc.boolean(),
      (records, cuts, recycled) => {
        const memory = recycled
          ? { takeInput: (bytes: number) => Buffer.alloc(bytes + 7, 0xee) }
          : undefined;
        const splitter = new RecordSplitter(4_096, memory);
        const stream = Buffer.concat(
          records.map(([bytes, fragment]) => frame(Buffer.from(bytes), fragment)),
        );
        const seen: Buffer[] = [];
        let at = 0;
        for (let cut = 0; at < stream.length; cut++) {
          const end = at + (cuts[cut % cuts.length] ?? 1);
          splitter.push(stream.subarray(at, end));
          while (splitter.next()) {
            const { bytes, start, end } = splitter.span;
            seen.push(Buffer.from(bytes.subarray(start, end)));
          }
          at = end;
        }
        assert.equal(splitter.partial, false);
        const wanted = records.map(([bytes]) => Buffer.from(bytes));
        assert.deepEqual(seen, wanted);
      },
    ),
  );
});

test('records: large ones are gathered in recycled memory, too large ones end it', () => {
  const taken: number[] = [];
  const memory = {
    takeInput: (bytes: number) => {
      taken.push(bytes);
      return Buffer.alloc(1 << 20);
    },
  };
  const splitter = new RecordSplitter(1 << 20, memory);
  const record = Buffer.alloc(100_000, 7);
  const stream = frame(record);
  splitter.push(stream.subarray(0, 50_000));
  assert.equal(splitter.next(), false);
  assert.deepEqual(taken, []);
  splitter.push(stream.subarray(50_000));
  assert.equal(splitter.next(), true);
  assert.deepEqual(taken, [100_000]);
  const { bytes, start, end } = splitter.span;
  assert.equal(bytes.subarray(start, end).equals(record), true);
  const bounded = new RecordSplitter(1_000);
  bounded.push(Buffer.from([0x80, 0, 0x10, 0]));
  assert.throws(() => bounded.next(), RecordError);
  const creeping = new RecordSplitter(10);
  creeping.push(frame(Buffer.alloc(11), 3));
  assert.throws(() => creeping.next(), RecordError);
});

test('handles: ours are known again, all others are not', () => {
  const maker = new HandleMaker(5, Buffer.alloc(32, 1));
  const stranger = new HandleMaker(5, Buffer.alloc(32, 2));
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      fc.nat(0xffff_ffff),
      fc.nat(35),
      fc.integer({ min: 1, max: 255 }),
      (file, generation, at, flip) => {
        const wire = XdrWriter.ofSize(64);
        maker.write(wire, file, generation);
        const parts = new HandleParts();
        assert.equal(parts.read(XdrReader.of(wire.written())), true);
        assert.deepEqual([parts.exportId, parts.file, parts.generation], [5, file, generation]);
        assert.equal(maker.verify(parts), true);
        assert.equal(stranger.verify(parts), false);
        const changed = Buffer.from(wire.written());
        changed[4 + at] = (changed[4 + at] ?? 0) ^ flip;
        const others = new HandleParts();
        const readable = others.read(XdrReader.of(changed));
        const sameExport = others.exportId === 5;
        assert.equal(readable && sameExport && maker.verify(others), false);
      },
    ),
  );
});

test('handles: more files than are remembered are still known', () => {
  const maker = new HandleMaker(1, Buffer.alloc(32, 1));
  const first = Buffer.from(maker.handle(1, 1));
  for (let file = 2; file < nfsLimits.verifiedHandlesMax + 10; file++) maker.handle(file, 1);
  assert.deepEqual(maker.handle(1, 1), first);
});

test('clients: addresses and prefixes of both families, mapped ones included', () => {
  const list = new ClientList(['192.0.2.7', '10.1.0.0/16', '2001:db8::7', 'fd00::/8']);
  for (const address of ['192.0.2.7', '10.1.255.1', '2001:db8::7', 'fd12::1']) {
    assert.equal(list.allows(address), true, address);
  }
  for (const address of ['192.0.2.8', '10.2.0.1', '2001:db8::8', 'fe80::1', '', 'x']) {
    assert.equal(list.allows(address), false, address);
  }
  assert.equal(normalAddress('::ffff:10.1.2.3'), '10.1.2.3');
  assert.equal(normalAddress('::FFFF:a01:203'), '10.1.2.3');
  assert.equal(normalAddress('2001:DB8:0:0::7'), '2001:db8::7');
  assert.equal(normalAddress('fe80::1%eth0'), 'fe80::1');
  assert.equal(new ClientList(['::ffff:10.0.0.0/104']).allows('10.9.9.9'), true);
  assert.equal(new ClientList([]).allows('127.0.0.1'), false);
  for (const wrong of ['*', 'host', '10.0.0.1/33', '10.0.0.1/', '::/129', '1.2.3.4/8/8', '']) {
    assert.throws(() => new ClientList([wrong]), { code: 'bad-request' }, wrong);
  }
});

test('duplicates: joined while running, answered after, bounded by count, bytes and age', () => {
  const cache = new DuplicateRequests();
  const replies: string[] = [];
  const sink = (reply: Buffer) => replies.push(reply.toString());
  assert.equal(cache.begin('a', 0, sink), 'run');
  assert.equal(cache.begin('a', 1, sink), 'joined');
  cache.finish('a', Buffer.from('reply'));
  assert.deepEqual(replies, ['reply']);
  assert.equal(cache.begin('a', 2, sink), 'joined');
  assert.deepEqual(replies, ['reply', 'reply']);
  assert.equal(cache.begin('b', 3, sink), 'run');
  cache.forget('b');
  assert.equal(cache.begin('b', 4, sink), 'run');
  // `b` still runs: it stays, however old, or its repetition would run twice.
  assert.equal(cache.begin('a', nfsLimits.duplicateAgeMs + 1, sink), 'run');
  assert.equal(cache.begin('b', nfsLimits.duplicateAgeMs * 3, sink), 'joined');
  for (let index = 0; index < nfsLimits.duplicateEntriesMax * 2; index++) {
    cache.begin(`n${index}`, 10, sink);
    cache.finish(`n${index}`, Buffer.alloc(300));
  }
  assert.ok(cache.size <= nfsLimits.duplicateEntriesMax);
  for (let index = 0; index < 100; index++) {
    cache.begin(`m${index}`, 10, sink);
    cache.finish(`m${index}`, Buffer.alloc(200_000));
  }
  assert.ok(cache.bytes <= nfsLimits.duplicateBytesMax);
  const call = Buffer.from('call');
  const key = DuplicateRequests.key('10.0.0.1', 1, 8, call);
  assert.notEqual(key, DuplicateRequests.key('10.0.0.2', 1, 8, call));
  assert.notEqual(key, DuplicateRequests.key('10.0.0.1', 2, 8, call));
  assert.notEqual(key, DuplicateRequests.key('10.0.0.1', 1, 8, Buffer.from('cell')));
});

test('latency: every duration falls below the bound of its bucket', () => {
  fc.assert(
    fc.property(fc.double({ min: 0, max: 1e7, noNaN: true }), (milliseconds) => {
      const histogram = new LatencyHistogram();
      histogram.add(milliseconds);
      const { counts, upperBoundsMs, sumMs } = histogram.view();
      const at = counts.indexOf(1);
      assert.equal(sumMs, milliseconds);
      const isLast = at === counts.length - 1;
      assert.ok(isLast || milliseconds < (upperBoundsMs[at] ?? 0));
      assert.ok(at === 0 || milliseconds >= (upperBoundsMs[at - 1] ?? 0) - 1e-9);
    }),
  );
});
