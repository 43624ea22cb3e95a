import { RouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';
import type { Datastore, Host, Inventory, MachineSummary, PowerState } from '../port.ts';
import type { VimClient } from './client.ts';
import { entityName } from './names.ts';
import { rememberedMaxVolumes } from './nas-slots.ts';
import { readAll, readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { all, at, flagAt, items, numberAt, refOf, refsOf, sameRef, textAt } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

const hostPaths = [
  'name',
  'parent',
  'datastore',
  'runtime.connectionState',
  'runtime.inMaintenanceMode',
  'config.network.vnic',
  'configManager.advancedOption',
] as const;
export const datastorePaths = ['name', 'summary', 'info', 'host'] as const;
const machinePaths = [
  'name',
  'config.uuid',
  'config.template',
  'runtime.host',
  'runtime.powerState',
] as const;

/** Everything below the root folder, in one view. */
export async function readInventory(client: VimClient): Promise<Inventory> {
  const found: Found[] = [];
  const wanted = {
    ComputeResource: ['name', 'host'],
    HostSystem: hostPaths,
    Network: ['name'],
    Datastore: datastorePaths,
    VirtualMachine: machinePaths,
  };
  await readAll(client, wanted, (one) => found.push(one));
  const clusters = found.filter(({ ref }) => ref.type === 'ClusterComputeResource');
  const hosts = found.filter(({ ref }) => ref.type === 'HostSystem');
  const nas = found.filter((one) => one.ref.type === 'Datastore' && isNas(one));
  return {
    clusters: clusters.map((cluster) => ({
      id: cluster.ref.id,
      name: entityName(cluster.text('name')),
      hostIds: refsOf(cluster.get('host')).map(({ id }) => id),
    })),
    hosts: await Promise.all(hosts.map((host) => withSlots(client, host, nas))),
    networks: found
      .filter(({ ref }) => isNetwork(ref))
      .map((one) => ({ id: one.ref.id, name: entityName(one.text('name')) })),
    datastores: found
      .filter(({ ref }) => ref.type === 'Datastore')
      .map((one) => datastoreOf(one, mountedBy(hosts, one.ref))),
    machines: found
      .filter((one) => one.ref.type === 'VirtualMachine' && one.text('config.template') !== 'true')
      .map(summaryOf),
  };
}

function isNas(found: Found): boolean {
  return /^NFS/iu.test(textAt(found.get('summary'), 'type') ?? '');
}

/** With what it has mounted of NFS.MaxVolumes; a host that is away is not asked. */
async function withSlots(client: VimClient, found: Found, nas: readonly Found[]): Promise<Host> {
  const host = hostOf(found);
  if (host.state === 'disconnected') return host;
  const mounted = refsOf(found.get('datastore'));
  const used = nas.filter(({ ref }) => mounted.some((one) => sameRef(one, ref))).length;
  const options = refOf(found.get('configManager.advancedOption'));
  return { ...host, nfsSlots: { used, max: await rememberedMaxVolumes(client, options, used) } };
}

function isNetwork({ type }: Ref): boolean {
  return type === 'Network' || type === 'DistributedVirtualPortgroup' || type === 'OpaqueNetwork';
}

export async function readHost(client: VimClient, hostId: string): Promise<Host> {
  return hostOf(await readOne(client, hostRef(hostId), hostPaths));
}

export function hostRef(id: string): Ref {
  return { type: 'HostSystem', id };
}

export function machineRef(id: string): Ref {
  return { type: 'VirtualMachine', id };
}

export function datastoreRef(id: string): Ref {
  return { type: 'Datastore', id };
}

export function hostOf(found: Found): Host {
  const parent = refOf(found.get('parent'));
  const isDown = found.text('runtime.connectionState') !== 'connected';
  const isResting = found.text('runtime.inMaintenanceMode') === 'true';
  return {
    id: found.ref.id,
    name: entityName(found.text('name')),
    ...(parent?.type === 'ClusterComputeResource' ? { clusterId: parent.id } : {}),
    state: isDown ? 'disconnected' : isResting ? 'maintenance' : 'connected',
    addresses: vmkernelAddresses(found),
  };
}

/** HostVirtualNic: spec.ip.ipAddress and spec.ip.ipV6Config.ipV6Address[].ipAddress. */
function vmkernelAddresses(found: Found): readonly string[] {
  const addresses: string[] = [];
  for (const nic of items(found.get('config.network.vnic'))) {
    const ip = at(nic, 'spec.ip');
    addresses.push(textAt(ip, 'ipAddress') ?? '');
    for (const v6 of all(at(ip, 'ipV6Config'), 'ipV6Address')) {
      addresses.push((textAt(v6, 'ipAddress') ?? '').replace(/%.*$/u, ''));
    }
  }
  const plain = addresses.map((one) => one.trim().toLowerCase());
  return [...new Set(plain.filter((one) => one !== '' && one !== '0.0.0.0' && one !== '::'))];
}

/** Where hosts say that they have it: what a datastore says itself may lag behind. */
function mountedBy(hosts: readonly Found[], datastore: Ref): readonly string[] {
  return hosts
    .filter((host) => refsOf(host.get('datastore')).some((ref) => sameRef(ref, datastore)))
    .map(({ ref }) => ref.id);
}

export function datastoreOf(found: Found, hostIds: readonly string[]): Datastore {
  const summary = found.get('summary');
  const type = textAt(summary, 'type') ?? '';
  const told = items(found.get('host')).flatMap((mount) => {
    // DatastoreHostMount.mountInfo.mounted: false once it was unmounted there.
    const ref = refOf(at(mount, 'key'));
    const isGone = textAt(mount, 'mountInfo.mounted') === 'false';
    return ref === undefined || isGone ? [] : [ref.id];
  });
  return {
    id: found.ref.id,
    name: entityName(found.text('name')),
    kind: /^NFS/iu.test(type) ? 'nfs' : /^VMFS/iu.test(type) ? 'vmfs' : 'other',
    hostIds: [...new Set([...told, ...hostIds])],
    totalBytes: numberAt(summary, 'capacity') ?? 0,
    freeBytes: numberAt(summary, 'freeSpace') ?? 0,
    location: remoteOf(found) ?? textAt(summary, 'url') ?? '',
  };
}

/** NasDatastoreInfo.nas: the remote place; undefined when it is none. */
export function remoteOf(found: Found): string | undefined {
  const nas = at(found.get('info'), 'nas');
  const server = textAt(nas, 'remoteHost');
  const path = textAt(nas, 'remotePath');
  return server === undefined || path === undefined ? undefined : `${server}:${path}`;
}

export function isAccessible(found: Found): boolean {
  return flagAt(found.get('summary'), 'accessible');
}

function summaryOf(found: Found): MachineSummary {
  return {
    id: found.ref.id,
    name: entityName(found.text('name')),
    uuid: (found.text('config.uuid') ?? '').toLowerCase(),
    hostId: refOf(found.get('runtime.host'))?.id ?? '',
    power: powerOf(found.text('runtime.powerState')),
  };
}

export function powerOf(state: string | undefined): PowerState {
  if (state === 'poweredOn') return 'on';
  return state === 'suspended' ? 'paused' : 'off';
}

/** Where a machine goes that is registered on that host. */
export interface Place {
  readonly folder: Ref;
  readonly pool: Ref;
  readonly datacenter: Ref;
}

/** The pool of the host's cluster (or its own), and the folder of its data centre's machines. */
export async function placeFor(client: VimClient, hostId: string): Promise<Place> {
  const host = await readOne(client, hostRef(hostId), ['parent']);
  const compute = refOf(host.get('parent'));
  const pool =
    compute && refOf((await readOne(client, compute, ['resourcePool'])).get('resourcePool'));
  const datacenter = await datacenterOf(client, hostRef(hostId));
  const folder = refOf((await readOne(client, datacenter, ['vmFolder'])).get('vmFolder'));
  if (pool === undefined || folder === undefined) {
    throw new RouseError('forbidden', `host ${hostId} shows no resource pool or folder to us`, {
      advice: 'Give the user of Rouse its role on the data centre, with propagation.',
    });
  }
  return { folder, pool, datacenter };
}

export async function datacenterOf(client: VimClient, from: Ref): Promise<Ref> {
  let here = from;
  for (let steps = 0; steps < vsphereLimits.parentsMax; steps += 1) {
    if (here.type === 'Datacenter') return here;
    const parent = refOf((await readOne(client, here, ['parent'])).get('parent'));
    if (parent === undefined) break;
    here = parent;
  }
  throw new RouseError('hypervisor-error', `${from.type} ${from.id} is in no data centre`);
}
