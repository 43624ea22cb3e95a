import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { isRouseError } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import type {
  ConfiguredMachine,
  ConfigureSpec,
  DatastoreSpec,
  Hypervisor,
  RegisterSpec,
  RelocateSpec,
} from '../hypervisors/port.ts';

/** What a driver brings to be tested: a manager with one machine, one export, one target. */
export interface HypervisorWorld {
  readonly hypervisor: Hypervisor;
  readonly hostId: string;
  /** An export that is served; nothing mounts it yet. */
  readonly datastore: DatastoreSpec;
  /** The export's folder, and a disk in it that a machine can run from. */
  readonly folder: string;
  readonly disk: { readonly name: string; readonly file: string; readonly sizeBytes: number };
  /** Where relocation and full restore go. */
  readonly targetDatastoreId: string;
  /** A running machine that can be backed up. */
  readonly sourceMachineId: string;
  /** Slow enough that a relocation of `disk` can be cancelled. */
  readonly slowBytesPerSecond: number;
  readonly scratchDirectory: string;
  /** What the driver refuses with `hypervisor-unsupported`, as its documentation says. */
  readonly refuses?: readonly ('backup' | 'createDisk')[];
  /** A machine that has moved away is production, and the driver itself does not let go of it. */
  readonly guardsProduction?: boolean;
  /** Puts a configuration into the export's folder, where the manager reads it from there. */
  place?(configured: ConfiguredMachine): Promise<void>;
  close(): Promise<void>;
}

/**
 * The contract of the Hypervisor port. Tests share one world, run in order, and each leaves it as
 * it found it.
 */
export function hypervisorContract(name: string, open: () => Promise<HypervisorWorld>): void {
  describe(`hypervisor contract: ${name}`, () => {
    let opened: HypervisorWorld | undefined;
    const world: World = () => {
      assert.ok(opened !== undefined, 'the world was opened');
      return opened;
    };
    before(async () => {
      opened = await open();
    });
    after(() => opened?.close());

    describeLooking(world);
    describeDatastores(world);
    describeRegistration(world);
    describePower(world);
    describeRelocation(world);
    describeDisks(world);
    describeBackup(world);
  });
}

type World = () => HypervisorWorld;

function describeLooking(world: World): void {
  it('tests as usable', async () => {
    const report = await world().hypervisor.test();
    assert.deepEqual(report.problems, []);
    assert.equal(report.ok, true);
    assert.notEqual(report.version, '');
  });

  it('lists hosts with addresses, datastores and machines', async () => {
    const { hypervisor, hostId, targetDatastoreId, sourceMachineId } = world();
    const inventory = await hypervisor.inventory();
    const host = inventory.hosts.find((candidate) => candidate.id === hostId);
    assert.equal(host?.state, 'connected');
    assert.ok((host?.addresses.length ?? 0) > 0, 'the host has an address');
    const target = inventory.datastores.find((store) => store.id === targetDatastoreId);
    assert.ok((target?.freeBytes ?? 0) > 0, 'the target datastore has space');
    const machine = inventory.machines.find((candidate) => candidate.id === sourceMachineId);
    assert.equal(machine?.power, 'on');
    const detail = await hypervisor.machine(sourceMachineId);
    assert.ok(detail.disks.length > 0, 'the machine has a disk');
    assert.deepEqual(await hypervisor.machine(detail.name), detail);
  });

  it('says not-found of an unknown machine, and removing it is no error', async () => {
    const { hypervisor } = world();
    const unknown = '00000000-0000-4000-8000-00000000dead';
    await rejectsWith('not-found', hypervisor.machine(unknown));
    await rejectsWith('not-found', hypervisor.powerOn(unknown));
    await rejectsWith('not-found', hypervisor.powerState(unknown));
    await hypervisor.unregister(unknown);
    await hypervisor.endBackup(unknown, 'token-0', 'failed');
  });
}

function describeDatastores(world: World): void {
  it('mounts a datastore once, however often it is asked', async () => {
    const { hypervisor, hostId, datastore } = world();
    const first = await hypervisor.mountDatastore(hostId, datastore);
    const second = await hypervisor.mountDatastore(hostId, datastore);
    assert.equal(first.id, second.id);
    const { datastores } = await hypervisor.inventory();
    const mounted = datastores.filter((store) => store.name === datastore.name);
    assert.deepEqual(
      mounted.map(({ kind, hostIds }) => ({ kind, hostIds })),
      [{ kind: 'nfs', hostIds: [hostId] }],
    );
    await hypervisor.unmountDatastore(hostId, datastore.name);
    await hypervisor.unmountDatastore(hostId, datastore.name);
    const left = (await hypervisor.inventory()).datastores;
    assert.ok(!left.some((store) => store.name === datastore.name), 'it is gone');
  });

  it('refuses a name that shows another place, and an unknown host', async () => {
    const { hypervisor, hostId, datastore } = world();
    await hypervisor.mountDatastore(hostId, datastore);
    const other = { ...datastore, path: `${datastore.path}-other` };
    await rejectsWith('already-exists', hypervisor.mountDatastore(hostId, other));
    await hypervisor.unmountDatastore(hostId, datastore.name);
    await rejectsWith('not-found', hypervisor.mountDatastore('no-such-host', datastore));
  });
}

