/**
 * Every queue, buffer, page, retry and time-out of Rouse, with its arithmetic. One object per
 * room, vSphere's beside its driver; units stand last in a name. What an administrator may change
 * is in config.ts instead.
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
  /** A job's news are waited for this long at a time. */
  jobPollMs: 10_000,
  /** One read from a source: long enough for a disk or NBD to stream, 64 blocks of 32 KiB. */
  ingestReadBytes: 2 * MiB,
  /** Reads of one disk in flight: 4 x 2 MiB of memory a disk. */
  ingestReadsMax: 4,
  /** Extents are asked for in strides, so that a map of a 16 TiB disk is never in memory. */
  extentStrideBytes: 1024 * MiB,
  /** Addresses tried for one choice: 16 hosts with 4 each. */
  reachMax: 64,
  /** A host in the same building answers in a millisecond; a person waits for the choice. */
  reachMsMax: 400,
  /** 200 exports of about 300 bytes are 60 KiB. */
  exportListBytesMax: 16 * MiB,
  /** A configuration file written into a clone. */
  cloneFileBytesMax: 16 * MiB,
  /** The same as base64 in JSON, with room for names. */
  requestBytesMax: 24 * MiB,
} as const;

export const supervisorLimits = {
  /** A proxy is back well within the two seconds that guests are promised. */
  restartPauseMsMin: 50,
  /** One that crashes at once is tried again at most this rarely. */
  restartPauseMsMax: 5_000,
  /** Half of a young generation: some 100 calls in flight with their replies take 1 MiB. */
  proxySemiSpaceMebibytes: 2,
  /** A child that does not end on SIGTERM is killed: its state survives that anyway. */
  stopMsMax: 20_000,
} as const;

/** Disk images are read from strangers: every count is checked against these and the file. */
export const formatLimits = {
  /** 1 PiB: sixteen times the largest disk of ESXi (62 TiB); sums stay far below 2^53. */
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
  /**
   * Unpacked compressed clusters and grains, for reads smaller than them: 16 x 64 KiB = 1 MiB as a
   * rule, 16 x 2 MiB = 32 MiB with the largest clusters.
   */
  unpackedPiecesMax: 16,
  /** Clusters of 2 MiB are qcow2's largest; a VMDK's grain is 64 KiB nearly always. */
  pieceBytesMax: 2 * MiB,
  /** Pieces fetched at once for one read: 4 x (2 MiB + its packed form) = 16 MiB. */
  fetchingMax: 4,
  /** Tables in front of a stream, as QEMU writes them: both copies for 128 GiB are 2 x 8 MiB. */
  streamHeadBytesMax: 16 * MiB,
  /** A .vmx has some hundred lines; a domain's XML some hundred kilobytes with many devices. */
  configurationBytesMax: 4 * MiB,
  /** Tables of a qcow2 being written: 64 x 64 KiB = 4 MiB, each for 512 MiB of disk. */
  writerTablesMax: 64,
} as const;

