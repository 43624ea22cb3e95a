import { isRouseError, RouseError } from '../errors.ts';
import type { Host, Hypervisor, Inventory } from '../hypervisors/port.ts';
import { datastoreNameOf, type RecoveryInput } from './plan.ts';

/**
 * Everything that would keep this recovery from working on that host, said at once and before
 * anything is changed. One thing that is wrong keeps its own code; several are told as a list.
 */
export async function refuseUnfit(
  hypervisor: Hypervisor,
  inventory: Inventory,
  host: Host,
  input: RecoveryInput,
  ours: string | undefined,
): Promise<void> {
  const taken = nameTaken(inventory, input, ours);
  const { problems } = await hypervisor.preflight({
    hostId: host.id,
    datastore: datastoreNameOf(input),
  });
  if (problems.length === 0) {
    if (taken !== undefined) throw taken;
    return;
  }
  const name = taken && { message: taken.message, advice: taken.advice };
  const all = [...(name === undefined ? [] : [name]), ...problems];
  const messages = all.map(({ message }) => message).join('; ');
  throw new RouseError('hypervisor-error', `${host.name} cannot take ${input.name}: ${messages}`, {
    advice: [...new Set(all.map(({ advice }) => advice))].join(' '),
    details: { problems: all },
  });
}

/** A name or a kept identity that somebody else has is refused before anything is made. */
export function refuseTakenName(
  inventory: Inventory,
  input: Pick<RecoveryInput, 'name' | 'mode' | 'identity' | 'machine'>,
  ours: string | undefined,
): void {
  // No machine of that name is made.
  if (input.mode === 'flr') return;
  const others = inventory.machines.filter(({ id }) => id !== ours);
  const named = others.find(({ name }) => name === input.name);
  if (named !== undefined) {
    throw new RouseError('already-exists', `a machine named ${input.name} exists (${named.uuid})`, {
      advice: `Choose another name: --name ${input.name}-recovered`,
    });
  }
  const { keep } = input.identity;
  const twin = keep ? others.find(({ uuid }) => uuid === input.machine.id) : undefined;
  if (twin === undefined) return;
  const what = `${twin.name} has the UUID of the backup (${twin.uuid}), which is to be kept`;
  throw new RouseError('already-exists', what, {
    advice: `Leave --identity keep out, or take ${twin.name} out of the inventory first.`,
  });
}

function nameTaken(
  inventory: Inventory,
  input: RecoveryInput,
  ours: string | undefined,
): RouseError | undefined {
  try {
    refuseTakenName(inventory, input, ours);
    return undefined;
  } catch (error) {
    if (isRouseError(error, 'already-exists')) return error;
    throw error;
  }
}
