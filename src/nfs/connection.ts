import type { Socket } from 'node:net';
import { crc32 } from 'node:zlib';
import { nfsLimits } from '../limits.ts';
import { normalAddress } from './clients.ts';
import type { Export } from './exports.ts';
import { NfsStatus } from './file-system.ts';
import { HandleParts } from './handles.ts';
import { RecordError, RecordSplitter } from './records.ts';
import { Patience } from './patience.ts';
import { AcceptStatus, CallHeader, LAST_FRAGMENT, Verdict } from './rpc.ts';
import { writeAccepted, writeDenied } from './rpc.ts';
import type { Segment, SegmentOwner } from './segments.ts';
import type { Shared } from './shared.ts';
import { XdrError, XdrReader, XdrWriter } from './xdr.ts';

/**
 * One TCP connection: bytes to calls, replies to bytes. Replies of one input chunk leave in one
 * write. Calls that wait for the file system are counted and bounded, and while the bounds are
 * reached, or replies are not taken, nothing more is read: TCP then slows the client down.
 * Everything runs on one thread; `header`, `reader` and `parts` belong to the call being dispatched.
 */
export class Connection implements SegmentOwner {
  readonly header = new CallHeader();
  readonly reader = new XdrReader();
  readonly parts = new HandleParts();
  readonly shared: Shared;
  /** The client's address in its one spelling. */
  readonly address: string;
  readonly localAddress: string;
  readonly serial: number;
  /** Stands for the address in marks of writes (recent-writes.ts). */
  readonly seed: number;
  /** Monotonic: when the call being dispatched began. */
  callStartMs = 0;
  /** Wall clock, as of this turn. */
  nowMs = 0;
  readonly used = new Set<Export>();

  readonly #socket: Socket;
  readonly #scratch = new XdrWriter();
  readonly #splitter: RecordSplitter;
  #segment: Segment | undefined;
  /** Slices to send: segment, from, to. */
  #slices: Segment[] = [];
  #from: number[] = [];
  #to: number[] = [];
  #flushScheduled = false;
  #inTurn = false;
  #turnBytes = 0;
  #wait: 'no' | 'work' | 'drain' | 'turn' = 'no';
  /** Chunks that came after reading was paused. */
  readonly #later: Buffer[] = [];
  #inFlightCalls = 0;
  #inFlightBytes = 0;
  #closed = false;
  #ending = false;
  #ended = false;

  #export: Export | undefined;
  #exportEpoch = -1;

  #calls = 0;
  /** The connection that was the last one opened when a call came over this one. */
  #seenSerial: number;
  readonly #patience: Patience;