/** The NFS server (src/nfs). */
export const nfsLimits = {
  /** rtmax and wtmax of FSINFO: what one READ or WRITE carries. */
  transferBytesMax: 1 * MiB,
  /** The largest WRITE: 1 MiB of data, 2 x 408 bytes of credentials, headers and a handle. */
  recordBytesMax: 1 * MiB + 4 * KiB,
  /** A 1 MiB record in fragments of 1 KiB; nobody sends smaller ones. */
  fragmentsMax: 1_024,
  /** 64 GETATTRs of 100 bytes and 63 READs of 4 KiB and their headers fit into one buffer. */
  replySegmentBytes: 256 * KiB,
  /** A READ of 1 MiB and its headers. */
  largeSegmentBytes: 1 * MiB + 4 * KiB,
  /** Recycled buffers kept: 32 x 256 KiB + 16 x 1 MiB + 16 x 1 MiB = 40 MiB. */
  freeSegmentsMax: 32,
  freeLargeSegmentsMax: 16,
  freeInputsMax: 16,
  /** Gathered calls below this are cheaper left to the collector. */
  recycledInputBytes: 32 * KiB,
  /** A Linux client has up to 128 slots by default grown to 65,536; QEMU's iodepth is below 256. */
  connectionCallsMax: 256,
  /** 16 of the largest READs or WRITEs. */
  connectionBytesMax: 16 * MiB,
  /** All connections: 16 busy hosts at their full bound. */
  serverBytesMax: 256 * MiB,
  /** Unsent replies of one connection before it is no longer read: four of the largest READs. */
  outputBytesMax: 4 * MiB,
  /** One turn of one connection before others get theirs: about 1 ms of small calls. */
  turnCallsMax: 256,
  turnBytesMax: 4 * MiB,
  /** Awake for the next call so long after a reply: 0.03 ms pass, 0.15 where waking is slow. */
  lookMs: 0.3,
  /** ... and at most so many turns of the event loop, of some two microseconds each. */
  looksMax: 400,
  /** Calls in a row that came so soon before it is tried. */
  lookAfterCalls: 8,
  /** Looks in vain may take 2 % of the time, a fifth of what the others save, and 10 ms at once. */
  lookShare: 0.02,
  lookGainMs: 0.01,
  lookCreditMsMax: 10,
  /** 200 hosts with 4 connections each, and room. */
  connectionsMax: 1_024,
  connectionsPerAddressMax: 256,
  /** Half a record and no more of it: the other side is gone or means ill. */
  partialRecordTimeoutMs: 30_000,
  /** A connection on which no call ever came. */
  firstCallTimeoutMs: 60_000,
  /** Replies that nobody takes: longer than a frozen host that comes back (ESXi gives up at 140 s). */
  stalledOutputTimeoutMs: 180_000,
  sweepIntervalMs: 5_000,
  /** Closing waits so long for calls in flight, then cuts. */
  closeTimeoutMs: 5_000,
  keepAliveMs: 30_000,
  /** Verified handles remembered per export: 4,096 x about 150 bytes = 600 KiB. */
  verifiedHandlesMax: 4_096,
  /** Duplicate request cache: replies of CREATE are about 300 bytes. */
  duplicateEntriesMax: 4_096,
  duplicateBytesMax: 4 * MiB,
  /** Longer than a client's last retransmission (ESXi and Linux: 60 s x 2). */
  duplicateAgeMs: 180_000,
  /** Notes about the last WRITEs of all clients, 18 bytes each: 4.7 MB, 5 s of the busiest server. */
  writeNotesMax: 262_144,
  /** READDIR and READDIRPLUS replies. */
  directoryBytesMax: 64 * KiB,
  directoryEntriesMax: 1_024,
  /** PATH_MAX of Linux: symlink targets and MOUNT paths (MNTPATHLEN is 1,024, RFC 1813 5.1.2). */
  pathBytesMax: 4 * KiB,
  /** MOUNT's list of who mounted what (DUMP), 1,024 x about 200 bytes. */
  mountsMax: 1_024,
  /** The longest list of exports or mounts told in one MOUNT reply. */
  mountReplyBytesMax: 192 * KiB,
  /** A running rpcbind answers in well under a millisecond. */
  portmapTimeoutMs: 3_000,
} as const;

