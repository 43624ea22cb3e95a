/**
 * Every queue, buffer, page, retry and time-out of Rouse, with its arithmetic. One object per
 * room; units stand last in a name. What an administrator may change is in config.ts instead.
 */
const KiB = 1024;
const MiB = 1024 * KiB;

export const processLimits = {
  /** A child process (virsh, qemu-img) that says more than this is cut: 16 MiB of text. */
  outputBytesMax: 16 * MiB,
  /** Most virsh calls answer in under a second; a busy libvirtd took 20 s in trials. */
  commandTimeoutMs: 60_000,
} as const;

export const proxyLimits = {
  /** Backups, restores and seals at once: each keeps two cores busy by itself. */
  jobsMax: 16,
  /** Ended jobs remembered, so that a server that was away learns the outcome. */
  jobsKeptMax: 1_000,
  /** A caller waiting for a job's news is answered at least this often. */
  jobWaitMsMax: 30_000,
  /** One read from a source: long enough for a disk or NBD to stream, 64 blocks of 32 KiB. */
  ingestReadBytes: 2 * MiB,
  /** Reads of one disk in flight: 4 x 2 MiB of memory a disk. */
  ingestReadsMax: 4,
  /** Extents are asked for in strides, so that a map of a 16 TiB disk is never in memory. */
  extentStrideBytes: 1024 * MiB,
  /** A configuration file written into a clone. */
  cloneFileBytesMax: 16 * MiB,
} as const;

export const supervisorLimits = {
  /** A proxy is back well within the two seconds that guests are promised. */
  restartPauseMsMin: 50,
  /** One that crashes at once is tried again at most this rarely. */
  restartPauseMsMax: 5_000,
  /** A child that does not end on SIGTERM is killed: its state survives that anyway. */
  stopMsMax: 20_000,
} as const;
