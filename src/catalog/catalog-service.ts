import { isRouseError, RouseError, toRouseError } from '../errors.ts';
import type { MachineSummary } from '../hypervisors/port.ts';
import { pick } from '../lib/text.ts';
import type { Saveset } from '../vault/api.ts';
import type { HypervisorCatalog } from './hypervisor-service.ts';
import type { CatalogService, MachineView, SavesetFilter, SavesetView } from './schema.ts';

/** What the service needs of the rest of the server. */
export interface CatalogDesk {
  readonly hypervisors: HypervisorCatalog;
  /** Every saveset that is known, newest first. */
  savesets(): Promise<readonly Saveset[]>;
  /** Active recoveries: id and the machine each is of. */
  activeRecoveries(): Promise<readonly { readonly id: string; readonly machineId: string }[]>;
}

/** A machine wherever it is known from: a hypervisor, savesets, or both. */
interface KnownMachine {
  readonly id: string;
  readonly name: string;
  readonly hypervisor?: { readonly id: string; readonly name: string };
  readonly summary?: MachineSummary;
  readonly savesets: readonly Saveset[];
  /** Another machine of the same hypervisor that has the same UUID, as copies of files have. */
  readonly twin?: string;
}

/** A machine to work on, and what its hypervisor calls it: on vSphere its UUID need not be its own. */
export interface ManagedMachine {
  readonly id: string;
  readonly name: string;
  readonly hypervisorId: string;
  readonly managedId: string;
  /** The name of another one with its UUID. */
  readonly twin?: string;
}

export class MachineCatalog implements CatalogService {
  readonly #desk: CatalogDesk;

  constructor(desk: CatalogDesk) {
    this.#desk = desk;
  }

  async machines(): Promise<readonly MachineView[]> {
    const recoveries = await this.#desk.activeRecoveries();
    const known = await this.#known();
    return known
      .map((machine) => machineView(machine, recoveries))
      .toSorted((a, b) => a.name.localeCompare(b.name));
  }

  async machine(reference: string): Promise<MachineView> {
    return pick('machine', reference, await this.machines(), 'rouse machines');
  }

  /** A hypervisor that does not answer hides its machines, not everybody's. */
  async #known(only?: string, silent: Silent[] = []): Promise<KnownMachine[]> {
    const machines = new Map<string, KnownMachine>();
    for (const saveset of await this.#desk.savesets()) {
      const { id, name } = saveset.machine;
      const before = machines.get(id)?.savesets ?? [];
      machines.set(id, { id, name, savesets: [...before, saveset] });
    }
    const rows = await this.#desk.hypervisors.rows();
    const chosen = rows.filter(({ id }) => only === undefined || id === only);
    const answers = await Promise.allSettled(
      chosen.map(({ id }) => this.#desk.hypervisors.inventoryOf(id)),
    );
    for (const [index, answer] of answers.entries()) {
      const hypervisor = chosen[index]!;
      if (answer.status === 'rejected') {
        if (only !== undefined) throw answer.reason;
        silent.push({ name: hypervisor.name, error: toRouseError(answer.reason, hypervisor.name) });
        continue;
      }
      for (const summary of answer.value.machines) {
        const { uuid: id, name } = summary;
        const before = machines.get(id);
        const known = { id, name, hypervisor, summary, savesets: before?.savesets ?? [] };
        const other = before?.hypervisor?.id === hypervisor.id ? before : undefined;
        machines.set(id, other === undefined ? known : asTwin(other, name));
        if (other !== undefined) machines.set(`${id} ${summary.id}`, asTwin(known, other.name));
      }
    }
    return [...machines.values()];
  }

