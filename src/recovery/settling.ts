import { isRouseError } from '../errors.ts';
import { formatDuration } from '../lib/text.ts';
import { recoveryLimits } from '../limits.ts';
import type { RunView } from '../workflows/api.ts';
import type { CloseInput } from './cleaning.ts';
import { setKeptTimers, setLeaseTimers } from './lease-timers.ts';
import { type ChosenHost, type RecoveryInput } from './plan.ts';
import { isProduction } from './production.ts';
import type { RelocateInput } from './relocating.ts';
import { type RecoveryWorld, submitNext } from './world.ts';

/** What follows when a run of a recovery has ended; repeatable, as the engine asks. */
export async function settleOpened(
  world: RecoveryWorld,
  run: RunView,
  input: RecoveryInput,
): Promise<void> {
  if (run.state !== 'done') {
    return input.resumed ? parkAgain(world, run, input) : endUndone(world, run, input);
  }
  const id = input.recoveryId;
  if (input.mode === 'new') {
    await world.recoveries.update(id, { state: 'done', endedMs: world.clock.now() });
    await world.tell(id, 'info', 'recovery.restored', `${input.name} is restored`);
    return;
  }
  if (!(await becomeAvailable(world, run, input))) return;
  await world.tell(id, 'info', 'recovery.available', `${input.name} is available`);
  await keepFirstPicture(world, input);
}

async function parkAgain(world: RecoveryWorld, run: RunView, input: RecoveryInput): Promise<void> {
  const { recoveryId: id, name } = input;
  const leaseEndMs = world.clock.now() + recoveryLimits.graceMs;
  await world.transaction(async () => {
    await world.recoveries.update(id, { state: 'parked', leaseEndMs, error: run.error ?? null });
    await setKeptTimers(world, id, leaseEndMs);
  });
  const why = run.error?.message ?? 'resuming it was cancelled';
  const kept = ` for ${formatDuration(recoveryLimits.graceMs)}`;
  const message = `${name} stays parked, its writes are kept${kept}: ${why}`;
  await world.tell(id, 'error', 'recovery.parked', message);
}

async function endUndone(world: RecoveryWorld, run: RunView, input: RecoveryInput): Promise<void> {
  const { recoveryId: id, name } = input;
  const isCancelled = run.state === 'cancelled';
  const state = isCancelled ? 'cancelled' : 'failed';
  const endedMs = world.clock.now();
  await world.recoveries.update(id, { state, endedMs, error: run.error ?? null });
  const why = run.error === undefined ? '' : `: ${run.error.message}`;
  const message = `${name}: the recovery ${isCancelled ? 'was cancelled' : 'failed'} and is undone`;
  await world.tell(id, isCancelled ? 'warning' : 'error', `recovery.${state}`, `${message}${why}`);
}

/** False when it was cancelled at the last moment, after its last step: clean-up follows. */
async function becomeAvailable(
  world: RecoveryWorld,
  run: RunView,
  input: RecoveryInput,
): Promise<boolean> {
  const { recoveryId: id, relocateTo, relocateAtMs, resumed: keepWrites } = input;
  const { engine, clock, recoveries } = world;
  const leaseEndMs = clock.now() + input.leaseMs;
  return world.transaction(async () => {
    const patch = { state: 'available', leaseEndMs } as const;
    if (await recoveries.updateWhile(id, ['starting', 'available'], patch)) {
      await setLeaseTimers(world, id, leaseEndMs);
      if (relocateTo !== null) {
        const atMs = relocateAtMs ?? clock.now();
        await engine.setTimer(`recovery.relocate/${id}`, atMs, { recoveryId: id });
      }
      return true;
    }
    const queued = await engine.runs({ subject: id, kind: 'recovery.close', active: true });
    if (queued.length > 0) return false;
    const host = run.steps.find(({ name }) => name === 'Host')?.result as ChosenHost | undefined;
    const hostId = host?.id ?? null;
    const close: CloseInput = { recovery: input, reason: 'cancelled', hostId, keepWrites };
    await submitNext(world, id, 'close', close);
    return false;
  });
}

/** A picture is worth having and never worth failing for. */
async function keepFirstPicture(world: RecoveryWorld, input: RecoveryInput): Promise<void> {
  if (input.hypervisorId === null || !input.powerOn) return;
  try {
    const hypervisor = await world.hypervisor(input.hypervisorId);
    const machine = await hypervisor.findMarked(input.recoveryId);
    const png = machine === undefined ? undefined : await hypervisor.screenPicture(machine);
    if (png !== undefined) await world.keepPicture(input.recoveryId, png);
  } catch (error) {
    if (!isRouseError(error)) throw error;
    await world.tell(
      input.recoveryId,
      'warning',
      'recovery.picture',
      `no picture of the screen: ${error.message}`,
    );
  }
}

