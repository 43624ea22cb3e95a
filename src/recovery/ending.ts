import type { RecoveryRow } from '../catalog/recoveries.ts';
import { recoveryLimits } from '../limits.ts';
import type { CloseInput } from './cleaning.ts';
import type { RecoveryInput } from './plan.ts';
import { isOpening, type RecoveryWorld, submitNext } from './world.ts';

export interface EndRequest {
  readonly keepWrites: boolean;
  readonly hostId: string | null;
}

/**
 * Cancel. Ends what runs: an opening is undone, a relocation is stopped (the machine runs on, and
 * whoever wants it gone says so again), anything else that holds something is cleaned up. Answers
 * false when its state allows none of these. States change only from the one that was meant, so
 * that of two requests at once one wins.
 */
export async function endRecovery(
  world: RecoveryWorld,
  row: RecoveryRow,
  inputOf: (row: RecoveryRow) => RecoveryInput,
  request: EndRequest,
): Promise<boolean> {
  const { engine } = world;
  const runs = await engine.runs({ subject: row.id, active: true });
  const relocating = runs.find(({ kind }) => kind === 'recovery.relocate');
  if (relocating !== undefined && row.state === 'relocating') {
    await engine.cancel(relocating.id);
    await waitFor(world, relocating.id);
    return true;
  }
  const opening = runs.find(isOpening);
  return (
    (opening !== undefined && (await cancelOpening(world, row.id, opening.id))) ||
    (await close(world, row.id, inputOf, request)) ||
    (await cutOff(world, row, inputOf)) ||
    (await cleanAgain(world, row.id))
  );
}

/** A proxy or a hypervisor that is away must not keep people waiting. */
async function waitFor({ clock, engine }: RecoveryWorld, runId: string): Promise<void> {
  const patience = new AbortController();
  const late = clock.sleep(recoveryLimits.cancelWaitMs, patience.signal);
  const ended = engine.finished(runId, patience.signal);
  try {
    await Promise.race([ended, late]);
  } finally {
    patience.abort();
    await Promise.allSettled([ended, late]);
  }
}

/** When its last step has ended just now, settling sees the state and cleans up (settling.ts). */
function cancelOpening(
  { recoveries, engine, transaction }: RecoveryWorld,
  recoveryId: string,
  runId: string,
): Promise<boolean> {
  return transaction(async () => {
    const patch = { state: 'cleaning' } as const;
    const isStarting = await recoveries.updateWhile(recoveryId, ['starting'], patch);
    if (isStarting) await engine.cancel(runId);
    return isStarting;
  });
}

function close(
  world: RecoveryWorld,
  recoveryId: string,
  inputOf: (row: RecoveryRow) => RecoveryInput,
  { keepWrites, hostId }: EndRequest,
): Promise<boolean> {
  const { recoveries, transaction } = world;
  return transaction(async () => {
    const patch = { state: 'cleaning' } as const;
    const isHeld = await recoveries.updateWhile(recoveryId, ['available', 'parked'], patch);
    if (!isHeld) return false;
    const recovery = inputOf(await recoveries.get(recoveryId));
    const input: CloseInput = { recovery, reason: 'cancelled', hostId, keepWrites };
    await submitNext(world, recoveryId, 'close', input);
    return true;
  });
}

/** The clean-up of a publication may wait for its clients (cleaning.ts): it need not any more. */
function cutOff(
  { recoveries }: RecoveryWorld,
  row: RecoveryRow,
  inputOf: (row: RecoveryRow) => RecoveryInput,
): Promise<boolean> | boolean {
  if (row.mode !== 'publish') return false;
  const options: RecoveryInput = { ...inputOf(row), cutOff: true };
  return recoveries.updateWhile(row.id, ['cleaning'], { options });
}

/** A clean-up that gave up left something behind: it is tried again as it was asked for. */
function cleanAgain(world: RecoveryWorld, recoveryId: string): Promise<boolean> {
  const { recoveries, engine, transaction } = world;
  return transaction(async () => {
    const last = (await engine.runs({ subject: recoveryId, kind: 'recovery.close' })).at(-1);
    if (last?.state !== 'failed') return false;
    const patch = { state: 'cleaning', error: null } as const;
    if (!(await recoveries.updateWhile(recoveryId, ['failed'], patch))) return false;
    await submitNext(world, recoveryId, 'close', last.input);
    return true;
  });
}
