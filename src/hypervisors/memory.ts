import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import { MemoryFaults } from './memory-faults.ts';
import type { HypervisorCall } from './memory-faults.ts';
import { parseMemoryConfiguration, writeMemoryConfiguration } from './memory-configuration.ts';
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
  MachineDisk,
  MachineSummary,
  PowerState,
  PreflightSpec,
  RegisterSpec,
  RelocateResult,
  RelocateSpec,
  RelocateWatch,
  TestReport,
  Traces,
} from './port.ts';
import { preflightOf } from './memory-preflight.ts';
import { tracesOf } from './memory-traces.ts';

/**
 * A hypervisor that lives in memory, for tests: the same contract as the real drivers
 * (testing/hypervisor-contract.ts), and faults on request (`faults.failOnce('register', …)`).
 * Its state is what a manager would remember, so one object that outlives a "killed" server plays
 * the part of the manager that the next server finds. Nothing here touches a file or a socket;
 * disks are names. Calls may run concurrently: each changes the state in one synchronous piece,
 * after the fault's delay.
 */
export class MemoryHypervisor implements Hypervisor {
  readonly kind = 'memory';
  readonly faults: MemoryFaults;
  readonly #world: Required<MemoryWorld>;
  readonly #machines = new Map<string, MemoryMachine>();
  readonly #mounts = new Map<string, Mount>();
  readonly #backups = new Map<string, string>();
  readonly #created = new Set<string>();
  readonly #clock: Clock;

  constructor(clock: Clock, world: MemoryWorld = {}) {
    this.#clock = clock;
    this.#world = { ...defaultWorld, ...world };
    this.faults = new MemoryFaults(clock);
    for (const machine of this.#world.machines) this.addMachine(machine);
  }

  /** A machine that exists without our doing: the one to back up, or a foreign one. */
  addMachine(machine: Partial<MemoryMachine> & { readonly name: string }): MemoryMachine {
    const whole = { ...newMachine(`uuid-of-${machine.name}`, this.#firstHost().id), ...machine };
    this.#machines.set(whole.id, whole);
    return whole;
  }

  /** What a person with the manager's console can do: delete a machine behind our back. */
  forgetMachine(id: string): void {
    this.#machines.delete(id);
  }

  /** Paths of disks made by `createDisk` and not removed. */
  get createdDisks(): readonly string[] {
    return [...this.#created];
  }

  /** Tokens of backup jobs that have begun and not ended, by machine. */
  get openBackups(): ReadonlyMap<string, string> {
    return this.#backups;
  }

  test(): Promise<TestReport> {
    return this.#call('test', () => ({
      ok: true,
      version: 'memory 1',
      problems: [],
      facts: { emulator: 'none' },
    }));
  }

  preflight({ hostId }: PreflightSpec): Promise<TestReport> {
    return this.#call('preflight', () => preflightOf(this.#world.hosts, hostId));
  }

  inventory(): Promise<Inventory> {
    return this.#call('inventory', () => ({
      clusters: [],
      hosts: this.#world.hosts,
      networks: this.#world.networks,
      datastores: [...this.#world.datastores, ...[...this.#mounts.values()].map(mountedDatastore)],
      machines: [...this.#machines.values()].map(summaryOf),
    }));
  }

  machine(idOrName: string): Promise<MachineDetail> {
    return this.#call('machine', () => detailOf(this.#find(idOrName)));
  }

