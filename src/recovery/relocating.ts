import type { RecoveryRow } from '../catalog/recoveries.ts';
import { RouseError } from '../errors.ts';
import type { DatastoreSpec } from '../hypervisors/port.ts';
import { plural } from '../lib/text.ts';
import type { Json, StepContext } from '../workflows/api.ts';
import type { RecoveryInput } from './plan.ts';
import type { RecoveryWorld } from './world.ts';

/** Step 12: the running machine's disks move to production storage. */
export type RelocateInput = {
  readonly recovery: RecoveryInput;
  readonly hostId: string;
  readonly machineId: string;
  readonly from: { readonly [Key in keyof DatastoreSpec]: DatastoreSpec[Key] };
  readonly to: { readonly id: string; readonly name: string };
  readonly bandwidthBytesPerSecond: number;
};

export async function relocateMachine(
  world: RecoveryWorld,
  context: StepContext<RelocateInput>,
): Promise<Json> {
  const { input } = context;
  const hypervisor = await hypervisorOf(world, input);
  const moved = await hypervisor.relocate(
    {
      machineId: input.machineId,
      fromDatastore: input.from,
      toDatastoreId: input.to.id,
      bandwidthBytesPerSecond: input.bandwidthBytesPerSecond,
    },
    {
      signal: context.signal,
      progress: (done, total) => context.progress({ done, total, unit: 'bytes' }),
    },
  );
  const bytes = moved.disks.reduce((sum, disk) => sum + disk.sizeBytes, 0);
  return {
    detail: `${plural(moved.disks.length, 'disk')} now on ${input.to.name}`,
    bytes,
    disks: moved.disks.map((disk) => ({ ...disk })),
  };
}

/**
 * The driver itself aborts its copy when cancelled, and finds a copy that a killed server left.
 * What is left for undo is to make sure that none runs: relocating with an aborted signal does.
 */
export async function stopRelocation(
  world: RecoveryWorld,
  { input }: StepContext<RelocateInput>,
): Promise<void> {
  const hypervisor = await hypervisorOf(world, input);
  await hypervisor.stopRelocation(input.machineId);
}

function hypervisorOf(world: RecoveryWorld, input: RelocateInput) {
  const { hypervisorId } = input.recovery;
  if (hypervisorId === null) {
    throw new RouseError('wrong-state', 'a publication has no machine to relocate');
  }
  return world.hypervisor(hypervisorId);
}

export function notNow({ id, state }: RecoveryRow): RouseError {
  const now = state === 'available' ? 'no longer available' : state;
  return new RouseError('wrong-state', `recovery ${id} is ${now}`, {
    advice: 'A recovery is relocated while it is available.',
  });
}

export function noTarget(): RouseError {
  return new RouseError('bad-request', 'no datastore is named to relocate to', {
    advice: 'Name one: rouse relocate RECOVERY --to DATASTORE',
  });
}
