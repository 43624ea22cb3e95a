import type { RouseError } from '../errors.ts';
import type { Extent, ReadableDisk } from '../lib/disk.ts';

/**
 * A hypervisor manager: vCenter, one ESXi host, or one libvirt. Ids are the manager's own, opaque
 * and stable (managed object id, libvirt UUID); names are for people and may repeat.
 * Every call that changes something is idempotent by name: doing it again finds what is there.
 * Failures are RouseErrors: `hypervisor-unreachable` (the manager itself), `host-unreachable`,
 * `hypervisor-error` (with the manager's own words), `not-found`, `already-exists`,
 * `hypervisor-unsupported`, `time-out`, `cancelled`.
 */
export interface Hypervisor {
  readonly kind: 'libvirt' | 'vsphere' | 'memory';
  /**
   * How whole machines are restored: disks are written to where `createDisk` says, or, if this says
   * so, the manager itself moves them there from a mounted export, while the machine is off.
   */
  readonly restoresBy?: 'relocation';
  /** Everything that is wrong at once; changes nothing. */
  test(): Promise<TestReport>;
  /**
   * What would keep a recovery on that host from working, all of it at once; asked before anything
   * is changed. Whether the machine's name is free is the recovery's own to know.
   */
  preflight(spec: PreflightSpec): Promise<TestReport>;
  inventory(): Promise<Inventory>;
  machine(idOrName: string): Promise<MachineDetail>;

  /** Step 8: mounts the export as a datastore named `name` on that host. */
  mountDatastore(hostId: string, spec: DatastoreSpec): Promise<Datastore>;
  /** Refuses with `busy` while a machine still uses it. No error when it is not there. */
  unmountDatastore(hostId: string, name: string): Promise<void>;
  /** Machines with a disk on it, whether registered from it or attached. */
  datastoreUsers(name: string): Promise<readonly string[]>;

  /** Step 9: rewrites the saved configuration for its new place; pure, changes nothing. */
  configure(spec: ConfigureSpec): ConfiguredMachine;
  /** Step 9: registers; finds a machine already registered by its identity. Returns its id. */
  register(spec: RegisterSpec): Promise<string>;
  /** The machine that carries our mark (`ConfigureSpec.mark`); undefined: there is none. */
  findMarked(mark: string): Promise<string | undefined>;
  /** No error when it is gone already. Never deletes disks. */
  unregister(machineId: string): Promise<void>;

  powerOn(machineId: string): Promise<void>;
  /** `shutdown` asks the guest and falls back to `off` after `graceMs`. */
  powerOff(machineId: string, how: 'shutdown' | 'off', graceMs?: number): Promise<void>;
  powerState(machineId: string): Promise<PowerState>;
  /** A PNG of the machine's screen, or undefined when it has none. */
  screenPicture(machineId: string): Promise<Buffer | undefined>;

  /** Step 12: moves every disk that lies on `fromDatastore`; resolves when nothing of it is left. */
  relocate(spec: RelocateSpec, watch: RelocateWatch): Promise<RelocateResult>;

  /** Aborts a copy that a cancelled or killed relocation left running; no error without one. */
  stopRelocation(machineId: string): Promise<void>;

  /**
   * FLR: the guest of a running machine sees a new disk, until it is detached or the machine is
   * powered off. Returns its device name; a disk that is there already is found by its source. A
   * controller is added when those of the machine are full, and goes with the last disk on it.
   */
  attachDisk(machineId: string, spec: AttachSpec): Promise<string>;
  /** No error when it is gone already. `time-out` when the guest does not let go of it. */
  detachDisk(machineId: string, device: string): Promise<void>;
  /** What the agent in the guest says of the machine's disks; undefined: no agent answers. */
  guestDisks(machineId: string): Promise<readonly GuestDisk[] | undefined>;

