import { isRouseError, RouseError } from '../errors.ts';
import type {
  GuestDisk,
  Host,
  Hypervisor,
  Inventory,
  MachineSummary,
} from '../hypervisors/port.ts';
import { plural } from '../lib/text.ts';
import { recoveryLimits } from '../limits.ts';
import type { CloneView, ExportView } from '../proxy/port.ts';
import type { Json, StepContext } from '../workflows/api.ts';
import { type ChosenHost, datastoreSpec, type RecoveryInput } from './plan.ts';
import type { Recovery } from './schema.ts';
import type { RecoveryWorld } from './world.ts';

type Context = StepContext<RecoveryInput>;
type Target = NonNullable<RecoveryInput['target']>;
type Attached = Recovery['attached'][number];

/** Step 9 of file-level recovery, and taking it back; the order of all steps is in flr.ts. */
export class AttachingSteps {
  readonly #world: RecoveryWorld;

  constructor(world: RecoveryWorld) {
    this.#world = world;
  }

  /** 9. The chosen disks appear in the running target; its guest confirms it, if it can. */
  async attach(context: Context): Promise<Json> {
    const { input, signal } = context;
    const { hypervisor, target } = await targetOf(this.#world, input);
    const machine = await findTarget(hypervisor, target);
    if (machine === undefined) throw noTarget(target);
    refuseChanged(context, machine, target);
    const disks = this.#chosen(context);
    const devices = new Map<string, string>();
    for (const { disk, serial } of disks) {
      if (signal.aborted) throw new RouseError('cancelled', 'attaching was interrupted');
      context.progress({ done: devices.size, total: disks.length, unit: 'steps' });
      const device = await hypervisor.attachDisk(machine.id, {
        datastore: this.#datastore(context),
        path: disk.path,
        sizeBytes: disk.sizeBytes,
        serial,
      });
      devices.set(disk.name, device);
    }
    const seen = await this.#seenByGuest(hypervisor, machine.id, [...devices.values()], signal);
    const shown = (await hypervisor.machine(machine.id)).disks;
    const attached = [...devices].map(([disk, device]): Attached => {
      const serial = shown.find(({ name }) => name === device)?.serial ?? null;
      const seenAs = seen?.find(({ name }) => name === device)?.seenAs ?? null;
      return { disk, device, serial, seenAs };
    });
    return { detail: detailOf(target, attached, seen), attached };
  }

  /** The disks asked for, each with the serial that it has in every attempt. */
  #chosen(context: Context) {
    const { recoveryId, disks: wanted } = context.input;
    const clone = context.result('Clone') as unknown as CloneView;
    return clone.disks
      .map((disk, index) => ({ disk, serial: `rouse-${recoveryId}-${index}` }))
      .filter(({ disk }) => wanted === null || wanted.includes(disk.name));
  }

  #datastore(context: Context) {
    const shared = context.result('Export') as unknown as ExportView & { address: string };
    return datastoreSpec(context.input, shared, shared.address);
  }

  /** A guest takes a moment to find a disk; one without an agent is not waited for. */
  async #seenByGuest(
    hypervisor: Hypervisor,
    machineId: string,
    devices: readonly string[],
    signal: AbortSignal,
  ): Promise<readonly GuestDisk[] | undefined> {
    const { clock } = this.#world;
    const deadline = clock.monotonic() + recoveryLimits.guestSeesMsMax;
    for (;;) {
      const seen = await hypervisor.guestDisks(machineId);
      if (seen === undefined) return undefined;
      const isComplete = devices.every((device) => seen.some(({ name }) => name === device));
      if (isComplete || clock.monotonic() >= deadline) return seen;
      await clock.sleep(recoveryLimits.guestSeesPollMs, signal);
    }
  }

  async detach({ input }: Context): Promise<void> {
    await detachDisks(this.#world, input);
  }

  /** 10. Nothing is powered on. */
  async runsAlready(): Promise<Json> {
    return { detail: 'the target runs already', skipped: true };
  }
}

function detailOf(
  target: Target,
  attached: readonly Attached[],
  seen: readonly GuestDisk[] | undefined,
): string {
  const places = attached.map(({ disk, device }) => `${disk} is ${device}`).join(', ');
  const count = `${plural(attached.length, 'disk')} in ${target.name}: ${places}`;
  if (seen === undefined) return `${count}; not confirmed: no guest agent answers`;
  const names = attached.flatMap(({ seenAs }) => (seenAs === null ? [] : [seenAs]));
  if (names.length === attached.length) return `${count}; its guest sees ${names.join(', ')}`;
  const missing = attached.filter(({ device }) => !seen.some(({ name }) => name === device));
  if (missing.length === 0) return `${count}; not confirmed: its guest agent tells mounts only`;
  return `${count}; its guest does not see ${missing.map(({ device }) => device).join(', ')} yet`;
}

