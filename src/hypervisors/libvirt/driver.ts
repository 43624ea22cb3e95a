import { posix } from 'node:path';
import { RouseError, isRouseError } from '../../errors.ts';
import type {
  AttachSpec,
  BackupSource,
  BackupSpec,
  ConfigureSpec,
  ConfiguredMachine,
  CreateDiskSpec,
  Datastore,
  DatastoreSpec,
  DiskTarget,
  GuestDisk,
  Host,
  Hypervisor,
  Inventory,
  MachineDetail,
  PowerState,
  PreflightSpec,
  RegisterSpec,
  RelocateResult,
  RelocateSpec,
  RelocateWatch,
  TestReport,
  Traces,
} from '../port.ts';
import { guestDisks } from './agent.ts';
import { attachDisk, detachDisk, dropEmptyController } from './attach.ts';
import { beginBackup, endBackup } from './backup.ts';
import { configureDomain } from './configure.ts';
import { mountPathOf, mountedNamed, placeOf } from './context.ts';
import type { DirectoryStore, LibvirtContext, LibvirtOptions } from './context.ts';
import {
  createDisk,
  directoryStores,
  mountDatastore,
  mountedStore,
  removeHostFile,
  unmountDatastore,
} from './datastores.ts';
import { liesOn, readMark } from './domain.ts';
import { decideKvm, hostAddresses, testHost } from './host.ts';
import type { KvmVerdict } from './kvm.ts';
import * as machines from './machines.ts';
import { relocate, stopRelocation } from './relocate.ts';
import { LibvirtStateFile } from './state.ts';
import { traces } from './traces.ts';
import { Virsh } from './virsh.ts';
import { parseXml } from './xml.ts';

/**
 * KVM hosts through `virsh`. Nouns: a *domain* is a machine; a *place* is where an export is
 * (server and path); a *directory store* is a directory of the host that takes disks; the *mark*
 * is our element in a domain's metadata. Machine ids are libvirt's UUIDs, the one host's id is its
 * name, datastore ids are their names.
 *
 * Invariants: storage is never deleted but files that we wrote down as ours before making them; a
 * domain is changed only by its mark or by its id; every call may be repeated. Calls for different
 * machines may run at once; two calls that change one machine may not (the engine sees to that).
 */
export async function openLibvirt(options: LibvirtOptions): Promise<LibvirtHypervisor> {
  const context: LibvirtContext = {
    options,
    virsh: new Virsh(options.uri, options.environment),
    state: await LibvirtStateFile.open(options.stateDirectory),
    clock: options.clock,
  };
  const driver = new LibvirtHypervisor(context);
  await driver.look();
  return driver;
}

export class LibvirtHypervisor implements Hypervisor {
  readonly kind = 'libvirt';
  readonly #context: LibvirtContext;
  #hostId: string | undefined;
  #kvm: KvmVerdict | undefined;

  constructor(context: LibvirtContext) {
    this.#context = context;
  }

  /** Learns whether KVM helps; a host that is down is looked at again with the next call. */
  async look(): Promise<void> {
    try {
      await this.#decideKvm();
    } catch (error) {
      if (!isRouseError(error)) throw error;
    }
  }

