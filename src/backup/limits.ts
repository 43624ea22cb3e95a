/** Whose turn it is (turns.ts): bounds with their arithmetic, as in src/limits.ts. */
export const turnLimits = {
  /** Backups that read from one host at once: 4 x 3 disks, beside whatever else copies there. */
  perHostMax: 4,
  /** ... and from one datastore: more make each slower, and every one's snapshot live longer. */
  perDatastoreMax: 4,
} as const;
