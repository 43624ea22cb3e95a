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
  const { engine, clock } = world;
  for (const beforeMs of recoveryLimits.leaseWarningsMs) {
    const name = timer(id, `warn-${beforeMs}`);
    const atMs = (leaseEndMs ?? 0) - beforeMs;
    if (atMs <= clock.now()) await engine.clearTimer(name);
    else await setTimer(engine, name, atMs, { recoveryId: id, what: 'warn', beforeMs });
  }
  await engine.clearTimer(timer(id, 'clean'));
  if (leaseEndMs === null) await engine.clearTimer(timer(id, 'park'));
  else await setTimer(engine, timer(id, 'park'), leaseEndMs, { recoveryId: id, what: 'park' });
}

/** A parked recovery is cleaned up when the grace time has passed. */
export async function setGraceTimer(
  { engine, clock }: Pick<RecoveryWorld, 'engine' | 'clock'>,
  id: string,
): Promise<void> {
  const atMs = clock.now() + recoveryLimits.graceMs;
  await setTimer(engine, timer(id, 'clean'), atMs, { recoveryId: id, what: 'clean' });
}

function setTimer(
  engine: RecoveryWorld['engine'],
  name: string,
  atMs: number,
  event: LeaseEvent,
): Promise<void> {
  return engine.setTimer(name, atMs, event);
}
