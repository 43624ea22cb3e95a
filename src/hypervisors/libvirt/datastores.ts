import { mkdir, open, readFile, rm, stat, statfs } from 'node:fs/promises';
import { posix } from 'node:path';
import { RouseError, isRouseError, systemErrorCode, toRouseError } from '../../errors.ts';
import { hasCommand, runCommand } from '../../lib/command.ts';
import { libvirtLimits } from '../../limits.ts';
import type { CreateDiskSpec, Datastore, DatastoreSpec, DiskTarget } from '../port.ts';
import { mountPathOf, mountedNamed, requireLocal } from './context.ts';
import type { DirectoryStore, LibvirtContext } from './context.ts';
import type { MountedDatastore } from './state.ts';
import { attribute, child, find, parseXml, text } from './xml.ts';

/** Directories that take disks: libvirt's `dir` pools and those of the configuration. */
export async function directoryStores(
  context: LibvirtContext,
  hostId: string,
): Promise<DirectoryStore[]> {
  const configured = (context.options.datastores ?? []).map(({ name, path }) =>
    directoryStore(context, hostId, name, path),
  );
  const names = (await context.virsh.run(['pool-list', '--all', '--name'])).split('\n');
  const pools = names
    .map((name) => name.trim())
    .filter((name) => name !== '')
    .map((name) => poolStore(context, hostId, name));
  const stores = (await Promise.all([...configured, ...pools])).filter((one) => one !== undefined);
  return stores.filter(
    (store, index) => stores.findIndex((other) => other.name === store.name) === index,
  );
}

async function directoryStore(
  context: LibvirtContext,
  hostId: string,
  name: string,
  path: string,
): Promise<DirectoryStore | undefined> {
  const space = context.virsh.isLocal ? await spaceOf(path) : { totalBytes: 0, freeBytes: 0 };
  if (space === undefined) return undefined;
  const location = path;
  return {
    id: name,
    name,
    kind: 'directory',
    hostIds: [hostId],
    location,
    pool: undefined,
    ...space,
  };
}

/** Undefined: not there, which the host's test complains about. */
async function spaceOf(
  path: string,
): Promise<{ totalBytes: number; freeBytes: number } | undefined> {
  try {
    const found = await statfs(path);
    return { totalBytes: found.blocks * found.bsize, freeBytes: found.bavail * found.bsize };
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw toRouseError(error, `the datastore directory ${path}`);
  }
}

async function poolStore(
  context: LibvirtContext,
  hostId: string,
  name: string,
): Promise<DirectoryStore | undefined> {
  const xml = await context.virsh.run(['pool-dumpxml', '--pool', name]);
  const pool = parseXml(xml, `the storage pool ${name}`);
  if (attribute(pool, 'type') !== 'dir') return undefined;
  return {
    id: name,
    name,
    kind: 'directory',
    hostIds: [hostId],
    location: text(find(pool, 'target', 'path')),
    pool: name,
    totalBytes: Number(text(child(pool, 'capacity'))) || 0,
    freeBytes: Number(text(child(pool, 'available'))) || 0,
  };
}

export function mountedStore(hostId: string, mounted: MountedDatastore): Datastore {
  return {
    id: mounted.name,
    name: mounted.name,
    kind: 'nfs',
    hostIds: [hostId],
    totalBytes: 0,
    freeBytes: 0,
    location: `${mounted.server}:${mounted.path}`,
  };
}

/** Step 8. The export must answer the client that the guest's disks will be read with. */
export async function mountDatastore(
  context: LibvirtContext,
  hostId: string,
  spec: DatastoreSpec,
): Promise<Datastore> {
  if (!/^[\w][\w.-]*$/u.test(spec.name)) {
    throw new RouseError('bad-request', `${spec.name} is no name for a datastore`);
  }
  const mounted = mountedNamed(context, spec.name);
  if (mounted !== undefined && (mounted.server !== spec.server || mounted.path !== spec.path)) {
    throw new RouseError(
      'already-exists',
      `a datastore named ${spec.name} shows ${mounted.server}:${mounted.path}`,
    );
  }
  const entry = { ...spec, client: mounted?.client ?? (await chooseClient(context, spec)) };
  // Written down before anything is mounted, so that a kill between leaves a mount that is known.
  await context.state.change((state) => ({
    ...state,
    datastores: [...state.datastores.filter((one) => one.name !== spec.name), entry],
  }));
  try {
    if (entry.client === 'kernel') await mountByKernel(context, spec);
    else if (mounted !== undefined && context.virsh.isLocal) await checkByQemu(spec);
  } catch (error) {
    if (mounted === undefined) await forgetDatastore(context, spec.name);
    throw error;
  }
  return mountedStore(hostId, entry);
}

