import { type ErrorCode, isRouseError, RouseError } from '../errors.ts';
import { endedRecoveryStates as endedStates, type RecoveryRow } from '../catalog/recoveries.ts';
import type { SavesetView } from '../catalog/schema.ts';
import { pick } from '../lib/text.ts';
import type { Saveset } from '../vault/api.ts';
import type { Json, RunView } from '../workflows/api.ts';
import { changesOf } from '../lib/changes.ts';
import { renewLease } from './lease.ts';
import { setLeaseTimers } from './lease-timers.ts';
import { endRecovery } from './ending.ts';
import { chosenOf, placeRecovery } from './placing.ts';
import { planOf } from './planning.ts';
import { datastoreSpec, newMac, type RecoveryInput } from './plan.ts';
import { chooseTarget, type FoundMachine, nameOf, targetOf } from './targeting.ts';
import { noTarget, notNow, type RelocateInput } from './relocating.ts';
import { sealing, Seals } from './sealing.ts';
import type {
  CancelRequest,
  Recovery,
  RecoveryFilter,
  RecoveryPlan,
  RecoveryRequest,
  RecoveryService,
  RelocateRequest,
  RenewRequest,
} from './schema.ts';
import { pickDatastore, refuseTarget, sizeOf } from './target-datastore.ts';
import { recoveryView } from './view.ts';
import { isOpening, openingOf, proxyOf, type RecoveryWorld, submitNext } from './world.ts';

/** What the service needs of the rest of the server, besides the world of its steps. */
export interface RecoveryDesk extends RecoveryWorld {
  /** The saveset that a request means, from the catalog. */
  chooseSaveset(request: Pick<RecoveryRequest, 'machine' | 'saveset' | 'at'>): Promise<Saveset>;
  /** The hypervisor that a request means: named, the machine's own, or the only one. */
  chooseHypervisor(reference: string | undefined, machineId: string): Promise<string | null>;
  /** The machine on a hypervisor that a request means, running or not. */
  findMachine(reference: string, hypervisor: string | undefined): Promise<FoundMachine>;
  savesetView(saveset: Saveset): SavesetView;
  /** Enters a new saveset, stored by that proxy, in the catalog. */
  savesetStored(saveset: Saveset, proxy: string): Promise<void>;
  picture(recoveryId: string): Promise<Buffer | undefined>;
}

export class Recoveries implements RecoveryService {
  readonly #desk: RecoveryDesk;
  readonly seals: Seals;

