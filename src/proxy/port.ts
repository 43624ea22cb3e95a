import type { BackupPass, BackupSource } from '../hypervisors/port.ts';
import type { Mtree, RescanReport, Saveset, VaultStats, VerifyReport } from '../vault/api.ts';

/**
 * What the server asks of a proxy, the worker on the data path: it owns the vault's blocks, the
 * clones and the NFS server. Every call is repeatable: ids and paths are chosen by the server, and
 * doing a thing again finds what is there. Long work is a job: started, watched, cancelled by id.
 */
export interface Proxy {
  status(): Promise<ProxyStatus>;

  savesets(): Promise<readonly Saveset[]>;
  saveset(id: string): Promise<Saveset>;
  readSavesetFile(savesetId: string, name: string): Promise<Buffer>;

  /** Step 6. Constant time. */
  createClone(spec: CloneSpec): Promise<CloneView>;
  clones(): Promise<readonly CloneView[]>;
  /** Discards the writes. No error when it is gone. Refuses with `busy` while exported. */
  deleteClone(cloneId: string): Promise<void>;
  writeCloneFile(cloneId: string, path: string, bytes: Uint8Array): Promise<void>;
  readCloneFile(cloneId: string, path: string): Promise<Buffer>;

  /** Step 7. */
  createExport(spec: ExportSpec): Promise<ExportView>;
  exports(): Promise<readonly ExportView[]>;
  deleteExport(path: string): Promise<void>;

  startJob(spec: JobSpec): Promise<JobView>;
  /** Waits up to `waitMs` for a change after `version`. Throws `not-found` after a restart. */
  job(id: string, waitMs?: number, version?: number): Promise<JobView>;
  cancelJob(id: string): Promise<void>;

  vaultStats(): Promise<VaultStats>;
  mtrees(): Promise<readonly Mtree[]>;
  createMtree(name: string, codec: Mtree['codec']): Promise<Mtree>;

  /** Tries to reach these addresses of hosts; asks nothing of whoever answers there. */
  reach(addresses: readonly string[]): Promise<readonly ReachView[]>;
}

export interface ReachView {
  readonly address: string;
  /** `silent`: nothing came back in time, which a firewall explains as well. */
  readonly answer: 'answers' | 'silent' | 'no route';
}

export interface ProxyStatus {
  readonly name: string;
  readonly version: string;
  /** The number of wire.ts: server and proxy must speak the same. */
  readonly wire: number;
  readonly pid: number;
  readonly startedMs: number;
  /** Its clock, when it said this. */
  readonly nowMs: number;
  readonly vault: { readonly id: string; readonly path: string; readonly blockBytes: number };
  readonly nfs: { readonly port: number; readonly mountPort: number; readonly portmapper: string };
  readonly clones: number;
  readonly exports: number;
  /** Backups, seals, restores and the like that run. */
  readonly jobs: number;
  /** Processes that want to run for each processor, over the last minute. */
  readonly load: number;
  /** Of the block cache. */
  readonly cache: { readonly usedBytes: number; readonly boundBytes: number };
  /** Addresses of its machine with their prefixes, such as `10.77.0.1/24`. */
  readonly networks: readonly string[];
  readonly memoryBytes: number;
  readonly space: { readonly totalBytes: number; readonly freeBytes: number };
}

export interface CloneSpec {
  /** `Recover-<proxy>-<id>`. */
  readonly cloneId: string;
  readonly mtree: string;
  readonly savesetId: string;
  /** The machine's folder in it. */
  readonly folder: string;
}

export interface CloneView {
  readonly cloneId: string;
  readonly mtree: string;
  readonly savesetId: string;
  /** `/<mtree>/Recover-<proxy>-<id>`: the export's path as well. */
  readonly path: string;
  readonly folder: string;
  /** Paths relative to the export: `web01/vda-flat.vmdk`. */
  readonly disks: readonly {
    readonly name: string;
    readonly path: string;
    readonly sizeBytes: number;
  }[];
  /** Bytes of the write layer. */
  readonly writtenBytes: number;
  readonly allocatedBytes: number;
}

export interface ExportSpec {
  readonly cloneId: string;
  /** Textual addresses, both families; a CIDR prefix is allowed. Nobody else gets an answer. */
  readonly clients: readonly string[];
}

export interface ExportView {
  readonly path: string;
  readonly cloneId: string;
  readonly clients: readonly string[];
  readonly nfsPort: number;
  readonly mountPort: number;
  /** Addresses with an open connection that used this export. */
  readonly connected: readonly string[];
  /** Addresses that mounted it since `watchedSinceMs`, and did not unmount it. */
  readonly mounted: readonly string[];
  /** When this process began to serve it: who had it mounted before is not known. */
  readonly watchedSinceMs: number;
  /** When a client last asked for anything; undefined: not since then. */
  readonly lastUsedMs?: number;
  readonly counters: ExportCounters;
}

export interface ExportCounters {
  readonly reads: number;
  readonly readBytes: number;
  readonly writes: number;
  readonly writtenBytes: number;
  readonly others: number;
  readonly refused: number;
}

export type JobSpec =
  | {
      readonly kind: 'backup';
      readonly id: string;
      readonly mtree: string;
      readonly machine: { id: string; name: string };
      readonly source: BackupSource;
      readonly baseSavesetId?: string;
      readonly takenAtMs: number;
      /** A secret of the moment; never kept. */
      readonly pass?: BackupPass;
    }
  | {
      readonly kind: 'import';
      readonly id: string;
      readonly mtree: string;
      readonly machine: { id: string; name: string };
      readonly disks: readonly { name: string; path: string; format?: string }[];
      readonly configuration?: string;
      readonly nvram?: string;
      readonly takenAtMs: number;
    }
  | {
      readonly kind: 'seal';
      readonly id: string;
      readonly cloneId: string;
      readonly takenAtMs: number;
    }
  | {
      readonly kind: 'restore';
      readonly id: string;
      readonly savesetId: string;
      readonly disks: readonly { name: string; path: string; format: 'raw' | 'qcow2' }[];
    }
  | { readonly kind: 'verify'; readonly id: string; readonly savesetId?: string }
  | { readonly kind: 'rescan'; readonly id: string };

export interface JobView {
  readonly id: string;
  readonly kind: JobSpec['kind'];
  readonly state: 'running' | 'done' | 'failed' | 'cancelled';
  readonly version: number;
  readonly startedMs: number;
  readonly endedMs?: number;
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly newBytes: number;
  readonly knownBytes: number;
  readonly result?: JobResult;
  readonly error?: { readonly code: string; readonly message: string; readonly advice: string };
}

export type JobResult =
  | { readonly kind: 'saveset'; readonly saveset: Saveset }
  | { readonly kind: 'verify'; readonly report: VerifyReport }
  | { readonly kind: 'rescan'; readonly report: RescanReport }
  | { readonly kind: 'restore'; readonly bytes: number };
