import type { RecoveryRow } from '../catalog/recoveries.ts';
import { formatDuration } from '../lib/text.ts';
import { recoveryLimits } from '../limits.ts';
import type { Json, RunView, Workflow } from '../workflows/api.ts';
import type { CloseInput } from './cleaning.ts';
import { setKeptTimers, setLeaseTimers } from './lease-timers.ts';
import type { RecoveryInput } from './plan.ts';
import { isProduction } from './production.ts';
import { type RecoveryWorld, submitNext } from './world.ts';

/**
 * What the end of a lease does to the machine. A run of its own, so that it takes its turn with
 * whatever else is asked for the recovery: a machine that is being shut down is not resumed at the
 * same time. The row says `parked` from the beginning.
 */
export type ParkInput = { readonly recovery: RecoveryInput; readonly hostId: string | null };

export function parking(world: RecoveryWorld): Workflow<ParkInput> {
  return {
    kind: 'recovery.park',
    steps: [
      {
        number: 13,
        name: 'Shut down',
        attemptsMax: recoveryLimits.cleaningAttemptsMax,
        run: ({ input }) => shutDown(world, input.recovery),
      },
    ],
    settled: (run, input) => settleParked(world, run, input),
  };
}

type Outcome = { readonly detail: string; readonly isProduction?: boolean };

async function shutDown(world: RecoveryWorld, recovery: RecoveryInput): Promise<Outcome> {
  if (recovery.hypervisorId === null || recovery.mode !== 'instant') {
    return { detail: 'there is no machine' };
  }
  const hypervisor = await world.hypervisor(recovery.hypervisorId);
  const machine = await hypervisor.findMarked(recovery.recoveryId);
  if (machine === undefined) return { detail: 'it is gone already' };
  if (await isProduction(hypervisor, recovery, machine)) {
    return { detail: 'it has moved to other storage and runs on', isProduction: true };
  }
  await hypervisor.powerOff(machine, 'shutdown', recoveryLimits.shutdownMs);
  return { detail: `${recovery.name} is shut down` };
}

async function settleParked(world: RecoveryWorld, run: RunView, input: ParkInput): Promise<void> {
  const id = input.recovery.recoveryId;
  const row = await world.recoveries.get(id);
  // Cancelled or resumed meanwhile: that goes on from here.
  if (row.state !== 'parked') return;
  if (run.state !== 'done') return keepRunning(world, run, row);
  const result = run.steps[0]?.result as Json as Outcome | undefined;
  if (result?.isProduction === true) return cleanUpAfterMove(world, input, row.name);
  const leaseEndMs = world.clock.now() + recoveryLimits.graceMs;
  const kept = `kept for ${formatDuration(recoveryLimits.graceMs)}`;
  const what =
    row.mode === 'instant'
      ? `it is shut down, its writes are ${kept}`
      : `the export and what was written to it are ${kept}`;
  const message = `The lease of ${row.name} has ended: ${what}. Go on with: rouse resume ${id}`;
  await world.transaction(async () => {
    const patch = { warnings: [message], leaseEndMs };
    if (!(await world.recoveries.updateWhile(id, ['parked'], patch))) return;
    await setKeptTimers(world, id, leaseEndMs);
  });
  await world.tell(id, 'warning', 'lease.ended', message);
}

/** It may run still, so it must not be shown as switched off. */
async function keepRunning(world: RecoveryWorld, run: RunView, row: RecoveryRow): Promise<void> {
  const leaseEndMs = world.clock.now() + recoveryLimits.leasePostponedMs;
  await world.transaction(async () => {
    const patch = { state: 'available', leaseEndMs } as const;
    if (!(await world.recoveries.updateWhile(row.id, ['parked'], patch))) return;
    await setLeaseTimers(world, row.id, leaseEndMs);
  });
  const why = run.error?.message ?? run.state;
  const message = `${row.name} could not be shut down at the end of its lease: ${why}`;
  await world.tell(row.id, 'error', 'lease.not-ended', message);
}

async function cleanUpAfterMove(
  world: RecoveryWorld,
  { recovery, hostId }: ParkInput,
  name: string,
): Promise<void> {
  const id = recovery.recoveryId;
  const close: CloseInput = { recovery, reason: 'relocated', hostId, keepWrites: false };
  await world.transaction(async () => {
    if (!(await world.recoveries.updateWhile(id, ['parked'], { state: 'cleaning' }))) return;
    await submitNext(world, id, 'close', close);
  });
  await world.tell(id, 'info', 'recovery.relocated', `${name} was moved to other storage`);
}
