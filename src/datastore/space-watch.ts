import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Files } from '../lib/files.ts';
import { datastoreLimits } from '../limits.ts';

/**
 * Says no to guests before the file system is quite full, so that tables, journals and clean-up
 * still find room. Free space is asked for now and then; in between, what is written is deducted.
 */
export class SpaceWatch {
  readonly #files: Files;
  readonly #clock: Clock;
  readonly #path: string;
  readonly #reserveBytes: number;
  #freeBytes = Number.POSITIVE_INFINITY;
  #spentBytes = 0;
  #askedMs = 0;
  #asking: Promise<void> | undefined;

  constructor(files: Files, clock: Clock, path: string, reserveBytes: number) {
    this.#files = files;
    this.#clock = clock;
    this.#path = path;
    this.#reserveBytes = reserveBytes;
  }

  spend(bytes: number): void {
    this.#spentBytes += bytes;
  }

  get tooLittle(): boolean {
    if (this.#freeBytes - this.#spentBytes >= this.#reserveBytes) return false;
    this.consider();
    return true;
  }

  error(): RouseError {
    return new RouseError('disk-full', `${this.#path}: less than the reserve is free`, {
      advice: 'Free space on this file system; reads go on meanwhile.',
    });
  }

  /** Asks again when the last answer is old. */
  consider(): void {
    const old = this.#clock.monotonic() - this.#askedMs >= datastoreLimits.spaceCheckMs;
    if (old || this.#spentBytes >= datastoreLimits.spaceCheckBytes) this.refreshSoon();
  }

  refreshSoon(): void {
    if (this.#asking !== undefined) return;
    this.refresh().catch(() => undefined);
  }

  async refresh(): Promise<void> {
    this.#asking ??= this.#ask().finally(() => {
      this.#asking = undefined;
    });
    await this.#asking;
  }

  async #ask(): Promise<void> {
    const spent = this.#spentBytes;
    this.#askedMs = this.#clock.monotonic();
    const { freeBytes } = await this.#files.space(this.#path);
    this.#freeBytes = freeBytes;
    this.#spentBytes -= spent;
  }
}
