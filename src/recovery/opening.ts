import { posix } from 'node:path';
import { isRouseError, RouseError } from '../errors.ts';
import type {
  ConfiguredMachine,
  ConfigureSpec,
  DatastoreSpec,
  Host,
  Hypervisor,
  Inventory,
} from '../hypervisors/port.ts';
import { formatBytes, plural } from '../lib/text.ts';
import { recoveryLimits } from '../limits.ts';
import type { CloneView, ExportView } from '../proxy/port.ts';
import type { Saveset } from '../vault/api.ts';
import type { Json, StepContext } from '../workflows/api.ts';
import { hostOfTarget } from './attaching.ts';
import { removeExport } from './cleaning.ts';
import {
  type ChosenHost,
  cloneIdOf,
  datastoreNameOf,
  datastoreSpec,
  folderOf,
  hasServedMachine,
  isWritten,
  type ReachableProxy,
  type RecoveryInput,
} from './plan.ts';
import { candidateView, chosenOf, hostNow, placeRecovery, wantedHostId } from './placing.ts';
import { refuseUnfit } from './preflight.ts';
import { restoreDisks, type RestoredDisk, undoRestore } from './restoring.ts';
import { proxyOf, type RecoveryWorld } from './world.ts';

type Context = StepContext<RecoveryInput>;

/** What a step leaves in the journal: `detail` is the line that people read. */
type Outcome = { readonly detail: string; readonly skipped?: boolean } & {
  readonly [key: string]: Json;
};

const skipped = (detail: string): Outcome => ({ detail, skipped: true });

/** Steps 1 to 11, in the order of instant-access.ts. */
export class OpeningSteps {
  readonly #world: RecoveryWorld;

  constructor(world: RecoveryWorld) {
    this.#world = world;
  }

  /** 1. The device that holds the saveset, and how to reach it. */
  async findDevice({ input }: Context): Promise<Outcome> {
    const device = await this.#world.device(input.savesetId);
    return { detail: `${device.name} at ${device.address}`, device: device.name };
  }

  /** 2. The proxy that serves, and with it the host: placement ranks the pairs. */
  async chooseProxy({ input }: Context): Promise<Outcome> {
    const row = await this.#world.recoveries.get(input.recoveryId);
    if (input.resumed && row.proxy !== null) {
      return { detail: `${row.proxy}: it holds what was written`, proxy: row.proxy };
    }
    const isPublished = input.mode === 'publish';
    const inventory = isPublished ? undefined : await (await this.#hypervisor(input)).inventory();
    const placed = await placeRecovery(this.#world, input, inventory);
    const { proxy, address, hostId, host, score, reasons } = chosenOf(placed);
    await this.#world.recoveries.update(input.recoveryId, {
      cloneId: cloneIdOf(input, proxy),
      proxy,
      proxyAddress: address,
    });
    const why = input.proxy ? 'asked for' : (reasons[0]?.text ?? 'nothing speaks against it');
    const candidates = placed.candidates.slice(0, recoveryLimits.candidatesKeptMax);
    return {
      detail: `${proxy} at ${address}: ${why}`,
      proxy,
      address,
      hostId: isPublished ? null : hostId,
      host,
      score,
      candidates: candidates.map(candidateView),
    };
  }

  /** The one of step 2. */
  #proxy({ recoveryId }: RecoveryInput): Promise<ReachableProxy> {
    return proxyOf(this.#world, recoveryId);
  }