  /** Backup of a running or stopped machine; see BackupSource. */
  beginBackup(spec: BackupSpec): Promise<BackupSource>;
  /** Ends a backup job and gives back what it holds; no error when there is none. */
  endBackup(machineId: string, token: string, outcome: 'stored' | 'failed'): Promise<void>;
  /** What reading that machine's disks is a load for: as many backups at once as each bears. */
  backupPlaces?(machineId: string): Promise<readonly BackupPlace[]>;
  /** What the source's disks are read with; missing where they are open to every proxy. */
  backupPass?(): Promise<BackupPass>;
  /** The same point in time, to be read whole, because what changed cannot be had. Pure. */
  readWhole?(source: BackupSource, because: string): BackupSource;
  /** Directory or datastore access for a full restore: where new disks may be written. */
  createDisk(datastoreId: string, spec: CreateDiskSpec): Promise<DiskTarget>;
  removeDisk(target: DiskTarget): Promise<void>;

  /** Everything there that looks like ours, for the reconciler. Changes nothing. */
  traces(): Promise<Traces>;

  /** Logs out where there is something to log out of; a later call begins anew. */
  close?(): Promise<void>;
}

export interface PreflightSpec {
  readonly hostId: string;
  /** What will be mounted there; mounted already, it needs no further place. */
  readonly datastore?: string;
}

export interface TestReport {
  readonly ok: boolean;
  readonly version: string;
  /** Each with what to do about it. */
  readonly problems: readonly { readonly message: string; readonly advice: string }[];
  readonly facts: Readonly<Record<string, string>>;
}

export interface Inventory {
  readonly clusters: readonly { id: string; name: string; hostIds: readonly string[] }[];
  readonly hosts: readonly Host[];
  readonly networks: readonly { id: string; name: string }[];
  readonly datastores: readonly Datastore[];
  readonly machines: readonly MachineSummary[];
}

export interface Host {
  readonly id: string;
  readonly name: string;
  readonly clusterId?: string;
  readonly state: 'connected' | 'disconnected' | 'maintenance';
  /** Every address from which it may speak NFS, both families, textual. */
  readonly addresses: readonly string[];
  /** NFS datastores that it has mounted, and how many it takes (NFS.MaxVolumes); where bounded. */
  readonly nfsSlots?: { readonly used: number; readonly max: number };
}

export interface Datastore {
  readonly id: string;
  readonly name: string;
  readonly kind: 'nfs' | 'directory' | 'vmfs' | 'other';
  readonly hostIds: readonly string[];
  readonly totalBytes: number;
  readonly freeBytes: number;
  /** `nfs`: server:/path; `directory`: the path. */
  readonly location: string;
}

export type PowerState = 'on' | 'off' | 'paused';

export interface MachineSummary {
  readonly id: string;
  readonly name: string;
  readonly uuid: string;
  readonly hostId: string;
  readonly power: PowerState;
}

export interface MachineDetail extends MachineSummary {
  readonly disks: readonly MachineDisk[];
  /** The manager's own configuration text: libvirt XML or .vmx. */
  readonly configuration: string;
  readonly networks: readonly {
    readonly mac: string;
    readonly network: string;
    readonly connected: boolean;
  }[];
}

export interface MachineDisk {
  /** `vda`, `scsi0:1`. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly format: string;
  readonly source: string;
  /** As the guest can read it; missing: none was given. */
  readonly serial?: string;
}

/** A disk of a machine as its guest sees it. */
export interface GuestDisk {
  /** As in `MachineDisk.name`. */
  readonly name: string;
  /** As the guest calls it: `/dev/sdb`; null: the agent tells what is mounted, and no more. */
  readonly seenAs: string | null;
  /** Where the guest has mounted file systems of it. */
  readonly mounts: readonly string[];
}

/** What may be ours, with what proves or disproves it; deciding is the reconciler's. */
export interface Traces {
  /** Machines that carry a mark (`ConfigureSpec.mark`). */
  readonly machines: readonly {
    readonly id: string;
    readonly name: string;
    readonly power: PowerState;
    readonly mark: string;
  }[];
  /** Disks of any machine that lie on an NFS export: registered with them, or attached. */
  readonly disks: readonly {
    readonly machineId: string;
    readonly machineName: string;
    readonly power: PowerState;
    readonly device: string;
    /** `server:/path` of the disk's file, spelt as in `Datastore.location`. */
    readonly location: string;
  }[];
  /** Backup jobs, snapshots and checkpoints that are named as `beginBackup` names them. */
  readonly backups: readonly {
    readonly machineId: string;
    readonly machineName: string;
    readonly token: string;
    readonly kind: 'job' | 'snapshot' | 'checkpoint';
  }[];
}

