import { RouseError } from '../../errors.ts';
import type {
  AttachSpec,
  BackupPass,
  BackupPlace,
  BackupSource,
  BackupSpec,
  ConfigureSpec,
  ConfiguredMachine,
  CreateDiskSpec,
  Datastore,
  DatastoreSpec,
  DiskTarget,
  GuestDisk,
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
import { attachDisk, detachDisk, guestDisks } from './attach.ts';
import * as backup from './backup.ts';
import { VimClient } from './client.ts';
import type { VimOptions } from './client.ts';
import { configureVmx, noFullRestore } from './configure.ts';
import { datastoreUsers, mountDatastore, unmountDatastore } from './datastores.ts';
import { readInventory } from './inventory.ts';
import * as machines from './machines.ts';
import { preflight } from './preflight.ts';
import { relocate, stopRelocation } from './relocate.ts';
import { screenPicture } from './screen.ts';
import { traces } from './traces.ts';

/**
 * vCenter, or one ESXi host, over SOAP (vim25). Nouns: a *reference* is a managed object's type and
 * opaque id; a *task* is long work of the manager; the *mark* is `rouse.recovery` in a machine's
 * .vmx and so in its extraConfig. Ids of the port are the values of references.
 *
 * Invariants: nothing is sent to a peer that has not proven who it is (trust.ts); nothing is ever
 * destroyed: machines are unregistered, and only ours, and only while they lie on their export;
 * what is done is looked for before it is done. Calls may run at once; two calls that change one
 * machine may not (the engine sees to that).
 */
export class VsphereHypervisor implements Hypervisor {
  readonly kind = 'vsphere';
  readonly restoresBy = 'relocation';
  /** For what is built on top of this driver, such as backups. */
  readonly client: VimClient;

  readonly #options: VimOptions;

  constructor(options: VimOptions) {
    this.#options = options;
    this.client = new VimClient(options);
  }

  test(): Promise<TestReport> {
    return preflight(this.client);
  }

  preflight(spec: PreflightSpec): Promise<TestReport> {
    return preflight(this.client, spec);
  }

  inventory(): Promise<Inventory> {
    return readInventory(this.client);
  }

  machine(idOrName: string): Promise<MachineDetail> {
    return machines.machineDetail(this.client, idOrName);
  }

  mountDatastore(hostId: string, spec: DatastoreSpec): Promise<Datastore> {
    return mountDatastore(this.client, hostId, spec);
  }

  unmountDatastore(hostId: string, name: string): Promise<void> {
    return unmountDatastore(this.client, hostId, name);
  }

  datastoreUsers(name: string): Promise<readonly string[]> {
    return datastoreUsers(this.client, name);
  }

  configure(spec: ConfigureSpec): ConfiguredMachine {
    return configureVmx(spec);
  }

  register(spec: RegisterSpec): Promise<string> {
    return machines.register(this.client, spec);
  }

  findMarked(mark: string): Promise<string | undefined> {
    return machines.findMarked(this.client, mark);
  }

  unregister(machineId: string): Promise<void> {
    return machines.unregister(this.client, machineId);
  }

  powerOn(machineId: string): Promise<void> {
    return machines.powerOn(this.client, machineId);
  }

  powerOff(machineId: string, how: 'shutdown' | 'off', graceMs?: number): Promise<void> {
    return machines.powerOff(this.client, machineId, how, graceMs);
  }

  powerState(machineId: string): Promise<PowerState> {
    return machines.powerState(this.client, machineId);
  }

  screenPicture(machineId: string): Promise<Buffer | undefined> {
    return screenPicture(this.client, machineId);
  }

  relocate(spec: RelocateSpec, watch: RelocateWatch): Promise<RelocateResult> {
    return relocate(this.client, spec, watch);
  }

  stopRelocation(machineId: string): Promise<void> {
    return stopRelocation(this.client, machineId);
  }

  attachDisk(machineId: string, spec: AttachSpec): Promise<string> {
    return attachDisk(this.client, machineId, spec);
  }

  detachDisk(machineId: string, device: string): Promise<void> {
    return detachDisk(this.client, machineId, device);
  }

  guestDisks(machineId: string): Promise<readonly GuestDisk[] | undefined> {
    return guestDisks(this.client, machineId);
  }

  beginBackup(spec: BackupSpec): Promise<BackupSource> {
    return backup.beginBackup(this.client, spec);
  }

  endBackup(machineId: string, token: string, outcome: 'stored' | 'failed'): Promise<void> {
    return backup.endBackup(this.client, machineId, token, outcome);
  }

  backupPlaces(machineId: string): Promise<readonly BackupPlace[]> {
    return backup.backupPlaces(this.client, machineId);
  }

  async backupPass(): Promise<BackupPass> {
    const { url, trust } = this.#options;
    // Only a lease tells of SHA-1, and only of its hosts.
    if ('thumbprint' in trust) throw new RouseError('internal', `${url} is trusted by SHA-1`);
    return { url, trust, session: await this.client.pass() };
  }

  readWhole(source: BackupSource, because: string): BackupSource {
    return backup.readWhole(source, because);
  }

  createDisk(_datastoreId: string, _spec: CreateDiskSpec): Promise<DiskTarget> {
    return Promise.reject(noFullRestore());
  }

  /** None was made. */
  removeDisk(_target: DiskTarget): Promise<void> {
    return Promise.resolve();
  }

  traces(): Promise<Traces> {
    return traces(this.client);
  }

  /** Logs out; a later call begins anew. */
  close(): Promise<void> {
    return this.client.close();
  }
}
