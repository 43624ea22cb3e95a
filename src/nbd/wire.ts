import type { Duplex } from 'node:stream';
import { nbdLimits } from '../limits.ts';

/** The other side has closed the connection, or it broke. */
export class ConnectionEnded extends Error {
  constructor(cause?: unknown) {
    super(cause instanceof Error ? cause.message : 'the connection was closed', { cause });
    this.name = 'ConnectionEnded';
  }
}

/**
 * Exact reads from a stream for one reader, and writes that wait for the peer. No more than
 * `bufferedBytesMax` and one chunk are held; then the stream is paused.
 */
export class Wire {
  readonly #stream: Duplex;
  readonly #chunks: Buffer[] = [];
  #buffered = 0;
  #ended: ConnectionEnded | undefined;
  #wake: (() => void) | undefined;
  #isPaused = false;
  readonly #writing = new Set<(error: ConnectionEnded) => void>();
  /** Bytes ever received: whether the peer is alive. */
  received = 0;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on('data', (bytes: Buffer) => this.#take(bytes));
    stream.on('error', (error: unknown) => this.#end(error));
    stream.on('end', () => this.#end());
    stream.on('close', () => this.#end());
  }

  get isEnded(): boolean {
    return this.#ended !== undefined;
  }

  async take(length: number): Promise<Buffer> {
    const first = this.#chunks[0];
    if (first !== undefined && first.length >= length && length > 0) return this.#shift(length);
    const bytes = Buffer.allocUnsafe(length);
    await this.readInto(bytes);
    return bytes;
  }

  async readInto(target: Uint8Array): Promise<void> {
    let done = 0;
    while (done < target.length) {
      const first = this.#chunks[0];
      if (first === undefined) {
        if (this.#ended !== undefined) throw this.#ended;
        await new Promise<void>((resolve) => (this.#wake = resolve));
        continue;
      }
      const part = this.#shift(Math.min(first.length, target.length - done));
      target.set(part, done);
      done += part.length;
    }
  }

  async skip(length: number): Promise<void> {
    let left = length;
    while (left > 0) {
      const part = Math.min(left, 64 * 1024);
      await this.take(part);
      left -= part;
    }
  }

  #shift(length: number): Buffer {
    const first = this.#chunks[0] ?? Buffer.alloc(0);
    if (first.length === length) this.#chunks.shift();
    else this.#chunks[0] = first.subarray(length);
    this.#buffered -= length;
    if (this.#isPaused && this.#buffered < nbdLimits.bufferedBytesMax / 2) {
      this.#isPaused = false;
      this.#stream.resume();
    }
    return first.subarray(0, length);
  }

  #take(bytes: Buffer): void {
    if (bytes.length === 0) return;
    this.#chunks.push(bytes);
    this.#buffered += bytes.length;
    this.received += bytes.length;
    if (this.#buffered > nbdLimits.bufferedBytesMax && !this.#isPaused) {
      this.#isPaused = true;
      this.#stream.pause();
    }
    this.#notify();
  }

  #end(cause?: unknown): void {
    this.#ended ??= new ConnectionEnded(cause);
    for (const reject of this.#writing) reject(this.#ended);
    this.#writing.clear();
    this.#notify();
  }

  #notify(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }

  /** Resolves when the last of them is handed to the system: back-pressure reaches the caller. */
  write(...buffers: readonly Uint8Array[]): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#ended !== undefined) return reject(this.#ended);
      this.#writing.add(reject);
      this.#stream.cork();
      const last = buffers.length - 1;
      buffers.forEach((buffer, index) => {
        if (index < last) {
          this.#stream.write(buffer);
          return;
        }
        this.#stream.write(buffer, (error) => {
          this.#writing.delete(reject);
          if (error) reject(new ConnectionEnded(error));
          else resolve();
        });
      });
      this.#stream.uncork();
    });
  }

  /** Sends what is left and closes this side. */
  end(): void {
    this.#stream.end();
  }

  /** Sends what is left, then closes both sides. */
  finish(): void {
    this.#stream.end(() => this.#stream.destroy());
  }

  /** What has come and was not taken is dropped: nobody's buffer is written to any more. */
  destroy(): void {
    this.#stream.destroy();
    this.#chunks.length = 0;
    this.#buffered = 0;
    this.#end();
  }
}

/** Counts what is in flight; waiters are served in order. */
export class Slots {
  #free: number;
  readonly #waiting: { readonly count: number; readonly resume: () => void }[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async acquire(count: number): Promise<void> {
    if (this.#waiting.length === 0 && this.#free >= count) {
      this.#free -= count;
      return;
    }
    await new Promise<void>((resume) => this.#waiting.push({ count, resume }));
  }

  release(count: number): void {
    this.#free += count;
    for (;;) {
      const next = this.#waiting[0];
      if (next === undefined || next.count > this.#free) return;
      this.#waiting.shift();
      this.#free -= next.count;
      next.resume();
    }
  }
}