  mountDatastore(hostId: string, spec: DatastoreSpec): Promise<Datastore> {
    return this.#call('mountDatastore', () => {
      const host = this.#host(hostId);
      const mounted = this.#mounts.get(spec.name);
      if (mounted !== undefined && locationOf(mounted.spec) !== locationOf(spec)) {
        throw new RouseError(
          'already-exists',
          `a datastore named ${spec.name} shows ${locationOf(mounted.spec)}`,
        );
      }
      const mount = mounted ?? { spec, hostIds: new Set<string>() };
      mount.hostIds.add(host.id);
      this.#mounts.set(spec.name, mount);
      return mountedDatastore(mount);
    });
  }

  unmountDatastore(hostId: string, name: string): Promise<void> {
    return this.#call('unmountDatastore', () => {
      const mount = this.#mounts.get(name);
      if (mount === undefined) return;
      const users = this.#usersOf(name);
      if (users.length > 0) {
        throw new RouseError('busy', `datastore ${name} is used by ${users.join(', ')}`);
      }
      mount.hostIds.delete(hostId);
      if (mount.hostIds.size === 0) this.#mounts.delete(name);
    });
  }

  datastoreUsers(name: string): Promise<readonly string[]> {
    return this.#call('datastoreUsers', () => this.#usersOf(name));
  }

  configure(spec: ConfigureSpec): ConfiguredMachine {
    return writeMemoryConfiguration(spec);
  }

  register(spec: RegisterSpec): Promise<string> {
    return this.#call('register', () => {
      const host = this.#host(spec.hostId);
      const saved = parseMemoryConfiguration(spec.configured.text);
      const uuid = saved.uuid ?? '';
      const others = [...this.#machines.values()];
      const ours = others.find((other) => other.mark === spec.mark);
      if (ours !== undefined) return ours.id;
      for (const other of others) {
        if (other.name === spec.name || other.uuid === uuid) {
          throw new RouseError(
            'already-exists',
            `a machine named ${other.name} (${other.uuid}) exists and is not of this recovery`,
          );
        }
      }
      if (!this.#mounts.has(spec.datastore.name) && saved.disks.some((disk) => disk.onDatastore)) {
        throw new RouseError('hypervisor-error', `no datastore ${spec.datastore.name} on the host`);
      }
      const machine = newMachine(uuid, host.id);
      this.#machines.set(machine.id, {
        ...machine,
        name: spec.name,
        mark: spec.mark,
        configuration: spec.configured.text,
        networks: saved.networks,
        disks: saved.disks.map((disk) => ({
          name: disk.name,
          sizeBytes: disk.sizeBytes,
          format: 'raw',
          source: disk.source,
          ...(disk.onDatastore ? { datastore: spec.datastore.name } : {}),
        })),
      });
      return machine.id;
    });
  }

  findMarked(mark: string): Promise<string | undefined> {
    return this.#call('findMarked', () => {
      const ours = [...this.#machines.values()].find((machine) => machine.mark === mark);
      return ours?.id;
    });
  }

  unregister(machineId: string): Promise<void> {
    return this.#call('unregister', () => {
      const machine = this.#machines.get(machineId);
      if (machine === undefined) return;
      if (machine.power !== 'off') {
        throw new RouseError('wrong-state', `machine ${machine.name} is running`, {
          advice: 'Power it off first.',
        });
      }
      this.#machines.delete(machineId);
    });
  }

  powerOn(machineId: string): Promise<void> {
    return this.#call('powerOn', () => void (this.#find(machineId).power = 'on'));
  }

  powerOff(machineId: string, _how: 'shutdown' | 'off', _graceMs?: number): Promise<void> {
    return this.#call('powerOff', () => void (this.#find(machineId).power = 'off'));
  }

  powerState(machineId: string): Promise<PowerState> {
    return this.#call('powerState', () => this.#find(machineId).power);
  }

  screenPicture(machineId: string): Promise<Buffer | undefined> {
    return this.#call('screenPicture', () =>
      this.#find(machineId).power === 'off' ? undefined : onePixelPng,
    );
  }

  async relocate(spec: RelocateSpec, watch: RelocateWatch): Promise<RelocateResult> {
    const machine = await this.#call('relocate', () => this.#find(spec.machineId));
    const target = this.#world.datastores.find((store) => store.id === spec.toDatastoreId);
    if (target === undefined) {
      throw new RouseError('not-found', `no datastore ${spec.toDatastoreId}`);
    }
    const moving = machine.disks.filter((disk) => disk.datastore === spec.fromDatastore.name);
    const totalBytes = moving.reduce((sum, disk) => sum + disk.sizeBytes, 0);
    for (let part = 0; part <= this.#world.relocationParts; part += 1) {
      throwIfCancelled(watch.signal, machine.name);
      watch.progress((totalBytes * part) / this.#world.relocationParts, totalBytes);
      await this.#sleepUnlessCancelled(watch.signal, machine.name);
    }
    machine.disks = machine.disks.map((disk) =>
      disk.datastore === spec.fromDatastore.name ? movedDisk(disk, machine, target) : disk,
    );
    const disks = machine.disks.filter((disk) => disk.source.startsWith(`${target.location}/`));
    return {
      disks: disks.map(({ name, source, sizeBytes }) => ({ name, path: source, sizeBytes })),
    };
  }

  async #sleepUnlessCancelled(signal: AbortSignal, name: string): Promise<void> {
    try {
      await this.#clock.sleep(this.#world.relocationPartMs, signal);
    } catch {
      throwIfCancelled(signal, name);
    }
  }

  /** A relocation here ends with its caller: nothing is ever left running. */
  stopRelocation(_machineId: string): Promise<void> {
    return this.#call('stopRelocation', () => undefined);
  }

  attachDisk(machineId: string, spec: AttachSpec): Promise<string> {
    return this.#call('attachDisk', () => {
      const machine = this.#find(machineId);
      const source = `${locationOf(spec.datastore)}/${spec.path}`;
      const there = machine.disks.find((disk) => disk.source === source);
      if (there !== undefined) return there.name;
      const name = freeDeviceName(machine.disks.map((disk) => disk.name));
      const { sizeBytes, serial } = spec;
      const datastore = spec.datastore.name;
      const disk = { name, sizeBytes, format: 'raw', source, datastore, serial };
      machine.disks = [...machine.disks, disk];
      return name;
    });
  }

  detachDisk(machineId: string, device: string): Promise<void> {
    return this.#call('detachDisk', () => {
      const machine = this.#machines.get(machineId);
      if (machine !== undefined) {
        machine.disks = machine.disks.filter((disk) => disk.name !== device);
      }
    });
  }

  guestDisks(machineId: string): Promise<readonly GuestDisk[] | undefined> {
    return this.#call('guestDisks', () => {
      const { agent, disks } = this.#find(machineId);
      return agent?.(disks);
    });
  }

  traces(): Promise<Traces> {
    return this.#call('traces', () => tracesOf([...this.#machines.values()], this.#backups));
  }

  beginBackup(spec: BackupSpec): Promise<BackupSource> {
    return this.#call('beginBackup', () => {
      const machine = this.#find(spec.machineId);
      const open = this.#backups.get(machine.id);
      if (open !== undefined && open !== spec.token) {
        throw new RouseError('busy', `machine ${machine.name} is being backed up (${open})`);
      }
      this.#backups.set(machine.id, spec.token);
      return {
        token: spec.token,
        machine: detailOf(machine),
        consistency: machine.power === 'off' ? ('offline' as const) : ('crash' as const),
        kind: 'full' as const,
        ...(spec.since === undefined
          ? {}
          : { fullBecause: 'machines in memory keep no record of changed blocks' }),
        disks: machine.disks.map((disk) => ({
          name: disk.name,
          sizeBytes: disk.sizeBytes,
          source: disk.source,
          access: { via: 'file' as const, path: disk.source, format: disk.format },
        })),
        files: [
          { name: 'memory.json', base64: Buffer.from(machine.configuration).toString('base64') },
        ],
        labels: { checkpoint: spec.token },
      };
    });
  }

  endBackup(machineId: string, token: string, _outcome: 'stored' | 'failed'): Promise<void> {
    return this.#call('endBackup', () => {
      if (this.#backups.get(machineId) === token) this.#backups.delete(machineId);
    });
  }

  createDisk(datastoreId: string, spec: CreateDiskSpec): Promise<DiskTarget> {
    return this.#call('createDisk', () => {
      const store = this.#world.datastores.find((datastore) => datastore.id === datastoreId);
      if (store === undefined) throw new RouseError('not-found', `no datastore ${datastoreId}`);
      const path = `${store.location}/${spec.machineName}-${spec.diskName}.raw`;
      this.#created.add(path);
      return { path, format: 'raw' as const, sizeBytes: spec.sizeBytes };
    });
  }

  removeDisk(target: DiskTarget): Promise<void> {
    return this.#call('removeDisk', () => void this.#created.delete(target.path));
  }

  #call<T>(name: HypervisorCall, work: () => T): Promise<T> {
    return this.faults.around(name, work);
  }

  #firstHost(): Host {
    const host = this.#world.hosts[0];
    if (host === undefined) throw new RouseError('bad-request', 'a hypervisor needs a host');
    return host;
  }

  #host(id: string): Host {
    const host = this.#world.hosts.find((candidate) => candidate.id === id);
    if (host === undefined) throw new RouseError('not-found', `no host ${id}`);
    if (host.state !== 'connected') {
      throw new RouseError('host-unreachable', `host ${host.name} is ${host.state}`);
    }
    return host;
  }

  #find(idOrName: string): MemoryMachine {
    const machine =
      this.#machines.get(idOrName) ??
      [...this.#machines.values()].find((candidate) => candidate.name === idOrName);
    if (machine === undefined) throw new RouseError('not-found', `no machine ${idOrName}`);
    return machine;
  }

  #usersOf(datastore: string): readonly string[] {
    return [...this.#machines.values()]
      .filter((machine) => machine.disks.some((disk) => disk.datastore === datastore))
      .map((machine) => machine.id);
  }
}

