/**
 * Bounds of the line between a proxy and its server: heartbeats, certificates, tokens. They stand
 * here, as limits.ts is full; both ends of the line keep to them.
 */
const KiB = 1024;

export const linkLimits = {
  /** Longer than a server that is restarted takes; shorter than being taken to be away. */
  heartbeatTimeoutMs: 10_000,
  /** A removed proxy asks this often whether it is known again. */
  refusedPauseMs: 60_000,
  /** Renewed when this share of a certificate's time is left: 30 of 90 days. */
  renewShare: 1 / 3,
  /** Three months: a stolen one is soon worth nothing, and one in a holiday does not end. */
  proxyCertificateMs: 90 * 86_400_000,
  serverCertificateMs: 365 * 86_400_000,
  authorityMs: 20 * 365 * 86_400_000,
  /** Certificates begin this long ago, so that clocks may differ a little. */
  backdateMs: 3_600_000,
  /** Clocks further apart make times in logs and leases lie: such a proxy does not join. */
  skewMsMax: 300_000,
  /** A token is used while somebody stands at the new machine. */
  tokenMsDefault: 3_600_000,
  tokenMsMax: 7 * 86_400_000,
  /** Tokens that ended are remembered this long, to say why they are refused. */
  tokenKeptMs: 30 * 86_400_000,
  /** A heartbeat with 256 addresses of 50 bytes, or a request with 64 labels. */
  linkBytesMax: 128 * KiB,
  /** A certificate or a request on P-256 is about 700 bytes. */
  pemBytesMax: 16 * KiB,
  /** A machine with many networks: what one says of its addresses. */
  addressesMax: 256,
  /** A proxy says this often how it is: 400 bytes of state, and a row written. */
  heartbeatMs: 5_000,
  /** Three heartbeats and a little: then it is taken to be away. */
  silentMsMax: 17_000,
  /** The embedded proxy is looked for this often until it has answered once. */
  firstWordMs: 1_000,
  labelsMax: 64,
} as const;
