/** Steps and turns of backups: bounds with their arithmetic, as in src/limits.ts. */
export const takingLimits = {
  /** A proxy that restarts is back within seconds; after 40 x 3 s it is away. */
  proxyAttemptsMax: 40,
  proxyPauseMs: 3_000,
  /** Ending a stored backup at the hypervisor: 5 attempts, then it is a warning. */
  finishAttemptsMax: 5,
  finishPauseMs: 2_000,
  /** `cancel` answers after this long at the latest; what it began goes on. */
  cancelWaitMs: 20_000,
} as const;

/** Whose turn it is (turns.ts). */
export const turnLimits = {
  /** Backups that read from one host at once: 4 x 3 disks, beside whatever else copies there. */
  perHostMax: 4,
  /** ... and from one datastore: more make each slower, and every one's snapshot live longer. */
  perDatastoreMax: 4,
} as const;
