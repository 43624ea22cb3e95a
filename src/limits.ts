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

/** Disk images are read from strangers: every count is checked against these and the file. */
export const formatLimits = {
  /** 64 TiB less one cluster is what ESXi allows; qcow2's own bound is higher. 2^53 is far off. */
  sizeBytesMax: 1024 * 1024 * 1024 * MiB,
  /** 2 TiB in 2 GiB extents are 1,024; hosted products stop long before. */
  extentsMax: 4096,
  /** One open file each; libvirt itself follows 200. */
  chainDepthMax: 200,
  /** Descriptors have some 20 lines, and one line for each extent: 4,096 x 100 bytes and more. */
  descriptorBytesMax: MiB,
  /** Header, extensions and backing file's name lie in the first cluster; ours read this much. */
  headerBytesMax: 2 * MiB,
  /** QEMU's own bound (qcow2.h, QCOW_MAX_L1_SIZE). */
  l1BytesMax: 32 * MiB,
  /** Tables of a whole chain, in pages: 256 x 64 KiB = 16 MiB, whatever the disk's size. */
  tablePageBytes: 64 * KiB,
  tablePagesMax: 256,
  /** Unpacked compressed clusters and grains, for reads smaller than them: 16 x 64 KiB = 1 MiB. */
  unpackedPiecesMax: 16,
  /** Clusters of 2 MiB are qcow2's largest; a VMDK's grain is 64 KiB nearly always. */
  pieceBytesMax: 2 * MiB,
  /** Unpacking at once for one read: 4 x (2 MiB + its packed form). */
  unpackingMax: 4,
  /** A .vmx has some hundred lines; a domain's XML some hundred kilobytes with many devices. */
  configurationBytesMax: 4 * MiB,
  /** Tables of a qcow2 being written: 64 x 64 KiB = 4 MiB, each for 512 MiB of disk. */
  writerTablesMax: 64,
} as const;
