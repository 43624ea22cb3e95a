import { isPromise, type MaybePromise } from '../../lib/maybe-promise.ts';
import { nfsLimits } from '../../limits.ts';
import type { Connection } from '../connection.ts';
import type { Export } from '../exports.ts';
import type { Attributes, FileId, ReadResult } from '../file-system.ts';
import { NfsError, NfsStatus } from '../file-system.ts';
import { AcceptStatus, REPLY_HEADER_BYTES, writeAccepted } from '../rpc.ts';
import type { Segment } from '../segments.ts';
import { padded, type XdrWriter } from '../xdr.ts';
import { ATTRIBUTE_BYTES, POST_ATTRIBUTE_BYTES, putAttributes, statusOf } from './types.ts';
import { writePostAttributes } from './types.ts';

/**
 * GETATTR and READ: with WRITE (write.ts) nearly every call of a running machine. When the file system
 * answers at once, a call costs no promise and no closure, and READ puts the bytes where the reply
 * needs them.
 */

/** Mark, RPC header, status, post_op_attr; then count, eof and the length of the data. */
const READ_ATTRIBUTES_AT = 4 + REPLY_HEADER_BYTES + 4;
const READ_COUNT_AT = READ_ATTRIBUTES_AT + POST_ATTRIBUTE_BYTES;
const READ_DATA_AT = READ_COUNT_AT + 12;

/** Errors that an administrator should hear of. */
export function report(connection: Connection, from: Export, error: unknown): NfsStatus {
  const status = statusOf(error) ?? NfsStatus.serverfault;
  if (
    status === NfsStatus.io ||
    status === NfsStatus.nospc ||
    status === NfsStatus.serverfault ||
    status === NfsStatus.dquot
  ) {
    from.failed++;
    if (!(error instanceof NfsError)) {
      connection.shared.log.warn({ error, export: from.path }, 'the file system failed a call');
    }
  }
  return status;
}

// -- GETATTR (RFC 1813 3.3.1) -------------------------------------------------------------------

export function getAttributes(connection: Connection): void {
  const status = connection.admit();
  connection.reader.done();
  const { xid } = connection.header;
  if (status !== NfsStatus.ok) return replyStatus(connection, xid, status);
  const from = connection.export;
  let attributes: MaybePromise<Attributes>;
  try {
    attributes = from.fileSystem.attributes(connection.parts.file);
  } catch (error) {
    return replyStatus(connection, xid, report(connection, from, error));
  }
  if (isPromise(attributes)) {
    void getAttributesLater(connection, from, xid, connection.callStartMs, attributes);
    return;
  }
  replyAttributes(connection, from, xid, attributes);
  connection.callStartMs = countOther(connection, from, connection.callStartMs);
}

async function getAttributesLater(
  connection: Connection,
  from: Export,
  xid: number,
  startMs: number,
  pending: Promise<Attributes>,
): Promise<void> {
  connection.enter(0);
  from.enter();
  try {
    replyAttributes(connection, from, xid, await pending);
  } catch (error) {
    replyStatus(connection, xid, report(connection, from, error));
  } finally {
    connection.leave(0);
    from.leave();
    countOther(connection, from, startMs);
  }
}

function replyAttributes(connection: Connection, from: Export, xid: number, a: Attributes): void {
  if (connection.closed) return;
  const segment = connection.reserve(REPLY_HEADER_BYTES + 4 + ATTRIBUTE_BYTES);
  const writer = segment.writer;
  const start = writer.position;
  writer.position = start + 4;
  writeAccepted(writer, xid, AcceptStatus.success);
  writer.u32(NfsStatus.ok);
  putAttributes(writer.view, writer.position, from, a);
  writer.position += ATTRIBUTE_BYTES;
  connection.seal(segment, start);
}

function replyStatus(connection: Connection, xid: number, status: NfsStatus): void {
  connection.reply(REPLY_HEADER_BYTES + 4, (writer) => {
    writeAccepted(writer, xid, AcceptStatus.success);
    writer.u32(status);
  });
}

/** The monotonic time now, at which the next call of this turn begins. */
export function countOther(connection: Connection, from: Export, startMs: number): number {
  const nowMs = connection.shared.clock.monotonic();
  from.others++;
  from.otherLatency.add(nowMs - startMs);
  return nowMs;
}

// -- READ (RFC 1813 3.3.6) ----------------------------------------------------------------------

