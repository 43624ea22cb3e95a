import { isPromise, type MaybePromise } from '../../lib/maybe-promise.ts';
import type { Connection } from '../connection.ts';
import { DuplicateRequests } from '../duplicates.ts';
import type { Export } from '../exports.ts';
import type { Attributes, Caller, FileId, FileSystem } from '../file-system.ts';
import { NfsError, NfsStatus } from '../file-system.ts';
import { AcceptStatus, REPLY_HEADER_BYTES, writeAccepted } from '../rpc.ts';
import type { XdrReader } from '../xdr.ts';
import { XdrError, XdrWriter } from '../xdr.ts';
import { countOther, report } from './data.ts';
import { WCC_BYTES, writePostAttributes, writeWcc } from './types.ts';

/**
 * The frame of all procedures but GETATTR, READ and WRITE: handles are let in, attributes before
 * and after are gathered for the files that the reply tells about, failures get the arm that their
 * procedure has, and calls that must not run twice pass the duplicate request cache.
 */
export type Encode = (writer: XdrWriter) => void;

/** What a reply tells about a file: post_op_attr, or wcc_data. */
export type Told = 'attributes' | 'wcc';

export interface ProcedureRow {
  /** The files of the failure arm, in its order; also the order of `file()` calls. */
  readonly tells: readonly Told[];
  /** Results behind status, without what `tells` takes. */
  readonly bytesMax: number;
  /** Passes the duplicate request cache. */
  readonly once?: boolean;
  /** Reads all arguments before it waits for anything; encodes what follows the status. */
  readonly run: (call: Nfs3Call, args: XdrReader) => MaybePromise<Encode>;
}

interface File {
  readonly told: Told;
  id: FileId | undefined;
  before: Attributes | undefined;
  after: Attributes | undefined;
}

export class Nfs3Call {
  readonly connection: Connection;
  readonly xid: number;
  readonly startMs: number;
  readonly row: ProcedureRow;
  readonly key: string | undefined;
  readonly #files: File[];
  #export: Export | undefined;

