import { z } from 'zod';
import type { Inventory, TestReport } from '../hypervisors/port.ts';
import { absolutePath, bytes, failure, list, named } from '../lib/fields.ts';
import { newName, reference, timeMs } from '../lib/fields.ts';
import { catalogLimits } from '../limits.ts';
import type { Mtree } from '../vault/api.ts';

/**
 * What there is: machines, savesets, hypervisors, exports, the vault, events, and the state of the
 * whole. See recovery/schema.ts for the conventions. `vault`'s reports have the shapes of
 * vault/api.ts; the `satisfies` of schema.test.ts keep both the same.
 */
export const power = z.enum(['on', 'off', 'paused']);

export const machineView = z.object({
  id: z.string(),
  name: z.string(),
  hypervisor: z.string().nullable().describe('null: known from its savesets alone.'),
  power: power.nullable(),
  savesets: z.number(),
  latestSaveset: z.object({ id: z.string(), takenAtMs: timeMs }).nullable(),
  logicalBytes: bytes.describe('Its disks in the latest saveset, or now.'),
  recoveries: list(z.string()).describe('Ids of the active recoveries of it.'),
});
export type MachineView = z.infer<typeof machineView>;

export const savesetView = z.object({
  id: z.string(),
  mtree: z.string(),
  machine: named,
  takenAtMs: timeMs,
  kind: z.enum(['full', 'incremental', 'sealed']),
  basedOn: z.string().nullable(),
  consistency: z.enum(['crash', 'filesystem', 'offline']),
  logicalBytes: bytes,
  newBytes: bytes,
  storedBytes: bytes.describe('The new bytes, compressed.'),
  disks: list(z.object({ name: z.string(), sizeBytes: bytes, source: z.string() })),
  files: list(z.object({ name: z.string(), sizeBytes: bytes })),
});
export type SavesetView = z.infer<typeof savesetView>;

export const savesetFilter = z.strictObject({
  machine: reference.optional(),
  mtree: reference.optional(),
});
export type SavesetFilter = z.output<typeof savesetFilter>;

/** `reference`: an id, an unambiguous beginning of one, or a machine's name. */
export interface CatalogService {
  /** By name. Machines of the hypervisors, and those that only savesets remember. */
  machines(): Promise<readonly MachineView[]>;
  machine(reference: string): Promise<MachineView>;
  /** Newest first. */
  savesets(filter: SavesetFilter): Promise<readonly SavesetView[]>;
  saveset(reference: string): Promise<SavesetView>;
}

export const hypervisorRequest = z.strictObject({
  name: newName,
  kind: z.enum(['libvirt', 'vsphere'], 'must be libvirt or vsphere').default('libvirt'),
  uri: z
    .string('must be text')
    .max(1024, 'must be at most 1024 characters long')
    .regex(
      /^[a-z][a-z0-9+.-]*:\/\/\/?\S*$/u,
      'must be a libvirt URI such as qemu:///system, or https://vcenter/sdk',
    ),
  datastores: z
    .array(
      z.strictObject({ name: newName, path: absolutePath }),
      'must be a list of { name, path }',
    )
    .max(catalogLimits.datastoresMax, `must be at most ${catalogLimits.datastoresMax}`)
    .default([])
    .describe('libvirt: directories on its host that production disks live in.'),
  user: z.string('must be text').min(1, 'must not be empty').max(256).optional(),
  password: z
    .string('must be text')
    .min(1, 'must not be empty')
    .max(1024, 'must be at most 1024 characters long')
    .optional()
    .describe('vsphere: kept in a file of the server; never told again.'),
  fingerprint: z
    .string('must be text')
    .max(256, 'must be at most 256 characters long')
    .optional()
    .describe('vsphere: SHA-256 of its certificate, AA:BB:…'),
  authority: z
    .string('must be text')
    .max(catalogLimits.authorityBytesMax, 'must be at most 256 KiB')
    .optional()
    .describe('vsphere: certificate of the authority that issued its own, PEM.'),
});
export type HypervisorRequest = z.output<typeof hypervisorRequest>;
export type HypervisorRequestInput = z.input<typeof hypervisorRequest>;

export const hypervisorView = z.object({
  id: z.string(),
  name: z.string(),
  kind: z.string(),
  uri: z.string(),
  datastores: list(z.object({ name: z.string(), path: z.string() })),
  user: z.string().exactOptional(),
  trust: z.string().exactOptional().describe('vsphere: why it is believed to be the one meant.'),
  createdMs: timeMs,
  state: z.enum(['reachable', 'unreachable', 'unknown']),
  checkedMs: timeMs.nullable(),
});
export type HypervisorView = z.infer<typeof hypervisorView>;

