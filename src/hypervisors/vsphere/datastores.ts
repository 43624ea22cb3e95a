import { RouseError } from '../../errors.ts';
import type { Datastore, DatastoreSpec, Host } from '../port.ts';
import type { VimClient } from './client.ts';
import { isFault } from './faults.ts';
import { datastoreOf, datastorePaths, hostOf, hostRef, remoteOf } from './inventory.ts';
import { entityName, locationOf, parseDatastorePath } from './names.ts';
import { maxVolumes } from './nas-slots.ts';
import { readAll, readExisting, readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { leaf, node, refOf, reference, refsOf, textAt } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

/** A host and what it has mounted. */
interface MountingHost {
  readonly host: Host;
  readonly datastoreSystem: Ref;
  readonly options: Ref | undefined;
  readonly datastores: readonly Found[];
}

async function readMountingHost(client: VimClient, hostId: string): Promise<MountingHost> {
  const found = await readOne(client, hostRef(hostId), [
    'name',
    'parent',
    'datastore',
    'runtime.connectionState',
    'runtime.inMaintenanceMode',
    'configManager.datastoreSystem',
    'configManager.advancedOption',
  ]);
  const datastoreSystem = refOf(found.get('configManager.datastoreSystem'));
  const host = hostOf(found);
  if (datastoreSystem === undefined) {
    throw new RouseError('forbidden', `host ${host.name} does not show its datastore system`, {
      advice: 'Give the user of Rouse its role on that host; the host must be connected.',
    });
  }
  const refs = refsOf(found.get('datastore'));
  return {
    host,
    datastoreSystem,
    options: refOf(found.get('configManager.advancedOption')),
    datastores: await readExisting(client, refs, datastorePaths),
  };
}

export function nameOfFound(found: Found): string {
  return entityName(found.text('name'));
}

/** Step 8. The place is spelt byte for byte as given: ESXi makes a datastore's id of it. */
export async function mountDatastore(
  client: VimClient,
  hostId: string,
  spec: DatastoreSpec,
): Promise<Datastore> {
  const at = await readMountingHost(client, hostId);
  if (at.host.state !== 'connected') {
    throw new RouseError('host-unreachable', `host ${at.host.name} is ${at.host.state}`, {
      advice: 'Bring it back, or choose another host.',
    });
  }
  const there = alreadyThere(at, spec);
  if (there !== undefined) return datastoreOf(there, [hostId]);
  await refuseForeignName(client, spec);
  await refuseWithoutSlot(client, at);
  const made = await create(client, at, spec);
  return datastoreOf(await readOne(client, made, datastorePaths), [hostId]);
}

/** Undefined: neither its name nor its place is there. */
function alreadyThere({ host, datastores }: MountingHost, spec: DatastoreSpec): Found | undefined {
  const named = datastores.find((one) => nameOfFound(one) === spec.name);
  if (named !== undefined) {
    if (remoteOf(named) === locationOf(spec)) return named;
    throw otherPlace(spec, named, `host ${host.name}`);
  }
  const placed = datastores.find((one) => remoteOf(one) === locationOf(spec));
  if (placed === undefined) return undefined;
  throw new RouseError(
    'already-exists',
    `host ${host.name} has ${locationOf(spec)} mounted already, as ${nameOfFound(placed)}`,
    { advice: `Unmount ${nameOfFound(placed)} from that host first.` },
  );
}

function otherPlace(spec: DatastoreSpec, other: Found, where: string): RouseError {
  const place = remoteOf(other) ?? textAt(other.get('summary'), 'url') ?? 'something else';
  return new RouseError(
    'already-exists',
    `a datastore named ${spec.name} on ${where} shows ${place}`,
    { advice: 'Rename or unmount that datastore.' },
  );
}

/** A name is one place within a manager, or the second one is renamed behind our back. */
async function refuseForeignName(client: VimClient, spec: DatastoreSpec): Promise<void> {
  const others: Found[] = [];
  await readAll(client, { Datastore: datastorePaths }, (one) => others.push(one));
  const foreign = others.find(
    (one) => nameOfFound(one) === spec.name && remoteOf(one) !== locationOf(spec),
  );
  if (foreign !== undefined) throw otherPlace(spec, foreign, 'another host');
}

async function refuseWithoutSlot(client: VimClient, at: MountingHost): Promise<void> {
  const { used, max } = await nasSlots(client, at.options, at.datastores);
  if (used < max) return;
  throw new RouseError(
    'hypervisor-error',
    `host ${at.host.name} has ${used} NAS datastores; NFS.MaxVolumes allows ${max}`,
    { advice: slotAdvice },
  );
}

export const slotAdvice =
  'Unmount one, raise NFS.MaxVolumes (up to 256, with Net.TcpipHeapSize), or choose another host.';

export async function nasSlots(
  client: VimClient,
  options: Ref | undefined,
  datastores: readonly Found[],
): Promise<{ used: number; max: number }> {
  const used = datastores.filter((one) => datastoreOf(one, []).kind === 'nfs').length;
  return { used, max: await maxVolumes(client, options) };
}

async function create(client: VimClient, at: MountingHost, spec: DatastoreSpec): Promise<Ref> {
  // HostNasVolumeSpec in schema order. A machine cannot be powered on from a readOnly mount.
  const volume = node('spec', [
    leaf('remoteHost', spec.server),
    leaf('remotePath', spec.path),
    leaf('localPath', spec.name),
    leaf('accessMode', 'readWrite'),
    leaf('type', 'NFS'),
  ]);
  try {
    const answer = await client.call('CreateNasDatastore', at.datastoreSystem, [volume]);
    const made = refOf(answer.children.find(({ name }) => name === 'returnval'));
    if (made !== undefined) return made;
  } catch (error) {
    if (!isFault(error)) throw error;
    if (error.type === 'DuplicateName' || error.type === 'AlreadyExists') {
      // Its answer was lost, or somebody was quicker: what counts is what is there now.
      const there = alreadyThere(await readMountingHost(client, at.host.id), spec);
      if (there !== undefined) return there.ref;
      throw error;
    }
    if (error.type === 'HostConfigFault' || error.type === 'PlatformConfigFault') {
      const message = `host ${at.host.name} cannot mount ${locationOf(spec)}: ${error.message}`;
      throw new RouseError('hypervisor-error', message, {
        advice: /maximum number/iu.test(error.message) ? slotAdvice : mountAdvice,
        cause: error,
        details: error.details ?? {},
      });
    }
    throw error;
  }
  throw new RouseError('hypervisor-error', `${client.name} made no datastore ${spec.name}`);
}

const mountAdvice =
  'Check that the host reaches the proxy (ports 111 and 2049, its firewall, its vmkernel ' +
  'addresses) and /var/log/vmkernel.log on it.';

/** No error when neither the datastore nor the host is there. */
export async function unmountDatastore(
  client: VimClient,
  hostId: string,
  name: string,
): Promise<void> {
  const at = await hostOrNone(client, hostId);
  const mounted = at?.datastores.find((one) => nameOfFound(one) === name);
  if (at === undefined || mounted === undefined) return;
  const users = await datastoreUsers(client, name);
  if (users.length > 0) throw inUse(name, users);
  try {
    await client.call('RemoveDatastore', at.datastoreSystem, [reference('datastore', mounted.ref)]);
  } catch (error) {
    if (!isFault(error, 'NotFound', 'ManagedObjectNotFound')) throw error;
  }
}

async function hostOrNone(client: VimClient, hostId: string): Promise<MountingHost | undefined> {
  try {
    return await readMountingHost(client, hostId);
  } catch (error) {
    if (isFault(error, 'ManagedObjectNotFound')) return undefined;
    throw error;
  }
}

function inUse(name: string, users: readonly string[]): RouseError {
  return new RouseError('busy', `datastore ${name} is used by ${users.join(', ')}`, {
    advice: 'Relocate, detach or unregister those machines first.',
    details: { users },
  });
}

/** What is told of every machine in little: thousands of them are a few hundred kilobytes. */
const usagePaths = ['datastore', 'config.files.vmPathName'] as const;

/**
 * What Datastore.vm says, and every machine that says so itself: the manager promises to refuse
 * only for VMFS, so all of it is looked at.
 */
export async function datastoreUsers(client: VimClient, name: string): Promise<readonly string[]> {
  const users = new Set<string>();
  const named = new Set<string>();
  const machines: { id: string; home: string; stores: readonly string[] }[] = [];
  await readAll(client, { Datastore: ['name', 'vm'], VirtualMachine: usagePaths }, (one) => {
    if (one.ref.type === 'VirtualMachine') {
      const stores = refsOf(one.get('datastore')).map(({ id }) => id);
      machines.push({ id: one.ref.id, home: one.text('config.files.vmPathName') ?? '', stores });
    } else if (nameOfFound(one) === name) {
      named.add(one.ref.id);
      for (const { id } of refsOf(one.get('vm'))) users.add(id);
    }
  });
  for (const { id, home, stores } of machines) {
    const isHome = parseDatastorePath(home)?.datastore === name;
    if (isHome || stores.some((store) => named.has(store))) users.add(id);
  }
  const known = new Set(machines.map(({ id }) => id));
  return [...users].filter((id) => known.has(id));
}

/** A datastore of that name as the host has it mounted. Throws `not-found`. */
export async function mountedOn(client: VimClient, host: Ref, name: string): Promise<Found> {
  const refs = refsOf((await readOne(client, host, ['datastore'])).get('datastore'));
  const all = await readExisting(client, refs, datastorePaths);
  const found = all.find((one) => nameOfFound(one) === name);
  if (found !== undefined) return found;
  throw new RouseError('not-found', `host ${host.id} has no datastore ${name} mounted`, {
    advice: 'Mount it there first.',
  });
}