  constructor(connection: Connection, row: ProcedureRow, key: string | undefined) {
    this.connection = connection;
    this.xid = connection.header.xid;
    this.startMs = connection.callStartMs;
    this.row = row;
    this.key = key;
    this.#files = row.tells.map((told) => ({
      told,
      id: undefined,
      before: undefined,
      after: undefined,
    }));
  }

  /** The export of the first handle. */
  get from(): Export {
    if (this.#export === undefined) throw new Error('no handle was let in');
    return this.#export;
  }

  get exportIfKnown(): Export | undefined {
    return this.#export;
  }

  get fileSystem(): FileSystem {
    return this.from.fileSystem;
  }

  get caller(): Caller {
    return this.connection.header.caller(this.connection.reader);
  }

  /** Reads the handle of the file that the reply tells about in place `index` of `tells`. */
  file(index: number): FileId {
    const status = this.connection.admit();
    if (status !== NfsStatus.ok) throw new NfsError(status);
    const from = this.connection.export;
    if (this.#export !== undefined && this.#export !== from) throw new NfsError(NfsStatus.xdev);
    this.#export = from;
    const id = this.connection.parts.file;
    const file = this.#files[index];
    if (file !== undefined) file.id = id;
    return id;
  }

  /** Notes the attributes before a change, then makes it. */
  change<T>(make: () => MaybePromise<T>): MaybePromise<T> {
    const waiting = this.#gather('before');
    return waiting === undefined ? make() : waiting.then(make);
  }

  /** Fetches the attributes that the reply tells; undefined when no waiting is needed. */
  after(): Promise<void> | undefined {
    return this.#gather('after');
  }

  #gather(when: 'before' | 'after'): Promise<void> | undefined {
    let waiting: Promise<void>[] | undefined;
    for (const file of this.#files) {
      if (file.id === undefined || (when === 'before' && file.told !== 'wcc')) continue;
      const attributes = this.#attributesOf(file.id);
      if (!isPromise(attributes)) file[when] = attributes;
      else (waiting ??= []).push(attributes.then((value) => void (file[when] = value)));
    }
    return waiting === undefined ? undefined : Promise.all(waiting).then(() => undefined);
  }

  #attributesOf(id: FileId): MaybePromise<Attributes | undefined> {
    try {
      const attributes = this.fileSystem.attributes(id);
      return isPromise(attributes) ? attributes.catch(() => undefined) : attributes;
    } catch {
      return undefined;
    }
  }

  /** post_op_attr or wcc_data of the file in place `index` of `tells`. */
  tell(writer: XdrWriter, index: number): void {
    const file = this.#files[index];
    if (file?.told === 'wcc') writeWcc(writer, this.#export, file.before, file.after);
    else writePostAttributes(writer, this.#export, file?.after);
  }

  tellAll(writer: XdrWriter): void {
    for (let index = 0; index < this.#files.length; index++) this.tell(writer, index);
  }
}

/** `next` with the value, now when it is here. */
export function chain<T, R>(
  value: MaybePromise<T>,
  next: (value: T) => R,
): R | Promise<Awaited<R>> {
  if (!isPromise(value)) return next(value);
  return value.then(next) as Promise<Awaited<R>>;
}

/** Runs a procedure and answers the call, now or later. */
export function runProcedure(connection: Connection, row: ProcedureRow): void {
  let key: string | undefined;
  if (row.once === true) {
    const { header, shared, address } = connection;
    key = DuplicateRequests.key(address, header.xid, header.procedure, connection.callBytes);
    const sink = (reply: Buffer) => connection.replyBytes(reply);
    if (shared.duplicates.begin(key, shared.clock.monotonic(), sink) === 'joined') return;
  }
  const call = new Nfs3Call(connection, row, key);
  let encode: MaybePromise<Encode>;
  try {
    encode = row.run(call, connection.reader);
  } catch (error) {
    fail(call, error);
    return;
  }
  if (isPromise(encode)) void finishLater(call, encode);
  else finish(call, NfsStatus.ok, encode);
}

async function finishLater(call: Nfs3Call, pending: Promise<Encode>): Promise<void> {
  const { connection } = call;
  const from = call.exportIfKnown;
  connection.enter(0);
  from?.enter();
  try {
    finish(call, NfsStatus.ok, await pending);
  } catch (error) {
    fail(call, error);
  } finally {
    connection.leave(0);
    from?.leave();
  }
}

function fail(call: Nfs3Call, error: unknown): void {
  const { connection, key } = call;
  const from = call.exportIfKnown;
  if (error instanceof XdrError || (from === undefined && !(error instanceof NfsError))) {
    if (key !== undefined) connection.shared.duplicates.forget(key);
    connection.fault(call.xid, error);
    return;
  }
  const status =
    from === undefined && error instanceof NfsError
      ? error.status
      : report(connection, from as Export, error);
  finish(call, status, (writer) => call.tellAll(writer));
}

function finish(call: Nfs3Call, status: NfsStatus, encode: Encode): void {
  const waiting = call.after();
  if (waiting === undefined) send(call, status, encode);
  else void waiting.then(() => send(call, status, encode));
}

function send(call: Nfs3Call, status: NfsStatus, encode: Encode): void {
  const { connection, row, key, xid } = call;
  const write = (writer: XdrWriter) => {
    writeAccepted(writer, xid, AcceptStatus.success);
    writer.u32(status);
    encode(writer);
  };
  const bytesMax = REPLY_HEADER_BYTES + 4 + row.tells.length * WCC_BYTES + row.bytesMax;
  try {
    if (key === undefined) connection.reply(bytesMax, write);
    else sendOnce(call, key, status, bytesMax, write);
  } catch (error) {
    if (key !== undefined) connection.shared.duplicates.forget(key);
    connection.fault(xid, error);
  }
  const from = call.exportIfKnown;
  if (from === undefined) return;
  const nowMs = countOther(connection, from, call.startMs);
  if (connection.callStartMs === call.startMs) connection.callStartMs = nowMs;
}

/** Kept before it is sent, and kept when nobody is there to take it: the client will ask again. */
function sendOnce(
  call: Nfs3Call,
  key: string,
  status: NfsStatus,
  bytesMax: number,
  write: Encode,
): void {
  const { connection } = call;
  const writer = XdrWriter.ofSize(bytesMax);
  write(writer);
  const reply = writer.written();
  // "Try again later" is no result to keep.
  if (status === NfsStatus.jukebox) connection.shared.duplicates.forget(key);
  else connection.shared.duplicates.finish(key, reply);
  connection.replyBytes(reply);
}
