import type { Traces } from '../../hypervisors/port.ts';
import type { Hand } from './hand.ts';
import type { ReconcileWorld } from './reconcile.ts';
import type { Seen, SeenHypervisor } from './seen.ts';

type Trace = Traces['backups'][number];

/**
 * Jobs, snapshots and checkpoints of backups that have ended. Those of a token that this server does
 * not know may be another server's, which works with the same hypervisor: they are left.
 */
export async function endLeftBackups(
  world: ReconcileWorld,
  hand: Hand,
  { hypervisors }: Seen,
): Promise<void> {
  const kept = await world.checkpoints();
  for (const at of hypervisors.values()) {
    const ended = new Set<string>();
    for (const trace of at.traces.backups) {
      // One call ends all that one backup left at a machine.
      const key = `${trace.machineId} ${trace.token}`;
      if (ended.has(key) || !(await isLeft(world, kept, at, trace))) continue;
      ended.add(key);
      await endOne(world, hand, kept, at, trace);
    }
  }
}

/** The checkpoint of the last saveset is where the next backup goes on from. */
async function isLeft(
  world: ReconcileWorld,
  kept: ReadonlySet<string>,
  at: SeenHypervisor,
  { kind, token, machineId }: Trace,
): Promise<boolean> {
  if (await world.isBackupRunning(token)) return false;
  if (kind !== 'checkpoint') return true;
  // Of a machine that is off, a checkpoint cannot be deleted: the next stored backup does it.
  const machine = at.inventory.machines.find(({ id }) => id === machineId);
  return !isKept(kept, token) && machine?.power === 'on';
}

function isKept(kept: ReadonlySet<string>, token: string): boolean {
  return kept.has(token) || kept.has(`rouse-${token}`);
}

async function endOne(
  world: ReconcileWorld,
  hand: Hand,
  kept: ReadonlySet<string>,
  at: SeenHypervisor,
  { kind, token, machineId, machineName }: Trace,
): Promise<void> {
  const thing = {
    kind: 'backup' as const,
    name: `${kind} rouse-${token} of ${machineName}`,
    where: at.name,
    recovery: null,
  };
  const state = await world.backupState(token);
  if (state === undefined) {
    const note = 'It may be of another server: it is left alone. Remove it by hand if it is not.';
    hand.leave(thing, `no backup ${token} is known`, note);
    return;
  }
  await hand.mend(thing, `its backup is ${state}`, 'ended and removed', async () => {
    if (await world.isBackupRunning(token)) return;
    const outcome = isKept(kept, token) ? 'stored' : 'failed';
    await at.driver.endBackup(machineId, token, outcome);
  });
}