function describeRegistration(world: World): void {
  it('configures without changing anything, twice the same', async () => {
    const saved = await world().hypervisor.machine(world().sourceMachineId);
    const spec = configureSpec(world(), 'contract-configure', saved.configuration);
    const one = world().hypervisor.configure(spec);
    assert.deepEqual(world().hypervisor.configure(spec), one);
    assert.ok(one.changes.length > 0, 'it says what it changed');
    await rejectsWith('not-found', world().hypervisor.machine('contract-configure'));
  });

  it('registers once, is found by its mark, and refuses a foreign name', async () => {
    const { hypervisor, hostId, datastore } = world();
    await hypervisor.mountDatastore(hostId, datastore);
    const spec = await registerSpec(world(), 'contract-register');
    const id = await hypervisor.register(spec);
    assert.equal(await hypervisor.register(spec), id);
    const foreign = { ...spec, mark: 'another-recovery' };
    await rejectsWith('already-exists', hypervisor.register(foreign));
    assert.equal((await hypervisor.machine(id)).name, 'contract-register');
    assert.deepEqual(await hypervisor.datastoreUsers(datastore.name), [id]);
    assert.equal(await hypervisor.findMarked(spec.mark), id);
    assert.equal(await hypervisor.findMarked('another-recovery'), undefined);
    const { machines, disks } = await hypervisor.traces();
    assert.deepEqual(
      machines.filter(({ mark }) => mark === spec.mark),
      [{ id, name: 'contract-register', power: 'off', mark: spec.mark }],
    );
    assert.ok(disks.some((one) => one.machineId === id && one.location.includes(datastore.path)));
    await rejectsWith('busy', hypervisor.unmountDatastore(hostId, datastore.name));
    await hypervisor.unregister(id);
    assert.equal(await hypervisor.findMarked(spec.mark), undefined);
    await hypervisor.unregister(id);
    assert.deepEqual(await hypervisor.datastoreUsers(datastore.name), []);
    await hypervisor.unmountDatastore(hostId, datastore.name);
  });

  it('gives a copy its own identity and leaves its network unplugged', async () => {
    const { hypervisor, hostId, datastore, sourceMachineId } = world();
    await hypervisor.mountDatastore(hostId, datastore);
    const source = await hypervisor.machine(sourceMachineId);
    const id = await hypervisor.register(await registerSpec(world(), 'contract-identity'));
    const copy = await hypervisor.machine(id);
    assert.notEqual(copy.uuid, source.uuid);
    const macs = source.networks.map((network) => network.mac);
    assert.ok(!copy.networks.some((network) => network.connected || macs.includes(network.mac)));
    await hypervisor.unregister(id);
    await hypervisor.unmountDatastore(hostId, datastore.name);
  });
}

function describePower(world: World): void {
  it('powers on and off, repeatably, and shows the screen', async () => {
    const { hypervisor } = world();
    await withMachine(world(), 'contract-power', async (id) => {
      assert.equal(await hypervisor.powerState(id), 'off');
      await hypervisor.powerOn(id);
      await hypervisor.powerOn(id);
      assert.equal(await hypervisor.powerState(id), 'on');
      const picture = await hypervisor.screenPicture(id);
      assert.equal(picture?.subarray(1, 4).toString(), 'PNG');
      await rejectsWith('wrong-state', hypervisor.unregister(id));
      await hypervisor.powerOff(id, 'shutdown', 200);
      assert.equal(await hypervisor.powerState(id), 'off');
      await hypervisor.powerOff(id, 'off');
    });
  });
}