export interface DatastoreSpec {
  readonly name: string;
  /** Address of the proxy as this host reaches it. */
  readonly server: string;
  readonly path: string;
  readonly nfsPort: number;
  readonly mountPort: number;
}

/** What became of the NICs, UUID and MACs. */
export interface Identity {
  readonly keep: boolean;
  /** Used when not kept. */
  readonly uuid: string;
  /** One new MAC per NIC in order, used when not kept. */
  readonly macs: readonly string[];
}

export interface ConfigureSpec {
  /** The configuration in the saveset, undefined when the backup was of bare disks. */
  readonly configuration: string | undefined;
  readonly name: string;
  readonly datastore: DatastoreSpec;
  /** Path of the machine's folder inside the export, such as `web01`. */
  readonly folder: string;
  readonly disks: readonly {
    readonly name: string;
    readonly file: string;
    readonly sizeBytes: number;
    /** The disk lies there on the host (full restore: `createDisk`), not on the datastore. */
    readonly local?: { readonly path: string; readonly format: 'raw' | 'qcow2' };
  }[];
  readonly nvram?: string;
  readonly identity: Identity;
  readonly connectNetworks: boolean;
  /** The mark that proves the machine is ours: the recovery's id. */
  readonly mark: string;
}

export interface ConfiguredMachine {
  /** `domain.xml` or `<name>.vmx`. */
  readonly fileName: string;
  readonly text: string;
  /** What was changed, one sentence each, for the log and the dry run. */
  readonly changes: readonly string[];
  /**
   * To lie beside it, unless there already: a copy of another file of the folder, or empty. What a
   * guest wrote into one is kept when the machine is configured again.
   */
  readonly extraFiles?: readonly { readonly name: string; readonly copyOf?: string }[];
}

export interface RegisterSpec {
  readonly hostId: string;
  readonly name: string;
  readonly datastore: DatastoreSpec;
  readonly folder: string;
  readonly configured: ConfiguredMachine;
  readonly mark: string;
}

export interface RelocateSpec {
  readonly machineId: string;
  readonly fromDatastore: DatastoreSpec;
  readonly toDatastoreId: string;
  /** Bytes per second; 0: the driver's own default that keeps guest latency in bounds. */
  readonly bandwidthBytesPerSecond: number;
}

export interface RelocateWatch {
  readonly signal: AbortSignal;
  progress(doneBytes: number, totalBytes: number): void;
}

export interface RelocateResult {
  readonly disks: readonly {
    readonly name: string;
    readonly path: string;
    readonly sizeBytes: number;
  }[];
}

export interface AttachSpec {
  readonly datastore: DatastoreSpec;
  /** The flat file, below the export; its descriptor lies beside it, without `-flat`. */
  readonly path: string;
  readonly sizeBytes: number;
  /** At most 20 characters, which is what virtio-blk carries; where disks have none, ignored. */
  readonly serial: string;
}

export interface BackupSpec {
  readonly machineId: string;
  /** Names bitmaps, checkpoint and scratch files; deterministic, so that a crash finds them. */
  readonly token: string;
  /** Labels of the last saveset: go on from its checkpoint when the chain is whole. */
  readonly since?: Readonly<Record<string, string>>;
  readonly scratchDirectory: string;
  /** Of another backup that left something at the machine; missing: none is known. */
  readonly otherBackup?: (token: string) => Promise<OtherBackup>;
}

/** What is left of one that has ended is nobody's; of an unknown one, perhaps another server's. */
export type OtherBackup = 'running' | 'ended' | 'unknown';

/** A host or a datastore that bears only so many backups at once. */
export interface BackupPlace {
  readonly kind: 'host' | 'datastore';
  readonly id: string;
  readonly name: string;
}

