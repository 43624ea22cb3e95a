import { isPromise, type MaybePromise } from '../../lib/maybe-promise.ts';
import { nfsLimits } from '../../limits.ts';
import type { Connection } from '../connection.ts';
import type { Export } from '../exports.ts';
import type { Attributes, FileId, WriteResult } from '../file-system.ts';
import { NfsStatus, type Stable } from '../file-system.ts';
import { REPLACED, writeMark } from '../recent-writes.ts';
import { AcceptStatus, REPLY_HEADER_BYTES, writeAccepted } from '../rpc.ts';
import { XdrError } from '../xdr.ts';
import { attributesNow, report } from './data.ts';
import { WCC_BYTES, writeWcc } from './types.ts';

/**
 * WRITE (RFC 1813 3.3.7). Bytes that come late over a connection that its client has given up never
 * undo what was written since (recent-writes.ts). When the file system answers at once, a call costs
 * no promise, no closure and no copy; when it has to wait, it shares one promise with all that wait
 * for the same.
 */

/** RPC header, status, wcc_data, count, committed, verifier. */
const WRITE_REPLY_BYTES = REPLY_HEADER_BYTES + 4 + WCC_BYTES + 16;

interface WriteCall {
  readonly connection: Connection;
  readonly from: Export;
  readonly file: FileId;
  readonly xid: number;
  readonly offset: number;
  readonly bytes: number;
  readonly stable: Stable;
  readonly startMs: number;
  /** Its note among the recent writes, while it runs. */
  readonly mark: number;
  place: number;
  before: Attributes | undefined;
  verifierHigh: number;
  verifierLow: number;
  /** Who still needs its bytes, and the memory they lie in. */
  holds: number;
  input: Buffer | undefined;
}

/** WRITEs whose bytes become durable together; they are answered together as well. */
export interface WriteGroup {
  readonly pending: Promise<WriteResult>;
  readonly calls: WriteCall[];
}

export function write(connection: Connection): void {
  const status = connection.admit();
  const reader = connection.reader;
  const offset = reader.u64Number();
  const count = reader.u32();
  const stable = reader.u32();
  const length = reader.count(reader.remaining);
  const at = reader.skip(length);
  reader.done();
  if (stable > 2) throw new XdrError(`stable_how ${stable}`);
  const { xid } = connection.header;
  if (status !== NfsStatus.ok) return replyFailure(connection, undefined, xid, status);
  const from = connection.export;
  const file = connection.parts.file;
  // A short answer tells the client to send the rest (RFC 1813 3.3.7).
  const bytes = count > nfsLimits.transferBytesMax ? nfsLimits.transferBytesMax : count;
  const wrong = count > length ? NfsStatus.inval : NfsStatus.fbig;
  if (count > length || offset > Number.MAX_SAFE_INTEGER - bytes) {
    const now = attributesNow(from, file);
    return replyFailure(connection, from, xid, wrong, now, now);
  }
  if (connection.mayBeReplaced(from)) return connection.replaced();
  const call: WriteCall = {
    connection,
    from,
    file,
    xid,
    offset,
    bytes,
    stable: stable as Stable,
    startMs: connection.callStartMs,
    mark: writeMark(connection.seed, file, offset, reader.view, at, bytes),
    place: 0,
    before: undefined,
    verifierHigh: 0,
    verifierLow: 0,
    holds: 0,
    input: undefined,
  };
  run(call, reader.bytes.subarray(at, at + bytes));
}

/** Now, or when the first run of the same WRITE has ended. */
function run(call: WriteCall, data: Buffer): void {
  const place = begin(call);
  if (place === REPLACED) return call.connection.replaced();
  if (place < 0) return void runAfter(call, data, place);
  call.place = place;
  let before: MaybePromise<Attributes | undefined>;
  try {
    before = call.from.fileSystem.attributes(call.file);
  } catch (error) {
    return fail(call, error);
  }
  if (isPromise(before)) return void runKnowing(call, data, before);
  call.before = before;
  writeBytes(call, data);
}

function begin({ connection, from, xid, mark }: WriteCall): number {
  return connection.shared.writes.begin(connection.serial, from.id, xid, mark);
}

/**
 * From here on the call waits: it counts among those in flight, and its bytes stay as they are. For
 * the first time while the call is dispatched: then the input is this call's.
 */
function enter(call: WriteCall): void {
  const { connection, from, bytes } = call;
  if (call.holds++ === 0) call.input = connection.keepInput();
  connection.enter(bytes);
  from.enter();
}

function leave(call: WriteCall): void {
  const { connection, from, bytes } = call;
  if (--call.holds === 0) connection.releaseInput(call.input);
  connection.leave(bytes);
  from.leave();
}

async function runAfter(call: WriteCall, data: Buffer, wait: number): Promise<void> {
  const { connection } = call;
  enter(call);
  try {
    let place = wait;
    while (place < REPLACED) {
      await connection.shared.writes.over(place);
      place = begin(call);
    }
    if (place === REPLACED) return connection.replaced();
    call.place = place;
    await runKnowing(call, data, attributesOf(call));
  } finally {
    leave(call);
  }
}

