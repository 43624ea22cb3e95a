/**
 * What a layer does beside its traffic, one thing at a time: removes segments in which nothing
 * lives, writes checkpoints, and copies the rest out of segments that are mostly garbage, so that
 * the log takes at most about twice what lives in it.
 */
import { datastoreLimits } from '../limits.ts';
import { pageBytes, unitBytes } from './layer-format.ts';
import type { Segment, Segments } from './segments.ts';

export interface HouseworkOn {
  /** No snapshot needs old segments, and no sync has failed. */
  mayRemove(): boolean;
  syncedSequence(): number;
  /** Log that the last checkpoint does not cover, and the size of that checkpoint. */
  tailBytes(): number;
  checkpointBytes(): number;
  checkpoint(): Promise<void>;
  /** Answers how many pages could not be copied. */
  clean(segment: Segment): Promise<number>;
}

export class Housework {
  readonly #segments: Segments;
  readonly #bounds: { readonly garbageBytesMin: number; readonly checkpointEveryBytes: number };
  readonly #layer: HouseworkOn;
  #running: Promise<void> | undefined;

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
    if (this.#running !== undefined) return;
    if (!this.#removable() && !this.#garbage() && !this.#checkpointDue()) return;
    this.#running = this.#work()
      // What failed is still due, and is tried again after the next appends.
      .catch(() => undefined)
      .finally(() => {
        this.#running = undefined;
      });
  }

  async idle(): Promise<void> {
    await this.#running;
  }

  async #work(): Promise<void> {
    for (let dead = this.#removable(); dead !== undefined; dead = this.#removable()) {
      await this.#segments.remove(dead);
    }
    if (this.#checkpointDue()) await this.#layer.checkpoint();
    const victim = this.#garbage();
    if (victim !== undefined && (await this.#layer.clean(victim)) > 0) victim.damaged = true;
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

  /** When there is too much garbage: the segment to clean, which gives most for least copying. */
  #garbage(): Segment | undefined {
    let totalBytes = 0;
    let liveBytes = 0;
    let best: Segment | undefined;
    for (const segment of this.#segments.all()) {
      totalBytes += segment.endUnits * unitBytes;
      liveBytes += segment.livePages * pageBytes;
      if (segment === this.#segments.active || segment.damaged || segment.dead) continue;
      if (share(segment) > 0.75) continue;
      if (best === undefined || share(segment) < share(best)) best = segment;
    }
    const garbage = totalBytes - liveBytes;
    return garbage > liveBytes && garbage > this.#bounds.garbageBytesMin ? best : undefined;
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