export const recoveryLimits = {
  /** Ten days, as people know it from elsewhere; here it ends with warnings and parking. */
  leaseMsDefault: 10 * 86_400_000,
  /** A year: longer is a machine that should be relocated. */
  leaseMsMax: 365 * 86_400_000,
  /** Of the pairs of proxy and host that were ranked, those kept with the recovery: 64 x 1 KiB. */
  candidatesKeptMax: 64,
  /** Addresses of one host, both families, or of a small group of publish clients. */
  clientsMax: 64,
  /** People are warned this long before a lease ends (product.md, pain 3). */
  leaseWarningsMs: [72 * 3_600_000, 24 * 3_600_000, 3_600_000],
  /** A parked machine's writes are kept a week after its lease ended. */
  graceMs: 7 * 86_400_000,
  /** A lease that ends while its machine cannot be stopped goes on this long, then ends again. */
  leasePostponedMs: 3_600_000,
  /** `cancel` answers after this long at the latest; what it began goes on. */
  cancelWaitMs: 20_000,
  /** A guest has five minutes to shut down when its lease ends, before it is switched off. */
  shutdownMs: 300_000,
  /** A host that asked for nothing this long, with a connection still open, is silent. */
  silenceMs: 5_000,
  silencePollMs: 200,
  /** A client that mounted a publication and did not unmount it counts as using it this long after
   * its last call: an idle Linux client asks for something several times a day as a rule. */
  mountedSilenceMs: 86_400_000,
  /** How long one attempt of clean-up waits for silence; attempts go on. */
  silenceWaitMsMax: 60_000,
  /** With the engine's pauses of up to a minute: about a week of trying, in doubt exporting. */
  cleaningAttemptsMax: 10_000,
  /** A guest that has an agent says within this that it sees a new disk; most take a second. */
  guestSeesMsMax: 15_000,
  guestSeesPollMs: 500,
  /** A proxy that restarts while it seals is back within seconds: 1 + 2 + 4 ... 60 s, some minutes. */
  sealAttemptsMax: 10,
  /** A manager that is away is waited for: 1 + 2 + 4 + 8 + 26 x 10 s, less up to a quarter: three
   * and a half minutes at least. The services of a vCenter restart in one to three. */
  awayAttemptsMax: 30,
  /** A restored disk is sparse; a datastore with a tenth of its size free may do, less will not. */
  restoreFreeShare: 0.1,
} as const;

export const backupLimits = {
  /** virtio-scsi takes more, vSphere ends at 64 x 4 controllers. */
  disksMax: 256,
} as const;

export const catalogLimits = {
  datastoresMax: 256,
  /** A chain of authorities in PEM: 2 KiB each. */
  authorityBytesMax: 256 * KiB,
  /** Events in one answer: about 200 bytes each, 2 MB. */
  eventsMax: 10_000,
  eventsDefault: 100,
  /** Below a tenth of the file system, people are warned. */
  spaceWarningShare: 0.1,
} as const;

export const apiLimits = {
  /** The largest request is a backup of 256 disks with 4 KiB paths. */
  requestBytesMax: 2 * MiB,
  /** What a client accepts in one answer: 20,000 savesets of 1.5 KiB, or a screen's picture. */
  responseBytesMax: 64 * MiB,
  /** One server-sent event: the view of a recovery is about 8 KiB. */
  eventBytesMax: 4 * MiB,
  /** Streams open at once: a console, scripts and watchers; each costs a socket and a closure. */
  streamsMax: 256,
  /** A comment line keeps an idle stream alive and finds dead clients. */
  streamKeepAliveMs: 15_000,
  /** Headers and body must have arrived by then. */
  requestReadTimeoutMs: 30_000,
  /** Most answers take milliseconds; a hypervisor's test may wait for an SSH login. */
  callTimeoutMs: 60_000,
  /** Connecting to a unix socket or to loopback either works at once or not at all. */
  connectTimeoutMs: 5_000,
  /** A stream is taken for dead after four keep-alives that did not come. */
  streamSilenceMsMax: 60_000,
} as const;

export const databaseLimits = {
  /** Another process (a backup tool) may hold SQLite's lock this long; it blocks this thread. */
  busyTimeoutMs: 5_000,
  /** A transaction is a few statements, some milliseconds; half a minute means a deadlock. */
  queueWaitMs: 30_000,
  /** Prepared statements kept: about 80 distinct queries exist, some with a few shapes. */
  statementsMax: 256,
} as const;