function describeRelocation(world: World): void {
  for (const power of ['on', 'off'] as const) {
    it(`relocates a machine that is ${power} until nothing is left, repeatably`, async () => {
      const { hypervisor, datastore, disk } = world();
      let path = '';
      await withMachine(world(), `contract-move-${power}`, async (id) => {
        if (power === 'on') await hypervisor.powerOn(id);
        const seen: number[] = [];
        const watch = { signal: neverAborted(), progress: (done: number) => seen.push(done) };
        const moved = await hypervisor.relocate(relocateSpec(world(), id, 0), watch);
        assert.deepEqual(
          moved.disks.map((one) => ({ name: one.name, sizeBytes: one.sizeBytes })),
          [{ name: disk.name, sizeBytes: disk.sizeBytes }],
        );
        assert.ok(seen.length > 0, 'it told of progress');
        assert.deepEqual(await hypervisor.datastoreUsers(datastore.name), []);
        assert.equal(await hypervisor.powerState(id), power);
        const again = await hypervisor.relocate(relocateSpec(world(), id, 0), watch);
        assert.deepEqual(again, moved);
        path = moved.disks[0]?.path ?? '';
        await hypervisor.stopRelocation(id);
        assert.equal((await hypervisor.machine(id)).disks[0]?.source, path);
      });
      await hypervisor.removeDisk({ path, sizeBytes: disk.sizeBytes, format: 'qcow2' });
    });
  }

  it('a cancelled relocation leaves the machine where it was, running', async () => {
    const { hypervisor, datastore, slowBytesPerSecond } = world();
    await withMachine(world(), 'contract-cancel', async (id) => {
      await hypervisor.powerOn(id);
      const before = await hypervisor.machine(id);
      const cancel = new AbortController();
      const watch = { signal: cancel.signal, progress: () => cancel.abort('cancelled') };
      const spec = relocateSpec(world(), id, slowBytesPerSecond);
      await rejectsWith('cancelled', hypervisor.relocate(spec, watch));
      assert.deepEqual(await hypervisor.datastoreUsers(datastore.name), [id]);
      assert.equal(await hypervisor.powerState(id), 'on');
      assert.deepEqual((await hypervisor.machine(id)).disks, before.disks);
      await hypervisor.powerOff(id, 'off');
    });
  });
}

function describeDisks(world: World): void {
  it('attaches a disk to a running machine once, and detaches it', async () => {
    const { hypervisor, hostId, datastore, folder, disk, sourceMachineId } = world();
    await hypervisor.mountDatastore(hostId, datastore);
    const path = `${folder}/${disk.file}`;
    const spec = { datastore, path, sizeBytes: disk.sizeBytes, serial: 'contract' };
    const before = await hypervisor.machine(sourceMachineId);
    const device = await hypervisor.attachDisk(sourceMachineId, spec);
    assert.equal(await hypervisor.attachDisk(sourceMachineId, spec), device);
    const during = await hypervisor.machine(sourceMachineId);
    const attached = during.disks.find((one) => one.name === device);
    assert.equal(attached?.sizeBytes, disk.sizeBytes);
    const seen = await hypervisor.guestDisks(sourceMachineId);
    assert.ok(seen === undefined || seen.every(({ name }) => name !== ''), 'or no agent answers');
    const { disks } = await hypervisor.traces();
    const traced = disks.filter(({ location }) => location.includes(datastore.path));
    assert.deepEqual(
      traced.map((one) => [one.machineId, one.power, one.device]),
      [[sourceMachineId, 'on', device]],
    );
    assert.ok(traced[0]?.location.startsWith(`${datastore.server}:${datastore.path}/${folder}/`));
    assert.deepEqual(await hypervisor.datastoreUsers(datastore.name), [sourceMachineId]);
    await rejectsWith('busy', hypervisor.unmountDatastore(hostId, datastore.name));
    await hypervisor.detachDisk(sourceMachineId, device);
    await hypervisor.detachDisk(sourceMachineId, device);
    assert.deepEqual((await hypervisor.machine(sourceMachineId)).disks, before.disks);
    await hypervisor.unmountDatastore(hostId, datastore.name);
  });

  it('creates a disk for a full restore, and removes it', async () => {
    const { hypervisor, targetDatastoreId } = world();
    const spec = { machineName: 'contract', diskName: 'vdz', sizeBytes: 1 << 20 };
    if (world().refuses?.includes('createDisk') === true) {
      await rejectsWith('hypervisor-unsupported', hypervisor.createDisk(targetDatastoreId, spec));
      return;
    }
    const target = await hypervisor.createDisk(targetDatastoreId, spec);
    assert.equal(target.sizeBytes, 1 << 20);
    assert.deepEqual(await hypervisor.createDisk(targetDatastoreId, spec), target);
    await hypervisor.removeDisk(target);
    await hypervisor.removeDisk(target);
    await rejectsWith('not-found', hypervisor.createDisk('no-such-datastore', spec));
  });
}

