import { posix } from 'node:path';
import { RouseError } from '../../errors.ts';
import type { Clock } from '../../lib/clock.ts';
import type { Datastore, DatastoreSpec } from '../port.ts';
import type { DatastorePlace } from './domain.ts';
import { parseXml } from './xml.ts';
import type { XmlElement } from './xml.ts';
import type { LibvirtStateFile, MountedDatastore } from './state.ts';
import type { Virsh } from './virsh.ts';

export interface LibvirtOptions {
  /** Any of virsh: `qemu:///system`, `qemu:///session`, `qemu+ssh://root@kvm1/system`. */
  readonly uri: string;
  /** Added to virsh's environment. */
  readonly environment?: Readonly<Record<string, string>>;
  /** What libvirt cannot remember for us lies there; one directory for each URI. */
  readonly stateDirectory: string;
  /** Directories on the host that take disks, besides libvirt's own directory pools. */
  readonly datastores?: readonly { readonly name: string; readonly path: string }[];
  /** `auto`: KVM when a probe guest shows that it helps. */
  readonly acceleration?: 'auto' | 'kvm' | 'tcg';
  /** `auto`: QEMU's own NFS client, or the kernel's where QEMU has none. */
  readonly nfsClient?: 'auto' | 'qemu' | 'kernel';
  /** Saved firmware variables; default: `nvram` in the state directory. */
  readonly nvramDirectory?: string;
  /** What a remote host speaks NFS from, when its name does not tell. */
  readonly addresses?: readonly string[];
  readonly clock: Clock;
}

/** What all parts of the driver share. */
export interface LibvirtContext {
  readonly options: LibvirtOptions;
  readonly virsh: Virsh;
  readonly state: LibvirtStateFile;
  readonly clock: Clock;
}

/** The running configuration when it runs, else the stored one. */
export async function domainXml(
  context: LibvirtContext,
  machine: string,
  ...flags: readonly string[]
): Promise<XmlElement> {
  return parseXml(await domainText(context, machine, ...flags), `the domain ${machine}`);
}

export function domainText(
  context: LibvirtContext,
  machine: string,
  ...flags: readonly string[]
): Promise<string> {
  return context.virsh.run(['dumpxml', '--domain', machine, ...flags]);
}

export function mountedNamed(context: LibvirtContext, name: string): MountedDatastore | undefined {
  return context.state.current.datastores.find((mounted) => mounted.name === name);
}

/** Where the host's kernel mounts an export, when it does. */
export function mountPathOf(context: LibvirtContext, name: string): string {
  return posix.join(context.state.directory, 'mounts', name);
}

export function placeOf(context: LibvirtContext, spec: DatastoreSpec): DatastorePlace {
  const { name, server, path } = spec;
  const isKernel = mountedNamed(context, name)?.client === 'kernel';
  return { name, server, path, ...(isKernel ? { mountPath: mountPathOf(context, name) } : {}) };
}

export function requireLocal(context: LibvirtContext, what: string): void {
  if (context.virsh.isLocal) return;
  throw new RouseError(
    'hypervisor-unsupported',
    `${what} needs the files of ${context.virsh.uri}`,
    {
      advice: 'Run a Rouse proxy and server on that host, with its URI qemu:///system.',
    },
  );
}

export interface DirectoryStore extends Datastore {
  /** The libvirt pool, when it is one: remote files are reached through it. */
  readonly pool: string | undefined;
}