  constructor(desk: RecoveryDesk) {
    this.#desk = desk;
    this.seals = new Seals(desk, (reference) => this.#row(reference));
  }

  /** To be called once, before the engine starts. */
  listen(): void {
    this.#desk.engine.register(sealing(this.#desk));
    this.#desk.engine.onTimer('recovery.relocate/', async (_name, payload: Json) => {
      const { recoveryId } = payload as { recoveryId: string };
      const row = await this.#desk.recoveries.get(recoveryId);
      if (row.state === 'available') await this.#relocateAsPlanned(row);
    });
  }

  /** No one waits for the answer: what a person has to mend is told, the rest is tried again. */
  async #relocateAsPlanned(row: RecoveryRow): Promise<void> {
    try {
      await this.#relocate(row, {});
    } catch (error) {
      const forPeople: readonly ErrorCode[] = ['not-found', 'bad-request', 'wrong-state'];
      if (!isRouseError(error) || !forPeople.includes(error.code)) throw error;
      const message = `${row.name} was not relocated as planned and runs on: ${error.message}`;
      await this.#desk.tell(row.id, 'error', 'recovery.relocation-failed', message);
    }
  }

  async create(request: RecoveryRequest): Promise<Recovery> {
    const { random } = this.#desk;
    const saveset = await this.#desk.chooseSaveset(request);
    const input = await this.#input(request, saveset, random.id());
    await this.#refuseUnfit(input, saveset);
    await this.#desk.transaction(async () => {
      await this.#refuseDuplicate(input);
      await this.#open(input);
    });
    return this.get(input.recoveryId);
  }

  async #open(input: RecoveryInput): Promise<void> {
    const { recoveries, clock } = this.#desk;
    await recoveries.insert({
      id: input.recoveryId,
      machineId: input.machine.id,
      savesetId: input.savesetId,
      mode: input.mode,
      name: input.name,
      state: 'starting',
      hypervisorId: input.hypervisorId,
      createdMs: clock.now(),
      clients: input.clients,
      options: input,
    });
    await submitNext(this.#desk, input.recoveryId, openingOf(input), input);
  }

  async #input(
    request: RecoveryRequest,
    saveset: Saveset,
    recoveryId: string,
  ): Promise<RecoveryInput> {
    const { random, clock } = this.#desk;
    const proxy = await this.#knownProxy(request.proxy);
    const target = await chooseTarget(this.#desk, request, saveset);
    const hypervisorId =
      request.mode === 'publish'
        ? null
        : (target?.hypervisorId ??
          (await this.#desk.chooseHypervisor(request.hypervisor, saveset.machine.id)));
    if (request.mode === 'new' && request.datastore === undefined) {
      throw new RouseError('bad-request', 'mode new writes to a datastore, and none is named', {
        advice: 'Name one: --datastore NAME',
      });
    }
    const macs = Array.from({ length: macsMax }, () => newMac(random.bytes(3)));
    return {
      recoveryId,
      savesetId: saveset.id,
      mtree: saveset.mtree,
      machine: saveset.machine,
      mode: request.mode,
      name: request.name ?? nameOf(saveset, target),
      hypervisorId,
      host: request.host ?? null,
      proxy,
      without: request.without,
      prefer: request.prefer,
      clients: request.clients ?? [],
      powerOn: request.powerOn,
      identity: { keep: request.identity === 'keep', uuid: random.uuid(), macs },
      connectNetworks: request.connectNetworks,
      leaseMs: request.leaseMs,
      datastore: request.datastore ?? null,
      isMoved: request.mode === 'new' && (await this.#movesDisks(hypervisorId)),
      relocateTo: request.relocateTo ?? null,
      relocateAtMs: typeof request.relocateAt === 'number' ? request.relocateAt : null,
      target: target === null ? null : targetOf(target),
      disks: request.disks ?? null,
      createdMs: clock.now(),
      resumed: false,
    };
  }

  async #movesDisks(hypervisorId: string | null): Promise<boolean> {
    if (hypervisorId === null) return false;
    return (await this.#desk.hypervisor(hypervisorId)).restoresBy === 'relocation';
  }

  /** What was asked for by name is checked beforehand: refused, nothing is begun. */
  async #refuseUnfit(input: RecoveryInput, saveset: Saveset): Promise<void> {
    const isAsked = input.host !== null || input.proxy || (input.without ?? []).length > 0;
    const hasTarget = input.datastore !== null || input.relocateTo !== null;
    if (!isAsked && !hasTarget) return;
    const { hypervisorId } = input;
    const hypervisor = hypervisorId === null ? null : await this.#desk.hypervisor(hypervisorId);
    const inventory = await hypervisor?.inventory();
    if (inventory !== undefined) refuseTarget(inventory, input, sizeOf(saveset));
    if (isAsked) chosenOf(await placeRecovery(this.#desk, input, inventory));
  }

  async #knownProxy(wanted: string | undefined): Promise<string | null> {
    if (wanted === undefined) return null;
    const known = (await this.#desk.proxies()).map(({ name }) => ({ id: name, name }));
    return pick('proxy', wanted, known, 'rouse proxy list').name;
  }

  async #refuseDuplicate(input: RecoveryInput): Promise<void> {
    if (input.mode === 'publish' || input.mode === 'flr') return;
    const active = await this.#desk.recoveries.list({ active: true });
    const same = active.find(
      (row) =>
        row.name === input.name &&
        row.mode !== 'publish' &&
        row.mode !== 'flr' &&
        row.hypervisorId === input.hypervisorId,
    );
    if (same === undefined) return;
    throw new RouseError('already-exists', `recovery ${same.id} has that name: ${input.name}`, {
      advice: `Choose another one with --name, or end it: rouse cancel ${same.id}`,
    });
  }

  async plan(request: RecoveryRequest): Promise<RecoveryPlan> {
    const saveset = await this.#desk.chooseSaveset(request);
    const input = await this.#input(request, saveset, 'dry-run');
    await this.#refuseDuplicate(input);
    return planOf(this.#desk, input, saveset);
  }

  async list(filter: RecoveryFilter): Promise<readonly Recovery[]> {
    const rows = await this.#desk.recoveries.list({
      ...(filter.active === undefined ? {} : { active: filter.active }),
      ...(filter.state === undefined ? {} : { states: [filter.state] }),
    });
    const views = await Promise.all(rows.map((row) => this.#view(row)));
    const { machine } = filter;
    if (machine === undefined) return views;
    return views.filter((view) => view.machine.id === machine || view.machine.name === machine);
  }

  async get(reference: string): Promise<Recovery> {
    return this.#view(await this.#row(reference));
  }

  async #row(reference: string): Promise<RecoveryRow> {
    const exact = await this.#desk.recoveries.find(reference);
    if (exact !== undefined) return exact;
    const rows = await this.#desk.recoveries.list({});
    const active = rows.filter(({ state }) => !endedStates.includes(state));
    const among = active.some(({ id, name }) => id.startsWith(reference) || name === reference);
    return pick('recovery', reference, among ? active : rows);
  }

  async #view(row: RecoveryRow): Promise<Recovery> {
    const input = inputOf(row);
    const runs = await this.#desk.engine.runs({ subject: row.id });
    const ended = endedStates.includes(row.state);
    const clones = ended ? [] : await this.#clones(row.proxy);
    return recoveryView({
      row,
      runs,
      savesetTakenAtMs: (await this.#takenAt(row.savesetId)) ?? row.createdMs,
      machineName: input.machine.name,
      hypervisorName:
        row.hypervisorId === null ? null : await this.#desk.hypervisorName(row.hypervisorId),
      clone: clones.find(({ cloneId }) => cloneId === row.cloneId),
      plannedRelocation:
        input.relocateTo === null ? null : { target: input.relocateTo, atMs: input.relocateAtMs },
      target: input.target ? { id: input.target.id, name: input.target.name } : null,
      hasPicture: (await this.#desk.picture(row.id)) !== undefined,
    });
  }

  /** A proxy that restarts must not make a recovery's page fail. */
  async #clones(proxy: string | null) {
    const known = (await this.#desk.proxies()).find(({ name }) => name === proxy);
    if (known === undefined || known.isAway) return [];
    try {
      return await known.calls.clones();
    } catch (error) {
      if (!isRouseError(error)) throw error;
      return [];
    }
  }

  async #takenAt(savesetId: string): Promise<number | undefined> {
    try {
      return (await this.#desk.chooseSaveset({ saveset: savesetId })).takenAtMs;
    } catch (error) {
      if (!isRouseError(error)) throw error;
      return undefined;
    }
  }

  /** What that means depends on what runs: see ending.ts. */
  async cancel(reference: string, request: CancelRequest): Promise<Recovery> {
    const row = await this.#row(reference);
    const hostId = await this.hostId(row.id);
    const isEnding = await endRecovery(this.#desk, row, inputOf, { ...request, hostId });
    return isEnding ? this.get(row.id) : this.#nothingToCancel(row.id);
  }

  async #nothingToCancel(id: string): Promise<Recovery> {
    const view = await this.get(id);
    if (view.state === 'cleaning') return view;
    if (view.state === 'relocating' || view.state === 'starting') {
      throw new RouseError('busy', `recovery ${id} has just become ${view.state}`, {
        advice: `Try again: rouse cancel ${id}`,
      });
    }
    throw new RouseError('wrong-state', `recovery ${id} is ${view.state} already`, {
      advice: 'There is nothing left to cancel.',
    });
  }

  /** The host that step 3 chose; null before. */
  async hostId(recoveryId: string): Promise<string | null> {
    const host = await this.#result(recoveryId, 'Host');
    return (host as { id?: string } | undefined)?.id ?? null;
  }

  async #result(recoveryId: string, step: string): Promise<Json | undefined> {
    const runs = (await this.#desk.engine.runs({ subject: recoveryId })).filter(isOpening);
    // A resumed run that did not get that far has not undone what an earlier one did.
    const results = runs.map(({ steps }) => steps.find(({ name }) => name === step)?.result);
    return results.findLast((result) => result !== undefined);
  }

  async renew(reference: string, request: RenewRequest): Promise<Recovery> {
    const row = await this.#row(reference);
    await renewLease(this.#desk, row, request.leaseMs);
    return this.get(row.id);
  }

  async relocate(reference: string, request: RelocateRequest): Promise<Recovery> {
    const row = await this.#row(reference);
    if (row.mode !== 'instant') {
      throw new RouseError('wrong-state', `${row.name} is no machine that runs from its backup`, {
        advice: 'Only a recovery of mode instant can be relocated.',
      });
    }
    if (row.state !== 'available') throw notNow(row);
    if (request.at !== undefined && request.at > this.#desk.clock.now()) {
      await this.#planRelocation(row, request);
      return this.get(row.id);
    }
    await this.#relocate(row, request);
    return this.get(row.id);
  }

  async #planRelocation(row: RecoveryRow, request: RelocateRequest): Promise<void> {
    const input = inputOf(row);
    const relocateTo = request.datastore ?? input.relocateTo;
    if (relocateTo === null) throw noTarget();
    if (row.hypervisorId !== null) {
      const hypervisor = await this.#desk.hypervisor(row.hypervisorId);
      pickDatastore((await hypervisor.inventory()).datastores, relocateTo);
    }
    const atMs = request.at ?? null;
    const options = { ...input, relocateTo, relocateAtMs: atMs };
    const { recoveries, engine, transaction } = this.#desk;
    await transaction(async () => {
      if (!(await recoveries.updateWhile(row.id, ['available'], { options }))) throw notNow(row);
      await engine.setTimer(`recovery.relocate/${row.id}`, atMs ?? 0, { recoveryId: row.id });
    });
  }

  async #relocate(row: RecoveryRow, request: RelocateRequest): Promise<RunView> {
    const { recoveries, engine } = this.#desk;
    const input = inputOf(row);
    const wanted = request.datastore ?? input.relocateTo;
    if (wanted === null) throw noTarget();
    const hostId = await this.hostId(row.id);
    const shared = await this.#result(row.id, 'Export');
    const { hypervisorId, hypervisorMachineId } = row;
    if (!hypervisorId || !hypervisorMachineId || !hostId || shared === undefined) {
      throw new RouseError('wrong-state', `recovery ${row.id} has no machine to relocate`);
    }
    const proxy = await proxyOf(this.#desk, row.id);
    const hypervisor = await this.#desk.hypervisor(hypervisorId);
    const { datastores } = await hypervisor.inventory();
    const to = pickDatastore(datastores, wanted);
    const exported = shared as { path: string; nfsPort: number; mountPort: number };
    const relocate: RelocateInput = {
      recovery: input,
      hostId,
      machineId: hypervisorMachineId,
      from: datastoreSpec(input, exported, proxy.address),
      to: { id: to.id, name: to.name },
      bandwidthBytesPerSecond: request.bandwidthBytesPerSecond ?? 0,
    };
    return this.#desk.transaction(async () => {
      const patch = { state: 'relocating' } as const;
      if (!(await recoveries.updateWhile(row.id, ['available'], patch))) throw notNow(row);
      await engine.clearTimer(`recovery.relocate/${row.id}`);
      return submitNext(this.#desk, row.id, 'relocate', relocate);
    });
  }

  async seal(reference: string): Promise<SavesetView> {
    return this.seals.seal(reference);
  }

  async resume(reference: string): Promise<Recovery> {
    const row = await this.#row(reference);
    const { recoveries, clock } = this.#desk;
    const known = inputOf(row);
    const input: RecoveryInput = {
      ...known,
      // Its datastore may be mounted there still, and its export answers that host alone.
      host: row.host ?? known.host,
      resumed: true,
      powerOn: true,
      createdMs: clock.now(),
    };
    await this.#desk.transaction(async () => {
      const patch = { state: 'starting', warnings: [], error: null } as const;
      if (!(await recoveries.updateWhile(row.id, ['parked'], patch))) {
        const { state } = await recoveries.get(row.id);
        throw new RouseError('wrong-state', `recovery ${row.id} is ${state}, not parked`, {
          advice: 'Only a parked recovery can be resumed.',
        });
      }
      await setLeaseTimers(this.#desk, row.id, null);
      await submitNext(this.#desk, row.id, openingOf(input), input);
    });
    return this.get(row.id);
  }

  async picture(reference: string): Promise<Buffer> {
    const row = await this.#row(reference);
    const fresh = await this.#livePicture(row);
    const png = fresh ?? (await this.#desk.picture(row.id));
    if (png !== undefined) return png;
    throw new RouseError('not-found', `there is no picture of ${row.name}`, {
      advice: 'A machine has one once it is powered on.',
    });
  }

  async #livePicture(row: RecoveryRow): Promise<Buffer | undefined> {
    if (row.hypervisorId === null || row.hypervisorMachineId === null) return undefined;
    if (row.state !== 'available' && row.state !== 'relocating') return undefined;
    try {
      const hypervisor = await this.#desk.hypervisor(row.hypervisorId);
      const png = await hypervisor.screenPicture(row.hypervisorMachineId);
      if (png !== undefined) await this.#desk.keepPicture(row.id, png);
      return png;
    } catch (error) {
      // The kept picture is shown instead; the machine may just have been switched off.
      if (!isRouseError(error)) throw error;
      return undefined;
    }
  }

  async *watch(reference: string, signal: AbortSignal): AsyncIterable<Recovery> {
    const { id } = await this.#row(reference);
    const changes = changesOf(signal, (wake) =>
      this.#desk.engine.onChange((run) => {
        if (run.subject === id) wake();
      }),
    );
    for await (const _ of changes) {
      const view = await this.get(id);
      yield view;
      if (endedStates.includes(view.state)) return;
    }
  }
}

/** NICs of one machine that get new addresses: libvirt's and vSphere's limits are below this. */
const macsMax = 16;

/** The request as decided, kept in the row (plan.ts). */
export function inputOf(row: RecoveryRow): RecoveryInput {
  return row.options as RecoveryInput;
}