  constructor(shared: Shared, socket: Socket) {
    this.shared = shared;
    this.#splitter = new RecordSplitter(nfsLimits.recordBytesMax, shared.pool);
    this.#socket = socket;
    this.address = normalAddress(socket.remoteAddress ?? '');
    this.localAddress = normalAddress(socket.localAddress ?? '');
    this.serial = ++shared.lastSerial;
    this.seed = crc32(this.address);
    this.#seenSerial = this.serial;
    this.#patience = new Patience(shared.clock.monotonic());
    socket.setNoDelay(true);
    socket.setKeepAlive(true, nfsLimits.keepAliveMs);
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('drain', () => this.#resumeFrom('drain'));
    socket.on('end', () => this.end());
    // Resets and time-outs are how clients leave; 'close' follows.
    socket.on('error', () => this.#onClose());
    socket.on('close', () => this.#onClose());
  }

  get closed(): boolean {
    return this.#closed;
  }

  get inFlightCalls(): number {
    return this.#inFlightCalls;
  }

  // -- calls ----------------------------------------------------------------------------------

  /**
   * Reads a handle and lets the call in: on every call, the client's address, the MAC and the
   * generation. On `ok`, `export` and `parts.file` say what the call is about.
   */
  admit(): NfsStatus {
    const parts = this.parts;
    if (!parts.read(this.reader)) return NfsStatus.badhandle;
    let found = this.#export;
    if (
      found === undefined ||
      found.id !== parts.exportId ||
      this.#exportEpoch !== this.shared.table.epoch
    ) {
      found = this.shared.table.byId(parts.exportId);
      if (found === undefined) return NfsStatus.stale;
      if (!found.clients.allows(this.address)) return this.#refuse(found);
      this.#export = found;
      this.#exportEpoch = this.shared.table.epoch;
      this.used.add(found);
    }
    if (!found.handles.verify(parts)) {
      found.refused++;
      return NfsStatus.badhandle;
    }
    const generation = found.fileSystem.generation(parts.file);
    if (generation === undefined || generation >>> 0 !== parts.generation) return NfsStatus.stale;
    found.lastUsedMs = this.nowMs;
    return NfsStatus.ok;
  }

  /** The export of the handle that was let in last. */
  get export(): Export {
    if (this.#export === undefined) throw new Error('no handle was let in');
    return this.#export;
  }

  /**
   * Whether what comes over this connection may be older than what its client wrote since over a
   * newer one, and nobody would know any more (recent-writes.ts).
   */
  mayBeReplaced(found: Export): boolean {
    return found.forgottenSerial > this.#seenSerial;
  }

  /** Its client has a newer connection: nothing that waits on this one may run. */
  replaced(): void {
    if (this.#closed) return;
    const { address, serial } = this;
    this.shared.log.info({ address, serial }, 'a connection was replaced by a newer one; it ends');
    this.destroy();
  }

  #refuse(found: Export): NfsStatus {
    if (found.refused++ === 0) {
      const facts = { address: this.address, export: found.path };
      this.shared.log.warn(facts, 'refused: this address is no client of the export');
    }
    return NfsStatus.acces;
  }

  /** Counts a call that waits for the file system; `leave` with the same bytes ends it. */
  enter(bytes: number): void {
    this.#inFlightCalls++;
    this.#inFlightBytes += bytes;
    this.shared.inFlightBytes += bytes;
  }

  leave(bytes: number): void {
    this.#inFlightCalls--;
    this.#inFlightBytes -= bytes;
    this.shared.inFlightBytes -= bytes;
    if (this.#ending) this.scheduleFlush();
    if (this.#wait === 'work') this.scheduleFlush();
    if (this.shared.stalled.size > 0 && this.shared.inFlightBytes < this.shared.inFlightBytesMax) {
      for (const connection of this.shared.stalled) connection.scheduleFlush();
      this.shared.stalled.clear();
    }
  }

  // -- replies --------------------------------------------------------------------------------

  /** A segment with room for a record mark and a reply of up to `bytes`. */
  reserve(bytes: number): Segment {
    const segment = this.#segment;
    if (segment !== undefined && segment.room >= bytes + 4) return segment;
    if (segment !== undefined) this.#leaveSegment(segment);
    this.#segment = this.shared.pool.take(bytes + 4, this);
    return this.#segment;
  }

  /** Ends a reply that was begun at `start` of the segment's writer, its mark's place included. */
  seal(segment: Segment, start: number): void {
    const length = segment.writer.position - start;
    segment.writer.view.setUint32(start, (LAST_FRAGMENT | (length - 4)) >>> 0);
    this.#turnBytes += length;
    if (!this.#inTurn) this.scheduleFlush();
  }

  /** Writes one reply, mark included; at most `bytesMax` after the mark. */
  reply(bytesMax: number, write: (writer: XdrWriter) => void): void {
    if (this.#closed) return;
    const segment = this.reserve(bytesMax);
    const start = segment.writer.position;
    segment.writer.position = start + 4;
    try {
      write(segment.writer);
    } catch (error) {
      segment.writer.position = start;
      throw error;
    }
    this.seal(segment, start);
  }

  /** The bytes of the call being dispatched, from its xid on. */
  get callBytes(): Buffer {
    const { bytes, start, end } = this.#splitter.span;
    return bytes.subarray(start, end);
  }

  /** Sends a reply that was kept: what the duplicate request cache holds. */
  replyBytes(reply: Buffer): void {
    this.reply(reply.length + 3, (writer) => writer.fixed(reply));
  }

  /**
   * Takes `bytes` (mark included) at the segment's writer out of the order of sending: a READ
   * fills them later. `attach` sends them.
   */
  detach(segment: Segment, bytes: number): void {
    const start = segment.writer.position;
    this.#push(segment, segment.sentTo, start);
    segment.users++;
    segment.writer.position = start + bytes;
    segment.sentTo = segment.writer.position;
  }

  /** A writer for the detached part of a segment; valid until it is asked for again. */
  scratch(segment: Segment): XdrWriter {
    this.#scratch.reset(segment.bytes, segment.writer.view, 0);
    return this.#scratch;
  }

  /** `end` = `start`: nothing to send. */
  attach(segment: Segment, start: number, end: number): void {
    if (!this.#closed && end > start) {
      segment.bytes.writeUInt32BE((LAST_FRAGMENT | (end - start - 4)) >>> 0, start);
      this.#push(segment, start, end);
    }
    segment.release();
    this.scheduleFlush();
  }

  segmentIdle(segment: Segment): void {
    if (this.#segment === segment) this.#segment = undefined;
    segment.disown();
  }

  #leaveSegment(segment: Segment): void {
    this.#push(segment, segment.sentTo, segment.writer.position);
    segment.sentTo = segment.writer.position;
    segment.disown();
  }

  #push(segment: Segment, from: number, to: number): void {
    if (from === to) return;
    const last = this.#slices.length - 1;
    if (last >= 0 && this.#slices[last] === segment && this.#to[last] === from) {
      this.#to[last] = to;
      return;
    }
    segment.users++;
    this.#slices.push(segment);
    this.#from.push(from);
    this.#to.push(to);
  }

  /** One write for all replies that become ready in this tick. */
  scheduleFlush(): void {
    if (this.#flushScheduled) return;
    this.#flushScheduled = true;
    process.nextTick(() => {
      this.#flushScheduled = false;
      this.#flush();
      this.#resumeFrom('work');
    });
  }

  #flush(): void {
    const current = this.#segment;
    if (current !== undefined) {
      this.#push(current, current.sentTo, current.writer.position);
      current.sentTo = current.writer.position;
    }
    const count = this.#slices.length;
    if (count > 0) this.#send(count);
    if (this.#ending && !this.#ended && this.#inFlightCalls === 0 && !this.#closed) {
      this.#ended = true;
      this.#socket.end();
    }
  }

  #send(count: number): void {
    const slices = this.#slices;
    const socket = this.#socket;
    if (this.#closed || !socket.writable) {
      this.#slices = [];
      for (const segment of slices) segment.release();
    } else {
      if (count > 1) socket.cork();
      for (let index = 0; index < count; index++) {
        const segment = slices[index] as Segment;
        const bytes = segment.bytes.subarray(this.#from[index], this.#to[index]);
        socket.write(bytes, segment.written);
      }
      if (count > 1) socket.uncork();
      slices.length = 0;
      const { nextCall, clock, inFlightBytes } = this.shared;
      nextCall.answered(clock.monotonic(), inFlightBytes > 0);
    }
    this.#from.length = 0;
    this.#to.length = 0;
  }

  // -- input ----------------------------------------------------------------------------------

  #onData(chunk: Buffer): void {
    if (this.#closed || this.#ending) return;
    if (this.#wait !== 'no') {
      this.#later.push(chunk);
      return;
    }
    this.#splitter.push(chunk);
    this.#turn();
  }

  #resumeFrom(wait: 'work' | 'drain' | 'turn'): void {
    if (this.#wait !== wait || this.#closed || this.#ending) return;
    if (wait === 'work' && this.#isBusy()) return;
    this.#wait = 'no';
    this.#turn();
    while (this.#wait === 'no' && this.#later.length > 0 && !this.#closed) {
      this.#splitter.push(this.#later.shift() as Buffer);
      this.#turn();
    }
    if (this.#wait === 'no' && !this.#closed) this.#socket.resume();
  }

  #isBusy(): boolean {
    if (
      this.#inFlightCalls >= nfsLimits.connectionCallsMax ||
      this.#inFlightBytes >= nfsLimits.connectionBytesMax
    ) {
      return true;
    }
    if (this.shared.inFlightBytes < this.shared.inFlightBytesMax) return false;
    this.shared.stalled.add(this);
    return true;
  }

  /** Dispatches calls until the input is used up or a bound is reached; then sends the replies. */
  #turn(): void {
    this.#inTurn = true;
    this.#turnBytes = 0;
    this.callStartMs = this.shared.clock.monotonic();
    this.shared.nextCall.came(this.callStartMs);
    this.nowMs = this.shared.clock.now();
    let calls = 0;
    let wait: 'no' | 'work' | 'turn' = 'no';
    try {
      for (;;) {
        if (this.#isBusy()) wait = 'work';
        else if (calls >= nfsLimits.turnCallsMax) wait = 'turn';
        else if (this.#turnBytes >= nfsLimits.turnBytesMax) wait = 'turn';
        if (wait !== 'no' || this.#closed || !this.#splitter.next()) break;
        calls++;
        this.#call();
        this.releaseInput(this.keepInput());
      }
    } catch (error) {
      this.#give(error);
    }
    this.#inTurn = false;
    this.#calls += calls;
    if (calls > 0) this.#seenSerial = this.shared.lastSerial;
    this.#flush();
    if (!this.#closed) this.#afterTurn(wait);
  }

  #afterTurn(wait: 'no' | 'work' | 'turn'): void {
    if (this.#socket.writableLength > nfsLimits.outputBytesMax) this.#wait = 'drain';
    else this.#wait = wait;
    if (this.#wait === 'no') return;
    this.#socket.pause();
    if (this.#wait === 'turn') setImmediate(() => this.#resumeFrom('turn'));
  }

  /**
   * Keeps the memory of the call being dispatched, because the file system still reads from it.
   * undefined: nothing needs to be given back.
   */
  keepInput(): Buffer | undefined {
    const { span } = this.#splitter;
    const memory = span.recycle;
    span.recycle = undefined;
    return memory;
  }

  releaseInput(memory: Buffer | undefined): void {
    if (memory !== undefined) this.shared.pool.giveInput(memory);
  }

  /** One call: its header, then its program. Faults of the call are answered, never thrown. */
  #call(): void {
    const { header, reader } = this;
    const { bytes, view, start, end } = this.#splitter.span;
    reader.reset(bytes, view, start, end);
    const verdict = header.read(reader);
    if (verdict === Verdict.drop) throw new RecordError('a message that is no call');
    if (verdict !== Verdict.accept) {
      this.reply(64, (writer) => writeDenied(writer, header.xid, verdict));
      return;
    }
    try {
      this.shared.dispatch(this);
    } catch (error) {
      this.fault(header.xid, error);
    }
  }

  /** Answers a call that could not be decoded, or in which we failed. */
  fault(xid: number, error: unknown): void {
    const garbage = error instanceof XdrError;
    if (!garbage) this.shared.log.warn({ error, address: this.address }, 'a call failed');
    const status = garbage ? AcceptStatus.garbageArguments : AcceptStatus.systemError;
    this.reply(64, (writer) => writeAccepted(writer, xid, status));
  }

  /** The stream cannot be understood any more. */
  #give(error: unknown): void {
    if (!(error instanceof RecordError)) {
      this.shared.log.warn({ error, address: this.address }, 'a connection failed');
    }
    this.destroy();
  }

  // -- end ------------------------------------------------------------------------------------

  /** Ends connections that stopped in the middle of a record, or take no replies. */
  sweep(nowMs: number): void {
    const socket = this.#socket;
    const over = this.#patience.isOver(nowMs, {
      // While we do not read, it is not the client that stopped.
      partialBytes:
        this.#splitter.partial && this.#wait === 'no' ? this.#splitter.heldBytes : undefined,
      unsentBytes: socket.writableLength,
      sentBytes: socket.bytesWritten - socket.writableLength,
      calls: this.#calls,
    });
    if (over) this.destroy();
  }

  /** Answers what is in flight, then ends. */
  end(): void {
    if (this.#closed || this.#ending) return;
    this.#ending = true;
    this.#later.length = 0;
    this.scheduleFlush();
  }

  /** After `end`: all is answered and taken; do not wait for the client to close as well. */
  cutWhenQuiet(): void {
    if (this.#ended && this.#socket.writableFinished) this.destroy();
  }

  destroy(): void {
    this.#socket.destroy();
    this.#onClose();
  }

  #onClose(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#later.length = 0;
    this.shared.stalled.delete(this);
    const slices = this.#slices;
    this.#slices = [];
    this.#from.length = 0;
    this.#to.length = 0;
    for (const segment of slices) segment.release();
    this.#segment?.disown();
    this.#segment = undefined;
    this.#socket.destroy();
  }
}