export const workflowLimits = {
  /** Runs driven at once; a run is one promise and a few kB, its work is the proxy's. */
  runsMax: 256,
  /** A claim outlives six renewals, so one blocked minute loses nothing. */
  leaseMs: 60_000,
  /** Renewal of claims, and how late another server's cancel or end is seen. */
  pollMs: 10_000,
  /** Attempts of a step: 1 s, 2 s, 4 s ... 60 s, each shortened by up to a quarter. */
  retryMs: { first: 1_000, max: 60_000 },
  /** Attempts of a step that waits for somebody who is away: it goes on soon after they are back. */
  awayRetryMs: { first: 1_000, max: 10_000 },
  /** Attempts of an undo, of `settled` and of a timer: the same, up to 5 min, without end. */
  undoRetryMs: { first: 1_000, max: 300_000 },
  /** A step that took the whole process down this often is undone instead of run again. */
  crashesMax: 25,
  /** How long `stop` waits for steps that were told to stop. */
  stopWaitMs: 10_000,
  /** Progress is published at most four times a second and run. */
  progressEveryMs: 250,
  /** A result or an input is a few names; 256 KiB of JSON is a mistake. */
  jsonBytesMax: 256 * KiB,
  /** Timers fired at once. */
  timersMax: 16,
  /** Rows looked at when timers are due: four for each of 2,500 recoveries. */
  timersDueMax: 10_000,
  /** Runs answered by one listing, newest first. */
  runsListedMax: 1_000,
  /** Ended runs kept for 90 days; a run and its steps are about 5 kB. */
  runsKeptMs: 90 * 86_400_000,
  /** The newest are kept for ever: 5 MB. */
  runsKeptMin: 1_000,
  /** The oldest go earlier beyond this: 250 MB; 550 backups a day for 90 days. */
  runsKeptMax: 50_000,
  /** Runs of one transaction: it blocks this thread for some milliseconds. */
  prunedAtOnce: 100,
  /** After a start, when there is less to do; then once a day. */
  pruneFirstMs: 10 * 60_000,
  pruneEveryMs: 86_400_000,
} as const;

export const libvirtLimits = {
  /** One virsh call: most take 20 ms; starting a guest on a busy host took 5 s in trials. */
  callTimeoutMs: 120_000,
  /** A domain's XML: 30 devices of 1 KiB are usual; libvirt itself refuses above 10 MiB. */
  xmlBytesMax: 10 * MiB,
  /** libvirt's schema is 8 levels deep; metadata of others may add some. */
  xmlDepthMax: 64,
  /** 8192 x 8192: 192 MiB as pixmap, above what virtual screens offer. */
  screenPixelsMax: 8192 * 8192,
  screenBytesMax: 8192 * 8192 * 3 + 64,
  /** The probe takes 0.15 s in software; a machine with 20 times the load still passes. */
  kvmProbeMsMax: 5_000,
  /** KVM may take three times as long as software, and always half a second: a busy machine. */
  kvmProbeTimesMax: 3,
  kvmProbeMsMin: 500,
  kvmProbeAttempts: 3,
  /** Between two looks at a block job: 5 looks a second cost 1 % of a core. */
  blockJobPollMs: 200,
  /** Copying a disk offline: 16 TiB at 100 MiB/s are 47 h; the signal ends it earlier. */
  offlineCopyMsMax: 7 * 24 * 3600 * 1000,
  /** Relocation: half of a gigabit line to begin with, yielding down to 2 MiB/s to the guest. */
  relocateBytesPerSecondStart: 64 * MiB,
  relocateBytesPerSecondMin: 2 * MiB,
  relocateBytesPerSecondMax: 1024 * MiB,
  /** A guest's request that takes longer than this on average makes relocation yield. */
  guestLatencyMsMax: 30,
  /** Bandwidth is looked at again after this many polls: once a second. */
  throttleEveryPolls: 5,
  /** What a guest gets to shut down before it is switched off. */
  shutdownGraceMs: 60_000,
  powerPollMs: 200,
  /** A guest that has not let go of a disk by then is asked again by a person. */
  detachMsMax: 15_000,
  /** Units used of a virtio-scsi target: Linux and Windows look at 256 by default (max_lun 255). */
  scsiUnitsMax: 256,
  /** Slots of one PCI bus (PCI 3.0, 3.2.2.3.2: five bits). */
  pciSlotsMax: 32,
  /** sda to sdzzz: more than all controllers hold. */
  diskNamesMax: 18_278,
  /** One question to the guest's agent; a busy guest answers within a second or two. */
  agentSeconds: 5,
  /** Disks, partitions and file systems of one guest that are looked at. */
  guestDisksMax: 4_096,
  /** A block job, a backup job or a guest that was told to end does so within this. */
  endingMsMax: 30_000,
  /** Saved nvram: OVMF's variables are 528 KiB, 4 MiB builds 540 KiB; ARM pads to 64 MiB. */
  nvramBytesMax: 64 * MiB,
  /** The check that a datastore answers: an NFS mount and one lookup. */
  mountTimeoutMs: 20_000,
} as const;