export const testReport = z.object({
  ok: z.boolean(),
  version: z.string(),
  problems: list(z.object({ message: z.string(), advice: z.string() })),
  facts: z.record(z.string(), z.string()),
});

export const inventory = z.object({
  clusters: list(z.object({ id: z.string(), name: z.string(), hostIds: list(z.string()) })),
  hosts: list(
    z.object({
      id: z.string(),
      name: z.string(),
      clusterId: z.string().exactOptional(),
      state: z.enum(['connected', 'disconnected', 'maintenance']),
      addresses: list(z.string()),
      nfsSlots: z
        .object({ used: z.number(), max: z.number() })
        .exactOptional()
        .describe('NFS datastores that it has mounted, and how many it takes.'),
    }),
  ),
  networks: list(named),
  datastores: list(
    z.object({
      id: z.string(),
      name: z.string(),
      kind: z.enum(['nfs', 'directory', 'vmfs', 'other']),
      hostIds: list(z.string()),
      totalBytes: bytes,
      freeBytes: bytes,
      location: z.string(),
    }),
  ),
  machines: list(
    z.object({
      id: z.string(),
      name: z.string(),
      uuid: z.string(),
      hostId: z.string(),
      power,
    }),
  ),
});

export interface HypervisorService {
  list(): Promise<readonly HypervisorView[]>;
  get(reference: string): Promise<HypervisorView>;
  /** Tests it first; refuses with the test's problems when it does not answer. */
  add(request: HypervisorRequest): Promise<HypervisorView>;
  /** Refuses with `busy` while a recovery runs on it. */
  remove(reference: string): Promise<void>;
  test(reference: string): Promise<TestReport>;
  inventory(reference: string): Promise<Inventory>;
}

export const exportView = z.object({
  path: z.string(),
  cloneId: z.string(),
  clients: list(z.string()),
  nfsPort: z.number(),
  mountPort: z.number(),
  connected: list(z.string()),
  mounted: list(z.string()).describe('Mounted it and did not unmount it.'),
  watchedSinceMs: timeMs.describe('Who had it mounted before is not known.'),
  lastUsedMs: timeMs.exactOptional(),
  counters: z.object({
    reads: z.number(),
    readBytes: bytes,
    writes: z.number(),
    writtenBytes: bytes,
    others: z.number(),
    refused: z.number(),
  }),
  proxy: z.string(),
  recovery: named.nullable().describe('null: nobody knows what it is for.'),
});
export type ExportEntry = z.infer<typeof exportView>;

export interface ExportService {
  list(): Promise<readonly ExportEntry[]>;
}

export const eventView = z.object({
  id: z.number().describe('Ascending.'),
  atMs: timeMs,
  level: z.enum(['info', 'warning', 'error']),
  kind: z.string().describe('Such as recovery.available or lease.ends-soon.'),
  subject: z.object({ kind: z.string(), id: z.string(), name: z.string() }).nullable(),
  message: z.string(),
});
export type EventView = z.infer<typeof eventView>;

export const eventFilter = z.strictObject({
  limit: z.coerce
    .number('must be a number')
    .int('must be a whole number')
    .min(1, 'must be at least 1')
    .max(catalogLimits.eventsMax, `must be at most ${catalogLimits.eventsMax}`)
    .default(catalogLimits.eventsDefault),
  after: z.coerce.number('must be the id of an event').int().min(0).optional(),
});
export type EventFilter = z.output<typeof eventFilter>;

export interface EventService {
  /** The latest `limit` events (with an id above `after`), oldest first. */
  list(filter: EventFilter): Promise<readonly EventView[]>;
  /** Events with an id above `after` (missing: from now on), until the signal aborts. */
  watch(after: number | undefined, signal: AbortSignal): AsyncIterable<EventView>;
}

export const mtreeRequest = z.strictObject({
  name: newName,
  codec: z.enum(['lz4', 'zstd'], 'must be lz4 or zstd').default('lz4'),
});
export type MtreeRequest = z.output<typeof mtreeRequest>;

export const mtree = z.object({
  name: z.string(),
  codec: z.enum(['lz4', 'zstd']),
  createdMs: timeMs,
});

export const vaultStats = z.object({
  formatVersion: z.number(),
  blockBytes: z.number(),
  savesets: z.number(),
  machines: z.number(),
  packs: z.number(),
  logicalBytes: bytes,
  referencedBytes: bytes,
  uniqueBytes: bytes,
  storedBytes: bytes,
  dedupRatio: z.number(),
  compressionRatio: z.number(),
  indexEntries: z.number(),
  indexMemoryBytes: bytes,
  cache: z.object({
    boundBytes: bytes,
    usedBytes: bytes,
    hits: z.number(),
    misses: z.number(),
  }),
});

