const MiB = 1024 * 1024;

/** Bounds of what we do with vCenter and ESXi, with their arithmetic, as in src/limits.ts. */
export const vsphereLimits = {
  /** TCP and TLS on a local network take milliseconds; a busy vCenter took 5 s in trials. */
  connectMsMax: 15_000,
  /** Most calls take 50 ms; mounting a datastore that does not answer takes ESXi up to 30 s. */
  callTimeoutMs: 120_000,
  /** Questions are answered a page at a time: a busy vCenter took 5 s; one that hangs never does. */
  readTimeoutMs: 30_000,
  /** A page of 100 machines with all devices is about 3 MiB. */
  replyBytesMax: 64 * MiB,
  /** vim25's deepest answers are some 20 levels. */
  xmlDepthMax: 64,
  /** Short calls at once: a vCenter serves 8 of ours beside everybody else's. */
  callsMax: 8,
  /** Besides them, calls that wait for tasks: one for each recovery that is being relocated. */
  socketsMax: 256,
  freeSocketsMax: 8,
  /** Objects in one page of the property collector. */
  pageObjects: 100,
  /** Objects asked for by name in one call: 500 x 150 bytes of request. */
  namedObjectsMax: 500,
  /** The property collector answers at least this often; half of what proxies let idle. */
  updateWaitSeconds: 30,
  /** On top of it, for the answer itself. */
  updateSlackMs: 60_000,
  /** A vCenter that restarts while a task of ours runs is waited for this long. */
  awayMsMax: 300_000,
  awayPauseMs: 2_000,
  /** A task other than a relocation: registering and powering on take seconds. */
  taskMsMax: 600_000,
  /** A relocation of 16 TiB at 100 MiB/s takes 47 h; its signal ends it earlier. */
  relocateMsMax: 14 * 86_400_000,
  /** A task that was told to end does so within this. */
  cancelMsMax: 60_000,
  /** A power-on that asks something and was cancelled ends at once, or it does not. */
  questionMsMax: 10_000,
  /** One round of the property collector, for what is over already or not. */
  glanceMsMax: 1_000,
  /** Ids of tasks of ours that are remembered: 20 bytes each; 256 recoveries run at once. */
  begunTasksMax: 4_096,
  relocateRounds: 3,
  /** After a refused login none is tried for so long: accounts get locked after five. */
  refusedLoginMs: 60_000,
  /** What a guest gets to shut down before it is switched off. */
  shutdownGraceMs: 60_000,
  /** NFS.MaxVolumes says it; this is its default on ESXi 6.0 to 8.0. */
  nasVolumesDefault: 32,
  /** How long a host's NFS.MaxVolumes is remembered: a number that changes once in its life. */
  nasVolumesKeptMs: 600_000,
  /** Four controllers of a kind; 16 targets of a SCSI one, its own being 7; 30 ports of AHCI. */
  controllersMax: 4,
  scsiUnits: 16,
  scsiOwnUnit: 7,
  sataUnits: 30,
  /** A machine's configuration and the picture of its screen, fetched over HTTP. */
  fileBytesMax: 16 * MiB,
  fileTimeoutMs: 15_000,
  /** Parents between a host and its data centre: folders can be nested, 10 levels are many. */
  parentsMax: 64,
  /** A quiesced snapshot waits up to 15 minutes for VSS in a Windows guest; most take seconds. */
  snapshotMsMax: 1_200_000,
  /** Consolidating a large delta on busy storage took hours in the field; what is late goes on. */
  removalMsMax: 6 * 3_600_000,
  /** Snapshots below each other: vSphere supports 32. */
  snapshotDepthMax: 48,
  /** A lease that a killed proxy left ends by itself after 300 s; until then its machine is busy. */
  busyMsMax: 330_000,
  busyPauseMs: 5_000,
  /** A lease is ready within seconds; a busy host took half a minute. */
  leaseReadyMsMax: 180_000,
  /** Told this often in the time that a lease lives without being told. */
  leaseTellsPerLife: 3,
  /** A lease says how long it lives; at least so often it is told, for the progress that people see. */
  leaseTellMsMax: 60_000,
  leaseTellMsMin: 200,
  /** A host that looks through a large empty disk sends nothing for minutes. */
  downloadSilenceMsMax: 300_000,
  /** One range of a flat file: 2 MiB over a slow line, and a host that is busy. */
  rangeTimeoutMs: 60_000,
  /** Gaps between changed ranges that are read along: a request costs as much as 128 KiB. */
  rangeGapBytesMax: 128 * 1024,
  /** Changed ranges in one answer: some 2,000 x 100 bytes; more pages than blocks are nonsense. */
  changePagesMax: 1_000_000,
  /** Kerberos allows five minutes; so do certificates and sessions, and so do we. */
  clockDriftMsMax: 300_000,
} as const;
