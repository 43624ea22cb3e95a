import { nfsLimits } from '../limits.ts';
import { LAST_FRAGMENT } from './rpc.ts';
import { viewOf } from './xdr.ts';

/** One whole message, in place where it came in one piece. Valid until the next `next()`. */
export interface RecordSpan {
  bytes: Buffer;
  view: DataView;
  start: number;
  end: number;
  /** Memory to be recycled when the call is over; undefined: it takes care of itself. */
  recycle: Buffer | undefined;
}

/** Where large records are gathered. */
export interface InputMemory {
  /** At least `bytes`, not cleared. */
  takeInput(bytes: number): Buffer;
}

/** The other side broke record marking: nothing after it can be understood. */
export class RecordError extends Error {}

/**
 * Splits a TCP stream into records (RFC 5531 11). A record that lies whole and unfragmented in one
 * chunk is handed out in place; others are gathered from the chunks that hold them, with one copy,
 * and only when all of their bytes have come, so that a large announced length costs nothing.
 */
export class RecordSplitter {
  readonly span: RecordSpan;
  readonly #recordBytesMax: number;
  readonly #memory: InputMemory | undefined;
  #chunk: Buffer | undefined;
  #view: DataView = viewOf(Buffer.alloc(0));
  #at = 0;

  /** The record being gathered. */
  #pieces: Buffer[] = [];
  #gatheredBytes = 0;
  #fragments = 0;
  #fragmentLeft = 0;
  #lastFragment = false;
  #inFragment = false;
  #markBytes = 0;
  #mark = 0;

  constructor(recordBytesMax: number = nfsLimits.recordBytesMax, memory?: InputMemory) {
    this.#recordBytesMax = recordBytesMax;
    this.#memory = memory;
    const nothing = Buffer.alloc(0);
    this.span = { bytes: nothing, view: this.#view, start: 0, end: 0, recycle: undefined };
  }

  /** Adds a chunk; all earlier ones must have been used up (`next()` gave false). */
  push(chunk: Buffer): void {
    this.#chunk = chunk;
    this.#view = viewOf(chunk);
    this.#at = 0;
  }

  /** Whether a record was begun that has not ended. */
  get partial(): boolean {
    return this.#inFragment || this.#markBytes > 0 || this.#fragments > 0;
  }

  /** Bytes held for a record that has not ended. */
  get heldBytes(): number {
    return this.#gatheredBytes;
  }

  /** Puts the next whole record into `span`; false when the chunk is used up. */
  next(): boolean {
    const chunk = this.#chunk;
    if (chunk === undefined) return false;
    const at = this.#at;
    if (!this.partial && at + 4 <= chunk.length) {
      const mark = this.#view.getUint32(at);
      const length = mark & 0x7fff_ffff;
      const end = at + 4 + length;
      if (mark >= LAST_FRAGMENT && end <= chunk.length && length <= this.#recordBytesMax) {
        const span = this.span;
        span.bytes = chunk;
        span.view = this.#view;
        span.start = at + 4;
        span.end = end;
        span.recycle = undefined;
        this.#at = end;
        return true;
      }
    }
    return this.#gather(chunk);
  }

  #gather(chunk: Buffer): boolean {
    while (this.#at < chunk.length) {
      if (!this.#inFragment) {
        if (!this.#takeMark(chunk)) break;
      }
      const take = Math.min(this.#fragmentLeft, chunk.length - this.#at);
      if (take > 0) {
        this.#pieces.push(chunk.subarray(this.#at, this.#at + take));
        this.#at += take;
        this.#gatheredBytes += take;
        this.#fragmentLeft -= take;
      }
      if (this.#fragmentLeft > 0) break;
      this.#inFragment = false;
      if (this.#lastFragment) {
        this.#handOut();
        return true;
      }
    }
    this.#chunk = undefined;
    return false;
  }

  /** Takes the four bytes of a mark, which may come one by one. */
  #takeMark(chunk: Buffer): boolean {
    while (this.#markBytes < 4) {
      if (this.#at >= chunk.length) return false;
      this.#mark = ((this.#mark << 8) | (chunk[this.#at++] ?? 0)) >>> 0;
      this.#markBytes++;
    }
    const length = this.#mark & 0x7fff_ffff;
    this.#lastFragment = this.#mark >= LAST_FRAGMENT;
    this.#markBytes = 0;
    this.#mark = 0;
    this.#fragments++;
    if (this.#gatheredBytes + length > this.#recordBytesMax) {
      throw new RecordError(`a record of more than ${this.#recordBytesMax} bytes`);
    }
    if (this.#fragments > nfsLimits.fragmentsMax) {
      throw new RecordError(`a record of more than ${nfsLimits.fragmentsMax} fragments`);
    }
    this.#fragmentLeft = length;
    this.#inFragment = true;
    return true;
  }

  #handOut(): void {
    const span = this.span;
    const pieces = this.#pieces;
    const length = this.#gatheredBytes;
    span.recycle = undefined;
    if (pieces.length === 1) {
      span.bytes = pieces[0] as Buffer;
    } else if (this.#memory === undefined || length < nfsLimits.recycledInputBytes) {
      span.bytes = Buffer.concat(pieces, length);
    } else {
      const memory = this.#memory.takeInput(length);
      let at = 0;
      for (const piece of pieces) {
        memory.set(piece, at);
        at += piece.length;
      }
      span.bytes = memory;
      span.recycle = memory;
    }
    span.view = viewOf(span.bytes);
    span.start = 0;
    span.end = length;
    this.#pieces = [];
    this.#gatheredBytes = 0;
    this.#fragments = 0;
  }
}
