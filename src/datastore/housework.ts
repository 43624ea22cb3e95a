/**
 * What a layer does beside its traffic, one thing at a time: removes segments in which nothing
 * lives, writes checkpoints, and copies the rest out of segments that are mostly garbage, so that
 * the log takes at most about twice what lives in it.
 */
import type { Clock } from '../lib/clock.ts';
import { datastoreLimits } from '../limits.ts';
import { pageBytes, unitBytes } from './layer-format.ts';
import type { Segment, Segments } from './segments.ts';

export interface HouseworkOn {
  /** No snapshot needs old segments, and no sync has failed. */
  mayRemove(): boolean;
  /** There is room for files that may be of use later. */
  mayKeepFiles(): boolean;
  syncedSequence(): number;
  /** Log that the last checkpoint does not cover, and the size of that checkpoint. */
  tailBytes(): number;
  checkpointBytes(): number;
  checkpoint(): Promise<void>;
  sync(): Promise<void>;
  /** Answers how many pages could not be copied. */
  clean(segment: Segment): Promise<number>;
}

export class Housework {
  readonly #segments: Segments;
  readonly #bounds: { readonly garbageBytesMin: number; readonly checkpointEveryBytes: number };
  readonly #layer: HouseworkOn;
  #running: Promise<void> | undefined;
  #stopped = false;
  #step: Promise<void> | undefined;

  constructor(
    segments: Segments,
    bounds: { readonly garbageBytesMin: number; readonly checkpointEveryBytes: number },
    layer: HouseworkOn,
  ) {
    this.#segments = segments;
    this.#bounds = bounds;
    this.#layer = layer;
  }

  /** Begins what is due, unless something is under way. */
  consider(): void {
    if (this.#running !== undefined || this.#stopped || this.#nextDuty() === undefined) return;
    this.#running = this.#work()
      // What failed is still due, and is tried again after the next appends.
      .catch(() => undefined)
      .finally(() => {
        this.#running = undefined;
      });
  }

  /**
   * Resolves when writers may go on. At once, unless garbage is far above its bound; then when the
   * step under way is done, so that guests that overwrite faster than the disk syncs are slowed
   * to what housework gives back. Never longer than `reliefMsMax`.
   */
  async relief(clock: Clock): Promise<void> {
    if (this.#running === undefined || !this.overloaded) return;
    const ending = new AbortController();
    const late = clock.sleep(datastoreLimits.reliefMsMax, ending.signal);
    // A step that fails is reported where it was begun.
    await Promise.race([late, this.#step]).catch(() => undefined);
    late.catch(() => undefined);
    ending.abort();
  }

  /** Finishes the step that is under way, and begins no other. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  async #work(): Promise<void> {
    for (let duty = this.#nextDuty(); duty !== undefined; duty = this.#nextDuty()) {
      this.#step = duty();
      await this.#step;
      if (this.#stopped) return;
    }
  }

  #nextDuty(): (() => Promise<void>) | undefined {
    const removable = this.#removable();
    if (removable !== undefined) return () => this.#segments.remove(removable);
    if (this.#segments.hasSpareFiles && !this.#layer.mayKeepFiles()) {
      return () => this.#segments.dropSpareFiles();
    }
    if (this.#checkpointDue()) return () => this.#layer.checkpoint();
    // Dead segments that only wait for what superseded them to be durable.
    if (this.#layer.mayRemove() && this.#waitingBytes() > this.#bounds.garbageBytesMin / 2) {
      return () => this.#layer.sync();
    }
    const victim = this.#victim();
    return victim === undefined ? undefined : () => this.#clean(victim);
  }

  async #clean(victim: Segment): Promise<void> {
    if ((await this.#layer.clean(victim)) > 0) victim.damaged = true;
  }

  #removable(): Segment | undefined {
    if (!this.#layer.mayRemove()) return undefined;
    const synced = this.#layer.syncedSequence();
    return this.#segments
      .all()
      .find(
        (segment) =>
          segment.dead &&
          segment.lastSequence > 0 &&
          segment.readers === 0 &&
          segment !== this.#segments.active &&
          Math.max(segment.deadSince, segment.lastSequence) <= synced,
      );
  }

  #waitingBytes(): number {
    let bytes = 0;
    for (const segment of this.#segments.all()) {
      const waits = segment.dead && segment.readers === 0 && segment.lastSequence > 0;
      if (waits && segment !== this.#segments.active) bytes += segment.endUnits * unitBytes;
    }
    return bytes;
  }

  /** When there is too much garbage: the segment to clean, which gives most for least copying. */
  #victim(): Segment | undefined {
    let totalBytes = 0;
    let liveBytes = 0;
    let best: Segment | undefined;
    for (const segment of this.#segments.all()) {
      if (segment.dead) continue;
      totalBytes += segment.endUnits * unitBytes;
      liveBytes += segment.livePages * pageBytes;
      if (segment === this.#segments.active || segment.damaged) continue;
      if (share(segment) > 0.75) continue;
      if (best === undefined || share(segment) < share(best)) best = segment;
    }
    const garbage = totalBytes - liveBytes;
    return garbage > liveBytes && garbage > this.#bounds.garbageBytesMin ? best : undefined;
  }

  /** Garbage is far above its bound. */
  get overloaded(): boolean {
    let totalBytes = 0;
    let liveBytes = 0;
    for (const segment of this.#segments.all()) {
      totalBytes += segment.endUnits * unitBytes;
      liveBytes += segment.livePages * pageBytes;
    }
    return totalBytes - liveBytes > 2 * (liveBytes + this.#bounds.garbageBytesMin);
  }

  #checkpointDue(): boolean {
    const due = Math.max(
      this.#bounds.checkpointEveryBytes,
      this.#layer.checkpointBytes() * datastoreLimits.checkpointEveryTimes,
    );
    return this.#layer.tailBytes() > due;
  }
}

function share(segment: Segment): number {
  return (segment.livePages * pageBytes) / (segment.endUnits * unitBytes);
}
