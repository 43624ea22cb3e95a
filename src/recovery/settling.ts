import { isRouseError } from '../errors.ts';
import type { RunView } from '../workflows/api.ts';
import type { CloseInput } from './cleaning.ts';
import { setLeaseTimers } from './lease.ts';
import type { RecoveryInput } from './plan.ts';
import type { RelocateInput } from './relocating.ts';
import type { RecoveryWorld } from './world.ts';

/** What follows when a run of a recovery has ended; repeatable, as the engine asks. */
export async function settleOpened(
  world: RecoveryWorld,
  run: RunView,
  input: RecoveryInput,
): Promise<void> {
  const id = input.recoveryId;
  const now = world.clock.now();
  if (run.state !== 'done' && input.resumed) {
    await world.recoveries.update(id, { state: 'parked', error: run.error ?? null });
    const why = run.error?.message ?? 'cancelled';
    await world.tell(
      id,
      'error',
      'recovery.parked',
      `${input.name} stays parked with its writes: ${why}`,
    );
    return;
  }
  if (run.state !== 'done') {
    const state = run.state === 'cancelled' ? 'cancelled' : 'failed';
    await world.recoveries.update(id, { state, endedMs: now, error: run.error ?? null });
    const why = run.error === undefined ? '' : `: ${run.error.message}`;
    await world.tell(
      id,
      'error',
      'recovery.failed',
      `${input.name}: the recovery was ${state} and undone${why}`,
    );
    return;
  }
  if (input.mode === 'new') {
    await world.recoveries.update(id, { state: 'done', endedMs: now });
    await world.tell(id, 'info', 'recovery.restored', `${input.name} is restored`);
    return;
  }
  const leaseEndMs = (run.endedMs ?? now) + input.leaseMs;
  await world.recoveries.update(id, { state: 'available', leaseEndMs });
  await setLeaseTimers(world, id, leaseEndMs);
  await world.tell(id, 'info', 'recovery.available', `${input.name} is available`);
  await keepFirstPicture(world, input);
  if (input.relocateTo !== null) {
    const at = input.relocateAtMs ?? world.clock.now();
    await world.engine.setTimer(`recovery.relocate/${id}`, at, { recoveryId: id });
  }
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
  if (run.state !== 'done') {
    await world.recoveries.update(id, { state: 'available' });
    const why = run.error === undefined ? 'cancelled' : run.error.message;
    await world.tell(
      id,
      'warning',
      'recovery.relocation-failed',
      `${name} was not relocated and runs on: ${why}`,
    );
    return;
  }
  await world.recoveries.update(id, { state: 'cleaning' });
  await world.tell(id, 'info', 'recovery.relocated', `${name} was relocated to ${input.to.name}`);
  const close: CloseInput = {
    recovery: input.recovery,
    reason: 'relocated',
    hostId: input.hostId,
    keepWrites: false,
  };
  await world.engine.submit('recovery.close', id, close, `${run.id}.close`);
}

export async function settleClosed(
  world: RecoveryWorld,
  run: RunView,
  input: CloseInput,
): Promise<void> {
  const id = input.recovery.recoveryId;
  const now = world.clock.now();
  if (run.state !== 'done') {
    const error = run.error ?? null;
    await world.recoveries.update(id, { state: 'failed', error });
    await world.tell(
      id,
      'error',
      'recovery.clean-up-failed',
      `clean-up did not finish: ${run.error?.message ?? run.state}`,
    );
    return;
  }
  await clearTimers(world, id);
  if (input.keepWrites) {
    await world.recoveries.update(id, { state: 'parked' });
    await world.tell(
      id,
      'info',
      'recovery.kept',
      `${input.recovery.name} is put away; its writes are kept`,
    );
    return;
  }
  const state = input.reason === 'relocated' ? 'done' : 'cancelled';
  await world.recoveries.update(id, { state, endedMs: now });
  await world.tell(
    id,
    'info',
    'recovery.cleaned',
    `everything of ${input.recovery.name}'s recovery is cleaned up`,
  );
}

async function clearTimers(world: RecoveryWorld, id: string): Promise<void> {
  await setLeaseTimers(world, id, null);
  await world.engine.clearTimer(`recovery.relocate/${id}`);
}
