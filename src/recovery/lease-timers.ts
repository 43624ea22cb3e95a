import { recoveryLimits } from '../limits.ts';
import type { RecoveryWorld } from './world.ts';

/** What the timers of a lease carry (lease.ts). */
export type LeaseEvent = {
  readonly recoveryId: string;
  readonly what: 'warn' | 'park' | 'clean';
  /** `warn`: how long before the end. */
  readonly beforeMs?: number;
};

const timer = (id: string, what: string) => `recovery.lease/${id}/${what}`;

/** Sets the timers of a lease that ends then; null: there is no lease any more. */
export async function setLeaseTimers(
  world: Pick<RecoveryWorld, 'engine' | 'clock'>,
  id: string,
  leaseEndMs: number | null,
): Promise<void> {
  const { engine } = world;
  await setWarnings(world, id, leaseEndMs ?? 0);
  await engine.clearTimer(timer(id, 'clean'));
  if (leaseEndMs === null) await engine.clearTimer(timer(id, 'park'));
  else await setTimer(engine, timer(id, 'park'), leaseEndMs, { recoveryId: id, what: 'park' });
}

/** What a parked recovery keeps is discarded at `keptUntilMs`, after the same warnings. */
export async function setKeptTimers(
  world: Pick<RecoveryWorld, 'engine' | 'clock'>,
  id: string,
  keptUntilMs: number,
): Promise<void> {
  await setWarnings(world, id, keptUntilMs);
  await world.engine.clearTimer(timer(id, 'park'));
  await setTimer(world.engine, timer(id, 'clean'), keptUntilMs, { recoveryId: id, what: 'clean' });
}

async function setWarnings(
  { engine, clock }: Pick<RecoveryWorld, 'engine' | 'clock'>,
  id: string,
  endMs: number,
): Promise<void> {
  for (const beforeMs of recoveryLimits.leaseWarningsMs) {
    const name = timer(id, `warn-${beforeMs}`);
    const atMs = endMs - beforeMs;
    if (atMs <= clock.now()) await engine.clearTimer(name);
    else await setTimer(engine, name, atMs, { recoveryId: id, what: 'warn', beforeMs });
  }
}

function setTimer(
  engine: RecoveryWorld['engine'],
  name: string,
  atMs: number,
  event: LeaseEvent,
): Promise<void> {
  return engine.setTimer(name, atMs, event);
}