async function attributesOf(call: WriteCall): Promise<Attributes> {
  return await call.from.fileSystem.attributes(call.file);
}

async function runKnowing(
  call: WriteCall,
  data: Buffer,
  before: Promise<Attributes | undefined>,
): Promise<void> {
  const { writes } = call.connection.shared;
  writes.started(call.place);
  enter(call);
  try {
    call.before = await before.catch(() => undefined);
    writeBytes(call, data);
  } finally {
    leave(call);
    writes.ended(call.place);
  }
}

function writeBytes(call: WriteCall, data: Buffer): void {
  const { connection, from, file } = call;
  // Read before the bytes are given away: when they are lost while this call waits, the client has
  // to see a change between this verifier and the one of its COMMIT.
  from.refreshVerifier();
  call.verifierHigh = from.verifierHigh;
  call.verifierLow = from.verifierLow;
  let result: MaybePromise<WriteResult>;
  let after: MaybePromise<Attributes>;
  try {
    result = from.fileSystem.write(file, call.offset, data, call.stable);
    if (isPromise(result)) return joinGroup(call, result);
    after = from.fileSystem.attributes(file);
  } catch (error) {
    return fail(call, error);
  }
  if (isPromise(after)) return void answerLater(call, result, after);
  reply(call, result, after);
  connection.callStartMs = connection.shared.clock.monotonic();
  countWrite(call, connection.callStartMs);
}

/** Many calls wait for one sync; a promise for each would cost as much as the rest of the call. */
function joinGroup(call: WriteCall, pending: Promise<WriteResult>): void {
  const { shared } = call.connection;
  enter(call);
  shared.writes.started(call.place);
  if (shared.lastWrites?.pending === pending) {
    shared.lastWrites.calls.push(call);
    return;
  }
  const group = { pending, calls: [call] };
  shared.lastWrites = group;
  const forEach = (done: (call: WriteCall) => void) => {
    // Who comes from now on has to be told by a reaction of its own.
    if (shared.lastWrites === group) shared.lastWrites = undefined;
    for (const one of group.calls) done(one);
  };
  pending.then(
    (result) => {
      const nowMs = shared.clock.monotonic();
      forEach((one) => answer(one, result, nowMs));
    },
    (error: unknown) => forEach((one) => giveUp(one, error)),
  );
}

function answer(call: WriteCall, result: WriteResult, nowMs: number): void {
  try {
    const after = call.from.fileSystem.attributes(call.file);
    if (isPromise(after)) {
      void answerLater(call, result, after);
    } else {
      reply(call, result, after);
      countWrite(call, nowMs);
    }
  } catch (error) {
    fail(call, error);
  }
  end(call);
}

function giveUp(call: WriteCall, error: unknown): void {
  fail(call, error);
  end(call);
}

function end(call: WriteCall): void {
  call.connection.shared.writes.ended(call.place);
  leave(call);
}

async function answerLater(
  call: WriteCall,
  result: WriteResult,
  pending: Promise<Attributes>,
): Promise<void> {
  const { shared } = call.connection;
  enter(call);
  shared.writes.started(call.place);
  try {
    reply(call, result, await pending);
    countWrite(call, shared.clock.monotonic());
  } catch (error) {
    fail(call, error);
  } finally {
    end(call);
  }
}

function countWrite({ from, bytes, startMs }: WriteCall, nowMs: number): void {
  from.writes++;
  from.writtenBytes += bytes;
  from.writeLatency.add(nowMs - startMs);
}

function reply(call: WriteCall, result: WriteResult, after: Attributes): void {
  const { connection } = call;
  if (connection.closed) return;
  const segment = connection.reserve(WRITE_REPLY_BYTES);
  const writer = segment.writer;
  const start = writer.position;
  writer.position = start + 4;
  writeAccepted(writer, call.xid, AcceptStatus.success);
  writer.u32(NfsStatus.ok);
  writeWcc(writer, call.from, call.before, after);
  writer.u32(call.bytes);
  writer.u32(result.committed);
  writer.u32(call.verifierHigh);
  writer.u32(call.verifierLow);
  connection.seal(segment, start);
}

function fail(call: WriteCall, error: unknown): void {
  const { connection, from, before } = call;
  const status = report(connection, from, error);
  const after = before === undefined ? undefined : attributesNow(from, call.file);
  replyFailure(connection, from, call.xid, status, before, after);
}

function replyFailure(
  connection: Connection,
  from: Export | undefined,
  xid: number,
  status: NfsStatus,
  before?: Attributes,
  after?: Attributes,
): void {
  connection.reply(WRITE_REPLY_BYTES, (writer) => {
    writeAccepted(writer, xid, AcceptStatus.success);
    writer.u32(status);
    writeWcc(writer, from, before, after);
  });
}
