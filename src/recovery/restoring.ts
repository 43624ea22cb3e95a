import type { Datastore, DiskTarget, Hypervisor } from '../hypervisors/port.ts';
import { isRouseError, RouseError } from '../errors.ts';
import type { Saveset } from '../vault/api.ts';
import { runJob } from '../proxy/jobs-client.ts';
import type { StepContext } from '../workflows/api.ts';
import { folderOf, type ReachableProxy, type RecoveryInput } from './plan.ts';
import { findDatastore, lookForDatastore, refuseFull, sizeOf } from './target-datastore.ts';

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
  const datastore = lookForDatastore(datastores, context.input.datastore);
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
  refuseFull(datastore, sizeOf(saveset));
  const made: RestoredDisk[] = [];
  for (const disk of saveset.disks) {
    made.push(await makeDisk(hypervisor, datastore, input, disk));
  }
  return made;
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
