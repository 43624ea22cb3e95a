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
