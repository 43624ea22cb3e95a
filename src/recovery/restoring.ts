import type { DiskTarget, Hypervisor } from '../hypervisors/port.ts';
import { RouseError } from '../errors.ts';
import { runJob } from '../proxy/jobs-client.ts';
import type { StepContext } from '../workflows/api.ts';
import { recoveryLimits } from '../limits.ts';
import { folderOf, type ReachableProxy, type RecoveryInput } from './plan.ts';

/** A disk of a full restore: its name in the saveset and the file it became. */
export type RestoredDisk = { readonly name: string; readonly target: DiskTarget };

type Context = StepContext<RecoveryInput>;

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
  if (context.input.datastore === null) return;
  for (const { target } of await targets(hypervisor, proxy, context)) {
    await hypervisor.removeDisk(target);
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
  const wanted = input.datastore;
  const { datastores } = await hypervisor.inventory();
  const datastore = datastores.find(({ id, name }) => id === wanted || name === wanted);
  if (datastore === undefined) {
    const known = datastores.map(({ name }) => name).join(', ');
    throw new RouseError('not-found', `there is no datastore ${wanted ?? 'named'}`, {
      advice: `Name one with --datastore. Datastores are: ${known || 'none'}.`,
    });
  }
  const saveset = await proxy.calls.saveset(input.savesetId);
  const needed = saveset.disks.reduce((sum, disk) => sum + disk.root.sizeBytes, 0);
  if (datastore.freeBytes < needed * recoveryLimits.restoreFreeShare) {
    throw new RouseError(
      'disk-full',
      `datastore ${datastore.name} has ${datastore.freeBytes} bytes free; the disks have ${needed}`,
    );
  }
  const made: RestoredDisk[] = [];
  for (const disk of saveset.disks) {
    const target = await hypervisor.createDisk(datastore.id, {
      machineName: folderOf(input.name),
      diskName: disk.name,
      sizeBytes: disk.root.sizeBytes,
    });
    made.push({ name: disk.name, target });
  }
  return made;
}