/** Clones and their write layers (src/datastore). */
export const datastoreLimits = {
  /** One file of a clone's log: small enough to clean in a second, 16 files per GiB. */
  segmentBytes: 64 * MiB,
  /** 2^31 positions of 1 KiB are 2 TiB of log for each clone: 32,768 segments. */
  segmentsMax: 32_768,
  /** One append: 1,024 pages = 4 MiB, four of the largest NFS writes. */
  batchPagesMax: 1_024,
  /** Ranges in one append; beyond it the next begins: 32 + 16 x 1,024 = 16 KiB of header. */
  batchExtentsMax: 1_024,
  /**
   * Zeros written behind the log while syncs are small: 100 syncs of one page fit, which then share
   * the 2 ms that these bytes take.
   */
  prewriteBytes: 512 * 1024,
  /** Files of removed segments kept to be written again, for each clone: 128 MiB. */
  spareFilesMax: 2,
  /** Above it a sync is bound by its own bytes. */
  smallSyncBytes: 256 * 1024,
  /** So many small syncs in a row show a client that waits for each. */
  smallSyncsInRow: 4,
  /**
   * Garbage is cleaned when the log is more than twice what lives, and at least this larger: with
   * half of it, a guest that overwrites 256 MiB at random got a tenth less of its writes done.
   */
  garbageBytesMin: 512 * MiB,
  /** The longest that a write waits for garbage to be cleaned, once per segment of 64 MiB. */
  reliefMsMax: 1_000,
  /** Log appended between two checkpoints, at least: 0.1 s of headers to read after a kill. */
  checkpointEveryBytes: 256 * MiB,
  /** ... or this many times the last checkpoint, so that checkpoints cost 1/16 of all writes. */
  checkpointEveryTimes: 16,
  /** Kept free for tables, journals and clean-up: guests get NOSPC before. One segment. */
  reserveBytes: 64 * MiB,
  /** Free space is asked for again after this much was written, or this much time. */
  spaceCheckBytes: 16 * MiB,
  spaceCheckMs: 1_000,
  /** So long after the last unsynced write was synced, the layer is recorded as clean. */
  quietMs: 200,
  /** Disks of one clone: 16 bits in a record; hypervisors end at 256. */
  disksMax: 1_024,
  /** Files, directories and links of one clone; about 500 bytes of memory each: 32 MiB. */
  filesMax: 65_536,
  /** Reads of the base and of the log for one seal or export in flight, 1 MiB each. */
  sealReadBytes: 1 * MiB,
  /** The file table is rewritten when its journal is larger, and twice what it holds. */
  tableJournalBytes: 1 * MiB,
  /** ext4's own bound (LINK_MAX). */
  linksMax: 65_000,
  /** Open plain files kept: one descriptor each. */
  openFilesMax: 256,
} as const;

/** The vault (src/vault). What stands in docs/format.md is a bound of the format itself. */
export const vaultLimits = {
  /** A node holds block bytes / 32 ids: 128 at least, or trees get too deep. */
  blockBytesMin: 4 * KiB,
  /** The index counts a record's length in 15 bits of 64 bytes: below 2 MiB. */
  blockBytesMax: 1 * MiB,
  /** docs/decisions/0001-block-size.md. */
  blockBytesDefault: 32 * KiB,
  /** 32,768 packs a TiB; the index can address packs up to 256 MiB. */
  packBytesDefault: 32 * MiB,
  packBytesMax: 128 * MiB,
  /** A pack being filled and two being written: 3 x 32 MiB. */
  packsWritingMax: 2,
  /** Open packs: 4,096 x 32 MiB = 128 GiB are read without opening a file. */
  packReadersMax: 4096,
  /** Packs whose tables are read at once when the index does not know them. */
  packTablesReadingMax: 8,
  /** Slabs of 1 MiB of input, and as much for results, between the writers and the workers. */
  ingestSlabBytes: 1 * MiB,
  ingestSlabs: 12,
  ingestWorkers: 2,
  /** Workers run at this niceness: guests' reads come first. */
  ingestNiceness: 10,
  /** Nodes of one level of a tree being written: 16 x 32 KiB, four levels at most. */
  treeNodesDirtyMax: 16,
  /** Neighbouring records are fetched by one read: up to 1 MiB, over gaps of up to 64 KiB. */
  fetchBytesMax: 1 * MiB,
  fetchGapBytesMax: 64 * KiB,
  /** Records read at once for a sequential reader: some six, which stay in a core's cache. */
  streamBytes: 128 * KiB,
  /** A sequential reader that had to wait for the disk is read ahead by this much. */
  readAheadBytes: 4 * MiB,
  /** Even a cache bound to zero keeps the path of some dozen readers. */
  cacheBlocksMin: 64,
  /** SavesetFile: configuration and nvram; they are read whole into memory. */
  fileBytesMax: 64 * MiB,
  /** Entries waiting for the index file: 262,144 x 20 bytes = 5 MiB, or 8 GiB of new blocks. */
  indexPendingMax: 262_144,
  /** Index files besides the base; then one is written anew. */
  indexRunsMax: 32,
  /** Blocks re-hashed in one go by verify, before guests get their turn: some 0.3 ms. */
  verifyBatchBlocks: 8,
  /** Problems named for each saveset by verify; the rest is counted. */
  verifyProblemsMax: 100,
} as const;

