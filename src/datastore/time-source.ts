import type { Clock } from '../lib/clock.ts';
import type { NfsTime } from '../nfs/file-system.ts';

/**
 * Times of changes: strictly ascending, though the clock counts milliseconds and may be set back.
 * Clients tell two versions of a file apart by them.
 */
export class TimeSource {
  readonly #clock: Clock;
  #lastMs = 0;
  #extraNanoseconds = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  next(): NfsTime {
    const now = Math.floor(this.#clock.now());
    if (now > this.#lastMs) {
      this.#lastMs = now;
      this.#extraNanoseconds = 0;
    } else if (++this.#extraNanoseconds >= 1_000_000) {
      this.#lastMs++;
      this.#extraNanoseconds = 0;
    }
    return toNfsTime(this.#lastMs, this.#extraNanoseconds);
  }
}

function toNfsTime(milliseconds: number, extraNanoseconds: number): NfsTime {
  const seconds = Math.floor(milliseconds / 1000);
  const nanoseconds = (milliseconds - seconds * 1000) * 1_000_000 + extraNanoseconds;
  return { seconds, nanoseconds };
}