export interface MemoryMachine {
  readonly id: string;
  readonly uuid: string;
  readonly hostId: string;
  readonly name: string;
  /** The recovery's id when registered by us. */
  readonly mark: string | undefined;
  readonly configuration: string;
  readonly networks: MachineDetail['networks'];
  power: PowerState;
  disks: readonly MemoryDisk[];
  /** What an agent in its guest says of its disks; without one, nothing does. */
  agent?: (disks: readonly MemoryDisk[]) => readonly GuestDisk[];
}

export interface MemoryDisk extends MachineDisk {
  readonly datastore?: string;
}

export interface MemoryWorld {
  readonly hosts?: readonly Host[];
  readonly networks?: Inventory['networks'];
  /** Production datastores: targets of relocation and full restore. */
  readonly datastores?: readonly Datastore[];
  readonly machines?: readonly (Partial<MemoryMachine> & { readonly name: string })[];
  /** A relocation reports progress this many times and sleeps in between. */
  readonly relocationParts?: number;
  readonly relocationPartMs?: number;
}

interface Mount {
  readonly spec: DatastoreSpec;
  readonly hostIds: Set<string>;
}

const defaultWorld: Required<MemoryWorld> = {
  hosts: [{ id: 'host-1', name: 'memory', state: 'connected', addresses: ['127.0.0.1', '::1'] }],
  networks: [{ id: 'net-1', name: 'default' }],
  datastores: [
    {
      id: 'production',
      name: 'production',
      kind: 'directory',
      hostIds: ['host-1'],
      totalBytes: 1e12,
      freeBytes: 5e11,
      location: '/production',
    },
  ],
  machines: [],
  relocationParts: 4,
  relocationPartMs: 0,
};