/** The client that a guest will use, proven to reach the export where that can be done. */
async function chooseClient(
  context: LibvirtContext,
  spec: DatastoreSpec,
): Promise<'qemu' | 'kernel'> {
  const wanted = context.options.nfsClient ?? 'auto';
  if (!context.virsh.isLocal) return 'qemu';
  if (wanted !== 'kernel' && (await checkByQemu(spec))) return 'qemu';
  const why = await whyNoKernelClient();
  if (why === undefined && wanted !== 'qemu') return 'kernel';
  const said = wanted === 'qemu' ? 'its QEMU has no NFS client' : why;
  throw new RouseError('hypervisor-unsupported', `the host cannot mount NFS: ${said}`, {
    advice: "Install QEMU's NFS client: apt-get install qemu-block-extra",
  });
}

export async function qemuSpeaksNfs(): Promise<boolean> {
  // With the driver there, an address that is none fails for that reason.
  const url = 'json:{"driver":"nfs","path":"/","server":{"type":"inet","host":""}}';
  const result = await runCommand('qemu-img', ['info', url]);
  return !unknownDriver.test(result.stderr);
}

const unknownDriver = /Unknown driver|Unknown protocol/u;

/** Undefined when the kernel can mount NFS. */
export async function whyNoKernelClient(): Promise<string | undefined> {
  const known = await readFile('/proc/filesystems', 'utf8').catch(() => '');
  if (!/^nodev\s+nfs$/mu.test(known)) return 'its kernel has no NFS client loaded';
  const hasTool = await hasCommand('mount.nfs', '-V');
  return hasTool ? undefined : 'mount.nfs is missing (package nfs-common)';
}

async function mountByKernel(context: LibvirtContext, spec: DatastoreSpec): Promise<void> {
  const place = mountPathOf(context, spec.name);
  await mkdir(place, { recursive: true });
  if (await isMounted(place)) return;
  const options = [
    `vers=3,nolock,tcp,hard,port=${spec.nfsPort}`,
    `mountport=${spec.mountPort},mountproto=tcp`,
  ].join(',');
  const server = spec.server.includes(':') ? `[${spec.server}]` : spec.server;
  const values = ['-t', 'nfs', '-o', options, `${server}:${spec.path}`, place];
  const result = await runCommand('mount', values, { timeoutMs: libvirtLimits.mountTimeoutMs });
  if (result.exit === 0) return;
  throw new RouseError('hypervisor-error', `mount ${server}:${spec.path}: ${result.stderr}`);
}

async function isMounted(place: string): Promise<boolean> {
  const mounts = await readFile('/proc/self/mounts', 'utf8');
  return mounts.split('\n').some((line) => line.split(' ')[1] === place);
}

/**
 * QEMU's client mounts the directory of the file it opens, so opening a file that cannot exist
 * proves the whole way: portmapper, mount, NFS, and that this host's address is let in.
 * False: this QEMU has no NFS client.
 */
async function checkByQemu(spec: DatastoreSpec): Promise<boolean> {
  const url = qemuNfsUrl(spec.server, `${spec.path}/.rouse-is-there`);
  const result = await runCommand('qemu-img', ['info', '--force-share', url], {
    timeoutMs: libvirtLimits.mountTimeoutMs,
  });
  const said = result.stderr.trim();
  if (result.exit === 0 || /NFS3ERR_NOENT|No such file/u.test(said)) return true;
  if (unknownDriver.test(said)) return false;
  const last = said.slice(said.lastIndexOf('Failed'));
  const where = `${spec.server}:${spec.path}`;
  if (/Failed to mount nfs share: (?!.*MNT3ERR)/u.test(said)) {
    throw new RouseError('host-unreachable', `the host cannot reach the export ${where}: ${last}`, {
      advice:
        "QEMU's NFS client asks the portmapper on port 111 of the proxy: start the proxy with " +
        'its portmapper, or use the kernel client (nfsClient: kernel), which takes any port.',
    });
  }
  throw new RouseError('hypervisor-error', `the export ${where} is refused to the host: ${last}`, {
    advice: "Export it to every address of the host; see the host's addresses in the inventory.",
  });
}

