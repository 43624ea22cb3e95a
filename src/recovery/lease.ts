import type { RecoveryRow } from '../catalog/recoveries.ts';
import { RouseError } from '../errors.ts';
import { formatDuration } from '../lib/text.ts';
import { formatTime } from '../lib/times.ts';
import { recoveryLimits } from '../limits.ts';
import type { Json } from '../workflows/api.ts';
import type { CloseInput } from './cleaning.ts';
import { type LeaseEvent, setKeptTimers, setLeaseTimers } from './lease-timers.ts';
import { parking, type ParkInput } from './parking.ts';
import type { RecoveryInput } from './plan.ts';
import { type RecoveryWorld, submitNext } from './world.ts';

/**
 * A lease says until when a recovery stays. People are warned before it ends; at its end the
 * machine is parked: shut down, its writes and its registration kept for the grace time, which is
 * then the lease's end in its row, with the same warnings. Only then is it cleaned up. What was put
 * away by hand with its writes ends likewise. Nothing is ever cut off without a word.
 *
 * Timers fire at least once and may be late, so each looks at the row and the clock again before
 * it acts: a lease that was renewed meanwhile ends later, and an old warning is not repeated.
 */
/** To be called once, before the engine starts. */
export function listenToLeases(
  world: RecoveryWorld,
  inputOf: (recoveryId: string) => Promise<RecoveryInput>,
  hostIdOf: (recoveryId: string) => Promise<string | null>,
): void {
  world.engine.register(parking(world));
  world.engine.onTimer('recovery.lease/', async (_name, payload: Json) => {
    const { recoveryId: id, what, beforeMs } = payload as LeaseEvent;
    if (what === 'warn') return warn(world, id, beforeMs ?? 0);
    const recovery = await inputOf(id);
    const hostId = await hostIdOf(id);
    if (what === 'park') return end(world, { recovery, hostId });
    await clean(world, { recovery, hostId });
  });
}

async function warn(world: RecoveryWorld, id: string, beforeMs: number): Promise<void> {
  const { recoveries, clock } = world;
  const row = await recoveries.get(id);
  if (row.leaseEndMs === null) return;
  const leftMs = row.leaseEndMs - clock.now();
  // Late, as when the server was away: the next warning or the end itself is due as well.
  const isOver = recoveryLimits.leaseWarningsMs.some((next) => next < beforeMs && leftMs <= next);
  if (leftMs <= 0 || leftMs > beforeMs || isOver) return;
  const isParked = row.state === 'parked';
  const what = isParked ? `What ${row.name} wrote is discarded` : `The lease of ${row.name} ends`;
  const message =
    `${what} in ${formatDuration(leftMs)}, at ${formatTime(row.leaseEndMs)}; ` +
    `keep it with: rouse renew ${id}`;
  const states = isParked ? (['parked'] as const) : holding;
  if (!(await recoveries.updateWhile(id, states, { warnings: [message] }))) return;
  await world.tell(id, 'warning', 'lease.ends-soon', message);
}

const holding: readonly RecoveryRow['state'][] = ['available', 'relocating'];

/** The end of a lease; a machine that is on its way to production is not stopped for it. */
async function end(world: RecoveryWorld, input: ParkInput): Promise<void> {
  const id = input.recovery.recoveryId;
  const { recoveries, clock } = world;
  const postponed = await world.transaction(async () => {
    const row = await recoveries.get(id);
    if (row.leaseEndMs === null || row.leaseEndMs > clock.now()) return false;
    if (row.mode === 'flr') {
      await detach(world, input);
      return false;
    }
    if (await recoveries.updateWhile(id, ['available'], { state: 'parked', warnings: [] })) {
      await submitNext(world, id, 'park', input);
      return false;
    }
    const leaseEndMs = clock.now() + recoveryLimits.leasePostponedMs;
    if (!(await recoveries.updateWhile(id, ['relocating'], { leaseEndMs }))) return false;
    await setLeaseTimers(world, id, leaseEndMs);
    return true;
  });
  if (!postponed) return;
  const message = `The lease of ${input.recovery.name} goes on while it is relocated`;
  await world.tell(id, 'warning', 'lease.extended', message);
}

/** No machine of ours is to be shut down: the disks go, what was written stays for a while. */
async function detach(world: RecoveryWorld, { recovery, hostId }: ParkInput): Promise<void> {
  const id = recovery.recoveryId;
  const patch = { state: 'cleaning', warnings: [] } as const;
  if (!(await world.recoveries.updateWhile(id, ['available'], patch))) return;
  const close: CloseInput = { recovery, reason: 'lease', hostId, keepWrites: true };
  await submitNext(world, id, 'close', close);
}

async function clean(world: RecoveryWorld, { recovery, hostId }: ParkInput): Promise<void> {
  const id = recovery.recoveryId;
  const close: CloseInput = { recovery, reason: 'lease', hostId, keepWrites: false };
  await world.transaction(async () => {
    const { leaseEndMs } = await world.recoveries.get(id);
    if ((leaseEndMs ?? 0) > world.clock.now()) return;
    if (!(await world.recoveries.updateWhile(id, ['parked'], { state: 'cleaning' }))) return;
    await submitNext(world, id, 'close', close);
  });
}

/** A new end: of the lease, or of the time for which a parked recovery's writes are kept. */
export async function renewLease(
  world: RecoveryWorld,
  { id, name }: RecoveryRow,
  leaseMs: number,
): Promise<void> {
  const leaseEndMs = world.clock.now() + leaseMs;
  const patch = { leaseEndMs, warnings: [] };
  const isParked = await world.transaction(async () => {
    if (await world.recoveries.updateWhile(id, holding, patch)) {
      await setLeaseTimers(world, id, leaseEndMs);
      return false;
    }
    if (!(await world.recoveries.updateWhile(id, ['parked'], patch))) {
      const { state } = await world.recoveries.get(id);
      throw new RouseError('wrong-state', `recovery ${id} is ${state}: it has no lease`, {
        advice: 'Only a recovery that is available, being relocated or parked has an end to move.',
      });
    }
    await setKeptTimers(world, id, leaseEndMs);
    return true;
  });
  const left = formatDuration(leaseMs);
  const message = isParked
    ? `what ${name} wrote is now kept for ${left}`
    : `the lease of ${name} now ends in ${left}`;
  await world.tell(id, 'info', 'lease.renewed', message);
}
