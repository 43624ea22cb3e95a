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
 * no promise, no closure and no copy.
 */

/** RPC header, status, wcc_data, count, committed, verifier. */
const WRITE_REPLY_BYTES = REPLY_HEADER_BYTES + 4 + WCC_BYTES + 16;

interface WriteCall {
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
  };
  run(connection, call, reader.bytes.subarray(at, at + bytes));
}

/** Now, or when the first run of the same WRITE has ended; then the input has to be kept. */
function run(connection: Connection, call: WriteCall, data: Buffer): void {
  const place = begin(connection, call);
  if (place === REPLACED) return connection.replaced();
  if (place < 0) return keepFor(connection, runAfter(connection, call, data, place));
  call.place = place;
  let before: MaybePromise<Attributes | undefined>;
  try {
    before = call.from.fileSystem.attributes(call.file);
  } catch (error) {
    return fail(connection, call, error);
  }
  if (isPromise(before)) return keepFor(connection, runKnowing(connection, call, data, before));
  call.before = before;
  const waiting = writeBytes(connection, call, data);
  if (waiting !== undefined) keepFor(connection, waiting);
}

function begin(connection: Connection, call: WriteCall): number {
  const { writes } = connection.shared;
  return writes.begin(connection.serial, call.from.id, call.xid, call.mark);
}

/** The bytes of the call belong to the file system until then. */
function keepFor(connection: Connection, work: Promise<void>): void {
  const memory = connection.keepInput();
  if (memory !== undefined) void work.then(() => connection.releaseInput(memory));
}

async function runAfter(
  connection: Connection,
  call: WriteCall,
  data: Buffer,
  wait: number,
): Promise<void> {
  const { from, bytes } = call;
  const { writes } = connection.shared;
  connection.enter(bytes);
  from.enter();
  try {
    let place = wait;
    while (place < REPLACED) {
      await writes.over(place);
      place = begin(connection, call);
    }
    if (place === REPLACED) return connection.replaced();
    call.place = place;
    await runKnowing(connection, call, data, attributesOf(call));
  } finally {
    connection.leave(bytes);
    from.leave();
  }
}

async function attributesOf(call: WriteCall): Promise<Attributes> {
  return await call.from.fileSystem.attributes(call.file);
}

async function runKnowing(
  connection: Connection,
  call: WriteCall,
  data: Buffer,
  before: Promise<Attributes | undefined>,
): Promise<void> {
  const { writes } = connection.shared;
  writes.started(call.place);
  connection.enter(call.bytes);
  try {
    call.before = await before.catch(() => undefined);
    await writeBytes(connection, call, data);
  } finally {
    connection.leave(call.bytes);
    writes.ended(call.place);
  }
}

/** undefined: answered. Otherwise the data belongs to the file system until the promise resolves. */
function writeBytes(
  connection: Connection,
  call: WriteCall,
  data: Buffer,
): Promise<void> | undefined {
  const { from, file } = call;
  // Read before the bytes are given away: when they are lost while this call waits, the client has
  // to see a change between this verifier and the one of its COMMIT.
  from.refreshVerifier();
  call.verifierHigh = from.verifierHigh;
  call.verifierLow = from.verifierLow;
  let result: MaybePromise<WriteResult>;
  let after: MaybePromise<Attributes>;
  try {
    result = from.fileSystem.write(file, call.offset, data, call.stable);
    if (isPromise(result)) return writeLater(connection, call, result);
    after = from.fileSystem.attributes(file);
  } catch (error) {
    fail(connection, call, error);
    return undefined;
  }
  if (isPromise(after)) return writeLater(connection, call, result, after);
  reply(connection, call, result, after);
  connection.callStartMs = countWrite(connection, call);
  return undefined;
}

async function writeLater(
  connection: Connection,
  call: WriteCall,
  pending: MaybePromise<WriteResult>,
  pendingAfter?: Promise<Attributes>,
): Promise<void> {
  const { from, bytes } = call;
  const { writes } = connection.shared;
  connection.enter(bytes);
  from.enter();
  writes.started(call.place);
  try {
    const result = await pending;
    let after = pendingAfter ?? from.fileSystem.attributes(call.file);
    if (isPromise(after)) after = await after;
    reply(connection, call, result, after);
    countWrite(connection, call);
  } catch (error) {
    fail(connection, call, error);
  } finally {
    writes.ended(call.place);
    connection.leave(bytes);
    from.leave();
  }
}

function countWrite(connection: Connection, call: WriteCall): number {
  const nowMs = connection.shared.clock.monotonic();
  const { from } = call;
  from.writes++;
  from.writtenBytes += call.bytes;
  from.writeLatency.add(nowMs - call.startMs);
  return nowMs;
}

function reply(
  connection: Connection,
  call: WriteCall,
  result: WriteResult,
  after: Attributes,
): void {
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

function fail(connection: Connection, call: WriteCall, error: unknown): void {
  const { from, before } = call;
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