export function read(connection: Connection): void {
  const status = connection.admit();
  const reader = connection.reader;
  const offset = reader.u64Number();
  const wanted = reader.u32();
  reader.done();
  const { xid } = connection.header;
  if (status !== NfsStatus.ok) return replyReadFailure(connection, undefined, xid, status);
  const from = connection.export;
  const file = connection.parts.file;
  const count = wanted > nfsLimits.transferBytesMax ? nfsLimits.transferBytesMax : wanted;
  if (offset > Number.MAX_SAFE_INTEGER - count) {
    return readBeyond(connection, from, file, xid);
  }
  const reserved = READ_DATA_AT + padded(count);
  const segment = connection.reserve(reserved);
  const start = segment.writer.position;
  const at = start + READ_DATA_AT;
  let result: MaybePromise<ReadResult>;
  let attributes: MaybePromise<Attributes>;
  try {
    result = from.fileSystem.read(file, offset, segment.bytes.subarray(at, at + count));
    if (isPromise(result)) {
      void readLater(connection, from, xid, segment, reserved, result, undefined);
      return;
    }
    attributes = from.fileSystem.attributes(file);
  } catch (error) {
    replyReadFailure(connection, from, xid, report(connection, from, error), file);
    return;
  }
  if (isPromise(attributes)) {
    void readLater(connection, from, xid, segment, reserved, result, attributes);
    return;
  }
  segment.writer.position = writeRead(segment.writer, start, from, xid, result, attributes);
  connection.seal(segment, start);
  connection.callStartMs = countRead(connection, from, connection.callStartMs, result.bytes);
}

function countRead(connection: Connection, from: Export, startMs: number, bytes: number): number {
  const nowMs = connection.shared.clock.monotonic();
  from.reads++;
  from.readBytes += bytes;
  from.readLatency.add(nowMs - startMs);
  return nowMs;
}

/** Everything around the data; the position behind it. */
function writeRead(
  writer: XdrWriter,
  start: number,
  from: Export,
  xid: number,
  result: ReadResult,
  attributes: Attributes,
): number {
  const view = writer.view;
  writer.position = start + 4;
  writeAccepted(writer, xid, AcceptStatus.success);
  view.setUint32(start + READ_ATTRIBUTES_AT - 4, NfsStatus.ok);
  view.setUint32(start + READ_ATTRIBUTES_AT, 1);
  putAttributes(view, start + READ_ATTRIBUTES_AT + 4, from, attributes);
  const bytes = result.bytes;
  view.setUint32(start + READ_COUNT_AT, bytes);
  view.setUint32(start + READ_COUNT_AT + 4, result.eof ? 1 : 0);
  view.setUint32(start + READ_COUNT_AT + 8, bytes);
  writer.position = start + READ_DATA_AT + bytes;
  writer.pad();
  return writer.position;
}

/** The bytes come later, into the place that was kept for them; other replies go first. */
async function readLater(
  connection: Connection,
  from: Export,
  xid: number,
  segment: Segment,
  reserved: number,
  pending: MaybePromise<ReadResult>,
  pendingAttributes: Promise<Attributes> | undefined,
): Promise<void> {
  const start = segment.writer.position;
  const startMs = connection.callStartMs;
  const file = connection.parts.file;
  connection.detach(segment, reserved);
  connection.enter(reserved);
  from.enter();
  let end = start;
  try {
    const result = await pending;
    let attributes = pendingAttributes ?? from.fileSystem.attributes(file);
    if (isPromise(attributes)) attributes = await attributes;
    const scratch = connection.scratch(segment);
    end = writeRead(scratch, start, from, xid, result, attributes);
    countRead(connection, from, startMs, result.bytes);
  } catch (error) {
    end = start;
    replyReadFailure(connection, from, xid, report(connection, from, error), file);
  } finally {
    connection.attach(segment, start, end);
    connection.leave(reserved);
    from.leave();
  }
}

/** No file reaches so far: nothing is there, and it is the end. */
function readBeyond(connection: Connection, from: Export, file: FileId, xid: number): void {
  const startMs = connection.callStartMs;
  void reading();
  async function reading(): Promise<void> {
    connection.enter(0);
    from.enter();
    try {
      const target = Buffer.alloc(0);
      await from.fileSystem.read(file, Number.MAX_SAFE_INTEGER, target);
      const attributes = await from.fileSystem.attributes(file);
      connection.reply(READ_DATA_AT, (writer) => {
        writeAccepted(writer, xid, AcceptStatus.success);
        writer.u32(NfsStatus.ok);
        writePostAttributes(writer, from, attributes);
        writer.u32(0);
        writer.bool(true);
        writer.u32(0);
      });
      countRead(connection, from, startMs, 0);
    } catch (error) {
      replyReadFailure(connection, from, xid, report(connection, from, error), file);
    } finally {
      connection.leave(0);
      from.leave();
    }
  }
}

function replyReadFailure(
  connection: Connection,
  from: Export | undefined,
  xid: number,
  status: NfsStatus,
  file: FileId = 0,
): void {
  const attributes = from === undefined ? undefined : attributesNow(from, file);
  connection.reply(READ_DATA_AT, (writer) => {
    writeAccepted(writer, xid, AcceptStatus.success);
    writer.u32(status);
    writePostAttributes(writer, from, attributes);
  });
}

/** Attributes when they can be had without waiting; they are optional everywhere but in GETATTR. */
export function attributesNow(from: Export, file: FileId): Attributes | undefined {
  try {
    const attributes = from.fileSystem.attributes(file);
    if (!isPromise(attributes)) return attributes;
    attributes.catch(() => undefined);
  } catch {
    return undefined;
  }
  return undefined;
}
