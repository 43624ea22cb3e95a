import { RouseError } from '../errors.ts';
import type { Datastore, Inventory } from '../hypervisors/port.ts';
import { formatBytes, pick } from '../lib/text.ts';
import { recoveryLimits } from '../limits.ts';
import type { Saveset } from '../vault/api.ts';
import type { RecoveryInput } from './plan.ts';

/**
 * Where disks are moved or written to for good. The export of a recovery is no such place, also when
 * it is named: it goes when that recovery does, with all that lies on it.
 */
export function findDatastore(
  datastores: readonly Datastore[],
  { datastore: wanted }: Pick<RecoveryInput, 'datastore'>,
  hostId?: string,
): Datastore {
  const found = lookForDatastore(datastores, wanted, hostId);
  if (found !== undefined) return refuseBackup(found, datastores);
  throw new RouseError('not-found', `there is no datastore ${wanted ?? 'named'}`, {
    advice: `Name one with --datastore. ${listed(datastores)}`,
  });
}

/** The same name may be another datastore in another data centre: the one that the host has. */
export function lookForDatastore(
  datastores: readonly Datastore[],
  wanted: string | null,
  hostId?: string,
): Datastore | undefined {
  const found = datastores.filter(({ id, name }) => id === wanted || name === wanted);
  const onHost = found.find(({ hostIds }) => hostId !== undefined && hostIds.includes(hostId));
  return onHost ?? found[0];
}

/** For a relocation, by id, unambiguous beginning of one, or name. */
export function pickDatastore(datastores: readonly Datastore[], wanted: string): Datastore {
  const production = datastores.filter((one) => !showsBackup(one));
  const ours = datastores.find(({ id, name }) => id === wanted || name === wanted);
  return ours !== undefined && showsBackup(ours)
    ? refuseBackup(ours, datastores)
    : pick('datastore', wanted, production);
}

function refuseBackup(found: Datastore, datastores: readonly Datastore[]): Datastore {
  if (!showsBackup(found)) return found;
  const what = `datastore ${found.name} shows a backup, and goes with its recovery`;
  throw new RouseError('bad-request', what, { advice: `Name production. ${listed(datastores)}` });
}

/** `server:/mtree/Recover-<proxy>-<id>`, mounted by whomever. */
function showsBackup({ kind, location }: Datastore): boolean {
  return kind === 'nfs' && /\/Recover-[^/]+-[a-z0-9]+$/u.test(location);
}

function listed(datastores: readonly Datastore[]): string {
  const names = new Set(datastores.filter((one) => !showsBackup(one)).map(({ name }) => name));
  return `Datastores are: ${[...names].join(', ') || 'none'}.`;
}

/** Disks are sparse where they go: a share of their size must be free. */
export function refuseFull({ name, freeBytes }: Datastore, neededBytes: number): void {
  if (freeBytes >= neededBytes * recoveryLimits.restoreFreeShare) return;
  throw new RouseError(
    'disk-full',
    `datastore ${name} has ${formatBytes(freeBytes)} free; ` +
      `the disks have ${formatBytes(neededBytes)}`,
    { advice: 'Free space there, or name another datastore with --datastore.' },
  );
}

export function sizeOf({ disks }: Pick<Saveset, 'disks'>): number {
  return disks.reduce((sum, { root }) => sum + root.sizeBytes, 0);
}

/** Said before anything is begun; a later relocation looks for room itself. */
export function refuseTarget(
  { datastores }: Inventory,
  input: RecoveryInput,
  sizeBytes: number,
): void {
  if (input.mode === 'new') refuseFull(findDatastore(datastores, input), sizeBytes);
  if (input.relocateTo !== null) pickDatastore(datastores, input.relocateTo);
}