export async function settleRelocated(
  world: RecoveryWorld,
  run: RunView,
  input: RelocateInput,
): Promise<void> {
  const id = input.recovery.recoveryId;
  const { name } = input.recovery;
  if (run.state !== 'done' && !(await hasMoved(world, input))) {
    await world.recoveries.updateWhile(id, ['relocating'], { state: 'available' });
    const why = run.error === undefined ? 'cancelled' : run.error.message;
    await world.tell(
      id,
      'warning',
      'recovery.relocation-failed',
      `${name} was not relocated and runs on: ${why}`,
    );
    return;
  }
  const close: CloseInput = {
    recovery: input.recovery,
    reason: 'relocated',
    hostId: input.hostId,
    keepWrites: false,
  };
  await world.transaction(async () => {
    await world.recoveries.update(id, { state: 'cleaning' });
    await world.engine.submit('recovery.close', id, close, `${run.id}.close`);
  });
  await world.tell(id, 'info', 'recovery.relocated', `${name} was relocated to ${input.to.name}`);
}

/** A cancel or a failure may come when the last disk has moved: then it is production. */
async function hasMoved(world: RecoveryWorld, { recovery }: RelocateInput): Promise<boolean> {
  if (recovery.hypervisorId === null) return false;
  const hypervisor = await world.hypervisor(recovery.hypervisorId);
  const machine = await hypervisor.findMarked(recovery.recoveryId);
  return machine !== undefined && isProduction(hypervisor, recovery, machine);
}

export async function settleClosed(
  world: RecoveryWorld,
  run: RunView,
  input: CloseInput,
): Promise<void> {
  const id = input.recovery.recoveryId;
  const now = world.clock.now();
  if (run.state !== 'done') {
    await world.recoveries.update(id, { state: 'failed', error: run.error ?? null });
    const why = run.error?.message ?? run.state;
    const message = `clean-up did not finish: ${why}. Try it again: rouse cancel ${id}`;
    await world.tell(id, 'error', 'recovery.clean-up-failed', message);
    return;
  }
  await clearTimers(world, id);
  if (input.keepWrites && input.reason === 'lease') return parkDetached(world, input);
  if (input.keepWrites) return putAway(world, input);
  const isDone = input.reason === 'relocated' || input.reason === 'restored';
  const state = isDone ? 'done' : 'cancelled';
  await world.recoveries.update(id, { state, endedMs: now, error: null, warnings: [] });
  await world.tell(
    id,
    'info',
    'recovery.cleaned',
    `everything of ${input.recovery.name}'s recovery is cleaned up`,
  );
}

/** By hand, with its writes: they have their grace time as well. */
async function putAway(world: RecoveryWorld, { recovery }: CloseInput): Promise<void> {
  const { recoveryId: id, name } = recovery;
  const leaseEndMs = world.clock.now() + recoveryLimits.graceMs;
  await world.transaction(async () => {
    await world.recoveries.update(id, { state: 'parked', leaseEndMs, warnings: [] });
    await setKeptTimers(world, id, leaseEndMs);
  });
  const kept = `its writes are kept for ${formatDuration(recoveryLimits.graceMs)}`;
  const message = `${name} is put away; ${kept}, longer with: rouse renew ${id}`;
  await world.tell(id, 'info', 'recovery.kept', message);
}

/** A file-level recovery whose lease has ended: what was written has its grace time, too. */
async function parkDetached(world: RecoveryWorld, { recovery }: CloseInput): Promise<void> {
  const { recoveryId: id, name } = recovery;
  const kept = `what was written is kept for ${formatDuration(recoveryLimits.graceMs)}`;
  const message =
    `The lease of ${name} has ended: its disks are detached, ${kept}. ` +
    `Go on with: rouse resume ${id}`;
  await world.transaction(async () => {
    const leaseEndMs = world.clock.now() + recoveryLimits.graceMs;
    const patch = { state: 'parked', leaseEndMs, warnings: [message] } as const;
    // Settled again after a crash it is parked already, and its timers were cleared above.
    if (!(await world.recoveries.updateWhile(id, ['cleaning', 'parked'], patch))) return;
    await setKeptTimers(world, id, leaseEndMs);
  });
  await world.tell(id, 'warning', 'lease.ended', message);
}

async function clearTimers(world: RecoveryWorld, id: string): Promise<void> {
  await setLeaseTimers(world, id, null);
  await world.engine.clearTimer(`recovery.relocate/${id}`);
}
