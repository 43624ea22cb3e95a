/**
 * How long calls took, in buckets that double: bucket n counts calls of less than 2^n µs (and at
 * least half of that); the last takes the rest. Adding one allocates nothing.
 */
export class LatencyHistogram {
  static readonly buckets = 26;
  readonly counts = new Float64Array(LatencyHistogram.buckets);
  sumMs = 0;

  add(milliseconds: number): void {
    this.sumMs += milliseconds;
    const bucket = 32 - Math.clz32(milliseconds * 1000);
    const last = LatencyHistogram.buckets - 1;
    const at = bucket > last ? last : bucket;
    this.counts[at] = (this.counts[at] ?? 0) + 1;
  }

  view(): LatencyView {
    return {
      upperBoundsMs: Array.from(this.counts, (_, index) => 2 ** index / 1000),
      counts: Array.from(this.counts),
      sumMs: this.sumMs,
    };
  }
}

export interface LatencyView {
  /** Calls in bucket n took less than `upperBoundsMs[n]`; the last bucket holds all longer ones. */
  readonly upperBoundsMs: readonly number[];
  readonly counts: readonly number[];
  readonly sumMs: number;
}