export const verifyReport = z.object({
  savesets: list(
    z.object({
      id: z.string(),
      machine: z.string(),
      ok: z.boolean(),
      blocks: z.number(),
      bytes,
      problems: list(z.string()),
    }),
  ),
  ok: z.boolean(),
});

export const rescanReport = z.object({
  packs: z.number(),
  blocks: z.number(),
  savesets: z.number(),
  problems: list(z.string()),
});

export const verifyRequest = z.strictObject({
  saveset: reference.optional().describe('All savesets when missing.'),
});
export type VerifyRequest = z.output<typeof verifyRequest>;

/** A verification or a rescan: started, watched and cancelled by id. */
export const vaultJob = z.object({
  id: z.string(),
  kind: z.enum(['verify', 'rescan']),
  state: z.enum(['running', 'done', 'failed', 'cancelled']),
  startedMs: timeMs,
  endedMs: timeMs.nullable(),
  doneBytes: bytes,
  totalBytes: bytes,
  verify: verifyReport.nullable(),
  rescan: rescanReport.nullable(),
  error: failure.nullable(),
});
export type VaultJob = z.infer<typeof vaultJob>;

export interface VaultService {
  stats(): Promise<z.infer<typeof vaultStats>>;
  mtrees(): Promise<readonly Mtree[]>;
  createMtree(request: MtreeRequest): Promise<Mtree>;
  verify(request: VerifyRequest): Promise<VaultJob>;
  rescan(): Promise<VaultJob>;
  job(id: string): Promise<VaultJob>;
  cancelJob(id: string): Promise<VaultJob>;
  /** The job as it is, then its changes, until it has ended. */
  watchJob(id: string, signal: AbortSignal): AsyncIterable<VaultJob>;
}

export const proxyStatus = z.object({
  name: z.string(),
  version: z.string(),
  wire: z.number().describe('Server and proxy must speak the same.'),
  pid: z.number(),
  startedMs: timeMs,
  nowMs: timeMs.describe('Its clock, when it said this.'),
  vault: z.object({ id: z.string(), path: z.string(), blockBytes: z.number() }),
  nfs: z.object({ port: z.number(), mountPort: z.number(), portmapper: z.string() }),
  clones: z.number(),
  exports: z.number(),
  jobs: z.number(),
  load: z.number().describe('Processes that want to run for each processor.'),
  cache: z.object({ usedBytes: bytes, boundBytes: bytes }),
  networks: list(z.string()).describe('Addresses of its machine with their prefixes.'),
  memoryBytes: bytes,
  space: z.object({ totalBytes: bytes, freeBytes: bytes }),
});

export const status = z.object({
  server: z.object({
    version: z.string(),
    pid: z.number(),
    startedMs: timeMs,
    socket: z.string(),
    dataDirectory: z.string(),
  }),
  proxy: proxyStatus.nullable().describe('null: it does not answer.'),
  vault: vaultStats.nullable(),
  counts: z.object({
    machines: z.number(),
    savesets: z.number(),
    hypervisors: z.number(),
    exports: z.number(),
    activeRecoveries: z.number(),
    runningBackups: z.number(),
  }),
  warnings: list(z.string()),
});
export type Status = z.infer<typeof status>;

export interface StatusService {
  status(): Promise<Status>;
}

/** Names in the OpenAPI document. */
z.globalRegistry.add(machineView, { id: 'Machine' });
z.globalRegistry.add(savesetView, { id: 'Saveset' });
z.globalRegistry.add(hypervisorRequest, { id: 'HypervisorRequest' });
z.globalRegistry.add(hypervisorView, { id: 'Hypervisor' });
z.globalRegistry.add(testReport, { id: 'HypervisorTest' });
z.globalRegistry.add(inventory, { id: 'Inventory' });
z.globalRegistry.add(exportView, { id: 'Export' });
z.globalRegistry.add(eventView, { id: 'Event' });
z.globalRegistry.add(mtreeRequest, { id: 'MtreeRequest' });
z.globalRegistry.add(mtree, { id: 'Mtree' });
z.globalRegistry.add(vaultStats, { id: 'VaultStats' });
z.globalRegistry.add(verifyReport, { id: 'VerifyReport' });
z.globalRegistry.add(rescanReport, { id: 'RescanReport' });
z.globalRegistry.add(verifyRequest, { id: 'VerifyRequest' });
z.globalRegistry.add(vaultJob, { id: 'VaultJob' });
z.globalRegistry.add(status, { id: 'Status' });