function newMachine(uuid: string, hostId: string): MemoryMachine {
  return {
    id: uuid,
    uuid,
    hostId,
    name: uuid,
    mark: undefined,
    configuration: '{}',
    networks: [],
    power: 'off',
    disks: [],
  };
}

function locationOf(spec: DatastoreSpec): string {
  return `${spec.server}:${spec.path}`;
}

function mountedDatastore(mount: Mount): Datastore {
  return {
    id: mount.spec.name,
    name: mount.spec.name,
    kind: 'nfs',
    hostIds: [...mount.hostIds],
    totalBytes: 0,
    freeBytes: 0,
    location: locationOf(mount.spec),
  };
}

function summaryOf(machine: MemoryMachine): MachineSummary {
  const { id, name, uuid, hostId, power } = machine;
  return { id, name, uuid, hostId, power };
}

function detailOf(machine: MemoryMachine): MachineDetail {
  const { configuration, networks } = machine;
  const disks = machine.disks.map(({ name, sizeBytes, format, source, serial }) => ({
    name,
    sizeBytes,
    format,
    source,
    ...(serial === undefined ? {} : { serial }),
  }));
  return { ...summaryOf(machine), disks, configuration, networks };
}

function movedDisk(disk: MemoryDisk, machine: MemoryMachine, target: Datastore): MemoryDisk {
  const { name, sizeBytes } = disk;
  const source = `${target.location}/${machine.name}-${name}.qcow2`;
  return { name, sizeBytes, format: 'qcow2', source };
}

function freeDeviceName(taken: readonly string[]): string {
  for (let letter = 97; letter <= 122; letter += 1) {
    const name = `vd${String.fromCharCode(letter)}`;
    if (!taken.includes(name)) return name;
  }
  throw new RouseError('hypervisor-error', 'no free device name');
}

function throwIfCancelled(signal: AbortSignal, name: string): void {
  if (signal.aborted) throw new RouseError('cancelled', `relocation of ${name} was cancelled`);
}

/** The smallest PNG there is: one transparent pixel. */
const onePixelPng = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==',
  'base64',
);
