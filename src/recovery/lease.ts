import { formatDuration } from '../lib/text.ts';
import { recoveryLimits } from '../limits.ts';
import type { Json } from '../workflows/api.ts';
import type { CloseInput } from './cleaning.ts';
import type { RecoveryInput } from './plan.ts';
import type { RecoveryWorld } from './world.ts';

/**
 * A lease says until when a recovery stays. People are warned before it ends; at its end the
 * machine is parked: shut down, its writes and its registration kept for the grace time. Only
 * then is it cleaned up. Nothing is ever cut off without a word.
 */
type LeaseEvent = { readonly recoveryId: string; readonly what: 'warn' | 'park' | 'clean' };

const names = (id: string) => [
  ...recoveryLimits.leaseWarningsMs.map((before) => `recovery.lease/${id}/warn-${before}`),
  `recovery.lease/${id}/park`,
  `recovery.lease/${id}/clean`,
];

/** Sets the timers of a lease that ends then; null: there is no lease any more. */
export async function setLeaseTimers(
  world: RecoveryWorld,
  id: string,
  leaseEndMs: number | null,
): Promise<void> {
  for (const name of names(id)) await world.engine.clearTimer(name);
  if (leaseEndMs === null) return;
  for (const before of recoveryLimits.leaseWarningsMs) {
    const at = leaseEndMs - before;
    if (at <= world.clock.now()) continue;
    await world.engine.setTimer(`recovery.lease/${id}/warn-${before}`, at, {
      recoveryId: id,
      what: 'warn',
    });
  }
  await world.engine.setTimer(`recovery.lease/${id}/park`, leaseEndMs, {
    recoveryId: id,
    what: 'park',
  });
}

/** To be called once, before the engine starts. */
export function listenToLeases(
  world: RecoveryWorld,
  inputOf: (recoveryId: string) => Promise<RecoveryInput>,
  hostIdOf: (recoveryId: string) => Promise<string | null>,
): void {
  world.engine.onTimer('recovery.lease/', async (_name, payload: Json) => {
    const event = payload as LeaseEvent;
    const row = await world.recoveries.get(event.recoveryId);
    if (event.what === 'clean') {
      if (row.state !== 'parked') return;
      await cleanParked(world, await inputOf(row.id), await hostIdOf(row.id));
      return;
    }
    if (row.state !== 'available' && row.state !== 'relocating') return;
    if (event.what === 'warn') return warn(world, row.id, row.name, row.leaseEndMs);
    if (row.state === 'relocating') return postpone(world, row.id, row.name);
    await park(world, await inputOf(row.id));
  });
}

async function warn(
  world: RecoveryWorld,
  id: string,
  name: string,
  leaseEndMs: number | null,
): Promise<void> {
  const left = formatDuration((leaseEndMs ?? 0) - world.clock.now());
  const message = `The lease of ${name} ends in ${left}; keep it with: rouse renew ${id}`;
  await world.tell(id, 'warning', 'lease.ends-soon', message);
  const row = await world.recoveries.get(id);
  await world.recoveries.update(id, { warnings: [...row.warnings, message] });
}

/** A machine that is on its way to production is not stopped for a lease. */
async function postpone(world: RecoveryWorld, id: string, name: string): Promise<void> {
  const leaseEndMs = world.clock.now() + 3_600_000;
  await world.recoveries.update(id, { leaseEndMs });
  await setLeaseTimers(world, id, leaseEndMs);
  await world.tell(
    id,
    'warning',
    'lease.extended',
    `The lease of ${name} goes on while it is relocated`,
  );
}

async function park(world: RecoveryWorld, input: RecoveryInput): Promise<void> {
  const id = input.recoveryId;
  if (input.hypervisorId !== null && input.mode === 'instant') {
    const hypervisor = await world.hypervisor(input.hypervisorId);
    const machine = await hypervisor.findMarked(id);
    if (machine !== undefined) {
      await hypervisor.powerOff(machine, 'shutdown', recoveryLimits.shutdownMs);
    }
  }
  const cleanAtMs = world.clock.now() + recoveryLimits.graceMs;
  await world.recoveries.update(id, { state: 'parked' });
  await world.engine.setTimer(`recovery.lease/${id}/clean`, cleanAtMs, {
    recoveryId: id,
    what: 'clean',
  });
  const kept = formatDuration(recoveryLimits.graceMs);
  await world.tell(
    id,
    'warning',
    'lease.ended',
    `The lease of ${input.name} has ended: it is shut down, its writes are kept for ${kept}. ` +
      `Go on with: rouse resume ${id}`,
  );
}

async function cleanParked(
  world: RecoveryWorld,
  input: RecoveryInput,
  hostId: string | null,
): Promise<void> {
  const id = input.recoveryId;
  await world.recoveries.update(id, { state: 'cleaning' });
  const close: CloseInput = { recovery: input, reason: 'lease', hostId, keepWrites: false };
  await world.engine.submit('recovery.close', id, close, `${id}.close.lease`);
}