  /** The machine to back up, on the hypervisor named or on the only one that has it. */
  async findOnHypervisor(
    reference: string,
    hypervisor: string | undefined,
  ): Promise<ManagedMachine> {
    const only =
      hypervisor === undefined ? undefined : (await this.#desk.hypervisors.row(hypervisor)).id;
    const silent: Silent[] = [];
    const known = await this.#known(only, silent);
    const running = known.filter((machine) => machine.hypervisor !== undefined);
    if ((await this.#desk.hypervisors.rows()).length === 0) {
      throw new RouseError('not-found', 'no hypervisor is known yet', {
        advice: 'Add one: rouse hypervisor add NAME qemu:///system',
      });
    }
    const named = running.filter((machine) => machine.id === reference);
    if (named.length > 1) {
      const names = named.map((machine) => machine.name).join(' and ');
      throw new RouseError('bad-request', `${names} have the same UUID: ${reference}`, {
        advice: 'Name one of them by its name.',
      });
    }
    const { id, name, summary, hypervisor: at, twin } = pickRunning(reference, running, silent);
    const found = { id, name, hypervisorId: at?.id ?? '', managedId: summary?.id ?? id };
    return twin === undefined ? found : { ...found, twin };
  }

  async savesets(filter: SavesetFilter): Promise<readonly SavesetView[]> {
    const all = await this.#desk.savesets();
    const machine =
      filter.machine === undefined ? undefined : pickMachine(filter.machine, all).machine.id;
    return all
      .filter((saveset) => machine === undefined || saveset.machine.id === machine)
      .filter((saveset) => filter.mtree === undefined || saveset.mtree === filter.mtree)
      .map(savesetView);
  }

  async saveset(reference: string): Promise<SavesetView> {
    return savesetView(await this.chooseSaveset({ saveset: reference }));
  }

  /** By id, or of a machine: the latest one, or the latest at or before a time. */
  async chooseSaveset(request: {
    readonly machine?: string | undefined;
    readonly saveset?: string | undefined;
    readonly at?: number | undefined;
  }): Promise<Saveset> {
    const all = await this.#desk.savesets();
    if (request.saveset !== undefined) {
      const named = all.map((saveset) => ({ id: saveset.id, name: saveset.id, saveset }));
      const exact = named.find(({ id }) => id === request.saveset);
      if (exact !== undefined) return exact.saveset;
      const byMachine = all.find(({ machine }) => machine.name === request.saveset);
      if (byMachine !== undefined) return byMachine;
      return pick('saveset', request.saveset, named, 'rouse savesets').saveset;
    }
    const latest = pickMachine(request.machine ?? '', all);
    if (request.at === undefined) return latest;
    const at = request.at;
    const ofMachine = all.filter(({ machine }) => machine.id === latest.machine.id);
    const found = ofMachine.find(({ takenAtMs }) => takenAtMs <= at);
    if (found !== undefined) return found;
    const oldest = ofMachine.at(-1)?.takenAtMs ?? 0;
    throw new RouseError(
      'not-found',
      `${latest.machine.name} has no saveset from ${new Date(at).toISOString()} or before`,
      { advice: `Its oldest one is of ${new Date(oldest).toISOString()}.` },
    );
  }
}

/** A hypervisor that did not answer. */
interface Silent {
  readonly name: string;
  readonly error: RouseError;
}

/** Whether a machine is there is not known while one that may have it does not answer. */
function pickRunning(
  reference: string,
  running: readonly KnownMachine[],
  silent: readonly Silent[],
): KnownMachine {
  try {
    return pick('machine', reference, running, 'rouse machines');
  } catch (error) {
    const [first] = silent;
    if (first === undefined || !isRouseError(error, 'not-found')) throw error;
    const what = `${reference} was not found, and ${first.name} does not answer`;
    throw new RouseError(first.error.code, `${what}: ${first.error.message}`, {
      advice: first.error.advice,
      cause: first.error,
    });
  }
}

/** Savesets tell such machines apart by name only. */
function asTwin(machine: KnownMachine, twin: string): KnownMachine {
  const savesets = machine.savesets.filter((saveset) => saveset.machine.name === machine.name);
  return { ...machine, savesets, twin };
}

/** The latest saveset of the machine that is meant; `all` is newest first. */
function pickMachine(reference: string, all: readonly Saveset[]): Saveset {
  const latest = new Map<string, Saveset>();
  for (const saveset of all) {
    if (!latest.has(saveset.machine.id)) latest.set(saveset.machine.id, saveset);
  }
  const machines = [...latest.values()].map((saveset) => ({ ...saveset.machine, saveset }));
  const exact = machines.filter(({ name }) => name === reference);
  // A machine that was made anew keeps its name and gets another id: the newest one is meant.
  if (exact.length > 1) return exact[0]!.saveset;
  // Renamed since, or its UUID is another machine's as well: the newest one of that name is meant.
  const older =
    exact.length === 0 ? all.find(({ machine }) => machine.name === reference) : undefined;
  if (older !== undefined) return older;
  return pick('machine with savesets', reference, machines, 'rouse machines').saveset;
}

function machineView(
  machine: KnownMachine,
  recoveries: readonly { readonly id: string; readonly machineId: string }[],
): MachineView {
  const [latest] = machine.savesets;
  return {
    id: machine.id,
    name: machine.name,
    hypervisor: machine.hypervisor?.name ?? null,
    power: machine.summary?.power ?? null,
    savesets: machine.savesets.length,
    latestSaveset: latest === undefined ? null : { id: latest.id, takenAtMs: latest.takenAtMs },
    logicalBytes: latest === undefined ? 0 : logicalBytes(latest),
    recoveries: recoveries.filter(({ machineId }) => machineId === machine.id).map(({ id }) => id),
  };
}

function logicalBytes(saveset: Saveset): number {
  return saveset.disks.reduce((sum, disk) => sum + disk.root.sizeBytes, 0);
}

export function savesetView(saveset: Saveset): SavesetView {
  return {
    id: saveset.id,
    mtree: saveset.mtree,
    machine: saveset.machine,
    takenAtMs: saveset.takenAtMs,
    kind: saveset.kind,
    basedOn: saveset.basedOn ?? null,
    consistency: saveset.consistency,
    logicalBytes: logicalBytes(saveset),
    newBytes: saveset.cost.newBytes,
    storedBytes: saveset.cost.storedBytes,
    disks: saveset.disks.map(({ name, root, source }) => ({
      name,
      sizeBytes: root.sizeBytes,
      source,
    })),
    files: saveset.files.map(({ name, root }) => ({ name, sizeBytes: root.sizeBytes })),
  };
}