function describeBackup(world: World): void {
  it('begins a backup once by its token, refuses a second one, and ends', async () => {
    const { hypervisor, sourceMachineId, scratchDirectory } = world();
    const spec = { machineId: sourceMachineId, token: 'contract-token-1', scratchDirectory };
    if (world().refuses?.includes('backup') === true) {
      await rejectsWith('hypervisor-unsupported', hypervisor.beginBackup(spec));
      return;
    }
    const source = await hypervisor.beginBackup(spec);
    const machine = await hypervisor.machine(sourceMachineId);
    assert.equal(source.kind, 'full');
    assert.deepEqual(
      source.disks.map((disk) => disk.sizeBytes),
      machine.disks.map((disk) => disk.sizeBytes),
    );
    assert.ok(source.files.length > 0, 'the configuration is part of it');
    const again = await hypervisor.beginBackup(spec);
    assert.deepEqual(again.disks.length, source.disks.length);
    const { backups } = await hypervisor.traces();
    assert.ok(
      backups.some((one) => one.machineId === machine.id && one.token === spec.token),
      'a backup that runs leaves a trace',
    );
    const other = { ...spec, token: 'contract-token-2' };
    await rejectsWith('busy', hypervisor.beginBackup(other));
    await hypervisor.endBackup(sourceMachineId, 'contract-token-1', 'failed');
    await hypervisor.endBackup(sourceMachineId, 'contract-token-1', 'failed');
    const ended = (await hypervisor.traces()).backups;
    assert.ok(!ended.some((one) => one.token === spec.token), 'and none once it has ended');
    assert.equal((await hypervisor.beginBackup(other)).kind, 'full');
    await hypervisor.endBackup(sourceMachineId, 'contract-token-2', 'failed');
  });

  it('goes on in full, saying why, when the last checkpoint is not there', async () => {
    const { hypervisor, sourceMachineId, scratchDirectory } = world();
    if (world().refuses?.includes('backup') === true) return;
    const source = await hypervisor.beginBackup({
      machineId: sourceMachineId,
      token: 'contract-token-3',
      since: { checkpoint: 'never-made' },
      scratchDirectory,
    });
    assert.equal(source.kind, 'full');
    assert.notEqual(source.fullBecause ?? '', '');
    await hypervisor.endBackup(sourceMachineId, 'contract-token-3', 'failed');
  });
}

/** A machine registered on the mounted export, and everything taken back afterwards. */
async function withMachine(
  world: HypervisorWorld,
  name: string,
  work: (id: string) => Promise<void>,
): Promise<void> {
  const { hypervisor, hostId, datastore } = world;
  await hypervisor.mountDatastore(hostId, datastore);
  const id = await hypervisor.register(await registerSpec(world, name));
  try {
    await work(id);
  } finally {
    await hypervisor.powerOff(id, 'off');
    const hasMoved = !(await hypervisor.datastoreUsers(datastore.name)).includes(id);
    if (hasMoved && world.guardsProduction === true) {
      await rejectsWith('wrong-state', hypervisor.unregister(id));
    } else {
      await hypervisor.unregister(id);
    }
    await hypervisor.unmountDatastore(hostId, datastore.name);
  }
}

function configureSpec(
  world: HypervisorWorld,
  name: string,
  configuration: string | undefined,
): ConfigureSpec {
  const { datastore, folder, disk } = world;
  const digits = Buffer.from(name).toString('hex').padEnd(12, '0').slice(-12);
  return {
    configuration,
    name,
    datastore,
    folder,
    disks: [disk],
    identity: {
      keep: false,
      uuid: `11111111-2222-4333-8444-${digits}`,
      macs: ['52:54:00:00:aa:01', '52:54:00:00:aa:02'],
    },
    connectNetworks: false,
    mark: `mark-of-${name}`,
  };
}

async function registerSpec(world: HypervisorWorld, name: string): Promise<RegisterSpec> {
  const { hypervisor, hostId, datastore, folder, sourceMachineId } = world;
  const { configuration } = await hypervisor.machine(sourceMachineId);
  const spec = configureSpec(world, name, configuration);
  const configured = hypervisor.configure(spec);
  await world.place?.(configured);
  return { hostId, name, datastore, folder, configured, mark: spec.mark };
}

function relocateSpec(world: HypervisorWorld, machineId: string, bandwidth: number): RelocateSpec {
  return {
    machineId,
    fromDatastore: world.datastore,
    toDatastoreId: world.targetDatastoreId,
    bandwidthBytesPerSecond: bandwidth,
  };
}

function neverAborted(): AbortSignal {
  return new AbortController().signal;
}

async function rejectsWith(code: ErrorCode, work: Promise<unknown>): Promise<void> {
  await assert.rejects(work, (error: unknown) => {
    assert.ok(isRouseError(error), `a RouseError, not ${String(error)}`);
    assert.equal(error.code, code, error.message);
    return true;
  });
}
