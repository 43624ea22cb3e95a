import { isRouseError, RouseError } from '../../errors.ts';
import type { BackupSpec, MachineDetail, OtherBackup } from '../port.ts';
import type { VimClient } from './client.ts';
import { isAway } from './faults.ts';
import { machineRef } from './inventory.ts';
import { removeSnapshot, snapshotsOf } from './snapshots.ts';
import type { Snapshot } from './snapshots.ts';

/**
 * A backup begins on a machine without snapshots of others of ours: one would make every backup full
 * and grow for ever. What a backup left that is known to have ended is removed, and told. In doubt
 * it stays, and the new backup does not begin: somebody may be reading from it.
 */
export async function removeLeft(
  client: VimClient,
  machine: MachineDetail,
  spec: BackupSpec,
): Promise<readonly string[]> {
  const told: string[] = [];
  for (const left of await snapshotsOf(client, machineRef(machine.id))) {
    const { token } = left;
    if (token === undefined || token === spec.token) continue;
    const state = (await spec.otherBackup?.(token)) ?? 'unknown';
    if (state !== 'ended') throw busyWith(machine.name, left, state);
    await removeOne(client, machine, left, token);
    told.push(`the snapshot ${left.name}, which an earlier backup left behind, was removed first`);
  }
  return told;
}

async function removeOne(
  client: VimClient,
  machine: MachineDetail,
  { name }: Snapshot,
  token: string,
): Promise<void> {
  try {
    await removeSnapshot(client, machine.id, token);
  } catch (error) {
    if (!isRouseError(error) || isAway(error)) throw error;
    const what = `the snapshot ${name} of ${machine.name}, which an earlier backup left behind`;
    throw new RouseError(error.code, `${what}, cannot be removed: ${error.message}`, {
      advice: `${error.advice} Or delete it in vCenter; then back up again.`,
      cause: error,
    });
  }
}

function busyWith(machine: string, { name }: Snapshot, state: OtherBackup): RouseError {
  const advice =
    state === 'running'
      ? 'It goes when that backup ends: rouse backups'
      : 'This server does not know that backup: another one may be at work. If nobody is, delete the snapshot in vCenter.';
  return new RouseError('busy', `another backup of ${machine} holds the snapshot ${name}`, {
    advice,
  });
}