  test(): Promise<TestReport> {
    return testHost(this.#context, () => this.#decideKvm(true));
  }

  async preflight({ hostId }: PreflightSpec): Promise<TestReport> {
    await this.#checkHost(hostId);
    return testHost(this.#context, () => this.#decideKvm());
  }

  async inventory(): Promise<Inventory> {
    const host = await this.#host();
    const [stores, networks, list] = await Promise.all([
      directoryStores(this.#context, host.id),
      machines.networkNames(this.#context),
      machines.listMachines(this.#context, host.id),
    ]);
    const mounted = this.#context.state.current.datastores;
    const datastores = [
      ...stores.map(({ pool: _pool, ...store }): Datastore => store),
      ...mounted.map((one) => mountedStore(host.id, one)),
    ];
    return { clusters: [], hosts: [host], networks, datastores, machines: list };
  }

  async machine(idOrName: string): Promise<MachineDetail> {
    return machines.machineDetail(this.#context, await this.#id(), idOrName);
  }

  async mountDatastore(hostId: string, spec: DatastoreSpec): Promise<Datastore> {
    await this.#checkHost(hostId);
    await this.look();
    return mountDatastore(this.#context, hostId, spec);
  }

  async unmountDatastore(hostId: string, name: string): Promise<void> {
    await this.#checkHost(hostId);
    if (mountedNamed(this.#context, name) === undefined) return;
    const users = await this.datastoreUsers(name);
    if (users.length > 0) {
      throw new RouseError('busy', `datastore ${name} is used by ${users.join(', ')}`, {
        advice: 'Relocate, detach or unregister those machines first.',
        details: { users },
      });
    }
    await dropEmptyController(this.#context, name);
    await unmountDatastore(this.#context, name);
  }

  async datastoreUsers(name: string): Promise<readonly string[]> {
    const mounted = mountedNamed(this.#context, name);
    if (mounted !== undefined) {
      return machines.usersOf(this.#context, placeOf(this.#context, mounted));
    }
    return this.#usersByMark(name);
  }

  /** Without our note of the mount, the marks of machines still tell where it was. */
  async #usersByMark(name: string): Promise<readonly string[]> {
    const users: string[] = [];
    for (const machine of await machines.listMachines(this.#context, '')) {
      const detail = await machines.machineDetail(this.#context, '', machine.id);
      const mark = readMark(parseXml(detail.configuration, machine.name));
      if (mark?.datastore !== name) continue;
      const at = mark.location.lastIndexOf(':/');
      const server = mark.location.slice(0, at);
      const path = mark.location.slice(at + 1);
      const mountPath = mountPathOf(this.#context, name);
      const place = { name, server, path, mountPath };
      if (detail.disks.some((disk) => liesOn(disk.source, place))) users.push(machine.id);
    }
    return users;
  }

  configure(spec: ConfigureSpec): ConfiguredMachine {
    const { options, state } = this.#context;
    return configureDomain(spec, {
      useKvm: this.#kvm?.usable ?? options.acceleration === 'kvm',
      mountPath: placeOf(this.#context, spec.datastore).mountPath,
      nvramDirectory: options.nvramDirectory ?? posix.join(state.directory, 'nvram'),
    });
  }

  async register(spec: RegisterSpec): Promise<string> {
    await this.#checkHost(spec.hostId);
    return machines.register(this.#context, spec);
  }

  findMarked(mark: string): Promise<string | undefined> {
    return machines.findMarked(this.#context, mark);
  }

  unregister(machineId: string): Promise<void> {
    return machines.unregister(this.#context, machineId);
  }

  powerOn(machineId: string): Promise<void> {
    return machines.powerOn(this.#context, machineId);
  }

  powerOff(machineId: string, how: 'shutdown' | 'off', graceMs?: number): Promise<void> {
    return machines.powerOff(this.#context, machineId, how, graceMs);
  }

  powerState(machineId: string): Promise<PowerState> {
    return machines.powerState(this.#context, machineId);
  }

  screenPicture(machineId: string): Promise<Buffer | undefined> {
    return machines.screenPicture(this.#context, machineId);
  }

  async relocate(spec: RelocateSpec, watch: RelocateWatch): Promise<RelocateResult> {
    const target = await this.#store(spec.toDatastoreId);
    return relocate(this.#context, spec, target, watch);
  }

  stopRelocation(machineId: string): Promise<void> {
    return stopRelocation(this.#context, machineId);
  }

  attachDisk(machineId: string, spec: AttachSpec): Promise<string> {
    return attachDisk(this.#context, machineId, spec);
  }

  detachDisk(machineId: string, device: string): Promise<void> {
    return detachDisk(this.#context, machineId, device);
  }

  guestDisks(machineId: string): Promise<readonly GuestDisk[] | undefined> {
    return guestDisks(this.#context, machineId);
  }

  traces(): Promise<Traces> {
    return traces(this.#context);
  }

  async beginBackup(spec: BackupSpec): Promise<BackupSource> {
    return beginBackup(this.#context, await this.#id(), spec);
  }

  endBackup(machineId: string, token: string, outcome: 'stored' | 'failed'): Promise<void> {
    return endBackup(this.#context, machineId, token, outcome);
  }

  async createDisk(datastoreId: string, spec: CreateDiskSpec): Promise<DiskTarget> {
    return createDisk(this.#context, await this.#store(datastoreId), spec);
  }

  async removeDisk(target: DiskTarget): Promise<void> {
    const { path } = target;
    const users = await machines.machinesWithDisk(this.#context, (disk) => disk.path === path);
    if (users.length > 0) {
      throw new RouseError('busy', `${path} is a disk of ${users.join(', ')}`);
    }
    await removeHostFile(this.#context, path);
  }

  async #decideKvm(again = false): Promise<KvmVerdict> {
    if (again || this.#kvm === undefined) this.#kvm = await decideKvm(this.#context, again);
    return this.#kvm;
  }

  async #id(): Promise<string> {
    this.#hostId ??= (await this.#context.virsh.run(['hostname'])).trim();
    return this.#hostId;
  }

  async #host(): Promise<Host> {
    const id = await this.#id();
    return { id, name: id, state: 'connected', addresses: await hostAddresses(this.#context) };
  }

  async #checkHost(hostId: string): Promise<void> {
    const id = await this.#id();
    if (id === hostId) return;
    throw new RouseError('not-found', `no host ${hostId}; ${this.#context.virsh.uri} is ${id}`);
  }

  async #store(datastoreId: string): Promise<DirectoryStore> {
    const stores = await directoryStores(this.#context, await this.#id());
    const store = stores.find((one) => one.id === datastoreId);
    if (store !== undefined) return store;
    const names = stores.map((one) => one.id).join(', ') || 'none';
    throw new RouseError('not-found', `no datastore ${datastoreId}; there are: ${names}`, {
      details: { candidates: stores.map((one) => one.id) },
    });
  }
}
