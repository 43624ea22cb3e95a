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
  input: Pick<RecoveryInput, 'name' | 'mode'>,
  ours: string | undefined,
): void {
  // No machine of that name is made.
  if (input.mode === 'flr') return;
  const other = inventory.machines.find(({ name }) => name === input.name);
  if (other === undefined || other.id === ours) return;
  throw new RouseError('already-exists', `a machine named ${input.name} exists (${other.uuid})`, {
    advice: `Choose another name: --name ${input.name}-recovered`,
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
