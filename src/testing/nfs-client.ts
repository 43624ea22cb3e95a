import { connect, type Socket } from 'node:net';
import { RecordSplitter } from '../nfs/records.ts';
import { LAST_FRAGMENT } from '../nfs/rpc.ts';
import { XdrReader, XdrWriter } from '../nfs/xdr.ts';

/** A small ONC RPC client over TCP for tests: it says exactly what it is told to. */
export interface CallOptions {
  readonly program?: number;
  readonly version?: number;
  readonly xid?: number;
  readonly rpcVersion?: number;
  readonly uid?: number;
  /** The whole credential, flavor and length included, instead of AUTH_SYS. */
  readonly credential?: Buffer;
  /** Bytes of a fragment; the record is cut into fragments of it. */
  readonly fragmentBytes?: number;
}

export interface RpcReply {
  readonly xid: number;
  /** reply_stat: 0 accepted, 1 denied. */
  readonly denied: boolean;
  /** accept_stat, or reject_stat when denied. */
  readonly status: number;
  /** What follows. */
  readonly results: XdrReader;
  /** The reply from its xid on. */
  readonly bytes: Buffer;
}

export class RpcClient {
  readonly socket: Socket;
  readonly #splitter = new RecordSplitter(4 << 20);
  readonly #waiting = new Map<number, ((reply: RpcReply | Error) => void)[]>();
  #nextXid = 0x1000;
  closed = false;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('error', () => this.#onClose());
    socket.on('close', () => this.#onClose());
  }

  static open(port: number, host = '127.0.0.1', localAddress?: string): Promise<RpcClient> {
    return new Promise((resolve, reject) => {
      const socket = connect({
        port,
        host,
        ...(localAddress === undefined ? {} : { localAddress }),
      });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new RpcClient(socket));
      });
    });
  }

  freshXid(): number {
    return this.#nextXid++;
  }

  call(
    procedure: number,
    args: (writer: XdrWriter) => void,
    options: CallOptions = {},
  ): Promise<RpcReply> {
    const xid = options.xid ?? this.freshXid();
    const reply = this.replyTo(xid);
    this.socket.write(encodeCall(xid, procedure, args, options));
    return reply;
  }

  /** The next reply with this xid; rejects when the connection ends first. */
  replyTo(xid: number): Promise<RpcReply> {
    return new Promise((resolve, reject) => {
      if (this.closed) return reject(new Error('the connection is closed'));
      const list = this.#waiting.get(xid) ?? [];
      list.push((reply) => (reply instanceof Error ? reject(reply) : resolve(reply)));
      this.#waiting.set(xid, list);
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      if (this.socket.destroyed) return resolve();
      this.socket.once('close', () => resolve());
      this.socket.destroy();
    });
  }

  #onData(chunk: Buffer): void {
    this.#splitter.push(Buffer.from(chunk));
    while (this.#splitter.next()) {
      const { bytes, start, end } = this.#splitter.span;
      const reply = decodeReply(Buffer.from(bytes.subarray(start, end)));
      const list = this.#waiting.get(reply.xid);
      const first = list?.shift();
      if (list?.length === 0) this.#waiting.delete(reply.xid);
      first?.(reply);
    }
  }

  #onClose(): void {
    this.closed = true;
    for (const list of this.#waiting.values()) {
      for (const settle of list) settle(new Error('the connection ended without a reply'));
    }
    this.#waiting.clear();
  }
}

/** The largest WRITE, and room for arguments that are wrong. */
const scratch = XdrWriter.ofSize((1 << 20) + 65_536);

export function encodeCall(
  xid: number,
  procedure: number,
  args: (writer: XdrWriter) => void,
  options: CallOptions = {},
): Buffer {
  const writer = scratch;
  writer.position = 0;
  writer.u32(xid);
  writer.u32(0);
  writer.u32(options.rpcVersion ?? 2);
  writer.u32(options.program ?? 100_003);
  writer.u32(options.version ?? 3);
  writer.u32(procedure);
  if (options.credential === undefined) writeAuthSys(writer, options.uid ?? 0);
  else writer.fixed(options.credential);
  writer.u32(0);
  writer.u32(0);
  args(writer);
  return frame(Buffer.from(writer.written()), options.fragmentBytes);
}

function writeAuthSys(writer: XdrWriter, uid: number): void {
  const body = XdrWriter.ofSize(64);
  body.u32(1);
  body.text('test');
  body.u32(uid);
  body.u32(uid);
  body.u32(1);
  body.u32(uid);
  writer.u32(1);
  writer.opaque(body.written());
}

/** Record marking, in fragments when asked for. */
export function frame(record: Buffer, fragmentBytes = record.length): Buffer {
  const parts: Buffer[] = [];
  let at = 0;
  do {
    const end = Math.min(record.length, at + Math.max(1, fragmentBytes));
    const mark = Buffer.alloc(4);
    mark.writeUInt32BE(((end === record.length ? LAST_FRAGMENT : 0) | (end - at)) >>> 0);
    parts.push(mark, record.subarray(at, end));
    at = end;
  } while (at < record.length);
  return Buffer.concat(parts);
}

function decodeReply(bytes: Buffer): RpcReply {
  const results = XdrReader.of(bytes);
  const xid = results.u32();
  results.u32();
  const denied = results.u32() === 1;
  if (!denied) {
    results.u32();
    results.opaque(400);
  }
  return { xid, denied, status: results.u32(), results, bytes };
}
