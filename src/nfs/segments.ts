import { nfsLimits } from '../limits.ts';
import type { InputMemory } from './records.ts';
import { viewOf, XdrWriter } from './xdr.ts';

/** Who fills a segment. */
export interface SegmentOwner {
  /** Nothing needs the segment's bytes any more, and nothing in it waits to be sent. */
  segmentIdle(segment: Segment): void;
}

/**
 * Memory that replies are written into and READs read into, recycled: a fresh 1 MiB buffer per READ
 * costs more than the read. A segment is filled from its start by one connection; `users` counts the
 * socket writes and unanswered READs that still need its bytes.
 */
export class Segment {
  readonly bytes: Buffer;
  /** Stands behind the last reply that was placed here. */
  readonly writer: XdrWriter;
  /** Replies before this were handed to the socket, or belong to READs not answered yet. */
  sentTo = 0;
  users = 0;
  owner: SegmentOwner | undefined;
  /** Callback of the socket write that carried bytes of this segment. */
  readonly written: (error?: Error | null) => void;
  readonly #pool: SegmentPool;
  /** A socket that died may still hold its bytes: never recycled then. */
  #poisoned = false;

  constructor(pool: SegmentPool, sizeBytes: number) {
    this.#pool = pool;
    this.bytes = Buffer.allocUnsafeSlow(sizeBytes);
    this.writer = new XdrWriter();
    this.writer.reset(this.bytes, viewOf(this.bytes), 0);
    this.written = (error) => {
      if (error) this.#poisoned = true;
      this.release();
    };
  }

  get room(): number {
    return this.bytes.length - this.writer.position;
  }

  release(): void {
    this.users--;
    if (this.users > 0) return;
    if (this.owner === undefined) this.#recycle();
    else if (this.sentTo === this.writer.position) this.owner.segmentIdle(this);
  }

  /** The connection fills another one, or is gone. */
  disown(): void {
    this.owner = undefined;
    if (this.users === 0) this.#recycle();
  }

  #recycle(): void {
    if (!this.#poisoned) this.#pool.give(this);
  }
}

/** Segments of two sizes and input of one, a bounded number of each kept; last used, first taken. */
export class SegmentPool implements InputMemory {
  readonly #small: Segment[] = [];
  readonly #large: Segment[] = [];
  readonly #inputs: Buffer[] = [];

  take(bytesAtLeast: number, owner: SegmentOwner): Segment {
    const large = bytesAtLeast > nfsLimits.replySegmentBytes;
    const size = large ? nfsLimits.largeSegmentBytes : nfsLimits.replySegmentBytes;
    const segment = (large ? this.#large : this.#small).pop() ?? new Segment(this, size);
    segment.owner = owner;
    return segment;
  }

  give(segment: Segment): void {
    segment.writer.position = 0;
    segment.sentTo = 0;
    const large = segment.bytes.length > nfsLimits.replySegmentBytes;
    const list = large ? this.#large : this.#small;
    const max = large ? nfsLimits.freeLargeSegmentsMax : nfsLimits.freeSegmentsMax;
    if (list.length < max) list.push(segment);
  }

  takeInput(bytes: number): Buffer {
    if (bytes > nfsLimits.recordBytesMax) return Buffer.allocUnsafeSlow(bytes);
    return this.#inputs.pop() ?? Buffer.allocUnsafeSlow(nfsLimits.recordBytesMax);
  }

  giveInput(memory: Buffer): void {
    if (this.#inputs.length >= nfsLimits.freeInputsMax) return;
    if (memory.length === nfsLimits.recordBytesMax) this.#inputs.push(memory);
  }
}
