/** Disks that come as streams: bounds with their arithmetic, as in src/limits.ts. */
export const streamLimits = {
  /** Disks of one lease that come at once: a host's NFC service has some 48 MiB of buffers in all. */
  streamsMax: 3,
  /** Grains of 64 KiB are gathered so far before they are stored: 3 x 1 MiB of memory a job. */
  windowBytes: 1024 * 1024,
} as const;
