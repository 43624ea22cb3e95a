import type { DatastoreSpec } from '../hypervisors/port.ts';
import type { ReachableProxy } from '../placement/port.ts';

export type { ReachableProxy };
import type { RecoveryMode } from './schema.ts';

/**
 * What was decided when a recovery was asked for, written down once: every name that its steps use
 * at the proxy and the hypervisor follows from it, so that a step that runs again after a crash
 * finds what it did. Plain JSON: it is the input of the recovery's runs.
 */
export type RecoveryInput = {
  readonly recoveryId: string;
  readonly savesetId: string;
  readonly mtree: string;
  readonly machine: { readonly id: string; readonly name: string };
  readonly mode: RecoveryMode;
  readonly name: string;
  readonly hypervisorId: string | null;
  /** As asked for; null: chosen in step 3. */
  readonly host: string | null;
  /** The proxy asked for; null: chosen in step 2. Missing in what was asked before there were several. */
  readonly proxy?: string | null;
  /** Names of proxies and hosts that will not do. */
  readonly without?: readonly string[];
  /** Labels that the proxy should carry. */
  readonly prefer?: { readonly [label: string]: string };
  readonly clients: readonly string[];
  readonly powerOn: boolean;
  readonly identity: {
    readonly keep: boolean;
    readonly uuid: string;
    readonly macs: readonly string[];
  };
  readonly connectNetworks: boolean;
  readonly leaseMs: number;
  /** Mode `new`: where the disks go. */
  readonly datastore: string | null;
  /** Mode `new` where the manager itself moves the disks (Hypervisor.restoresBy). */
  readonly isMoved?: boolean;
  readonly relocateTo: string | null;
  /** null: as soon as it is available. */
  readonly relocateAtMs: number | null;
  /** Mode `flr`: the running machine whose guest sees the disks, and which of them (null: all). */
  readonly target: {
    readonly id: string;
    readonly name: string;
    /** What its manager calls it. Missing in what was asked before UUIDs were known to repeat. */
    readonly managedId?: string;
  } | null;
  readonly disks: readonly string[] | null;
  readonly createdMs: number;
  /** A parked recovery going on: its clone holds writes and is never dropped by an undo. */
  readonly resumed: boolean;
  /** A publication whose clean-up waits for clients: a person wants it gone all the same. */
  readonly cutOff?: boolean;
};

/** The clone's id, and the last part of its export's path (product.md, step 6). */
export function cloneIdOf(input: RecoveryInput, proxyName: string): string {
  return `Recover-${proxyName}-${input.recoveryId}`;
}

export function datastoreNameOf(input: RecoveryInput): string {
  return `rouse-${input.recoveryId}`;
}

type HowServed = Pick<RecoveryInput, 'mode' | 'isMoved'>;

/** What has an export that one host mounts as a datastore. */
export function isMounted({ mode, isMoved }: HowServed): boolean {
  return mode === 'instant' || mode === 'flr' || (mode === 'new' && isMoved === true);
}

/** What registers a machine that lies on that datastore. */
export function hasServedMachine(input: HowServed): boolean {
  return input.mode !== 'flr' && isMounted(input);
}

/** A full restore whose disks we write ourselves. */
export function isWritten({ mode, isMoved }: HowServed): boolean {
  return mode === 'new' && isMoved !== true;
}

/** The machine's folder in the export: its name, with what a path or a client dislikes replaced. */
export function folderOf(name: string): string {
  const plain = name.replaceAll(/[^A-Za-z0-9._-]+/g, '-').replace(/^[.-]+/, '');
  return plain === '' ? 'machine' : plain.slice(0, 80);
}

/** What step 3 found and step 8 needs again. */
export type ChosenHost = {
  readonly id: string;
  readonly name: string;
  readonly clusterId?: string | null;
  readonly addresses: readonly string[];
};

export function datastoreSpec(
  input: RecoveryInput,
  exported: { path: string; nfsPort: number; mountPort: number },
  address: string,
): DatastoreSpec {
  return {
    name: datastoreNameOf(input),
    server: address,
    path: exported.path,
    nfsPort: exported.nfsPort,
    mountPort: exported.mountPort,
  };
}

/** 52:54:00 is QEMU's range; the rest is random. */
export function newMac(bytes: Uint8Array): string {
  const parts = [0x52, 0x54, 0x00, bytes[0]!, bytes[1]!, bytes[2]!];
  return parts.map((part) => part.toString(16).padStart(2, '0')).join(':');
}