  /** 3. The host and every address of it, both families. */
  async chooseHost(context: Context): Promise<Outcome> {
    const { input } = context;
    if (input.mode === 'publish') {
      return { detail: `for ${input.clients.join(', ')}`, addresses: [...input.clients] };
    }
    const hypervisor = await this.#hypervisor(input);
    const inventory = await hypervisor.inventory();
    const { host, why } = hostOf(context, inventory);
    const ours = await hypervisor.findMarked(input.recoveryId);
    await refuseUnfit(hypervisor, inventory, host, input, ours);
    await this.#world.recoveries.update(input.recoveryId, {
      host: host.name,
      clients: host.addresses,
    });
    return {
      detail: `${host.name} (${why}), serving ${host.addresses.length} of its addresses`,
      id: host.id,
      name: host.name,
      clusterId: host.clusterId ?? null,
      addresses: [...host.addresses],
    };
  }

  #hypervisor(input: RecoveryInput): Promise<Hypervisor> {
    if (input.hypervisorId === null) {
      throw new RouseError('bad-request', 'no hypervisor is known for this machine', {
        advice: 'Add one: rouse hypervisor add NAME URI',
      });
    }
    return this.#world.hypervisor(input.hypervisorId);
  }

  /** 4. The work is the proxy's from here: it must answer. */
  async handOver({ input }: Context): Promise<Outcome> {
    const proxy = await this.#proxy(input);
    const status = await proxy.calls.status();
    return { detail: `${status.name}, process ${status.pid}` };
  }

  /** 5. The proxy asks the vault for the saveset. */
  async askForCopy({ input }: Context): Promise<Outcome> {
    const saveset = await (await this.#proxy(input)).calls.saveset(input.savesetId);
    const sizeBytes = saveset.disks.reduce((sum, disk) => sum + disk.root.sizeBytes, 0);
    return {
      detail: `${plural(saveset.disks.length, 'disk')}, ${formatBytes(sizeBytes)}`,
      sizeBytes,
    };
  }

  /** 6. The clone, in constant time. */
  async clone({ input }: Context): Promise<Outcome> {
    if (isWritten(input)) return skipped('the disks are written out instead');
    const proxy = await this.#proxy(input);
    const clone = await proxy.calls.createClone({
      cloneId: cloneIdOf(input, proxy.name),
      mtree: input.mtree,
      savesetId: input.savesetId,
      folder: folderOf(input.name),
    });
    return {
      detail: clone.path,
      cloneId: clone.cloneId,
      path: clone.path,
      folder: clone.folder,
      disks: clone.disks.map((disk) => ({ ...disk })),
    };
  }

  async dropClone({ input }: Context): Promise<void> {
    if (input.resumed) return;
    const proxy = await this.#proxy(input);
    await proxy.calls.deleteClone(cloneIdOf(input, proxy.name));
  }

  /** 7. Exported under the clone's name, to the addresses of step 3 and to nobody else. */
  async share(context: Context): Promise<Outcome> {
    const { input } = context;
    if (isWritten(input)) return skipped('nothing is exported');
    const proxy = await this.#proxy(input);
    const exported = await proxy.calls.createExport({
      cloneId: cloneIdOf(input, proxy.name),
      clients: chosenHost(context).addresses,
    });
    await this.#world.recoveries.update(input.recoveryId, { exportPath: exported.path });
    return {
      detail: `${proxy.address}:${exported.path} for ${exported.clients.length} addresses of its host`,
      path: exported.path,
      address: proxy.address,
      nfsPort: exported.nfsPort,
      mountPort: exported.mountPort,
    };
  }

  async dropShare(context: Context): Promise<void> {
    const proxy = await this.#proxy(context.input);
    await removeExport(proxy, cloneIdOf(context.input, proxy.name), {
      clock: this.#world.clock,
      signal: context.signal,
      // A parked publication was mounted by clients, and may still be.
      mustBeSilent: context.input.mode !== 'publish' || context.input.resumed,
    });
  }

  /** 8. The host mounts it as a datastore; a full restore writes to a datastore that is there. */
  async mount(context: Context): Promise<Outcome> {
    const { input } = context;
    if (input.mode === 'publish') return skipped('the clients mount it themselves');
    const hypervisor = await this.#hypervisor(input);
    if (isWritten(input)) {
      const disks = await restoreDisks(hypervisor, await this.#proxy(input), context);
      const place = disks.map(({ target }) => target.path).join(', ');
      return { detail: `written to ${place}`, disks: disks as unknown as Json };
    }
    const { address } = await this.#proxy(input);
    const spec = datastoreSpec(input, sharedExport(context), address);
    const host = chosenHost(context);
    await this.#mountOn(hypervisor, host, spec, input);
    await this.#world.recoveries.update(input.recoveryId, { datastoreName: spec.name });
    return { detail: `${spec.name} on ${host.name}`, name: spec.name };
  }

  /** How it went is remembered: the next recovery is placed by it. */
  async #mountOn(
    hypervisor: Hypervisor,
    host: ChosenHost,
    spec: DatastoreSpec,
    input: RecoveryInput,
  ): Promise<void> {
    const { placement } = this.#world;
    const { proxy } = await this.#world.recoveries.get(input.recoveryId);
    const past = {
      proxy: proxy ?? '',
      address: spec.server,
      hypervisorId: input.hypervisorId ?? '',
      hostId: host.id,
      clusterId: host.clusterId ?? null,
    };
    try {
      await hypervisor.mountDatastore(host.id, spec);
    } catch (error) {
      if (isRouseError(error) && error.code !== 'cancelled') {
        await placement.mounted({ ...past, error: error.message });
      }
      throw error;
    }
    await placement.mounted({ ...past, error: null });
  }

  async unmount(context: Context): Promise<void> {
    const { input } = context;
    if (input.mode === 'publish') return;
    const hypervisor = await this.#hypervisor(input);
    if (isWritten(input)) return undoRestore(hypervisor, await this.#proxy(input), context);
    await hypervisor.unmountDatastore(chosenHost(context).id, datastoreNameOf(input));
  }

  /** 9. The machine's configuration is rewritten for its new place and registered. */
  async configure(context: Context): Promise<Outcome> {
    const { input } = context;
    if (input.mode === 'publish') return skipped('no machine is registered');
    const hypervisor = await this.#hypervisor(input);
    const proxy = await this.#proxy(input);
    const saveset = await proxy.calls.saveset(input.savesetId);
    const spec = await configureSpec(context, proxy, saveset);
    const configured = hypervisor.configure(spec);
    if (hasServedMachine(input)) {
      const path = posix.join(spec.folder, configured.fileName);
      const clone = cloneIdOf(input, proxy.name);
      await writeExtraFiles(proxy, clone, spec.folder, configured);
      await proxy.calls.writeCloneFile(clone, path, Buffer.from(configured.text));
    }
    const machineId = await hypervisor.register({
      hostId: chosenHost(context).id,
      name: input.name,
      datastore: spec.datastore,
      folder: spec.folder,
      configured,
      mark: input.recoveryId,
    });
    await this.#world.recoveries.update(input.recoveryId, { hypervisorMachineId: machineId });
    return {
      detail: `${input.name}: ${configured.changes.join('; ')}`,
      machineId,
      changes: [...configured.changes],
    };
  }

  async unregister(context: Context): Promise<void> {
    const { input } = context;
    if (input.mode === 'publish') return;
    const hypervisor = await this.#hypervisor(input);
    const machine = await ourMachine(hypervisor, input);
    if (machine !== undefined) await hypervisor.unregister(machine);
  }

  /** 10. Power on, if asked. */
  async powerOn(context: Context): Promise<Outcome> {
    const { input } = context;
    if (input.mode === 'publish' || !input.powerOn) return skipped('not asked for');
    const hypervisor = await this.#hypervisor(input);
    await hypervisor.powerOn(registeredMachine(context));
    return { detail: `${input.name} runs` };
  }

  async powerOff(context: Context): Promise<void> {
    const { input } = context;
    if (input.mode === 'publish') return;
    const hypervisor = await this.#hypervisor(input);
    const machine = await ourMachine(hypervisor, input);
    if (machine !== undefined) await hypervisor.powerOff(machine, 'off');
  }

  /** 11. Available: the time it took, and the lease begins. */
  async available({ input }: Context): Promise<Outcome> {
    const now = this.#world.clock.now();
    const tookMs = now - input.createdMs;
    const row = await this.#world.recoveries.get(input.recoveryId);
    await this.#world.recoveries.update(input.recoveryId, {
      availableMs: row.availableMs ?? now,
      timeToAvailableMs: row.timeToAvailableMs ?? tookMs,
    });
    return { detail: `after ${(tookMs / 1000).toFixed(2)} s` };
  }
}