/**
 * Takes every disk of the recovery's export from its target, and says what became of them. Throws
 * `busy` while the guest has mounted one, as far as its agent tells, and `time-out` when it does
 * not let go.
 */
export async function detachDisks(world: RecoveryWorld, input: RecoveryInput): Promise<string> {
  const { hypervisor, target } = await targetOf(world, input);
  const machine = await findTarget(hypervisor, target);
  if (machine === undefined) return `${target.name} is gone`;
  // By where they lie, not by what was written down: a kill may have come in between.
  const { disks } = await hypervisor.traces();
  const { cloneId } = await world.recoveries.get(input.recoveryId);
  const ours = disks.filter(
    ({ machineId, location }) =>
      machineId === machine.id && cloneId !== null && location.includes(`/${cloneId}/`),
  );
  if (ours.length === 0) return 'nothing is attached';
  const devices = ours.map(({ device }) => device);
  if (machine.power !== 'off') await refuseMounted(hypervisor, machine, devices);
  for (const device of devices) await hypervisor.detachDisk(machine.id, device);
  return `${devices.join(', ')} taken from ${target.name}`;
}

/** A guest must not lose a file system under its feet. */
export async function refuseMounted(
  hypervisor: Hypervisor,
  machine: Pick<MachineSummary, 'id' | 'name'>,
  devices: readonly string[],
): Promise<void> {
  const seen = (await hypervisor.guestDisks(machine.id)) ?? [];
  const used = seen.filter(({ name, mounts }) => devices.includes(name) && mounts.length > 0);
  if (used.length === 0) return;
  const places = used.flatMap(({ mounts }) => mounts).join(', ');
  const which = used
    .map(({ name, seenAs }) => (seenAs === null ? name : `${name} (${seenAs})`))
    .join(', ');
  throw new RouseError('busy', `the guest of ${machine.name} has ${which} mounted at ${places}`, {
    advice: `Unmount it in the guest: umount ${places}. Clean-up goes on by itself.`,
  });
}

async function targetOf(
  world: RecoveryWorld,
  { hypervisorId, target }: RecoveryInput,
): Promise<{ hypervisor: Hypervisor; target: Target }> {
  if (hypervisorId === null || target === null) {
    throw new RouseError('bad-request', 'file-level recovery needs a running machine', {
      advice: 'Name it: --into MACHINE',
    });
  }
  return { hypervisor: await world.hypervisor(hypervisorId), target };
}

async function findTarget(
  hypervisor: Hypervisor,
  target: Target,
): Promise<MachineSummary | undefined> {
  try {
    return inInventory(await hypervisor.inventory(), target);
  } catch (error) {
    if (isRouseError(error, 'not-found')) return undefined;
    throw error;
  }
}

/**
 * Catalogs know a machine by its UUID, managers by their own id. On vSphere several may have one UUID:
 * then only the manager's id tells which is meant, and without it none is.
 */
function inInventory({ machines }: Inventory, target: Target): MachineSummary | undefined {
  const { id: known, managedId = known } = target;
  const managed = machines.find(({ id }) => id === managedId);
  const [only, ...more] = machines.filter(({ uuid }) => uuid === known);
  return managed ?? (more.length === 0 ? only : undefined);
}

/** 3. The host that the target runs on now. Throws when the target cannot take disks. */
export function hostOfTarget(inventory: Inventory, target: Target): { host: Host; why: string } {
  const machine = inInventory(inventory, target);
  if (machine === undefined) throw noTarget(target);
  if (machine.power !== 'on') throw sleepingTarget(target, machine.power);
  const host = inventory.hosts.find(({ id }) => id === machine.hostId);
  if (host === undefined || host.state !== 'connected') {
    const what = host === undefined ? 'is not known' : `(${host.name}) is ${host.state}`;
    throw new RouseError('host-unreachable', `the host of ${target.name} ${what}`, {
      advice: 'Bring it back, or choose a machine on another host with --into.',
    });
  }
  return { host, why: `${target.name} runs on it` };
}

/** Since step 3: a machine that is off sees no new disk, and the export answers one host only. */
function refuseChanged(context: Context, machine: MachineSummary, target: Target): void {
  if (machine.power !== 'on') throw sleepingTarget(target, machine.power);
  const host = context.result('Host') as unknown as ChosenHost;
  if (machine.hostId === host.id) return;
  throw new RouseError('wrong-state', `${target.name} has moved away from ${host.name} since`, {
    advice: 'Begin again: the disks are then shown to the host that it runs on now.',
  });
}

function sleepingTarget({ name }: Target, power: MachineSummary['power']): RouseError {
  return new RouseError('wrong-state', `${name} is ${power}: it sees no new disk`, {
    advice: 'Power it on, or choose another machine with --into.',
  });
}

function noTarget(target: Target): RouseError {
  return new RouseError('not-found', `the machine ${target.name} is no longer there`, {
    advice: 'List what runs: rouse machines',
  });
}