/** For qemu-img and qemu-io; takes IPv6 addresses, which nfs:// does not. */
export function qemuNfsUrl(server: string, path: string): string {
  const file = { driver: 'nfs', path, server: { type: 'inet', host: server }, user: 0, group: 0 };
  return `json:${JSON.stringify({ driver: 'raw', file })}`;
}

export async function unmountDatastore(context: LibvirtContext, name: string): Promise<void> {
  const mounted = mountedNamed(context, name);
  if (mounted === undefined) return;
  if (mounted.client === 'kernel') {
    const place = mountPathOf(context, name);
    if (await isMounted(place)) {
      const result = await runCommand('umount', [place]);
      if (result.exit !== 0) {
        const code = /busy/u.test(result.stderr) ? 'busy' : 'hypervisor-error';
        throw new RouseError(code, `umount ${place}: ${result.stderr}`);
      }
    }
    // A directory by now; with anything in it, rm refuses, as it should.
    await rm(place, { recursive: false, force: true }).catch(() => undefined);
  }
  await forgetDatastore(context, name);
}

function forgetDatastore(context: LibvirtContext, name: string): Promise<void> {
  return context.state.change((state) => ({
    ...state,
    datastores: state.datastores.filter((mounted) => mounted.name !== name),
  }));
}

export async function createDisk(
  context: LibvirtContext,
  store: DirectoryStore,
  spec: CreateDiskSpec,
): Promise<DiskTarget> {
  requireLocal(context, 'a full restore');
  const path = posix.join(store.location, `${fileName(spec.machineName, spec.diskName)}.raw`);
  const target: DiskTarget = { path, format: 'raw', sizeBytes: spec.sizeBytes };
  const isOurs = context.state.current.createdFiles.includes(path);
  const there = await sizeOf(path);
  if (there !== undefined && !isOurs) {
    throw new RouseError('already-exists', `${path} exists and is not a disk of this restore`, {
      advice: 'Restore under another name, or move that file away.',
    });
  }
  if (there === spec.sizeBytes) return target;
  await rememberFile(context, path);
  try {
    await mkdir(store.location, { recursive: true });
    const handle = await open(path, 'w', 0o600);
    await handle.truncate(spec.sizeBytes).finally(() => handle.close());
  } catch (error) {
    throw toRouseError(error, path);
  }
  return target;
}

/** Letters, digits, dots, dashes: a machine's name may hold a slash. */
export function fileName(...parts: readonly string[]): string {
  return parts.map((part) => part.replaceAll(/[^\w.-]/gu, '_')).join('-');
}

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw toRouseError(error, path);
  }
}

/** Before a file is made: what is not in this list is never overwritten or removed. */
export function rememberFile(context: LibvirtContext, path: string): Promise<void> {
  return context.state.change((state) => ({
    ...state,
    createdFiles: [...state.createdFiles.filter((one) => one !== path), path],
  }));
}

export function forgetFile(context: LibvirtContext, path: string): Promise<void> {
  return context.state.change((state) => ({
    ...state,
    createdFiles: state.createdFiles.filter((one) => one !== path),
  }));
}

/** Removes a disk file on the host; no error when it is gone. */
export async function removeHostFile(context: LibvirtContext, path: string): Promise<void> {
  if (context.virsh.isLocal) {
    await rm(path, { force: true });
  } else {
    await removeVolume(context, path);
  }
  await forgetFile(context, path);
}

/** Remote: as far as libvirt's pools tell; `blockcopy` itself refuses a file that is there. */
export async function existsOnHost(context: LibvirtContext, path: string): Promise<boolean> {
  if (context.virsh.isLocal) return (await sizeOf(path)) !== undefined;
  return (await context.virsh.runUnless(/./u, ['vol-info', '--vol', path])) !== undefined;
}

async function removeVolume(context: LibvirtContext, path: string): Promise<void> {
  const stores = await directoryStores(context, '');
  const store = stores.find((one) => posix.dirname(path) === one.location);
  if (store?.pool === undefined) {
    throw new RouseError('hypervisor-unsupported', `${path} lies in no storage pool of the host`, {
      advice: 'Remove it there by hand, or define a directory pool for it.',
    });
  }
  await context.virsh.run(['pool-refresh', '--pool', store.pool]);
  try {
    await context.virsh.run(['vol-delete', '--vol', path]);
  } catch (error) {
    if (!isRouseError(error, 'not-found')) throw error;
  }
}