/** The host of step 2; or that of the target machine, which may have moved since; as it is now. */
function hostOf(context: Context, inventory: Inventory): { host: Host; why: string } {
  const { input } = context;
  if (input.target) return hostOfTarget(inventory, input.target);
  const placed = context.result('Proxy') as { hostId?: string; host?: string } | undefined;
  const hostId = placed?.hostId ?? wantedHostId(input, inventory);
  const name = placed?.host ?? input.host ?? 'the host';
  const host = hostNow(inventory, hostId ?? firstConnected(inventory), name);
  return { host, why: input.host === null ? 'chosen with the proxy' : 'asked for' };
}

/** Of a recovery that was begun before hosts were ranked. */
function firstConnected(inventory: Inventory): string {
  return inventory.hosts.find(({ state }) => state === 'connected')?.id ?? '';
}

function chosenHost(context: Context): ChosenHost {
  return resultOf<ChosenHost>(context, 'Host');
}

function sharedExport(context: Context): ExportView {
  return resultOf<ExportView>(context, 'Export');
}

function registeredMachine(context: Context): string {
  return resultOf<{ machineId: string }>(context, 'Configure').machineId;
}

/** The journal holds what the named step answered, in the shape that step wrote. */
function resultOf<T>(context: Context, step: string): T {
  const result = context.result(step);
  if (result === undefined) throw new RouseError('internal', `step ${step} has left no result`);
  return result as T;
}

