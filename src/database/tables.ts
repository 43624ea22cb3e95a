/**
 * Every table, as the program sees it (camelCase; snake_case in SQL). Times are milliseconds since
 * the epoch, JSON is text, booleans are 0 and 1: what SQLite and PostgreSQL have in common.
 */
export interface Tables {
  migrations: MigrationsTable;
  counters: CountersTable;
  runs: RunsTable;
  steps: StepsTable;
  claims: ClaimsTable;
  timers: TimersTable;
  devices: DevicesTable;
  hypervisors: HypervisorsTable;
  machines: MachinesTable;
  savesets: SavesetsTable;
  recoveries: RecoveriesTable;
  backups: BackupsTable;
  events: EventsTable;
  proxies: ProxiesTable;
  proxyTokens: ProxyTokensTable;
  removedProxies: RemovedProxiesTable;
  mounts: MountsTable;
}

export interface MigrationsTable {
  number: number;
  name: string;
  appliedMs: number;
}

/** Numbers that only grow: run order, fencing, timer versions, events. */
export interface CountersTable {
  name: string;
  value: number;
}

export interface RunsTable {
  id: string;
  kind: string;
  subject: string;
  /** Order of submission. */
  seq: number;
  state: 'waiting' | 'running' | 'undoing' | 'done' | 'failed' | 'cancelled';
  /** The end that was decided; what is left is undoing and settling. */
  outcome: 'done' | 'failed' | 'cancelled' | null;
  input: string;
  error: string | null;
  /** Why it cannot end: `settled` failed, or no workflow of this kind is known. */
  stuck: string | null;
  cancelMs: number | null;
  createdMs: number;
  endedMs: number | null;
  /** Grows with every change; updating it locks the row. */
  version: number;
}

export interface StepsTable {
  runId: string;
  position: number;
  number: number;
  name: string;
  state: 'waiting' | 'running' | 'done' | 'failed' | 'undoing' | 'undone';
  attempts: number;
  failures: number;
  crashes: number;
  undoAttempts: number;
  startedMs: number | null;
  endedMs: number | null;
  result: string | null;
  error: string | null;
  undoError: string | null;
}

export interface ClaimsTable {
  name: string;
  owner: string;
  fence: number;
  expiresMs: number;
}

export interface TimersTable {
  name: string;
  atMs: number;
  /** `atMs`, or later while a failed listener is tried again. */
  dueMs: number;
  payload: string;
  version: number;
  failures: number;
  error: string | null;
}

export interface DevicesTable {
  id: string;
  name: string;
  kind: 'directory';
  address: string;
  vaultId: string;
  createdMs: number;
}

export interface HypervisorsTable {
  id: string;
  name: string;
  kind: string;
  uri: string;
  options: string;
  addedMs: number;
}

export interface MachinesTable {
  id: string;
  name: string;
  uuid: string | null;
  hypervisorId: string | null;
  lastSeenMs: number;
}

export interface SavesetsTable {
  id: string;
  machineId: string;
  machineName: string;
  deviceId: string | null;
  mtree: string;
  kind: 'full' | 'incremental' | 'sealed';
  takenAtMs: number;
  /** The vault's record, whole. */
  record: string;
}

export type RecoveryState =
  | 'starting'
  | 'available'
  | 'relocating'
  | 'cleaning'
  | 'parked'
  | 'done'
  | 'failed'
  | 'cancelled';

export interface RecoveriesTable {
  id: string;
  machineId: string;
  savesetId: string;
  mode: 'instant' | 'publish' | 'new' | 'flr';
  /** What it is called: the new machine's name, or the export's. */
  name: string;
  state: RecoveryState;
  hypervisorId: string | null;
  host: string | null;
  datastoreName: string | null;
  exportPath: string | null;
  cloneId: string | null;
  /** The proxy that serves it, and the address at which its host reaches that; null: not chosen. */
  proxy: string | null;
  proxyAddress: string | null;
  clients: string;
  /** The machine's id on the hypervisor. */
  hypervisorMachineId: string | null;
  createdMs: number;
  availableMs: number | null;
  endedMs: number | null;
  leaseEndMs: number | null;
  timeToAvailableMs: number | null;
  options: string;
  warnings: string;
  error: string | null;
}

export interface BackupsTable {
  id: string;
  machineId: string;
  machineName: string;
  /** null: not yet known. */
  kind: 'full' | 'incremental' | null;
  state: 'running' | 'done' | 'failed' | 'cancelled';
  savesetId: string | null;
  /** Why it is full although it could be incremental. */
  fullBecause: string | null;
  consistency: 'crash' | 'filesystem' | 'offline' | null;
  warnings: string;
  cost: string | null;
  startedMs: number;
  endedMs: number | null;
  error: string | null;
}

export interface EventsTable {
  seq: number;
  timeMs: number;
  level: 'info' | 'warning' | 'error';
  /** Such as `recovery.available`. */
  kind: string;
  subjectKind: string | null;
  subjectId: string | null;
  subjectName: string | null;
  message: string;
}

/** A worker on the data path; its name is a part of the names of its clones and never changes. */
export interface ProxiesTable {
  name: string;
  /** `embedded`: started by `rouse up` beside the server; `enrolled`: joined over TLS. */
  kind: 'embedded' | 'enrolled';
  /** JSON: as hypervisor hosts reach it; empty: any of its machine. */
  addresses: string;
  /** Where the server calls it; null: on its unix socket. */
  callAddress: string | null;
  callPort: number | null;
  /** SHA-256 of its certificate; null: it has none. */
  fingerprint: string | null;
  /** Of the one that it was given for renewal and has not used yet. */
  nextFingerprint: string | null;
  certificateEndMs: number | null;
  version: string | null;
  wire: number | null;
  draining: number;
  /** JSON: what an administrator says of it, `site` -> `paris`. */
  labels: string;
  /** JSON: names of hypervisors, clusters and hosts. */
  onlyFor: string;
  neverFor: string;
  /** JSON: ids of the devices it has access to. */
  devices: string;
  /** JSON: what it last said of itself. */
  status: string | null;
  heartbeatMs: number | null;
  /** Its clock less ours. */
  skewMs: number | null;
  enrolledMs: number;
}

/** What lets one proxy join, once. */
export interface ProxyTokensTable {
  id: string;
  secretHash: string;
  /** null: whatever name it asks for. */
  proxyName: string | null;
  createdMs: number;
  expiresMs: number;
  usedMs: number | null;
  usedBy: string | null;
  /** SHA-256 of the key that joined with it: the same one may ask again when no answer came. */
  usedKey: string | null;
}

/** Certificates that were taken back, to say so to whoever still shows one. */
export interface RemovedProxiesTable {
  fingerprint: string;
  name: string;
  removedMs: number;
}

/** How mounting from a proxy's address went for a host the last time. */
export interface MountsTable {
  proxy: string;
  address: string;
  hypervisorId: string;
  hostId: string;
  clusterId: string | null;
  okMs: number | null;
  failedMs: number | null;
  error: string | null;
}
