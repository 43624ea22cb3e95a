import type { Datastore, DiskTarget, Hypervisor } from '../hypervisors/port.ts';
import { isRouseError, RouseError } from '../errors.ts';
import { formatBytes } from '../lib/text.ts';
import type { Saveset } from '../vault/api.ts';
import { runJob } from '../proxy/jobs-client.ts';
import type { StepContext } from '../workflows/api.ts';
import { recoveryLimits } from '../limits.ts';
import { folderOf, type ReachableProxy, type RecoveryInput } from './plan.ts';

/** A disk of a full restore: its name in the saveset and the file it became. */
export type RestoredDisk = { readonly name: string; readonly target: DiskTarget };

type Context = StepContext<RecoveryInput>;
type SavesetDisk = Saveset['disks'][number];

/** Mode `new`, step 8: whole disks are written to a production datastore. */
export async function restoreDisks(
  hypervisor: Hypervisor,
  proxy: ReachableProxy,
  context: Context,
): Promise<RestoredDisk[]> {
  const disks = await targets(hypervisor, proxy, context);
  const spec = {
    kind: 'restore',
    id: restoreJobId(context),
    savesetId: context.input.savesetId,
    disks: disks.map(({ name, target }) => ({ name, path: target.path, format: target.format })),
  } as const;
  await runJob(proxy.calls, spec, context.signal, (view) =>
    context.progress({ done: view.doneBytes, total: view.totalBytes, unit: 'bytes' }),
  );
  return disks;
}

/** Takes the restore back: the job first, then the files it wrote. */
export async function undoRestore(
  hypervisor: Hypervisor,
  proxy: ReachableProxy,
  context: Context,
): Promise<void> {
  await proxy.calls.cancelJob(restoreJobId(context)).catch((error: unknown) => {
    if (!(error instanceof RouseError) || error.code !== 'not-found') throw error;
  });
  const { datastores } = await hypervisor.inventory();
  const datastore = lookForDatastore(datastores, context.input);
  if (datastore === undefined) return;
  const saveset = await proxy.calls.saveset(context.input.savesetId);
  for (const disk of saveset.disks) {
    const made = await madeDisk(hypervisor, datastore, context.input, disk);
    if (made !== undefined) await hypervisor.removeDisk(made.target);
  }
}

/** Undefined: a file of that name is there which is not ours, so the restore made none. */
async function madeDisk(
  hypervisor: Hypervisor,
  datastore: Datastore,
  input: RecoveryInput,
  disk: SavesetDisk,
): Promise<RestoredDisk | undefined> {
  try {
    return await makeDisk(hypervisor, datastore, input, disk);
  } catch (error) {
    if (isRouseError(error, 'already-exists')) return undefined;
    throw error;
  }
}

function restoreJobId(context: Context): string {
  return `${context.input.recoveryId}.restore`;
}

/** `createDisk` is idempotent by machine and disk name: asking again answers the same paths. */
async function targets(
  hypervisor: Hypervisor,
  proxy: ReachableProxy,
  { input }: Context,
): Promise<RestoredDisk[]> {
  const { datastores } = await hypervisor.inventory();
  const datastore = findDatastore(datastores, input);
  const saveset = await proxy.calls.saveset(input.savesetId);
  refuseFull(
    datastore,
    saveset.disks.reduce((sum, disk) => sum + disk.root.sizeBytes, 0),
  );
  const made: RestoredDisk[] = [];
  for (const disk of saveset.disks) {
    made.push(await makeDisk(hypervisor, datastore, input, disk));
  }
  return made;
}

/** The datastore that was asked for, by id or name. Throws `not-found`, with those that there are. */
export function findDatastore(datastores: readonly Datastore[], input: RecoveryInput): Datastore {
  const found = lookForDatastore(datastores, input);
  if (found !== undefined) return found;
  const known = datastores.map(({ name }) => name).join(', ');
  throw new RouseError('not-found', `there is no datastore ${input.datastore ?? 'named'}`, {
    advice: `Name one with --datastore. Datastores are: ${known || 'none'}.`,
  });
}

function lookForDatastore(
  datastores: readonly Datastore[],
  { datastore: wanted }: RecoveryInput,
): Datastore | undefined {
  return datastores.find(({ id, name }) => id === wanted || name === wanted);
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

async function makeDisk(
  hypervisor: Hypervisor,
  datastore: Datastore,
  input: RecoveryInput,
  disk: SavesetDisk,
): Promise<RestoredDisk> {
  const target = await hypervisor.createDisk(datastore.id, {
    machineName: folderOf(input.name),
    diskName: disk.name,
    sizeBytes: disk.root.sizeBytes,
  });
  return { name: disk.name, target };
}
