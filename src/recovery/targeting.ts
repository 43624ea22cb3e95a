import { RouseError } from '../errors.ts';
import type { Hypervisor } from '../hypervisors/port.ts';
import { formatBytes } from '../lib/text.ts';
import type { Saveset } from '../vault/api.ts';
import { hostOfTarget } from './attaching.ts';
import type { RecoveryInput } from './plan.ts';
import type { RecoveryRequest } from './schema.ts';

export interface FoundMachine {
  readonly id: string;
  readonly name: string;
  readonly hypervisorId: string;
  /** What its hypervisor calls it. */
  readonly managedId?: string;
}

interface Finder {
  hypervisor(id: string): Promise<Hypervisor>;
  findMachine(reference: string, hypervisor: string | undefined): Promise<FoundMachine>;
}

/**
 * Mode `flr`: the running machine that the disks are for; null in other modes. Throws `not-found`
 * for an unknown machine and for a disk that the saveset has not, `wrong-state` for a machine that
 * does not run and `host-unreachable` for one whose host is away.
 */
export async function chooseTarget(
  desk: Finder,
  request: RecoveryRequest,
  saveset: Saveset,
): Promise<FoundMachine | null> {
  if (request.mode !== 'flr') return null;
  const known = saveset.disks.map(({ name }) => ({ id: name, name }));
  for (const wanted of request.disks ?? []) {
    if (known.some(({ name }) => name === wanted)) continue;
    const names = known.map(({ name }) => name).join(', ');
    throw new RouseError('not-found', `saveset ${saveset.id} has no disk ${wanted}`, {
      advice: `Its disks are: ${names}.`,
    });
  }
  const reference = request.into ?? '';
  const target = await findTarget(desk, reference, request.hypervisor);
  const hypervisor = await desk.hypervisor(target.hypervisorId);
  // Looked at again in step 3: refused here, it is said at once and nothing is begun.
  hostOfTarget(await hypervisor.inventory(), target);
  return target;
}

/** Said apart: a machine that is on another hypervisor than the one named. */
async function findTarget(
  desk: Finder,
  reference: string,
  hypervisor: string | undefined,
): Promise<FoundMachine> {
  try {
    return await desk.findMachine(reference, hypervisor);
  } catch (error) {
    const isMissing = error instanceof RouseError && error.code === 'not-found';
    if (!isMissing || hypervisor === undefined) throw error;
    const elsewhere = await desk.findMachine(reference, undefined).catch(() => undefined);
    if (elsewhere === undefined) throw error;
    throw new RouseError('not-found', `${elsewhere.name} is not on hypervisor ${hypervisor}`, {
      advice: 'It is on another one: leave --hypervisor out.',
    });
  }
}

/** What a dry run says of the target. */
export function attachments(
  { target, disks }: Pick<RecoveryInput, 'target' | 'disks'>,
  saveset: Saveset,
): string[] {
  if (!target) return [];
  const chosen = saveset.disks.filter(({ name }) => disks?.includes(name) ?? true);
  return chosen.map(
    ({ name, root }) => `${target.name} sees ${name} of the backup, ${formatBytes(root.sizeBytes)}`,
  );
}

/** What it is called in lists: two targets may see disks of one machine. */
export function nameOf(saveset: Saveset, target: FoundMachine | null): string {
  const { name } = saveset.machine;
  return target === null ? name : `${name}-in-${target.name}`;
}

/** What is written down of the target. */
export function targetOf({ id, name, managedId }: FoundMachine): RecoveryInput['target'] {
  return { id, name, ...(managedId === undefined ? {} : { managedId }) };
}