/** What is there already stays: a machine that is woken again has written to it. */
async function writeExtraFiles(
  proxy: ReachableProxy,
  cloneId: string,
  folder: string,
  { extraFiles = [] }: ConfiguredMachine,
): Promise<void> {
  const read = async (name: string) => {
    try {
      return await proxy.calls.readCloneFile(cloneId, posix.join(folder, name));
    } catch (error) {
      if (isRouseError(error, 'not-found')) return undefined;
      throw error;
    }
  };
  for (const { name, copyOf } of extraFiles) {
    if ((await read(name)) !== undefined) continue;
    const bytes = copyOf === undefined ? undefined : await read(copyOf);
    const path = posix.join(folder, name);
    await proxy.calls.writeCloneFile(cloneId, path, bytes ?? Buffer.alloc(0));
  }
}

/** The machine that this recovery registered, found by its mark; undefined when there is none. */
async function ourMachine(
  hypervisor: Hypervisor,
  input: RecoveryInput,
): Promise<string | undefined> {
  return hypervisor.findMarked(input.recoveryId);
}

async function configureSpec(
  context: Context,
  proxy: ReachableProxy,
  saveset: Saveset,
): Promise<ConfigureSpec> {
  const { input } = context;
  const stored = ['domain.xml', 'machine.vmx'].find((name) =>
    saveset.files.some((file) => file.name === name),
  );
  const configuration =
    stored === undefined
      ? undefined
      : (await proxy.calls.readSavesetFile(input.savesetId, stored)).toString('utf8');
  const shared = hasServedMachine(input) ? sharedExport(context) : undefined;
  const hasNvram = saveset.files.some((file) => file.name === 'nvram');
  return {
    configuration,
    name: input.name,
    datastore: datastoreSpec(
      input,
      shared ?? { path: '/', nfsPort: 0, mountPort: 0 },
      proxy.address,
    ),
    folder: folderOf(input.name),
    disks: isWritten(input) ? restoredDisks(context) : clonedDisks(context),
    identity: input.identity,
    connectNetworks: input.connectNetworks,
    mark: input.recoveryId,
    ...(hasNvram ? { nvram: 'nvram' } : {}),
  };
}

function clonedDisks(context: Context): ConfigureSpec['disks'] {
  const clone = resultOf<CloneView>(context, 'Clone');
  return clone.disks.map(({ name, path, sizeBytes }) => ({
    name,
    file: posix.basename(path),
    sizeBytes,
  }));
}

function restoredDisks(context: Context): ConfigureSpec['disks'] {
  const { disks } = resultOf<{ disks: RestoredDisk[] }>(context, 'Datastore');
  return disks.map(({ name, target }) => ({
    name,
    file: posix.basename(target.path),
    sizeBytes: target.sizeBytes,
    local: { path: target.path, format: target.format },
  }));
}