/**
 * What lets a proxy read a source's disks, made for the moment. A secret: handed to the proxy, never
 * written down, never logged.
 */
export interface BackupPass {
  readonly url: string;
  /** Of the manager's certificate: SHA-256, or PEM of who issued it. */
  readonly trust: { readonly fingerprint: string } | { readonly authority: string };
  /** A ticket that opens one session, once; or a session that is shared. */
  readonly session: { readonly ticket: string } | { readonly cookie: string };
}

/** Reads the disks of sources for a proxy, in a session of its own. */
export interface BackupReader {
  /** Downloads of a snapshot's disks; kept open until it is ended. */
  lease(disks: readonly NfcAccess[], signal: AbortSignal): Promise<BackupLease>;
  /** A flat file by ranges, and what of it changed since the change id. */
  folderDisk(disk: BackupDiskSource, access: FolderAccess, signal: AbortSignal): ChangedDisk;
  close(): Promise<void>;
}

export interface BackupLease {
  /** A streamOptimized VMDK as it comes. */
  download(access: NfcAccess, signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** For people who look at the manager's list of tasks. */
  progress(share: number): void;
  /** Never fails: what was read is read. */
  end(outcome: 'complete' | 'abort'): Promise<void>;
}

export interface ChangedDisk extends ReadableDisk {
  changes(offset: number, length: number): Promise<readonly Extent[]>;
}

export type NfcAccess = Extract<BackupDiskSource['access'], { via: 'nfc' }>;
export type FolderAccess = Extract<BackupDiskSource['access'], { via: 'folder' }>;

/** A consistent point of a machine's disks, readable until `endBackup`. */
export interface BackupSource {
  readonly token: string;
  readonly machine: MachineDetail;
  readonly consistency: 'crash' | 'filesystem' | 'offline';
  readonly kind: 'full' | 'incremental';
  /** When that point was, if it was there before it was asked for: found again after a crash. */
  readonly takenAtMs?: number;
  /** Why it is full although an incremental was asked for. */
  readonly fullBecause?: string;
  readonly disks: readonly BackupDiskSource[];
  readonly files: readonly { readonly name: string; readonly base64: string }[];
  /** What could not be taken along, one sentence each. */
  readonly warnings?: readonly string[];
  /** To be kept with the saveset and passed as `since` next time. */
  readonly labels: Readonly<Record<string, string>>;
}

/** Plain values, so that a server can hand it to a proxy as JSON. */
export interface BackupDiskSource {
  readonly name: string;
  readonly sizeBytes: number;
  readonly source: string;
  readonly access:
    | {
        readonly via: 'nbd';
        /** A unix socket's path, or host and port. */
        readonly socket?: string;
        readonly host?: string;
        readonly port?: number;
        readonly exportName: string;
        /** The NBD meta context of changed ranges, such as `qemu:dirty-bitmap:backup-vda`. */
        readonly changesContext?: string;
      }
    | {
        readonly via: 'file';
        readonly path: string;
        readonly format: string;
        /** Of the file when the backup began (lib/file-stamp.ts); none: it cannot tell. */
        readonly stamp?: string;
      }
    | {
        /** Downloaded whole from a snapshot, under a lease; with a `BackupPass`. */
        readonly via: 'nfc';
        readonly snapshot: string;
        /** VirtualDevice.key. */
        readonly key: number;
      }
    | {
        /** Ranges of the frozen flat file over HTTP; with a `BackupPass`. */
        readonly via: 'folder';
        readonly machine: string;
        readonly snapshot: string;
        readonly key: number;
        /** `/folder/web01/web01-flat.vmdk?dcPath=…&dsName=…` */
        readonly path: string;
        /** Of the last backup: what changed since then is read. */
        readonly changeId: string;
      };
}

export interface CreateDiskSpec {
  readonly machineName: string;
  readonly diskName: string;
  readonly sizeBytes: number;
}

/** Where a full restore writes a disk: a raw or qcow2 file below a datastore's directory. */
export interface DiskTarget {
  readonly path: string;
  readonly format: 'raw' | 'qcow2';
  readonly sizeBytes: number;
}

export type HypervisorFailure = RouseError;