export const commandLimits = {
  /** A server that is restarted or upgraded is back by then; a watcher waits that long. */
  serverAwayMsMax: 120_000,
  serverRetryMs: 500,
  /** Terminals are redrawn at most this often: ten times a second looks alive. */
  redrawMs: 100,
} as const;

/** NBD: what one connection may hold, as client and as server. */
export const nbdLimits = {
  /** One read or write of ours: two fill a socket buffer; QEMU answers at most 32 MiB. */
  requestBytesMax: MiB,
  /** Requests in flight of one client: 16 x 1 MiB on the wire. */
  requestsInFlightMax: 16,
  /** Zeroing carries no bytes, but the server has to do it within the time-out. */
  zeroBytesMax: 128 * MiB,
  /** Ranges asked about at once; a server may answer for less. */
  statusBytesMax: 1024 * MiB,
  /** QEMU tells at most 128 Ki extents of 8 bytes in one reply (nbd/server.c). */
  statusReplyBytesMax: 2 * MiB,
  /** Separate parts of one read: 1 MiB in sectors of 512 bytes. */
  readChunksMax: 2048,
  /** proto.md: strings are at most 4,096 bytes; an error chunk has few more. */
  stringBytesMax: 4096,
  /** Replies to one option: contexts or exports, with some information between. */
  optionRepliesMax: 1024,
  contextsMax: 16,
  /** Bytes taken from a socket before they are wanted; then TCP holds the peer back. */
  bufferedBytesMax: MiB,
  /** A live server answers a read within a second; a busy disk took ten in trials. */
  answerMsMax: 60_000,
  connectMsMax: 10_000,
  /** A farewell that nobody hears. */
  farewellMsMax: 2_000,

  /** Server: the largest request it takes, as QEMU and the Linux client have it. */
  servedBytesMax: 32 * MiB,
  /** Server: requests of one connection in flight, and their bytes: one of the largest. */
  servedInFlightMax: 32,
  servedInFlightBytesMax: 32 * MiB,
  /** Server: connections at once: 64 x 32 MiB = 2 GiB at the very worst, some MiB as a rule. */
  connectionsMax: 64,
  /** Server: a client that does not get through its handshake is let go. */
  handshakeMsMax: 30_000,
  /** Server: options of one handshake; real clients send five or six. */
  optionsMax: 256,
  /** Server: extents told at once: 4,096 x 8 bytes. */
  servedExtentsMax: 4096,
  /** Server: the disk is asked about so much at once: 64 Ki extents at 4 KiB each at worst. */
  servedStatusBytesMax: 256 * MiB,
} as const;

export const storeLimits = {
  /** Rows of one listing, newest first: a recovery's row is about 3 kB, so 30 MB at worst. */
  rowsMax: 10_000,
  /** Events kept: about 200 bytes each, 100 MB. */
  eventsKeptMax: 500_000,
  /** Events between two sweeps of the oldest. */
  eventsSweepEvery: 1_000,
} as const;
