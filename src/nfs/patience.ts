import { nfsLimits } from '../limits.ts';

/** What a connection shows of itself, now and then. */
export interface Signs {
  /** Bytes of a record that has not come whole; undefined: there is none to wait for. */
  readonly partialBytes: number | undefined;
  /** Replies that the client has not taken, and those that it has. */
  readonly unsentBytes: number;
  readonly sentBytes: number;
  readonly calls: number;
}

/** How long a connection may stop half-way: in a record, in taking replies, before its first call. */
export class Patience {
  readonly #openedMs: number;
  #partialSinceMs: number;
  #partialBytes: number | undefined;
  #stalledSinceMs: number;
  #sentBytes = 0;

  /** Monotonic times, as everywhere here. */
  constructor(nowMs: number) {
    this.#openedMs = nowMs;
    this.#partialSinceMs = nowMs;
    this.#stalledSinceMs = nowMs;
  }

  isOver(nowMs: number, signs: Signs): boolean {
    if (signs.partialBytes === undefined || signs.partialBytes !== this.#partialBytes) {
      this.#partialSinceMs = nowMs;
      this.#partialBytes = signs.partialBytes;
    }
    if (signs.unsentBytes === 0 || signs.sentBytes !== this.#sentBytes) {
      this.#stalledSinceMs = nowMs;
      this.#sentBytes = signs.sentBytes;
    }
    return (
      nowMs - this.#partialSinceMs > nfsLimits.partialRecordTimeoutMs ||
      nowMs - this.#stalledSinceMs > nfsLimits.stalledOutputTimeoutMs ||
      (signs.calls === 0 && nowMs - this.#openedMs > nfsLimits.firstCallTimeoutMs)
    );
  }
}
