export const reconcileLimits = {
  /** After a start, runs that were interrupted and proxies that start beside get this head start. */
  firstAfterMs: 10_000,
  /** A pass over 200 machines takes some 20 s of virsh calls: 2 % of the time. */
  everyMs: 900_000,
} as const;
